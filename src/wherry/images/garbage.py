"""Garbage: blobs and layers that no image, no lease and no container needs.

Chosen and removed under the leases' guard, so that work beginning meanwhile either finds a thing and keeps it, or does
not find it. Layers a container stands on stay even when their image is gone.
"""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from wherry.aio import finish, settle
from wherry.digest import ChainID, Digest
from wherry.errors import NotFound
from wherry.images.deps import Deps
from wherry.images.leases import Lease
from wherry.images.store import Image

log = logging.getLogger(__name__)

EXTRACTION = "layer-"  # beginning of the keys of snapshots in which layers are being unpacked


@dataclass(frozen=True, slots=True)
class Removed:
    digests: list[Digest]
    chains: list[ChainID]  # top first
    bytes: int  # of the removed blobs, on disk


async def collect(deps: Deps, *, digests: Iterable[Digest], chains: Iterable[ChainID]) -> Removed:
    """Remove those of the candidates that nothing needs."""
    return await finish(_collect(deps, set(digests), list(chains)))


async def collect_all(deps: Deps) -> Removed:
    """Remove everything that nothing needs."""
    return await finish(_collect(deps, None, None))


async def release(deps: Deps, chain: ChainID | None) -> None:
    """After a writable snapshot on `chain` was removed: its layers go too when their image did meanwhile."""
    if chain is None or any(image.chain == chain for image in deps.store.all()):
        return
    chains = await settle(_stack, deps, chain)
    await collect(deps, digests=(), chains=chains)


def _stack(deps: Deps, chain: ChainID) -> list[ChainID]:
    found: list[ChainID] = []
    below: ChainID | None = chain
    while below is not None:
        try:
            parent = deps.snapshots.parent(below)
        except NotFound:
            break
        found.append(below)
        below = parent
    return found


async def _collect(deps: Deps, digests: set[Digest] | None, chains: list[ChainID] | None) -> Removed:
    async with deps.leases.guard:
        live_digests, live_chains = deps.store.live()
        leased_digests, leased_chains = deps.leases.protected()
        keep_digests, keep_chains = live_digests | leased_digests, live_chains | leased_chains
        for root in deps.roots:
            digests_of_root, chains_of_root = root()
            keep_digests |= digests_of_root
            keep_chains |= chains_of_root
        return await settle(_sweep, deps, digests, chains, keep_digests, keep_chains)


def _sweep(
    deps: Deps,
    digests: set[Digest] | None,
    chains: list[ChainID] | None,
    keep_digests: set[Digest],
    keep_chains: set[ChainID],
) -> Removed:
    candidates = list(deps.snapshots.chains()) if chains is None else [c for c in chains if deps.snapshots.has(c)]
    dead: list[ChainID] = []
    if not keep_chains.issuperset(candidates):
        kept = _with_ancestors(deps, keep_chains | _mounted(deps))
        dead = _top_first(deps, [chain for chain in candidates if chain not in kept])
        for chain in dead:
            deps.snapshots.remove_layer(chain)
    freed = 0
    gone: list[Digest] = []
    for blob in list(deps.content.walk()) if digests is None else digests:
        if blob in keep_digests:
            continue
        try:
            freed += deps.content.size(blob)
        except NotFound:
            continue
        deps.content.delete(blob)
        gone.append(blob)
    return Removed(gone, dead, freed)


def _mounted(deps: Deps) -> set[ChainID]:
    """The layers on which writable snapshots stand."""
    found: set[ChainID] = set()
    for key in list(deps.snapshots.keys()):
        try:
            parent = deps.snapshots.parent_of_key(key)
        except NotFound:  # removed meanwhile
            continue
        if parent is not None:
            found.add(parent)
    return found


def _with_ancestors(deps: Deps, chains: set[ChainID]) -> set[ChainID]:
    found: set[ChainID] = set()
    for chain in chains:
        below: ChainID | None = chain
        while below is not None and below not in found:
            found.add(below)
            try:
                below = deps.snapshots.parent(below)
            except NotFound:  # leased, and not made yet
                break
    return found


def _top_first(deps: Deps, chains: list[ChainID]) -> list[ChainID]:
    def depth(chain: ChainID) -> int:
        steps, below = 0, deps.snapshots.parent(chain)
        while below is not None:
            steps, below = steps + 1, deps.snapshots.parent(below)
        return steps

    return sorted(dict.fromkeys(chains), key=depth, reverse=True)


@asynccontextmanager
async def leased(deps: Deps, purpose: str) -> AsyncIterator[Lease]:
    """A lease for making something; in the end what it protected and no image came to need is removed."""
    async with deps.leases.hold(purpose) as lease:
        try:
            yield lease
        finally:
            digests, chains = set(lease.digests), list(lease.chains)
            lease.digests.clear()
            lease.chains.clear()
            try:
                await collect(deps, digests=digests, chains=chains)
            except Exception:  # never over the first error; the next start sweeps
                log.exception("cannot remove what is left of: %s", purpose)


@asynccontextmanager
async def pinned(deps: Deps, name: str, *, platform: str | None = None) -> AsyncIterator[Image]:
    """The image called `name`, whose layers stay during the block even when it is removed meanwhile.

    For those who put a snapshot on it: once the snapshot is there, that keeps the layers. Raises as `store.get`.
    """
    with deps.leases.pin() as lease:
        while True:
            image = deps.store.get(name, platform=platform)
            await lease.protect(chains=[layer.chain for layer in image.layers])
            if deps.store.find(image.id) is not None:
                break
        yield image
