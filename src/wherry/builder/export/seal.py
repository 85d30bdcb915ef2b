"""Layers of results become blobs: packed and compressed into the content store, each once.

A layer of an image keeps the blob it came as. One made here is packed from its snapshot, always to the same bytes, and
its blob is found again: table `build_blobs`, key the diffID, value a list of descriptors, one for each compression.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from wherry.aio import finish, settle
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import DiffID, Digest
from wherry.errors import Corrupt, NotFound, Unavailable, first_of
from wherry.images.deps import Deps
from wherry.images.layers import unpacked_size
from wherry.images.leases import Lease
from wherry.images.making.convert import compression_of
from wherry.images.making.make import keep
from wherry.images.record import Layer
from wherry.spec.image import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Descriptor, oci_layer_type
from wherry.state import Delete, Put
from wherry.storage.compression import Compression, Limits, compressor, decompress, pieces
from wherry.storage.diff import write_layer

TABLE = "build_blobs"
TYPES = {Compression.NONE: OCI_LAYER, Compression.GZIP: OCI_LAYER_GZIP, Compression.ZSTD: OCI_LAYER_ZSTD}

Out = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How layers are to be compressed."""

    kind: Compression = Compression.GZIP
    level: int | None = None  # None: the usual one, whose blobs are found again
    force: bool = False  # also those that have a blob


async def seal(deps: Deps, lease: Lease, tree: Tree, form: Form) -> list[Layer]:
    """The layers of `tree`, base first, with blobs that are in the content store and protected by `lease`.

    The layers are committed, and the blobs of those that have one are held. Raises Corrupt when a layer on disk is not
    what its name says.
    """
    try:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(_seal(deps, lease, layer, form)) for layer in tree.layers]
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    return [each.result() for each in work]


async def _seal(deps: Deps, lease: Lease, layer: TreeLayer, form: Form) -> Layer:
    async with deps.locks(("seal", layer.diff_id, form.kind, form.level)):
        blob = await _found(deps, lease, layer, form) or await _made(deps, lease, layer, form)
    size = layer.size if layer.size >= 0 else await unpacked_size(deps, layer.chain)
    return Layer(
        chain=layer.chain,
        diff_id=layer.diff_id,
        digest=blob.digest,
        media_type=oci_layer_type(blob.media_type),
        size=blob.size,
        unpacked=size,
    )


async def _found(deps: Deps, lease: Lease, layer: TreeLayer, form: Form) -> Descriptor | None:
    """A blob of the layer that is here: the one it came as, whatever its compression, or one as wanted."""
    for blob in await _known(deps, layer):
        as_it_came = layer.blob is not None and blob.digest == layer.blob.digest and not form.force
        if not as_it_came and (compression_of(blob) is not form.kind or form.level is not None):
            continue
        await lease.protect(digests=[blob.digest])
        if await settle(deps.content.has, blob.digest):
            return blob
    return None


async def _known(deps: Deps, layer: TreeLayer) -> list[Descriptor]:
    """Blobs the layer is said to have: its own, those made here, those of images."""
    ours = await settle(_recorded, deps, layer.diff_id)
    held = [
        Descriptor(media_type=each.media_type, digest=each.digest, size=each.size)
        for image in deps.store.all()
        for each in image.layers
        if each.diff_id == layer.diff_id
    ]
    return [*([layer.blob] if layer.blob else []), *ours, *held]


def _recorded(deps: Deps, diff_id: DiffID) -> list[Descriptor]:
    raw = deps.state.row(TABLE, diff_id)
    return msgspec.json.decode(raw, type=list[Descriptor]) if raw else []


def _record(deps: Deps, diff_id: DiffID, blob: Descriptor) -> None:
    others = [each for each in _recorded(deps, diff_id) if each.media_type != blob.media_type]
    deps.state.write(Put(TABLE, diff_id, msgspec.json.encode([*others, blob])))


def forget_lost(deps: Deps) -> None:
    """At start: drop rows of blobs that were removed since (blocking)."""
    lost = [
        Delete(TABLE, diff_id)
        for diff_id, raw in deps.state.rows(TABLE).items()
        if not any(deps.content.has(blob.digest) for blob in msgspec.json.decode(raw, type=list[Descriptor]))
    ]
    if lost:
        deps.state.write(*lost)


async def _made(deps: Deps, lease: Lease, layer: TreeLayer, form: Form) -> Descriptor:
    known = await _known(deps, layer)
    await lease.protect(digests=[blob.digest for blob in known])
    held = [blob for blob in known if await settle(deps.content.has, blob.digest)]
    write = _unpacked(deps, held[0]) if held else _packed(deps, layer)
    async with deps.extractions:
        blob = await _stoppable(lambda stop: _pack(deps, lease, layer, form, write, stop))
    await keep(deps, lease, blob.digest)
    if form.level is None:
        await settle(_record, deps, layer.diff_id, blob)
    return blob


def _packed(deps: Deps, layer: TreeLayer) -> Callable[[Out], None]:
    """Writes the layer as it is on disk."""

    def write(out: Out) -> None:
        write_layer(deps.snapshots, layer.chain, out)

    return write


def _unpacked(deps: Deps, blob: Descriptor) -> Callable[[Out], None]:
    """Writes what is in a blob: of a layer that was not made here only that is the same tar."""

    def write(out: Out) -> None:
        consumed = 0
        with deps.content.open(blob.digest) as file:

            def read(size: int) -> bytes:
                nonlocal consumed
                data = file.read(size)
                consumed += len(data)
                return data

            for piece in pieces(decompress(read, what=f"layer {blob.digest}"), Limits(), lambda: consumed):
                out(piece)

    return write


def _pack(
    deps: Deps,
    lease: Lease,
    layer: TreeLayer,
    form: Form,
    write: Callable[[Out], None],
    stop: threading.Event,
) -> Descriptor:
    packer = compressor(form.kind, form.level)
    plain = hashlib.sha256()
    with deps.content.ingest_new(f"layer {layer.diff_id}") as ingest:

        def out(data: bytes) -> None:
            if stop.is_set():
                raise Unavailable("packing a layer was cancelled")
            plain.update(data)
            ingest.write(packer.compress(data))

        try:
            write(out)
        except NotFound as exc:
            raise Corrupt(
                f"layer {layer.chain} is missing on disk: run `wherry system check --repair`, or build with --no-cache"
            ) from exc
        ingest.write(packer.flush())
        if (found := f"sha256:{plain.hexdigest()}") != layer.diff_id:
            raise Corrupt(
                f"layer {layer.chain} was changed on disk: its content is {found}, it was made as {layer.diff_id}; "
                "build with --no-cache"
            )
        size = ingest.offset
        lease.note(ingest.digest)
        digest: Digest = ingest.commit(None)
    return Descriptor(media_type=TYPES[form.kind], digest=digest, size=size)


async def _stoppable(call: Callable[[threading.Event], Descriptor]) -> Descriptor:
    """`call` in a thread; a cancellation sets the event that it is given, and waits for its end."""
    stop = threading.Event()
    work = asyncio.ensure_future(settle(call, stop))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await finish(_ended(work))
        raise


async def _ended(work: "asyncio.Future[Descriptor]") -> None:
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # retrieved; what counts is that it was cancelled


def as_descriptors(layers: Sequence[Layer]) -> list[Descriptor]:
    """As a manifest names them."""
    return [Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size) for layer in layers]
