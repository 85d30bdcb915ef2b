"""What the resolver asks before it forwards a question, and before it hands on the answer."""

from collections.abc import Sequence
from typing import Protocol


class Gate(Protocol):
    """The egress policy of one container. See `egress/`."""

    @property
    def bound(self) -> bool:
        """Whether there is a policy now; otherwise nothing else is asked."""

    def allows(self, name: str) -> bool:
        """Whether other servers may be asked for `name`; a refusal is reported."""

    async def admit(self, name: str, addresses: Sequence[tuple[str, int]]) -> bool:
        """Open the way to addresses (with TTL) of an allowed name. False when one of them is not to be reached."""
