"""A snapshot that a step has written to becomes a layer, with a name that depends on its content alone."""

import contextlib

from wherry.aio import settle
from wherry.builder.deps import Deps
from wherry.builder.files.times import settle_times
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import DiffID, extend_chain
from wherry.images.leases import Lease
from wherry.kernel.mount import detached
from wherry.storage.diff import write_diff


async def seal(deps: Deps, lease: Lease, key: str, parent: Tree, *, epoch: int, created_by: str) -> Tree:
    """`parent` and the layer of what snapshot `key` changed on it. What is younger than `epoch` (ns) gets its time.

    The layer is on disk for sure only after `Snapshotter.sync`. On failure the snapshot is left to the caller.
    """
    diff_id, size = await settle(_measure, deps, key, epoch)
    chain = extend_chain(parent.chain, diff_id)
    await lease.protect(chains=[chain])
    async with deps.images.locks(("chain", chain)):
        await settle(deps.snapshots.commit, key, chain, durable=False)
    layer = TreeLayer(chain=chain, diff_id=diff_id, size=size, created_by=created_by)
    return Tree((*parent.layers, layer))


def _measure(deps: Deps, key: str, epoch: int) -> tuple[DiffID, int]:
    snapshots = deps.snapshots
    parent = snapshots.parent_of_key(key)
    with contextlib.ExitStack() as opened:
        below = None
        if parent is not None:  # what was only copied up keeps its time
            below = opened.enter_context(detached(snapshots.view(parent)))
        settle_times(snapshots.upper(key), epoch, snapshots.whiteouts, below=below)
    written = write_diff(snapshots, key, lambda data: None)
    return written.diff_id, snapshots.usage(key).bytes
