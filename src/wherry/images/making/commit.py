"""Commit: the changes in a writable snapshot become a layer, on top of the image they were made on."""

from collections.abc import Sequence

from wherry.errors import NotFound
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.making import changes as dockerfile
from wherry.images.making.make import Out, add_image, add_layer, now
from wherry.images.record import Image
from wherry.reference import Reference
from wherry.spec.engine import ContainerConfig, words
from wherry.spec.image import EMPTY_LAYER, History
from wherry.storage.diff import write_diff


async def commit(
    deps: Deps,
    key: str,
    *,
    image_id: str,
    config: ContainerConfig,
    changes: Sequence[str] = (),
    comment: str = "",
    author: str = "",
    created_by: Sequence[str] | str | None = None,
    reference: Reference | None = None,
) -> Image:
    """A new image of snapshot `key`, which stands on `image_id`: `config` with `changes`, tagged `reference`.

    `created_by` is the container's command, for the history. The caller sees to it that nobody writes meanwhile, if
    that matters. Raises NotFound when the image is gone, InvalidParameter for a bad change, before anything is made.
    """
    base = deps.store.find(image_id)
    if base is None:
        raise NotFound(f"No such image: {image_id}: a container whose image was removed cannot be committed")
    config = dockerfile.apply(config, changes)
    command = " ".join(words(created_by if created_by is None or isinstance(created_by, str) else list(created_by)))
    async with leased(deps, f"commit {key}") as lease:
        await lease.protect(digests=base.blobs, chains=[layer.chain for layer in base.layers])
        if deps.store.find(image_id) is None:  # removed in the moment before
            raise NotFound(f"No such image: {image_id}")

        def write(out: Out) -> None:
            write_diff(deps.snapshots, key, out)

        layer = await add_layer(deps, lease, write, parent=base.chain)
        empty = layer.diff_id == EMPTY_LAYER
        step = History(created=now(), author=author, created_by=command, comment=comment, empty_layer=empty)
        image = await add_image(
            deps,
            lease,
            layers=base.layers if empty else (*base.layers, layer),
            config=config,
            platform=base.config.platform,
            history=[*base.config.history, step],
            author=author,
            parent=base.id,
            references=[reference] if reference else [],
        )
    if reference is not None:
        deps.announce("tag", image, actor=image.id, name=reference.familiar)
    return image
