"""What the engine's registry told a client to be there stays for a while, whatever is removed in the engine meanwhile.

Who pushes asks for each blob, sends what is missing, then manifests by digest, and the index or tag that gives them a
name at last. In between nothing but a promise tells that they are wanted: kept in memory, for who pushes begins anew
when the daemon did.
"""

import time
from collections.abc import Callable

from wherry.digest import Digest

LIFE = 600.0  # seconds


class Promises:
    """Of blobs and manifests, by repository."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[tuple[str, Digest], float] = {}  # the oldest first

    def make(self, repository: str, digest: Digest) -> None:
        """Once more: it lasts longer."""
        self._expire()
        self._until.pop((repository, digest), None)
        self._until[repository, digest] = self._clock() + LIFE

    def drop(self, repository: str, *digests: Digest) -> None:
        """They have a name now, or nobody wants them."""
        for digest in digests:
            self._until.pop((repository, digest), None)

    def holds(self, repository: str, digest: Digest) -> bool:
        self._expire()
        return (repository, digest) in self._until

    def digests(self) -> set[Digest]:
        """A root of the engine's garbage collection."""
        self._expire()
        return {digest for _, digest in self._until}

    def _expire(self) -> None:
        now = self._clock()
        while self._until and next(iter(self._until.values())) <= now:
            del self._until[next(iter(self._until))]
