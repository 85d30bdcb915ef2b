"""After a start: nothing of what a dead daemon was in the middle of is kept."""

import logging
from pathlib import Path

from wherry.aio import settle
from wherry.images.deps import Deps
from wherry.images.garbage import EXTRACTION, collect_all
from wherry.storage.tree import remove_tree

log = logging.getLogger(__name__)


async def recover(deps: Deps) -> None:
    """Drop ingests, half extractions, leases and scratch files, then all blobs and layers that nothing needs.

    Called once, before any verb, when the writable snapshots of all known containers are in place. When an image's row
    could not be read nothing is swept: what looks like garbage may be that image.
    """
    await settle(_drop_halves, deps)
    if not deps.store.complete:
        log.warning("unreadable images: looking for garbage is left out")
        return
    removed = await collect_all(deps)
    if removed.digests or removed.chains:
        log.info("removed %d blobs and %d layers nothing needs", len(removed.digests), len(removed.chains))


def _drop_halves(deps: Deps) -> None:
    deps.content.recover()
    deps.snapshots.recover()
    for key in list(deps.snapshots.keys()):
        if key.startswith(EXTRACTION):
            deps.snapshots.remove(key)
    _empty(deps.work)
    deps.leases.forget(deps.leases.left_over())


def _empty(work: Path) -> None:
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in work.iterdir():
        try:
            remove_tree(path)
        except OSError as exc:
            log.warning("cannot remove %s: %s", path, exc)
