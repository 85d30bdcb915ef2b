"""Disk usage: which bytes of an image are its own, which it shares, and what all images take together.

`Size` counts what is in the unpacked layers, as in Docker. The blobs they came as are on disk besides, and are told
apart: `ContentSize` of `GET /system/df`, `Size.Content` of a manifest.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from wherry.aio import settle
from wherry.digest import ChainID
from wherry.errors import NotFound
from wherry.images.deps import Deps
from wherry.images.views.rows import Row, list_rows


class Sharing:
    """How many rows have each layer. Images in between do not count: their layers are those of their children."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._counts = Counter(chain for row in rows for chain in row.layers)
        self._counted = {row.image.id for row in rows}

    def size(self, row: Row) -> int:
        """Bytes of the row's layers that another row has, too."""
        mine = 1 if row.image.id in self._counted else 0
        return sum(layer.unpacked for chain, layer in row.layers.items() if self._counts[chain] > mine)


def sharing(deps: Deps) -> Sharing:
    return Sharing(list_rows(deps.store))


async def layers_size(deps: Deps) -> int:
    """Bytes of all unpacked layers, each counted once; those that only containers still stand on included."""
    known = {layer.chain: layer.unpacked for image in deps.store.all() for layer in image.layers}
    return sum(known.values()) + await settle(_orphans, deps, known.keys())


def _orphans(deps: Deps, known: Collection[ChainID]) -> int:
    size = 0
    for chain in list(deps.snapshots.chains()):
        if chain in known:
            continue
        try:
            size += deps.snapshots.usage(chain).bytes
        except NotFound:  # removed meanwhile
            continue
    return size


async def content_size(deps: Deps) -> int:
    """Bytes of all blobs: manifests, configs, and layers as they came."""
    return await settle(_blobs, deps)


def _blobs(deps: Deps) -> int:
    size = 0
    for blob in list(deps.content.walk()):
        try:
            size += deps.content.size(blob)
        except NotFound:
            continue
    return size
