"""Convert: the same image with its layers compressed in another way.

Config, diffIDs and with them the image ID stay; the layers' blobs and the manifest are new ones. A manifest that was
made before, or that came with the image, is found again among the image's: nothing is compressed twice.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from wherry.aio import finish, settle
from wherry.digest import DiffID, Digest, of
from wherry.errors import Corrupt, InvalidParameter, NotFound, Unavailable, first_of
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.layers import check_type, short
from wherry.images.leases import Lease
from wherry.images.making.make import keep
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image
from wherry.reference import parse, parse_repository
from wherry.spec.image import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    INDEXES,
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Raw,
    decode_manifest,
)
from wherry.storage.compression import Compression, Limits, compressor, decompress, pieces

FORMATS = ("oci", "docker")

_COMPRESSIONS = {"gzip": Compression.GZIP, "zstd": Compression.ZSTD, "none": Compression.NONE}
_TYPES = {
    ("oci", Compression.NONE): OCI_LAYER,
    ("oci", Compression.GZIP): OCI_LAYER_GZIP,
    ("oci", Compression.ZSTD): OCI_LAYER_ZSTD,
    ("docker", Compression.NONE): DOCKER_LAYER,
    ("docker", Compression.GZIP): DOCKER_LAYER_GZIP,
    ("docker", Compression.ZSTD): DOCKER_LAYER_ZSTD,
}
_KINDS = {media_type: kind for (_, kind), media_type in _TYPES.items()}


def parse_compression(text: str) -> Compression:
    """Raises InvalidParameter."""
    if text not in _COMPRESSIONS:
        raise InvalidParameter(f"unknown compression {text[:50]!r}: want one of {', '.join(_COMPRESSIONS)}")
    return _COMPRESSIONS[text]


def compression_of(layer: Descriptor) -> Compression | None:
    """None for layers that are none of ours to change: foreign ones."""
    return None if layer.urls else _KINDS.get(layer.media_type)


async def convert(deps: Deps, name: str, to: str, *, compression: str, format: str = "", progress: Progress) -> Image:
    """Let `to` name the image `name` with its layers compressed as `compression`, for all platforms that are held.

    `format`: "oci" or "docker" media types; "" leaves them. Raises NotFound, InvalidParameter, all before anything
    is changed.
    """
    kind = parse_compression(compression)
    if format and format not in FORMATS:
        raise InvalidParameter(f"unknown format {format[:50]!r}: want one of {', '.join(FORMATS)}")
    reference = parse_repository(to)
    default = deps.store.get(name)
    target = None if deps.store.is_id(default, name) else deps.store.target(parse(name))
    top = target.descriptor if target else default.manifest
    async with leased(deps, f"convert {name} to {reference}") as lease:
        work = Recompression(deps, lease, kind, format, progress)
        images = deps.store.platforms(name)
        await work.hold(images, top.digest)
        if any(deps.store.find(image.id) is None for image in images):  # removed in the moment before
            raise NotFound(f"No such image: {name}")
        if top.media_type in INDEXES:
            raw = await work.index(top)
        else:
            raw = await work.manifest(default, top)
        await deps.store.put_all(
            [seen_through(image, made) for image, made in work.made],
            references=[reference],
            target=raw.descriptor,
            blobs=work.held(raw),
        )
    image = deps.store.get(reference.familiar)
    deps.announce("tag", image, actor=image.id, name=reference.familiar)
    progress({"status": f"{reference.familiar}: digest: {raw.digest} size: {len(raw.data)}"})
    return image


def seen_through(image: Image, raw: Raw) -> Image:
    """`image` as seen through another manifest of it, to be merged into what is known."""
    manifest = decode_manifest(raw.data, raw.media_type)
    assert isinstance(manifest, Manifest)
    blobs = frozenset({raw.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)})
    return Image(id=image.id, config=image.config, manifests=(raw.descriptor,), layers=image.layers, blobs=blobs)


class Recompression:
    """Manifests and indexes made anew with another compression, under one lease."""

    def __init__(self, deps: Deps, lease: Lease, kind: Compression, format: str, progress: Progress) -> None:
        self._deps = deps
        self._lease = lease
        self._kind = kind
        self._format = format or ("oci" if kind is Compression.ZSTD else "")  # Docker's types know no zstd
        self._progress = progress
        self._images: Sequence[Image] = ()
        self._kept: set[Digest] = set()
        self._done: dict[Digest, tuple[Digest, int]] = {}  # layer -> digest and size of its new form
        self.made: list[tuple[Image, Raw]] = []

    async def hold(self, images: Sequence[Image], *documents: Digest) -> None:
        """Work with these images, which stay until the lease ends."""
        self._images = images
        await self._lease.protect(digests=documents)
        for image in images:
            await self._lease.protect(digests=image.blobs, chains=[layer.chain for layer in image.layers])

    def held(self, top: Raw) -> set[Digest]:
        """What the target needs besides its images."""
        return {top.digest, *self._kept}

    async def index(self, descriptor: Descriptor) -> Raw:
        """An index of what is held of `descriptor`; attestations go along, what is not held is left out."""
        document = await self._document(descriptor)
        before = decode_manifest(await self._read(descriptor), descriptor.media_type)
        assert isinstance(before, Index)
        changed: dict[str, Raw] = {}
        entries: list[dict[str, Any]] = []
        for entry, said in zip(before.manifests, document["manifests"], strict=True):
            image = next((i for i in self._images if entry.digest in {m.digest for m in i.manifests}), None)
            if image is not None:
                made = await self.manifest(image, entry)
                if made.digest != entry.digest:
                    changed[entry.digest] = made
                    said = {**said, "mediaType": made.media_type, "digest": made.digest, "size": len(made.data)}
                    said.pop("data", None)  # the manifest itself, embedded
            elif not await self._keep(entry):
                continue
            entries.append(said)
        for said in entries:
            about = (said.get("annotations") or {}).get("vnd.docker.reference.digest")
            if about in changed:
                said["annotations"] = {**said["annotations"], "vnd.docker.reference.digest": changed[about].digest}
        form = self._format or ("docker" if descriptor.media_type == DOCKER_INDEX else "oci")
        media_type = DOCKER_INDEX if form == "docker" else OCI_INDEX
        return await self._write({**document, "mediaType": media_type, "manifests": entries}, media_type)

    async def _keep(self, entry: Descriptor) -> bool:
        """Something of an index that is no image: kept when it is here, with what it names."""
        if not await settle(self._deps.content.has, entry.digest):
            return False
        document = decode_manifest(await self._read(entry), entry.media_type)
        parts = [document.config, *document.layers] if isinstance(document, Manifest) else document.manifests
        found = {entry.digest, *(part.digest for part in parts)}
        await self._lease.protect(digests=found)
        if not all([await settle(self._deps.content.has, digest) for digest in found]):
            return False
        self._kept |= found
        return True

    async def manifest(self, image: Image, descriptor: Descriptor) -> Raw:
        """The manifest `descriptor` of `image` with its layers as wanted; itself when they are so already."""
        form = self._format or ("docker" if descriptor.media_type == DOCKER_MANIFEST else "oci")
        others = [each for each in image.manifests if each.digest != descriptor.digest]
        for candidate in (descriptor, *others):
            if await self._fits(candidate, form):
                made = Raw(await self._read(candidate), candidate.media_type, candidate.digest)
                self.made.append((image, made))
                return made
        document = await self._document(descriptor)
        before = decode_manifest(await self._read(descriptor), descriptor.media_type)
        assert isinstance(before, Manifest)
        parts = list(zip(before.layers, document["layers"], image.diff_ids, strict=True))
        try:
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(self._layer(*each, form)) for each in parts]
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        layers = [each.result() for each in work]
        media_type = DOCKER_MANIFEST if form == "docker" else OCI_MANIFEST
        config = {**document["config"], "mediaType": DOCKER_CONFIG if form == "docker" else OCI_CONFIG}
        made = await self._write({**document, "mediaType": media_type, "config": config, "layers": layers}, media_type)
        self.made.append((image, made))
        return made

    async def _fits(self, descriptor: Descriptor, form: str) -> bool:
        if descriptor.media_type != (DOCKER_MANIFEST if form == "docker" else OCI_MANIFEST):
            return False
        try:
            document = decode_manifest(await self._read(descriptor), descriptor.media_type)
        except NotFound:
            return False
        assert isinstance(document, Manifest)
        return all(compression_of(layer) in (self._kind, None) for layer in document.layers) and all(
            [await settle(self._deps.content.has, layer.digest) for layer in document.layers if not layer.urls]
        )

    async def _layer(self, layer: Descriptor, said: dict[str, Any], diff_id: DiffID, form: str) -> dict[str, Any]:
        """The descriptor `said` of a layer, as the new manifest has it."""
        check_type(layer)
        have = compression_of(layer)
        if have is None:
            return said
        media_type = _TYPES[form, self._kind]
        if have is self._kind:
            return {**said, "mediaType": media_type}
        async with self._deps.locks(("convert", layer.digest, self._kind)):
            if layer.digest not in self._done:
                self._done[layer.digest] = await self._made(layer, diff_id)
        digest, size = self._done[layer.digest]
        return {"mediaType": media_type, "digest": digest, "size": size}

    async def _made(self, layer: Descriptor, diff_id: DiffID) -> tuple[Digest, int]:
        """Digest and size of the new form of `layer`."""
        bar = Bar(self._progress, short(Digest(diff_id)))
        async with self._deps.extractions:
            digest, size = await self._recompress(layer, diff_id, bar)
        await keep(self._deps, self._lease, digest)
        bar.show("Converting", layer.size, layer.size)
        return digest, size

    async def _recompress(self, layer: Descriptor, diff_id: DiffID, bar: Bar) -> tuple[Digest, int]:
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def report(done: int) -> None:
            loop.call_soon_threadsafe(bar.show, "Converting", done, layer.size)

        work = asyncio.ensure_future(settle(self._blocking, layer, diff_id, stop, report))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await finish(_ended(work))
            raise

    def _blocking(
        self, layer: Descriptor, diff_id: DiffID, stop: threading.Event, report: Callable[[int], None]
    ) -> tuple[Digest, int]:
        content = self._deps.content
        consumed = 0
        with content.open(layer.digest) as file, content.ingest_new(f"layer {layer.digest} converted") as out:

            def read(size: int) -> bytes:
                nonlocal consumed
                data = file.read(size)
                consumed += len(data)
                report(consumed)
                return data

            try:
                packer = compressor(self._kind)
                plain = hashlib.sha256()
                for piece in pieces(decompress(read, what=f"layer {layer.digest}"), Limits(), lambda: consumed):
                    if stop.is_set():
                        raise Unavailable(f"converting layer {layer.digest} was cancelled")
                    plain.update(piece)
                    out.write(packer.compress(piece))
                out.write(packer.flush())
                if (found := f"sha256:{plain.hexdigest()}") != diff_id:
                    raise Corrupt(
                        f"layer {layer.digest} is damaged on disk: its content is {found}, the image's configuration "
                        f"says {diff_id}; remove the image and pull it again"
                    )
                size = out.offset
                self._lease.note(out.digest)
                digest = out.commit(None)
            finally:
                out.abort()
        return digest, size

    async def _read(self, descriptor: Descriptor) -> bytes:
        return await settle(lambda: self._deps.content.read(descriptor.digest, limit=MAX_DOCUMENT))

    async def _document(self, descriptor: Descriptor) -> dict[str, Any]:
        """As it is, with fields we do not know."""
        found = msgspec.json.decode(await self._read(descriptor))
        assert isinstance(found, dict)  # it was decoded as a manifest before
        return found

    async def _write(self, document: dict[str, Any], media_type: str) -> Raw:
        data = msgspec.json.encode(document)
        raw = Raw(data, media_type, of(data))
        await self._lease.protect(digests=[raw.digest])
        await settle(self._deps.content.write, data)
        return raw


async def _ended(work: "asyncio.Future[tuple[Digest, int]]") -> None:
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # retrieved; what counts is that it was cancelled
