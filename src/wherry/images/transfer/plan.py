"""What a push is made of: which manifests go out for a tag, and which blobs have to be there before them.

Every digest is kept: documents go out byte for byte as they are held. Two things are made anew, on purpose: layers that
were asked for in another compression, and the plain tars of an archive, for which Wherry wrote the manifest itself and
which nobody wants to send three times as large; they are gzipped, always to the same bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import Digest
from wherry.errors import NotFound
from wherry.images.deps import Deps
from wherry.images.layers import short
from wherry.images.leases import Lease
from wherry.images.making.convert import Recompression, compression_of
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, Target
from wherry.reference import Reference
from wherry.spec.image import (
    INDEXES,
    MAX_DOCUMENT,
    OCI_LAYER_FOREIGN,
    Descriptor,
    Index,
    Manifest,
    Platform,
    Raw,
    decode_manifest,
    encode_manifest,
    rank,
)
from wherry.storage.compression import Compression

_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign."  # beginning of a layer's media type


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest or an index to push, with what must be there before it."""

    raw: Raw
    manifest: Manifest | None = None  # None: it is an index
    image: Image | None = None  # whose manifest it is; None for an index and for an attestation
    children: Sequence["Document"] = ()
    referrers: Sequence["Document"] = ()  # go along, and are named by nothing here
    missing: Sequence[Descriptor] = ()  # children of an index that are not held here

    def walk(self) -> Iterator["Document"]:
        """Children before what names them."""
        yield from self.children
        yield from self.referrers
        yield self

    @property
    def blobs(self) -> list[Descriptor]:
        """Layers, base first; the config last."""
        return [*self.manifest.layers, self.manifest.config] if self.manifest else []

    def names(self) -> dict[Digest, str]:
        """What its layers are called on a client's screen: as in Docker by what is in them."""
        if self.manifest is None or self.image is None:
            return {}
        return {
            layer.digest: short(Digest(diff_id))
            for layer, diff_id in zip(self.manifest.layers, self.image.diff_ids, strict=False)
        }


def is_foreign(layer: Descriptor) -> bool:
    """A layer that is fetched from where its author put it, not from registries."""
    return bool(layer.urls) or layer.media_type.startswith((OCI_LAYER_FOREIGN, _DOCKER_FOREIGN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What of a tag is to be pushed, and how."""

    reference: Reference
    platform: Platform | None = None
    compression: Compression | None = None  # None: as it is


@dataclass(slots=True)
class Screen:
    """What a client sees of one tag: a line for each layer."""

    tell: Progress
    _prepared: set[str] = field(default_factory=set)

    def prepare(self, name: str) -> Bar:
        """The line of layer `name`, which begins as in Docker."""
        bar = Bar(self.tell, name)
        if name not in self._prepared:
            self._prepared.add(name)
            bar.say("Preparing")
        return bar


class Planner:
    """For one tag; `images` are those of its target, and the lease protects all that they and it need."""

    def __init__(
        self, deps: Deps, lease: Lease, target: Target, images: Sequence[Image], wish: Wish, screen: Screen
    ) -> None:
        self._deps = deps
        self._lease = lease
        self._target = target
        self._images = images
        self._wish = wish
        self._screen = screen

    async def plan(self) -> Document:
        """Raises NotFound when there is no image of the platform, or it is damaged."""
        top = self._target.descriptor
        if top.media_type in INDEXES:
            index = await self._index(top)
            if self._wish.platform is not None:
                return await self._single(self._chosen(self._images), index)
            return await (self._converted(top) if self._wish.compression else self._whole(top, index))
        return await self._manifest(top, self._chosen(self._images[:1]))

    async def instead(self) -> Document:
        """One image of an index that cannot be pushed: the one its plain name means."""
        return await self._single(self._images[0], await self._index(self._target.descriptor))

    def _chosen(self, images: Sequence[Image]) -> Image:
        wanted = self._wish.platform
        if wanted is None:
            return images[0]
        ranked = [(at, image) for image in images if (at := rank(image.config.platform, wanted)) is not None]
        if not ranked:
            raise NotFound(
                f"image with reference {self._wish.reference.familiar} was found but does not provide the specified "
                f"platform ({wanted})"
            )
        return min(ranked, key=lambda pair: pair[0])[1]

    # --- indexes ------------------------------------------------------------------------------------------------------

    async def _whole(self, top: Descriptor, index: Index) -> Document:
        children: list[Document] = []
        missing: list[Descriptor] = []
        for entry in {each.digest: each for each in index.manifests}.values():
            child = await self._child(entry)
            if child is None:
                missing.append(entry)
            else:
                children.append(child)
        return Document(raw=await self._raw(top), children=children, missing=missing)

    async def _child(self, entry: Descriptor) -> Document | None:
        """None when it, or something it needs, is not here."""
        if not await settle(self._deps.content.has, entry.digest):
            return None
        found = await self._document(await self._raw(entry), self._image_of(entry.digest))
        here = [await settle(self._deps.content.has, blob.digest) for blob in found.blobs if not is_foreign(blob)]
        return found if found.manifest and all(here) else None

    async def _converted(self, top: Descriptor) -> Document:
        raw = await (work := await self._recompression(self._images)).index(top)
        index = decode_manifest(raw.data, raw.media_type)
        assert isinstance(index, Index)
        known = {made.digest: image for image, made in work.made}
        entries = {each.digest: each for each in index.manifests}.values()
        children = [await self._document(await self._raw(entry), known.get(entry.digest)) for entry in entries]
        return Document(raw=raw, children=children)

    async def _single(self, image: Image, index: Index) -> Document:
        known = {manifest.digest for manifest in image.manifests}
        entry = next((each for each in index.manifests if each.digest in known), image.manifest)
        return await self._manifest(entry, image)

    def _image_of(self, digest: Digest) -> Image | None:
        return next((image for image in self._images if digest in {m.digest for m in image.manifests}), None)

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def _manifest(self, descriptor: Descriptor, image: Image) -> Document:
        if not image.manifests:
            raise NotFound(f"there is no manifest of image {image.id}: load or pull it again, then push")
        raw = await self._raw(descriptor)
        kind = self._wish.compression
        if kind is None and _made_of_plain_tars(raw, image):
            kind = Compression.GZIP
        if kind is not None:
            raw = await (await self._recompression([image], kind)).manifest(image, descriptor)
        return await self._document(raw, image)

    async def _recompression(self, images: Sequence[Image], kind: Compression | None = None) -> Recompression:
        wanted = kind or self._wish.compression
        assert wanted is not None
        for image in images:
            for diff_id in reversed(image.diff_ids):
                self._screen.prepare(short(Digest(diff_id)))
        work = Recompression(self._deps, self._lease, wanted, "", self._screen.tell)
        await work.hold(images)
        return work

    async def _document(self, raw: Raw, image: Image | None) -> Document:
        found = decode_manifest(raw.data, raw.media_type)
        return Document(raw=raw, manifest=found if isinstance(found, Manifest) else None, image=image)

    async def _index(self, descriptor: Descriptor) -> Index:
        found = decode_manifest((await self._raw(descriptor)).data, descriptor.media_type)
        assert isinstance(found, Index)
        return found

    async def _raw(self, descriptor: Descriptor) -> Raw:
        data = await settle(lambda: self._deps.content.read(descriptor.digest, limit=MAX_DOCUMENT))
        return Raw(data, descriptor.media_type, descriptor.digest)


def _made_of_plain_tars(raw: Raw, image: Image) -> bool:
    """Wherry wrote this manifest, for plain tars that came without one; and no registry has it yet."""
    manifest = decode_manifest(raw.data, raw.media_type)
    if not isinstance(manifest, Manifest) or any(name.endswith(raw.digest) for name in image.repo_digests):
        return False
    plain = any(compression_of(layer) is Compression.NONE for layer in manifest.layers)
    return plain and encode_manifest(manifest.config, manifest.layers).data == raw.data
