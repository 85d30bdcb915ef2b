"""Layers: from a blob in the content store to a committed snapshot.

Each layer is kept twice on purpose: unpacked, to be mounted, and as the blob it came as, so that save and push send
the very bytes, and with them the digests, that were pulled. Packing anew would give the same files another name.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from wherry.aio import finish, settle
from wherry.digest import ChainID, DiffID, Digest, extend_chain, hex_part
from wherry.errors import Corrupt, Failed, NotSupported
from wherry.images.deps import Deps
from wherry.images.garbage import EXTRACTION
from wherry.images.leases import Lease
from wherry.images.record import Layer
from wherry.spec.image import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_FOREIGN,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
)
from wherry.storage.diff import Abort, Applied, Verified, apply_to, verify_layer

T = TypeVar("T")

KNOWN_TYPES = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        OCI_LAYER_FOREIGN,
        f"{OCI_LAYER_FOREIGN}+gzip",
        f"{OCI_LAYER_FOREIGN}+zstd",
        DOCKER_LAYER,
        DOCKER_LAYER_GZIP,
        DOCKER_LAYER_ZSTD,
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)

log = logging.getLogger(__name__)


def check_type(descriptor: Descriptor) -> None:
    """Raise NotSupported for what is no file system layer (an artifact, an encrypted layer)."""
    if descriptor.media_type not in KNOWN_TYPES:
        raise NotSupported(f"layer {descriptor.digest} has the unsupported media type {descriptor.media_type!r}")


async def unpack(
    deps: Deps,
    lease: Lease,
    blob: Descriptor,
    *,
    parent: ChainID | None,
    diff_id: DiffID | None,
    extracting: Callable[[int], None] | None = None,
) -> Layer:
    """Make the layer of `blob` (which is held) on `parent` (which is committed), unless it is there already.

    `diff_id` is what the image's config says; None for a layer of our own making whose name is not known yet.
    `extracting` gets the bytes of the blob read so far. Raises Corrupt when the content is not what the config says.
    """
    if diff_id is None:
        return await _extract(deps, lease, blob, parent, None, extracting)
    chain = extend_chain(parent, diff_id)
    await lease.protect(chains=[chain])
    async with deps.locks(("chain", chain)):  # the same layer twice at once is done once
        if await settle(deps.snapshots.has, chain):
            await settle(deps.snapshots.sync)  # a build may have made it a moment ago
            return _layer(blob, chain, diff_id, await unpacked_size(deps, chain))
        return await _extract(deps, lease, blob, parent, diff_id, extracting)


async def _extract(
    deps: Deps,
    lease: Lease,
    blob: Descriptor,
    parent: ChainID | None,
    diff_id: DiffID | None,
    extracting: Callable[[int], None] | None,
) -> Layer:
    key = f"{EXTRACTION}{os.urandom(16).hex()}"
    async with deps.extractions:
        try:
            await settle(deps.snapshots.prepare, key, parent)
            found, size = await extract(deps, key, blob, extracting)
            if diff_id is not None and found != diff_id:
                raise Corrupt(
                    f"layer {blob.digest} does not match the image's configuration: its content is {found}, "
                    f"the configuration says {diff_id}"
                )
            chain = extend_chain(parent, found)
            await lease.protect(chains=[chain])
            await settle(deps.snapshots.commit, key, chain)
        except BaseException:
            await settle(deps.snapshots.remove, key)
            raise
    return _layer(blob, chain, found, size)


async def extract(
    deps: Deps, key: str, blob: Descriptor, extracting: Callable[[int], None] | None = None
) -> tuple[DiffID, int]:
    """Extract `blob` into the snapshot `key`, in a confined process that a cancellation stops; (diffID, bytes)."""
    loop = asyncio.get_running_loop()

    def progress(consumed: int) -> None:
        if extracting is not None:
            loop.call_soon_threadsafe(extracting, consumed)

    def apply(file: BinaryIO, abort: Abort) -> Applied:
        return apply_to(deps.snapshots, key, file, media_type=blob.media_type, progress=progress, abort=abort)

    try:
        applied = await _stoppable(deps, blob.digest, apply)
    except Failed as exc:
        raise Failed(f"cannot extract layer {blob.digest}: {exc.message}") from exc
    for warning in applied.warnings:
        log.warning("layer %s: %s", blob.digest, warning)
    return applied.diff_id, applied.size


async def verify(deps: Deps, layer: Layer, *, contents: bool) -> str:
    """Why it is not certain that a committed layer is what its blob makes of it; "" when it is. Nothing is written."""

    def work(file: BinaryIO, abort: Abort) -> Verified:
        return verify_layer(deps.snapshots, layer.chain, file, contents=contents, abort=abort)

    verified = await _stoppable(deps, layer.digest, work)
    return verified.doubt if verified.diff_id == layer.diff_id else f"its blob holds {verified.diff_id}"


async def _stoppable(deps: Deps, blob: Digest, call: Callable[[BinaryIO, Abort], T]) -> T:
    """`call` in a thread, with the open blob; a cancellation stops it."""
    with deps.content.open(blob) as file, Abort() as abort:
        work = asyncio.ensure_future(settle(call, file, abort))
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            abort.set()
            await finish(_ended(work))
            raise
        return work.result()


async def _ended(work: "asyncio.Future[T]") -> None:
    await asyncio.wait({work})
    work.exception()  # retrieved; what counts is that it was cancelled


def _layer(blob: Descriptor, chain: ChainID, diff_id: DiffID, size: int) -> Layer:
    return Layer(
        chain=chain, diff_id=diff_id, digest=blob.digest, media_type=blob.media_type, size=blob.size, unpacked=size
    )


async def unpacked_size(deps: Deps, chain: ChainID) -> int:
    """Bytes of the files in a committed layer: known from an image that has it, else counted."""
    for image in deps.store.all():
        for layer in image.layers:
            if layer.chain == chain:
                return layer.unpacked
    return (await settle(deps.snapshots.usage, chain)).bytes


def short(digest: Digest) -> str:
    """As layers are called on a client's screen."""
    return hex_part(digest)[:12]
