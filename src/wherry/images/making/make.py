"""Making images here: what import, commit and bootstrap have in common.

Layers made here are kept gzipped (under two seconds for 400 MB). Kept plain they would save that second and cost three
times the space, and every push or save would have to compress them, with a digest that depends on who did it.
"""

import time
from collections.abc import Callable, Sequence

from wherry.aio import settle
from wherry.digest import ChainID, DiffID, Digest, of
from wherry.errors import Unavailable
from wherry.images.deps import Deps
from wherry.images.layers import unpack
from wherry.images.leases import Lease
from wherry.images.record import Image, ImageID, Layer
from wherry.reference import Reference
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    Descriptor,
    History,
    Platform,
    decode_config,
    encode_config,
    encode_manifest,
    format_time,
    oci_layer_type,
)
from wherry.storage.compression import Compression, compressor
from wherry.storage.content import ContentStore

Out = Callable[[bytes], object]


def now() -> str:
    """The present moment as images have it."""
    return format_time(time.time_ns())


async def keep(deps: Deps, lease: Lease, digest: Digest) -> None:
    """Protect a blob whose digest was not known before it was stored. Raises Unavailable if it was swept meanwhile."""
    await lease.protect(digests=[digest])
    if not await settle(deps.content.has, digest):
        raise Unavailable(f"blob {digest} was removed while it was made: try again")


async def add_layer(deps: Deps, lease: Lease, write: Callable[[Out], object], *, parent: ChainID | None) -> Layer:
    """A layer of the tar that `write` (blocking, in a thread) gives to its argument piece by piece."""
    blob = await settle(_pack, deps.content, lease, write)
    await keep(deps, lease, blob.digest)
    return await unpack(deps, lease, blob, parent=parent, diff_id=None)


def _pack(content: ContentStore, lease: Lease, write: Callable[[Out], object]) -> Descriptor:
    packer = compressor(Compression.GZIP)
    ingest = content.ingest_new("the new layer")
    try:
        write(lambda data: ingest.write(packer.compress(data)))
        ingest.write(packer.flush())
        size = ingest.offset
        lease.note(ingest.digest)
        digest = ingest.commit(None)
    finally:
        ingest.abort()
    return Descriptor(media_type=OCI_LAYER_GZIP, digest=digest, size=size)


async def add_image(
    deps: Deps,
    lease: Lease,
    *,
    layers: Sequence[Layer],
    config: ContainerConfig,
    platform: Platform,
    history: Sequence[History],
    author: str = "",
    parent: str = "",
    references: Sequence[Reference] = (),
) -> Image:
    """Config and manifest into the content store, the image and its names into the image store."""
    diff_ids: list[DiffID] = [layer.diff_id for layer in layers]
    raw = encode_config(
        config=config, platform=platform, diff_ids=diff_ids, history=history, created=now(), author=author
    )
    descriptor = Descriptor(media_type=OCI_CONFIG, digest=of(raw), size=len(raw))
    blobs = [
        Descriptor(media_type=oci_layer_type(layer.media_type), digest=layer.digest, size=layer.size)
        for layer in layers
    ]
    manifest = encode_manifest(descriptor, blobs)
    held = frozenset({descriptor.digest, manifest.digest, *(blob.digest for blob in blobs)})
    await lease.protect(digests=held)
    await settle(deps.content.write, raw)
    await settle(deps.content.write, manifest.data)
    image = Image(
        id=ImageID(descriptor.digest),
        config=decode_config(raw),
        manifests=(manifest.descriptor,),
        layers=tuple(layers),
        blobs=held,
        parent=parent,
    )
    return await deps.store.put(image, references=references)
