"""Packing ahead: while later steps run, the layers of earlier ones become the blobs that the export will want."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from wherry.aio import settle
from wherry.builder.export import settings
from wherry.builder.export.seal import Form, seal
from wherry.builder.graph import Vertex
from wherry.builder.options import Export
from wherry.builder.trees import Tree
from wherry.errors import WherryError
from wherry.images.deps import Deps
from wherry.images.leases import Lease

log = logging.getLogger(__name__)

_PACKED = ("image", "moby", "docker", "oci")
LARGE = 1 << 20  # bytes of files from which on they begin to go to the disk at once


class Ahead:
    """Of one build. What fails here fails again in the export, which says so."""

    def __init__(self, deps: Deps, lease: Lease, exports: Sequence[Export]) -> None:
        self._deps, self._lease = deps, lease
        self._wanted: set[int] = set()  # addresses of vertices, which the build keeps alive
        self._tasks: set[asyncio.Task[None]] = set()
        self._form: Form | None = None
        for each in exports:
            if each.type in _PACKED and self._form is None:
                found = settings.parse(each.attributes)
                self._form = Form(kind=found.compression, level=found.level, force=found.force)

    def want(self, vertices: Iterable[Vertex]) -> None:
        """Their layers will be part of what is exported."""
        if self._form is not None:
            self._wanted.update(map(id, vertices))

    def made(self, vertex: Vertex, tree: Tree) -> None:
        """A step is through."""
        if id(vertex) in self._wanted and self._form is not None and tree.layers:
            task = asyncio.get_running_loop().create_task(self._pack(tree, self._form))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pack(self, tree: Tree, form: Form) -> None:
        layer = tree.layers[-1]
        try:
            await seal(self._deps, self._lease, Tree((layer,)), form)
            if layer.size > LARGE:
                await settle(self._deps.snapshots.sync)
        except WherryError as exc:
            log.debug("layer %s is not packed ahead: %s", layer.diff_id, exc.message)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
