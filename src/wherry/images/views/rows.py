"""Rows: what counts as one image in a list, in disk usage, and for pruning.

A row is an image that some name means without a platform, with the other platforms held of its names; or an image
without any name. An image that is only a further platform of its names is no row of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wherry.digest import ChainID
from wherry.images.record import Image, ImageID, Layer, Target
from wherry.images.store import ImageStore
from wherry.spec.image import INDEXES, Descriptor

Users = Mapping[str, Sequence[str]]  # image ID -> IDs of the containers made from it


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    image: Image  # what its names mean
    names: tuple[str, ...]  # sorted
    targets: tuple[Target, ...]  # what the names stand for, in their order
    images: tuple[Image, ...]  # all platforms; `image` is the first

    @property
    def tags(self) -> list[str]:
        return [name for name in self.names if "@" not in name]

    @property
    def digests(self) -> list[str]:
        return [name for name in self.names if "@" in name]

    @property
    def descriptor(self) -> Descriptor:
        """The document that stands for it: an index, where one of the names is given to one."""
        found = [target.descriptor for target in self.targets]
        indexes = (descriptor for descriptor in found if descriptor.media_type in INDEXES)
        return next(indexes, found[0] if found else self.image.manifest)

    @property
    def layers(self) -> dict[ChainID, Layer]:
        """The layers of all platforms, shared ones once."""
        return {layer.chain: layer for image in self.images for layer in image.layers}

    @property
    def size(self) -> int:
        """Bytes of the files in all its layers: what `Size` means everywhere, as in Docker."""
        return sum(layer.unpacked for layer in self.layers.values())

    def containers(self, users: Users) -> int:
        return sum(len(users.get(image.id, ())) for image in self.images)


def list_rows(store: ImageStore, *, all: bool = False) -> list[Row]:
    """All rows, newest first. With `all` the images in between, too: untagged parents, and further platforms."""
    mine: dict[ImageID, list[Target]] = {}
    for target in store.targets():
        mine.setdefault(target.default, []).append(target)
    parents = {image.parent for image in store.all()}
    found = []
    for image in store.all():
        targets = sorted(mine.get(image.id, ()), key=lambda target: target.name)
        named = bool(image.repo_tags or image.repo_digests)
        if targets:
            names = tuple(target.name for target in targets)
        elif all:
            names = (*image.repo_tags, *image.repo_digests)
        elif named or image.id in parents:
            continue
        else:
            names = ()
        found.append(Row(image=image, names=names, targets=tuple(targets), images=_platforms(store, image, targets)))
    found.sort(key=lambda row: row.image.created, reverse=True)
    return found


def _platforms(store: ImageStore, image: Image, targets: Iterable[Target]) -> tuple[Image, ...]:
    ids = dict.fromkeys((image.id, *(other for target in targets for other in target.images)))
    return tuple(found for image_id in ids if (found := store.find(image_id)) is not None)


def row_of(store: ImageStore, image: Image) -> Row:
    """The row of an image found by its ID; of a mere further platform, one of its own."""
    targets = sorted(
        (target for target in store.targets() if target.default == image.id), key=lambda target: target.name
    )
    names = tuple(target.name for target in targets) or (*image.repo_tags, *image.repo_digests)
    return Row(image=image, names=names, targets=tuple(targets), images=_platforms(store, image, targets))
