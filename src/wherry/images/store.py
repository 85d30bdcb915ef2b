"""Image store: which images there are and what they are called.

Everything is in memory; tables `images` and `tags` are written first, in one transaction, and memory follows. Images
are values: a change of tags makes a new one. Used from the event loop only; reading never blocks.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from wherry.aio import finish, settle
from wherry.digest import ChainID, Digest, is_digest
from wherry.errors import Corrupt, InvalidParameter, NotFound, WherryError
from wherry.images.record import Image, ImageID, ImageRow, TagRow, decode, encode
from wherry.reference import Reference, is_identifier, parse
from wherry.spec.image import MAX_DOCUMENT, decode_config, parse_platform, runs_on
from wherry.state import Change, Delete, Put, State
from wherry.storage.content import ContentStore

__all__ = ["Image", "ImageID", "ImageStore"]

log = logging.getLogger(__name__)

MIN_PREFIX = 1  # hex digits of an ID that are enough when they are unique


class ImageStore:
    def __init__(self, state: State, content: ContentStore) -> None:
        """Load all rows (blocking). An image whose config is gone or damaged is left out, with a word in the log."""
        self._state = state
        self._lock = asyncio.Lock()
        self.complete = True  # every row could be read
        self._images: dict[ImageID, Image] = {}
        self._tags: dict[str, ImageID] = {}
        for key, raw in state.rows("images").items():
            try:
                self._images[ImageID(key)] = _load(content, ImageID(key), decode(raw))
            except (WherryError, msgspec.MsgspecError, OSError) as exc:
                log.error("image %s cannot be used and is left out: %s", key, exc)
                self.complete = False
        for name, raw in state.rows("tags").items():
            image_id = msgspec.json.decode(raw, type=TagRow).id
            if image_id in self._images:
                self._tags[name] = image_id
            else:
                log.error("tag %s names image %s, which is not there", name, image_id)
        for image_id in self._images:
            self._refresh(image_id)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, *, platform: str | None = None) -> Image:
        """By reference, ID or unique beginning of an ID. Raises NotFound `No such image: x:latest`, InvalidParameter.

        A reference wins over an ID that begins with the same letters, as in Docker. With `platform` (`os/arch`) an
        image for another one counts as not found.
        """
        image = self._get(name)
        if platform:
            wanted = parse_platform(platform)
            if not runs_on(image.config.platform, wanted):
                raise NotFound(
                    f"image with reference {name} was found but does not provide the specified platform ({wanted})"
                )
        return image

    def _get(self, name: str) -> Image:
        if is_digest(name):
            return self._by_id(ImageID(name))
        if is_identifier(name):
            return self._by_id(ImageID(f"sha256:{name}"))
        reference = parse(name).tagged()
        image_id = self._tags.get(_key(reference)) or self._by_prefix(name)
        if image_id is None:
            raise NotFound(f"No such image: {reference.familiar}")
        return self._images[image_id]

    def find(self, image_id: str) -> Image | None:
        """By exact ID."""
        return self._images.get(ImageID(image_id))

    def tagged(self, reference: Reference) -> Image | None:
        """What `reference` (its tag, or its digest) names now."""
        image_id = self._tags.get(_key(reference.tagged()))
        return self._images[image_id] if image_id else None

    def is_id(self, image: Image, name: str) -> bool:
        """True when `name` means `image` by its ID, not by a reference."""
        hexes = name.removeprefix("sha256:")
        return image.id.removeprefix("sha256:").startswith(hexes) and not self._is_reference(name)

    def all(self) -> list[Image]:
        return list(self._images.values())

    def children(self, image_id: ImageID) -> list[Image]:
        """Images made here from `image_id`."""
        return [image for image in self._images.values() if image.parent == image_id]

    def live(self) -> tuple[set[Digest], set[ChainID]]:
        """All blobs and all layers that some image needs."""
        digests: set[Digest] = set()
        chains: set[ChainID] = set()
        for image in self._images.values():
            digests |= image.blobs
            chains.update(layer.chain for layer in image.layers)
        return digests, chains

    # --- changing -----------------------------------------------------------------------------------------------------

    async def put(self, image: Image, *, references: Sequence[Reference] = (), also: Sequence[Change] = ()) -> Image:
        """Add `image` (or merge it into the one of the same ID) with `references` and `also`, in one transaction.

        A reference that named another image is moved. Answers the image as it is now.
        """
        return await finish(self._put(image, references, also))

    async def _put(self, image: Image, references: Sequence[Reference], also: Sequence[Change]) -> Image:
        async with self._lock:
            old = self._images.get(image.id)
            tagging = any(reference.tag for reference in references)
            merged = image if old is None else _merge(old, image)
            merged = replace(merged, last_tagged=time.time_ns() if tagging else merged.last_tagged)
            keys = [_key(reference) for reference in references]
            row = msgspec.json.encode(TagRow(id=image.id))
            tags = [Put("tags", key, row) for key in keys]
            await settle(self._state.write, Put("images", image.id, encode(merged)), *tags, *also)
            self._images[image.id] = merged
            self._assign(keys, image.id)
            return self._images[image.id]

    async def tag(self, image_id: ImageID, reference: Reference) -> Image:
        """Let `reference` name the image. Raises NotFound when the image is gone meanwhile."""
        return await finish(self._tag(image_id, reference))

    async def _tag(self, image_id: ImageID, reference: Reference) -> Image:
        async with self._lock:
            image = replace(self._by_id(image_id), last_tagged=time.time_ns())
            key = _key(reference)
            row = msgspec.json.encode(TagRow(id=image_id))
            await settle(self._state.write, Put("images", image_id, encode(image)), Put("tags", key, row))
            self._images[image_id] = image
            self._assign([key], image_id)
            return self._images[image_id]

    async def remove(self, image_id: ImageID, *, names: Iterable[str], record: bool) -> None:
        """Forget `names` (familiar references of this image) and, with `record`, the image itself; one transaction."""
        await finish(self._remove(image_id, list(names), record))

    async def _remove(self, image_id: ImageID, names: list[str], record: bool) -> None:
        async with self._lock:
            mine = [name for name in names if self._tags.get(name) == image_id]
            changes: list[Change] = [Delete("tags", name) for name in mine]
            if record:
                changes.append(Delete("images", image_id))
            await settle(self._state.write, *changes)
            for name in mine:
                del self._tags[name]
            if record:
                self._images.pop(image_id, None)
            elif image_id in self._images:
                self._refresh(image_id)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _by_id(self, image_id: ImageID) -> Image:
        image = self._images.get(image_id)
        if image is None:
            raise NotFound(f"No such image: {image_id}")
        return image

    def _by_prefix(self, name: str) -> ImageID | None:
        prefix = name.removeprefix("sha256:")
        if len(prefix) < MIN_PREFIX or not set(prefix) <= set("0123456789abcdef"):
            return None
        found = [image_id for image_id in self._images if image_id.startswith(prefix, 7)]
        if len(found) > 1:
            raise InvalidParameter(f"Multiple IDs found with provided prefix: {name}")
        return found[0] if found else None

    def _is_reference(self, name: str) -> bool:
        if is_digest(name) or is_identifier(name):
            return False
        return _key(parse(name).tagged()) in self._tags

    def _assign(self, keys: Sequence[str], image_id: ImageID) -> None:
        touched = {self._tags.get(key, image_id) for key in keys} | {image_id}
        self._tags.update(dict.fromkeys(keys, image_id))
        for changed in touched:
            self._refresh(changed)

    def _refresh(self, image_id: ImageID) -> None:
        """Rebuild the names an image shows from the table of tags."""
        names = sorted(name for name, owner in self._tags.items() if owner == image_id)
        self._images[image_id] = replace(
            self._images[image_id],
            repo_tags=tuple(name for name in names if "@" not in name),
            repo_digests=tuple(name for name in names if "@" in name),
        )


def _key(reference: Reference) -> str:
    """The tags table's key: a digest, where there is one, is the name alone."""
    if reference.digest is not None:
        return reference.with_digest(reference.digest).familiar
    return reference.familiar


def _load(content: ContentStore, image_id: ImageID, row: ImageRow) -> Image:
    config = decode_config(content.read(Digest(image_id), limit=MAX_DOCUMENT))
    if [layer.diff_id for layer in row.layers] != config.rootfs.diff_ids:
        raise Corrupt(f"the layers of image {image_id} are not those of its config")
    return Image(
        id=image_id,
        config=config,
        manifests=tuple(row.manifests),
        layers=tuple(row.layers),
        blobs=frozenset(row.blobs),
        parent=row.parent,
        last_tagged=row.last_tagged,
    )


def _merge(old: Image, new: Image) -> Image:
    """The same config seen again, perhaps by another manifest whose layers are compressed differently."""
    known = {manifest.digest for manifest in old.manifests}
    added = tuple(manifest for manifest in new.manifests if manifest.digest not in known)
    return replace(old, manifests=old.manifests + added, blobs=old.blobs | new.blobs, parent=old.parent or new.parent)
