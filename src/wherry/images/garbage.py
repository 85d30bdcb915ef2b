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
from wherry.errors import Corrupt, NotFound
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


async def look(deps: Deps) -> Removed:
    """What `collect_all` would remove."""
    return await finish(_collect(deps, None, None, remove=False))


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
        except (NotFound, Corrupt):  # damaged: left to the store check
            break
        found.append(below)
        below = parent
    return found


async def _collect(
    deps: Deps, digests: Iterable[Digest] | None, chains: Iterable[ChainID] | None, *, remove: bool = True
) -> Removed:
    """Of the candidates (None: of all) what nothing needs; with them, documents that lost a name.

    Candidates are listed first, and what is needed is asked afterwards: whoever stores something says so before it can
    be seen.
    """
    async with deps.leases.guard:
        let_go = deps.store.let_go() if remove else set()
        blobs = await settle(lambda: list(deps.content.walk())) if digests is None else list({*digests, *let_go})
        layers = await settle(lambda: list(deps.snapshots.chains())) if chains is None else list(chains)
        keep_digests, keep_chains = deps.store.live()
        for needed_digests, needed_chains in (deps.leases.protected(), *(root() for root in deps.roots)):
            keep_digests |= needed_digests
            keep_chains |= needed_chains
        blobs = [blob for blob in blobs if blob not in keep_digests]
        return await settle(_sweep, deps, blobs, layers, keep_chains, remove=remove)


def _sweep(deps: Deps, blobs: list[Digest], layers: list[ChainID], keep: set[ChainID], *, remove: bool) -> Removed:
    dead = _dead_layers(deps, layers, keep)
    freed = 0
    gone: list[Digest] = []
    for chain in dead if remove else ():
        deps.snapshots.remove_layer(chain)
    for blob in blobs:
        try:
            size = deps.content.size(blob)
        except NotFound:
            continue
        if remove:
            wanted = not deps.content.delete(blob, unless=deps.leases.holds)
        else:
            wanted = deps.leases.holds(blob)
        if not wanted:  # else it is being stored anew at this moment
            freed += size
            gone.append(blob)
    return Removed(gone, dead, freed)


def _dead_layers(deps: Deps, candidates: list[ChainID], keep: set[ChainID]) -> list[ChainID]:
    """Those nothing stands on, top first; none when a damaged layer no longer tells what it stands on."""
    if keep.issuperset(candidates):
        return []
    there = set(deps.snapshots.chains())
    candidates = [chain for chain in candidates if chain in there]
    try:
        kept = _with_ancestors(deps, keep | _mounted(deps), there)
        return _top_first(deps, [chain for chain in candidates if chain not in kept])
    except Corrupt as exc:
        log.error("layers that nothing needs are left where they are: %s", exc.message)
        return []


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


def _with_ancestors(deps: Deps, chains: set[ChainID], there: set[ChainID]) -> set[ChainID]:
    """Raises Corrupt when one of `chains` that is `there` does not tell its parent."""
    found: set[ChainID] = set()
    for chain in chains:
        below: ChainID | None = chain
        while below is not None and below not in found:
            found.add(below)
            below = _parent(deps, below) if below in there else None  # a leased one may not be made yet
    return found


def _top_first(deps: Deps, chains: list[ChainID]) -> list[ChainID]:
    """Those that tell no parent come first: nothing is known to stand on what they stood on."""
    unknown = 1 << 30

    def depth(chain: ChainID) -> int:
        steps, below = 0, chain
        while (parent := deps.snapshots.parent(below)) is not None:
            steps, below = steps + 1, parent
        return steps

    def order(chain: ChainID) -> int:
        try:
            return depth(chain)
        except (NotFound, Corrupt):
            return unknown

    return sorted(dict.fromkeys(chains), key=order, reverse=True)


def _parent(deps: Deps, chain: ChainID) -> ChainID | None:
    try:
        return deps.snapshots.parent(chain)
    except NotFound:
        raise Corrupt(f"layer {chain} lost the note of what it stands on: run `wherry system check --repair`") from None


@asynccontextmanager
async def leased(deps: Deps, purpose: str) -> AsyncIterator[Lease]:
    """A lease for making something; in the end what it protected and no image came to need is removed."""
    async with deps.leases.hold(purpose) as lease:
        try:
            yield lease
        finally:
            await _let_go(deps, lease, purpose)


@asynccontextmanager
async def held(deps: Deps, purpose: str) -> AsyncIterator[Lease]:
    """A lease for looking at something, without a row; what was removed meanwhile goes in the end."""
    with deps.leases.pin() as lease:
        try:
            yield lease
        finally:
            await _let_go(deps, lease, purpose)


async def _let_go(deps: Deps, lease: Lease, purpose: str) -> None:
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

    For those who put a snapshot on it: once the snapshot is there, that keeps the layers. Raises as `store.get`, and
    Corrupt when a layer is missing on disk.
    """
    with deps.leases.pin() as lease:
        while True:
            image = deps.store.get(name, platform=platform)
            await lease.protect(chains=[layer.chain for layer in image.layers])
            if deps.store.find(image.id) is not None:
                break
        missing = await settle(_missing, deps, image)
        if missing is not None:
            raise Corrupt(
                f"layer {missing} of image {image.name} is missing on disk: run `wherry system check --repair`"
            )
        try:
            yield image
        finally:
            if deps.store.find(image.id) is None:  # removed in the meantime, while this kept its layers
                await _let_go(deps, lease, f"image {image.id}")


def _missing(deps: Deps, image: Image) -> ChainID | None:
    return next((layer.chain for layer in image.layers if not deps.snapshots.has(layer.chain)), None)
