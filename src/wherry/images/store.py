"""Image store: which images there are and what they are called.

A name has a target: one image, or the platforms held of an index, of which the plain name means the one that runs best
here. An image that is only a further platform of its names is found by ID, or by name and platform.

Everything is in memory; tables `images` and `tags` are written first, in one transaction, and memory follows. Images
are values: a change of tags makes a new one. Used from the event loop only; reading never blocks.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from wherry.aio import finish, settle
from wherry.digest import ChainID, Digest, is_digest
from wherry.errors import Corrupt, InvalidParameter, NotFound, WherryError
from wherry.images.record import Image, ImageID, ImageRow, TagRow, Target, Unusable, decode, encode, encode_target
from wherry.reference import Reference, is_identifier, parse
from wherry.spec.image import MAX_DOCUMENT, Descriptor, Platform, decode_config, host_platform, parse_platform, rank
from wherry.state import Change, Delete, Put, State
from wherry.storage.content import ContentStore

__all__ = ["Image", "ImageID", "ImageStore", "Target"]

log = logging.getLogger(__name__)

MIN_PREFIX = 1  # hex digits of an ID that are enough when they are unique


class ImageStore:
    def __init__(self, state: State, content: ContentStore) -> None:
        """Load all rows (blocking). An image whose config is gone or damaged is `unusable`, with a word in the log."""
        self._state = state
        self._content = content
        self._lock = asyncio.Lock()
        self._images: dict[ImageID, Image] = {}
        self._targets: dict[str, Target] = {}
        self._names: dict[ImageID, set[str]] = {}
        self._let_go: set[Digest] = set()
        self.unusable: dict[ImageID, Unusable] = {}
        self._kept: set[Digest] = set()  # what names of unusable images need
        self.lost: dict[str, str] = {}  # names that stand for nothing that is here -> why
        for key, raw in state.rows("images").items():
            self._load_image(ImageID(key), raw)
        for name, raw in state.rows("tags").items():
            self._load_target(name, raw)
        for image_id in self._names:
            self._refresh(image_id)
        for image in self.unusable.values():
            log.error("image %s cannot be used: %s: run `wherry system check --repair`", image.name, image.why)
        for name, why in self.lost.items():
            log.error("%s names no image any more: %s: run `wherry system check --repair`", name, why)

    @property
    def complete(self) -> bool:
        """It is known of every recorded image what it needs."""
        return not self.lost and all(image.row is not None for image in self.unusable.values())

    def _load_image(self, image_id: ImageID, raw: bytes) -> None:
        row: ImageRow | None = None
        try:
            row = decode(raw)
            self._images[image_id] = _load(self._content, image_id, row)
        except (WherryError, msgspec.MsgspecError, OSError) as exc:
            self.unusable[image_id] = Unusable(id=image_id, why=str(exc), row=row)

    def _load_target(self, name: str, raw: bytes) -> None:
        try:
            row = msgspec.json.decode(raw, type=TagRow)
        except msgspec.MsgspecError as exc:
            self.lost[name] = f"its record cannot be read: {exc}"
            return
        here = tuple(image_id for image_id in (row.id, *row.others) if image_id in self._images)
        for image_id in (row.id, *row.others):
            if (bad := self.unusable.get(image_id)) is not None:
                self.unusable[image_id] = replace(bad, names=(*bad.names, name))
            elif image_id not in self._images:
                log.error("%s names image %s, which is not recorded", name, image_id)
        if here:
            descriptor = row.target or self._images[here[0]].manifest
            self._link(Target(name=name, descriptor=descriptor, images=here, blobs=frozenset(row.blobs)))
        elif not any(image_id in self.unusable for image_id in (row.id, *row.others)):
            self.lost[name] = f"image {row.id} is not recorded"
        else:
            self._kept |= {*row.blobs, *([row.target.digest] if row.target else [])}

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, name: str, *, platform: str | None = None) -> Image:
        """By reference, ID or unique beginning of an ID. Raises NotFound `No such image: x:latest`, InvalidParameter.

        A reference wins over an ID that begins with the same letters, as in Docker. With `platform` (`os/arch`) an
        image for another one counts as not found.
        """
        found = self._resolve(name)
        if not platform:
            return found[0]
        best = self._best(found, parse_platform(platform))
        if best is None:
            raise NotFound(
                f"image with reference {name} was found but does not provide the specified platform "
                f"({parse_platform(platform)})"
            )
        return best

    def platforms(self, name: str) -> list[Image]:
        """All images that `name` stands for, what the plain name means first. Raises as `get`."""
        return self._resolve(name)

    def _resolve(self, name: str) -> list[Image]:
        if is_digest(name):
            return [self._by_id(ImageID(name))]
        if is_identifier(name):
            return [self._by_id(ImageID(f"sha256:{name}"))]
        reference = parse(name).tagged()
        if (target := self._targets.get(_key(reference))) is not None:
            return [self._images[image_id] for image_id in target.images]
        if (image_id := self._by_prefix(name)) is not None:
            return [self._images[image_id]]
        raise NotFound(f"No such image: {reference.familiar}")

    @staticmethod
    def _best(images: Sequence[Image], wanted: Platform) -> Image | None:
        ranked = [(at, image) for image in images if (at := rank(image.config.platform, wanted)) is not None]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None

    def find(self, image_id: str) -> Image | None:
        """By exact ID."""
        return self._images.get(ImageID(image_id))

    def target(self, reference: Reference) -> Target | None:
        """What `reference` (its tag, or its digest) stands for now."""
        return self._targets.get(_key(reference.tagged()))

    def tagged(self, reference: Reference) -> Image | None:
        """The image that `reference` means without a platform."""
        target = self.target(reference)
        return self._images[target.default] if target else None

    def targets(self) -> list[Target]:
        """All names, in no order."""
        return list(self._targets.values())

    def is_id(self, image: Image, name: str) -> bool:
        """True when `name` means `image` by its ID, not by a reference."""
        hexes = name.removeprefix("sha256:")
        return image.id.removeprefix("sha256:").startswith(hexes) and not self._is_reference(name)

    def all(self) -> list[Image]:
        return list(self._images.values())

    def children(self, image_id: ImageID) -> list[Image]:
        """Images made here from `image_id`."""
        return [image for image in self._images.values() if image.parent == image_id]

    def let_go(self) -> set[Digest]:
        """Documents whose names went or were moved since it was asked last: perhaps nothing needs them any more."""
        found, self._let_go = self._let_go, set()
        return found

    def live(self) -> tuple[set[Digest], set[ChainID]]:
        """All blobs and all layers that some image or name needs."""
        digests: set[Digest] = set()
        chains: set[ChainID] = set()
        for image in self._images.values():
            digests |= image.blobs
            chains.update(layer.chain for layer in image.layers)
        for target in self._targets.values():
            digests.add(target.descriptor.digest)
            digests |= target.blobs
        for bad in self.unusable.values():
            if bad.row is not None:
                digests |= {Digest(bad.id), *bad.row.blobs}
                chains.update(layer.chain for layer in bad.row.layers)
        return digests | self._kept, chains

    # --- changing -----------------------------------------------------------------------------------------------------

    async def put(
        self,
        image: Image,
        *,
        references: Sequence[Reference] = (),
        target: Descriptor | None = None,
        blobs: Iterable[Digest] = (),
        also: Sequence[Change] = (),
    ) -> Image:
        """Add `image` (or merge it into the one of the same ID) with `references` and `also`, in one transaction.

        `target` is the document the references name (None: the image's manifest), `blobs` what is held of it besides
        images. A reference that has the same target already keeps its other platforms beside this one; one that had
        another is moved. Answers the image as it is now.
        """
        return (await finish(self._put([image], references, target or image.manifest, frozenset(blobs), also)))[0]

    async def put_all(
        self,
        images: Sequence[Image],
        *,
        references: Sequence[Reference],
        target: Descriptor,
        blobs: Iterable[Digest] = (),
    ) -> list[Image]:
        """`put` of several images of one target, in one transaction."""
        return await finish(self._put(images, references, target, frozenset(blobs), ()))

    async def _put(
        self,
        images: Sequence[Image],
        references: Sequence[Reference],
        descriptor: Descriptor,
        blobs: frozenset[Digest],
        also: Sequence[Change],
    ) -> list[Image]:
        async with self._lock:
            tagged = time.time_ns() if any(reference.tag for reference in references) else None
            merged: dict[ImageID, Image] = {}
            for image in images:
                old = merged.get(image.id) or self._images.get(image.id)
                new = image if old is None else _merge(old, image)
                merged[image.id] = new if tagged is None else replace(new, last_tagged=tagged)
            names = dict.fromkeys(map(_key, references))
            targets = [self._joined(name, merged, descriptor, blobs) for name in names]
            rows = [Put("images", image_id, encode(image)) for image_id, image in merged.items()]
            tags = [Put("tags", target.name, encode_target(target)) for target in targets]
            await settle(self._state.write, *rows, *tags, *also)
            self._images |= merged
            for target in targets:
                self.lost.pop(target.name, None)
                self._assign(target)
            for image_id in merged.keys() & self.unusable.keys():
                await self._reload_names(self.unusable.pop(image_id))
            for image_id in merged:
                self._refresh(image_id)
            return [self._images[image.id] for image in images]

    def _joined(
        self, name: str, images: Mapping[ImageID, Image], descriptor: Descriptor, blobs: frozenset[Digest]
    ) -> Target:
        """The target of `name` with `images` in it, which came one after the other."""
        old = self._targets.get(name)
        if old is not None and old.descriptor.digest != descriptor.digest:
            old = None
        line = [self._images[image_id] for image_id in old.images] if old else []
        for image in images.values():
            others = [other for other in line if other.id != image.id]
            default = self._best([*others, image], host_platform()) or image
            line = [default, *(other for other in (image, *others) if other.id != default.id)]
        return Target(
            name=name,
            descriptor=old.descriptor if old else descriptor,
            images=tuple(image.id for image in line),
            blobs=blobs | old.blobs if old else blobs,
        )

    async def revive(self, image_id: ImageID) -> bool:
        """Use an unusable image again, when what it lacked is there; whether it is."""
        return await finish(self._revive(image_id))

    async def _revive(self, image_id: ImageID) -> bool:
        async with self._lock:
            bad = self.unusable.get(image_id)
            if bad is None or bad.row is None:
                return image_id in self._images
            try:
                self._images[image_id] = await settle(_load, self._content, image_id, bad.row)
            except (WherryError, OSError) as exc:
                self.unusable[image_id] = replace(bad, why=str(exc))
                return False
            del self.unusable[image_id]
            await self._reload_names(bad)
            return True

    async def _reload_names(self, bad: Unusable) -> None:
        rows = await settle(self._state.rows, "tags")
        for name in bad.names:
            if name in rows:
                self._drop(name)
                self._load_target(name, rows[name])
        self._refresh(bad.id)

    async def forget(self, image_id: ImageID) -> None:
        """Drop the record of an image that is still unusable, and the names that stand for nothing else."""
        await finish(self._forget(image_id))

    async def _forget(self, image_id: ImageID) -> None:
        async with self._lock:
            if (bad := self.unusable.get(image_id)) is None:
                return
            names = [name for name in bad.names if name not in self._targets]
            await settle(self._state.write, Delete("images", image_id), *(Delete("tags", name) for name in names))
            del self.unusable[image_id]

    async def forget_name(self, name: str) -> None:
        """Drop the record of a name that is still `lost`."""
        await finish(self._forget_name(name))

    async def _forget_name(self, name: str) -> None:
        async with self._lock:
            if name in self.lost:
                await settle(self._state.write, Delete("tags", name))
                del self.lost[name]

    async def tag(self, name: str, reference: Reference) -> Image:
        """Let `reference` stand for all that `name` (a reference or an ID) stands for. Raises as `get`."""
        return await finish(self._tag(name, reference))

    async def _tag(self, name: str, reference: Reference) -> Image:
        async with self._lock:
            image = replace(self._resolve(name)[0], last_tagged=time.time_ns())
            source = None if self.is_id(image, name) else self.target(parse(name))
            key = _key(reference)
            target = (
                replace(source, name=key) if source else Target(name=key, descriptor=image.manifest, images=(image.id,))
            )
            await settle(
                self._state.write, Put("images", image.id, encode(image)), Put("tags", key, encode_target(target))
            )
            self._images[image.id] = image
            self._assign(target)
            self._refresh(image.id)
            return self._images[image.id]

    async def remove(
        self, image_id: ImageID, *, names: Iterable[str], record: bool, unless_named: bool = False
    ) -> bool:
        """Forget `names` (familiar references of this image) and, with `record`, the image itself; one transaction.

        A name that stands for other platforms too is forgotten for all of them. With `record`, names of the image that
        are not in `names` go on without it, or go when it was all they stood for; with `unless_named` such a name (a
        pull may have given it a moment ago) means that nothing is done. Answers whether anything was.
        """
        return await finish(self._remove(image_id, list(names), record, unless_named))

    async def _remove(self, image_id: ImageID, names: list[str], record: bool, unless_named: bool) -> bool:
        async with self._lock:
            if record and image_id not in self._images:
                return False
            mine = self._names.get(image_id, set())
            if unless_named and not mine <= set(names):
                return False
            gone = [name for name in dict.fromkeys(names) if name in mine]
            left: list[Target] = []
            changes: list[Change] = []
            if record:
                changes.append(Delete("images", image_id))
                for name in mine - set(gone):
                    target = self._without(self._targets[name], image_id)
                    left += [target] if target else []
                    gone += [] if target else [name]
            changes += [Delete("tags", name) for name in gone]
            changes += [Put("tags", target.name, encode_target(target)) for target in left]
            await settle(self._state.write, *changes)
            for target in left:
                self._assign(target)
            for name in gone:
                self._drop(name)
            if record:
                self._images.pop(image_id, None)
                self._names.pop(image_id, None)
            return bool(gone) or record

    def _without(self, target: Target, image_id: ImageID) -> Target | None:
        rest = [self._images[other] for other in target.images if other != image_id]
        if not rest:
            return None
        default = self._best(rest, host_platform()) or rest[0]
        return replace(target, images=(default.id, *(other.id for other in rest if other.id != default.id)))

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
        return _key(parse(name).tagged()) in self._targets

    def _assign(self, target: Target) -> None:
        """Let its name stand for `target` in memory."""
        self._drop(target.name)
        self._link(target)
        for image_id in target.images:
            self._refresh(image_id)

    def _link(self, target: Target) -> None:
        self._targets[target.name] = target
        for image_id in target.images:
            self._names.setdefault(image_id, set()).add(target.name)

    def _drop(self, name: str) -> None:
        target = self._targets.pop(name, None)
        if target is not None:
            self._let_go |= {target.descriptor.digest, *target.blobs}
        for image_id in target.images if target else ():
            self._names[image_id].discard(name)
            self._refresh(image_id)

    def _refresh(self, image_id: ImageID) -> None:
        """Rebuild the names an image shows."""
        if (image := self._images.get(image_id)) is None:
            return
        names = sorted(self._names.get(image_id, ()))
        self._images[image_id] = replace(
            image,
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
