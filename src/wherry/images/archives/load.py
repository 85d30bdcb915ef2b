"""Load: images from an archive, as `docker save`, skopeo, buildx, podman and others write them.

    read (spool.py), while layers are unpacked already (ahead.py) -> which images there are (contents.py)
    -> the rest of the layers -> rows and names

Of an archive that is refused nothing stays: rows are written when everything is unpacked.

A layer that comes as a plain tar is kept as one. Compressing it would cost more than all the rest of a load, and the
manifests of an archive name the layers as they are: their digests would be lost.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress

from wherry.aio import finish, settle
from wherry.digest import Digest
from wherry.errors import Unavailable
from wherry.images.archives.ahead import Unpacking, document_of
from wherry.images.archives.contents import Bundle, Packed, find_images
from wherry.images.archives.spool import LIMITS, Archive, File, Spool, keep
from wherry.images.deps import Deps
from wherry.images.feed import consume
from wherry.images.garbage import leased
from wherry.images.leases import Lease
from wherry.images.progress import Progress
from wherry.images.record import Image, ImageID, Layer
from wherry.spec.image import parse_platform
from wherry.storage.compression import Limits


async def load(
    deps: Deps,
    chunks: AsyncIterator[bytes],
    *,
    quiet: bool = False,
    platforms: Sequence[str] = (),
    progress: Progress,
    limits: Limits = LIMITS,
) -> list[Image]:
    """Load all images of the archive, of those with several platforms all that are there, or only `platforms`.

    Each is there, with its names, when it is reported. Raises InvalidParameter for what is no such archive, naming the
    entry; Corrupt for content that is not what its name says; NotFound when a platform that was asked for is in no
    image.
    """
    wanted = [parse_platform(platform) for platform in platforms]
    async with leased(deps, "load") as lease:
        unpacking = Unpacking(deps, lease, None if quiet else progress, wanted)
        archive = await _read(deps, lease, chunks, unpacking, limits)
        held = {layer.chain: layer for image in deps.store.all() for layer in image.layers}
        bundles = await settle(find_images, archive, deps.content, lease, held=held, wanted=wanted)
        blobs = frozenset().union(*(_blobs(bundle) for bundle in bundles))
        await _hold(deps, lease, archive, blobs)
        layers = {image.config_digest: await _unpack(unpacking, image) for bundle in bundles for image in bundle.images}
        return [image for bundle in bundles for image in await _register(deps, bundle, layers, quiet, progress)]


async def _read(
    deps: Deps, lease: Lease, chunks: AsyncIterator[bytes], unpacking: Unpacking, limits: Limits
) -> Archive:
    """The archive, with layers unpacked on the way as far as that went."""
    loop = asyncio.get_running_loop()

    def arrived(file: File) -> None:
        loop.call_soon_threadsafe(unpacking.arrived, file, document_of(file))

    ahead = asyncio.ensure_future(unpacking.run())
    try:
        archive = await consume(chunks, Spool(deps.content, lease, limits, arrived).read)
        unpacking.close()
        await asyncio.shield(ahead)
    finally:
        ahead.cancel()
        await finish(_ended(ahead))
    return archive


async def _ended(work: "asyncio.Future[None]") -> None:
    await asyncio.wait({work})
    with suppress(asyncio.CancelledError):
        work.exception()  # retrieved: another error was first


def _blobs(bundle: Bundle) -> frozenset[Digest]:
    return bundle.attached.union({bundle.target.digest}, *(image.blobs for image in bundle.images))


async def _hold(deps: Deps, lease: Lease, archive: Archive, blobs: Iterable[Digest]) -> None:
    """All that is needed into the content store, and protected there."""

    def store() -> None:
        for digest in blobs:
            if (file := archive.blobs.get(digest)) is not None:
                keep(deps.content, file)
            if not deps.content.has(digest):  # it was garbage of another removal in the moment before
                raise Unavailable(f"blob {digest} was removed while it was loaded: try again")

    await lease.protect(digests=blobs)
    await settle(store)


async def _unpack(unpacking: Unpacking, image: Packed) -> list[Layer]:
    layers: list[Layer] = []
    for blob, diff_id in zip(image.layers, image.config.rootfs.diff_ids, strict=True):
        layers.append(await unpacking.layer(blob, layers[-1].chain if layers else None, diff_id))
    return layers


async def _register(
    deps: Deps, bundle: Bundle, layers: dict[Digest, list[Layer]], quiet: bool, progress: Progress
) -> list[Image]:
    ids = [ImageID(image.config_digest) for image in bundle.images]
    for name in bundle.names:
        old = deps.store.tagged(name)
        if old is not None and old.id not in ids and not quiet:
            told = f"The image {name.familiar} already exists, renaming the old one with ID {old.id} to empty string\n"
            progress({"stream": told})
    images = [await _put(deps, bundle, packed, layers[packed.config_digest]) for packed in bundle.images]
    for name in bundle.names:
        progress({"stream": f"Loaded image: {name.familiar}\n"})
    for image in images if not bundle.names else ():
        progress({"stream": f"Loaded image ID: {image.id}\n"})
    for image in images:
        deps.announce("load", image, actor=image.id, name=image.id)
    return images


async def _put(deps: Deps, bundle: Bundle, packed: Packed, layers: Sequence[Layer]) -> Image:
    image = Image(
        id=ImageID(packed.config_digest),
        config=packed.config,
        manifests=(packed.manifest,),
        layers=tuple(layers),
        blobs=packed.blobs,
    )
    return await deps.store.put(image, references=bundle.names, target=bundle.target, blobs=bundle.attached)
