"""Garbage collection, while the registry serves: manifests nobody names, blobs nothing needs, and then their bytes.

    untagged manifests (when asked)   no tag, no index and no subject leads to them, and they are older than `grace`
    blobs                             no manifest of their repository came to need them within `grace`
    bytes                             no repository names them

Whoever pushes has `grace` to name what was uploaded. Safe beside everything else; see `FolderStore.sweep`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wherry.digest import Digest
from wherry.registry import catalog
from wherry.registry.catalog import Repository
from wherry.registry.folder import FolderStore

GRACE = 24 * 3600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    manifests: int  # that were forgotten
    blobs: int  # likewise
    files: int = 0  # that were deleted
    bytes: int = 0  # that became free


@dataclass(frozen=True, slots=True)
class Doomed:
    """What goes of one repository."""

    manifests: Sequence[Digest]
    blobs: Sequence[Digest]


def choose(repository: Repository, *, before: int, delete_untagged: bool) -> Doomed:
    """What nothing leads to, and was pushed before `before` (ns since the epoch). Pure."""
    dead = _untagged(repository, before) if delete_untagged else []
    kept = repository.manifests.keys() - dead
    needed = {digest for each in kept for digest in repository.manifests[each].blobs}
    idle = [d for d, blob in repository.blobs.items() if d not in needed and blob.pushed < before]
    return Doomed(dead, idle)


def _untagged(repository: Repository, before: int) -> list[Digest]:
    manifests = repository.manifests
    reached: set[Digest] = set()
    ways = [tag.digest for tag in repository.tags.values()]
    ways += [digest for digest, named in manifests.items() if named.pushed >= before]
    while ways:
        digest = ways.pop()
        if digest in reached:
            continue
        reached.add(digest)
        if digest in manifests:
            ways += manifests[digest].children
        ways += repository.referrers.get(digest, ())  # signatures and the like live as long as what they are about
    return [digest for digest in manifests if digest not in reached]


async def forget(store: FolderStore, *, delete_untagged: bool = False, grace: float = GRACE) -> Collected:
    """Drop the rows of what nothing leads to; the bytes stay until a sweep."""
    before = store.now() - int(grace * 1e9)
    manifests = blobs = 0
    for name in [name for name, _ in store.catalog]:
        async with store.editing(name):
            if (repository := store.catalog.find(name)) is None:
                continue
            doomed = choose(repository, before=before, delete_untagged=delete_untagged)
            if doomed.manifests or doomed.blobs:
                await store.write(
                    *(catalog.drop_manifest(name, digest) for digest in doomed.manifests),
                    *(catalog.drop_blob(name, digest) for digest in doomed.blobs),
                )
        manifests += len(doomed.manifests)
        blobs += len(doomed.blobs)
    return Collected(manifests=manifests, blobs=blobs)


async def collect(store: FolderStore, *, delete_untagged: bool = False, grace: float = GRACE) -> Collected:
    """Forget, then delete. Only for a store whose content nobody else uses."""
    forgotten = await forget(store, delete_untagged=delete_untagged, grace=grace)
    files, size = await store.sweep()
    return Collected(manifests=forgotten.manifests, blobs=forgotten.blobs, files=files, bytes=size)


def preview(store: FolderStore, *, delete_untagged: bool = False, grace: float = GRACE) -> Collected:
    """What `collect` would do now, and change nothing."""
    before = store.now() - int(grace * 1e9)
    sizes: dict[Digest, int] = {}
    kept: set[Digest] = set()
    manifests = blobs = 0
    for _, repository in store.catalog:
        doomed = choose(repository, before=before, delete_untagged=delete_untagged)
        manifests += len(doomed.manifests)
        blobs += len(doomed.blobs)
        sizes |= {digest: repository.manifests[digest].size for digest in doomed.manifests}
        sizes |= {digest: repository.blobs[digest].size for digest in doomed.blobs}
        kept |= repository.manifests.keys() - doomed.manifests | (repository.blobs.keys() - doomed.blobs)
    free = {digest: size for digest, size in sizes.items() if digest not in kept}
    return Collected(manifests=manifests, blobs=blobs, files=len(free), bytes=sum(free.values()))
