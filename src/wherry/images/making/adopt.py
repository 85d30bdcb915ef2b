"""Adopt: an image of documents and blobs that are in the content store already, as a push to the engine leaves them."""

from collections.abc import Iterable, Sequence

from wherry.aio import settle
from wherry.digest import Digest
from wherry.errors import InvalidParameter, NotSupported
from wherry.images.deps import Deps
from wherry.images.layers import check_type, unpack
from wherry.images.leases import Lease
from wherry.images.record import Image, ImageID, Layer
from wherry.reference import Reference
from wherry.spec.image import CONFIGS, MAX_DOCUMENT, Descriptor, Manifest, Raw, decode_config


def is_image(manifest: Manifest) -> bool:
    """A container image, and no artifact that only looks like one."""
    return manifest.config.media_type in CONFIGS


async def adopt(
    deps: Deps,
    lease: Lease,
    raw: Raw,
    manifest: Manifest,
    *,
    references: Sequence[Reference] = (),
    target: Descriptor | None = None,
    blobs: Iterable[Digest] = (),
) -> Image:
    """Unpack the layers of `manifest` and let `references` name the image. `target`, `blobs`: as in `store.put`.

    Raises NotSupported for what cannot be an image here (another operating system, unknown layers), InvalidParameter
    and Corrupt when config and layers do not fit.
    """
    for layer in manifest.layers:
        check_type(layer)
    held = frozenset({raw.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)})
    await lease.protect(digests=held)
    await settle(deps.content.write, raw.data)
    config_raw = await settle(lambda: deps.content.read(manifest.config.digest, limit=MAX_DOCUMENT))
    config = decode_config(config_raw)
    if config.os not in ("", "linux"):
        raise NotSupported(f'image operating system "{config.os}" cannot be used on this platform')
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise InvalidParameter(
            f"layers from manifest don't match image configuration: {len(manifest.layers)} layers, "
            f"{len(config.rootfs.diff_ids)} diffIDs"
        )
    layers: list[Layer] = []
    for blob, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
        parent = layers[-1].chain if layers else None
        layers.append(await unpack(deps, lease, blob, parent=parent, diff_id=diff_id))
    image = Image(
        id=ImageID(manifest.config.digest),
        config=config,
        manifests=(raw.descriptor,),
        layers=tuple(layers),
        blobs=held,
    )
    return await deps.store.put(image, references=references, target=target, blobs=blobs)
