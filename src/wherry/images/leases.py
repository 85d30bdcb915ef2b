"""Leases: what a pull, load, import or commit in flight needs is not garbage, though no image names it yet.

A lease's row in state table `leases` is written before the first effect and removed after the last. What it protects
is only in memory: after a crash nothing of the interrupted work is wanted, and a row left over says that there is
garbage to look for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from wherry import ids
from wherry.aio import settle
from wherry.digest import ChainID, Digest
from wherry.state import Delete, Put, State

log = logging.getLogger(__name__)


class Lease:
    """What one piece of work holds on to. Add before you look whether the thing is there."""

    def __init__(self, guard: asyncio.Lock) -> None:
        self._guard = guard
        self.digests: set[Digest] = set()
        self.chains: set[ChainID] = set()

    async def protect(self, *, digests: Iterable[Digest] = (), chains: Iterable[ChainID] = ()) -> None:
        """From now on these are not removed. Waits for a removal under way, so that what is seen afterwards stays."""
        async with self._guard:
            self.digests.update(digests)
            self.chains.update(chains)

    def note(self, digest: Digest) -> None:
        """`protect` for threads, before a blob is stored or looked for: from now on it is not removed."""
        self.digests.add(digest)


class Leases:
    def __init__(self, state: State) -> None:
        self._state = state
        self._open: dict[str, Lease] = {}
        self.guard = asyncio.Lock()  # held while garbage is chosen and removed

    @asynccontextmanager
    async def hold(self, purpose: str) -> AsyncIterator[Lease]:
        """A lease for the time of the block; `purpose` is for the reader of a crashed daemon's state."""
        key = ids.generate()
        lease = self._open[key] = Lease(self.guard)
        try:
            await settle(self._state.write, Put("leases", key, msgspec.json.encode({"purpose": purpose})))
            yield lease
        finally:
            del self._open[key]
            try:
                await settle(self._state.write, Delete("leases", key))
            except Exception:
                log.exception("lease %s of %s stays until the next start", key, purpose)

    @contextmanager
    def pin(self) -> Iterator[Lease]:
        """A lease without a row, for work that leaves no garbage when the daemon dies in it."""
        key = ids.generate()
        lease = self._open[key] = Lease(self.guard)
        try:
            yield lease
        finally:
            del self._open[key]

    @property
    def idle(self) -> bool:
        """Nobody is making or using anything under a lease at this moment."""
        return not self._open

    def holds(self, digest: Digest) -> bool:
        """Some lease does; may be asked from any thread."""
        return any(digest in lease.digests for lease in list(self._open.values()))

    def protected(self) -> tuple[set[Digest], set[ChainID]]:
        """The union of all leases."""
        digests: set[Digest] = set()
        chains: set[ChainID] = set()
        for lease in self._open.values():
            digests |= lease.digests
            chains |= lease.chains
        return digests, chains

    def left_over(self) -> list[str]:
        """Keys of rows no lease of this process owns: the last daemon died amid that work (blocking)."""
        return [key for key in self._state.rows("leases") if key not in self._open]

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows of the dead (blocking)."""
        if changes := [Delete("leases", key) for key in keys]:
            self._state.write(*changes)
