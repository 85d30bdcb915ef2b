"""Push: an image, or an index with its platforms, to a registry.

    what the tag names -> blobs that are not there yet, UPLOADS at a time -> manifests, children before their index

Every digest is kept: manifests go out byte for byte as they are held. Two things are made anew, on purpose: layers that
were asked for in another compression, and the plain tars of a docker-archive, for which Wherry wrote the manifest
itself and which nobody wants to send three times as large; they are gzipped, always to the same bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import Digest, is_digest
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.upload import Blob, Outcome, Reports, has_manifest, put_manifest, upload
from wherry.errors import InvalidParameter, NotFound, WherryError
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.layers import short
from wherry.images.leases import Lease
from wherry.images.making.convert import Recompression, compression_of, parse_compression, seen_through
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, Target
from wherry.reference import Reference, parse
from wherry.spec.distribution import ANONYMOUS, Auth
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
    parse_platform,
    rank,
)
from wherry.storage.compression import Compression

CHUNK = 1 << 20  # bytes read and sent at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest to push, with what must be there before it."""

    raw: Raw
    blobs: Sequence[Descriptor] = ()  # base first, the config last
    names: Mapping[Digest, str] = field(default_factory=dict)  # layer -> what it is called on the screen
    children: Sequence["Document"] = ()
    missing: Sequence[Descriptor] = ()  # children of an index that are not held here


async def push(
    deps: Deps,
    name: str,
    *,
    tag: str = "",
    platform: str | Platform | None = None,
    compression: str = "",
    auth: Auth = ANONYMOUS,
    progress: Progress,
) -> None:
    """Push `name:tag`, or without a tag all tags of the repository `name`.

    Raises InvalidParameter for what can never be pushed; NotFound and what the registry said come after the first call
    of `progress`, as in Docker.
    """
    named = parse(name)
    if named.digest is not None or is_digest(tag):
        raise InvalidParameter("cannot push a digest reference")
    if compression:
        parse_compression(compression)
    wanted = parse_platform(platform) if isinstance(platform, str) and platform else platform or None
    assert not isinstance(wanted, str)
    progress({"status": f"The push refers to repository [{named.name}]"})
    references = _references(deps, named, tag or named.tag)
    async with open_repository(deps.registry, named, auth, push=True) as repository:
        for reference in references:
            await _push_one(deps, repository, reference, wanted, compression, progress)


def _references(deps: Deps, named: Reference, tag: str | None) -> list[Reference]:
    known = [parse(name) for image in deps.store.all() for name in image.repo_tags if parse(name).name == named.name]
    if not known:
        raise NotFound(f"An image does not exist locally with the tag: {named.familiar_name}")
    if tag is None:
        return sorted(set(known), key=str)
    reference = named.with_tag(tag)
    if reference not in known:
        raise NotFound(f"tag does not exist: {reference.familiar}")
    return [reference]


async def _push_one(
    deps: Deps,
    repository: Repository,
    reference: Reference,
    wanted: Platform | None,
    compression: str,
    progress: Progress,
) -> None:
    target = deps.store.target(reference)
    if target is None:
        raise NotFound(f"tag does not exist: {reference.familiar}")
    async with leased(deps, f"push {reference}") as lease:
        images = [image for image in map(deps.store.find, target.images) if image is not None]
        await lease.protect(digests=[target.descriptor.digest, *target.blobs, *(b for i in images for b in i.blobs)])
        plan = _Plan(deps, lease, images, wanted, compression, progress)
        plan.foreign = deps.registry.takes_foreign(reference.domain)
        document = await plan.document(reference, target)
        document, told = await _whole(plan, repository, target, document)
        sending = _Sending(deps, repository, _mounts(deps, repository), progress)
        await sending.send(document, str(reference.tag))
        await plan.record(reference, document)
    raw = document.raw
    progress({"status": f"{reference.tag}: digest: {raw.digest} size: {len(raw.data)}"})
    progress({"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": raw.digest, "Size": len(raw.data)}})
    for message in told:
        progress(message)
    image = deps.store.find(target.default)
    deps.announce("push", image, actor=reference.familiar, name=reference.familiar_name)


async def _whole(
    plan: "_Plan", repository: Repository, target: Target, document: Document
) -> tuple[Document, list[dict[str, object]]]:
    """An index of which platforms are lacking both here and there cannot be pushed: then one of its images is."""
    for lacking in document.missing:
        if not await has_manifest(repository, lacking):
            break
    else:
        return document, []
    image = plan.image(target.default)
    entry = next(each for each in plan.entries if each.digest in {m.digest for m in image.manifests})
    single = await plan.manifest(entry, image)
    note = {
        "manifestPushedInsteadOfIndex": True,
        "originalIndex": target.descriptor,
        "selectedManifest": single.raw.descriptor,
    }
    return single, [{"progressDetail": {}, "aux": note}]


class _Plan:
    """What there is to push of a tag, recompressed as wanted."""

    def __init__(
        self,
        deps: Deps,
        lease: Lease,
        images: Sequence[Image],
        wanted: Platform | None,
        compression: str,
        progress: Progress,
    ) -> None:
        self._deps = deps
        self._lease = lease
        self._images = images
        self._wanted = wanted
        self._compression = compression
        self._progress = progress
        self._sent: list[tuple[Image, Raw]] = []
        self.entries: Sequence[Descriptor] = ()
        self.foreign = False  # the registry takes foreign layers, too

    def image(self, image_id: str) -> Image:
        return next(image for image in self._images if image.id == image_id)

    async def document(self, reference: Reference, target: Target) -> Document:
        if target.descriptor.media_type not in INDEXES:
            image = self._images[0]
            if self._wanted is not None and rank(image.config.platform, self._wanted) is None:
                raise _no_platform(reference, self._wanted)
            return await self.manifest(target.descriptor, image)
        index = await self._decoded(target.descriptor)
        assert isinstance(index, Index)
        self.entries = index.manifests
        if self._wanted is not None:
            return await self._chosen(reference, index)
        if self._compression:
            return await self._converted(target.descriptor)
        children, missing = [], []
        for entry in {each.digest: each for each in index.manifests}.values():
            child = await self._child(entry)
            if child is None:
                missing.append(entry)
            else:
                children.append(child)
        return Document(raw=await self._raw(target.descriptor), children=children, missing=missing)

    async def _chosen(self, reference: Reference, index: Index) -> Document:
        assert self._wanted is not None
        ranked = [(at, i) for i in self._images if (at := rank(i.config.platform, self._wanted)) is not None]
        if not ranked:
            raise _no_platform(reference, self._wanted)
        image = min(ranked, key=lambda pair: pair[0])[1]
        digests = {manifest.digest for manifest in image.manifests}
        entry = next((each for each in index.manifests if each.digest in digests), image.manifest)
        return await self.manifest(entry, image)

    async def _converted(self, descriptor: Descriptor) -> Document:
        work = Recompression(self._deps, self._lease, parse_compression(self._compression), "", self._progress)
        await work.hold(list(self._images))
        raw = await work.index(descriptor)
        index = decode_manifest(raw.data, raw.media_type)
        assert isinstance(index, Index)
        known = {made.digest: image for image, made in work.made}
        children = [
            await self._manifest_document(await self._raw(entry), known.get(entry.digest)) for entry in index.manifests
        ]
        self._sent += work.made
        return Document(raw=raw, children=children)

    async def _child(self, entry: Descriptor) -> Document | None:
        """None when it, or something it needs, is not here."""
        if not await settle(self._deps.content.has, entry.digest):
            return None
        document = await self._decoded(entry)
        if isinstance(document, Index):
            return None
        parts = [document.config, *(layer for layer in document.layers if not layer.urls)]
        if not all([await settle(self._deps.content.has, part.digest) for part in parts]):
            return None
        image = next((i for i in self._images if entry.digest in {m.digest for m in i.manifests}), None)
        raw = await self._raw(entry)
        if image is not None:
            self._sent.append((image, raw))
        return await self._manifest_document(raw, image)

    async def manifest(self, descriptor: Descriptor, image: Image) -> Document:
        """One image's manifest, as it is or recompressed."""
        raw = await self._raw(descriptor)
        kind = parse_compression(self._compression) if self._compression else None
        if kind is None and _made_of_an_archive(raw):
            kind = Compression.GZIP
        if kind is not None:
            work = Recompression(self._deps, self._lease, kind, "", self._progress)
            await work.hold([image])
            raw = await work.manifest(image, descriptor)
        self._sent.append((image, raw))
        return await self._manifest_document(raw, image)

    async def _manifest_document(self, raw: Raw, image: Image | None) -> Document:
        manifest = decode_manifest(raw.data, raw.media_type)
        assert isinstance(manifest, Manifest)
        blobs = [layer for layer in manifest.layers if self._goes_along(layer)]
        names: dict[Digest, str] = {}
        if image is not None and len(manifest.layers) == len(image.diff_ids):
            names = {
                layer.digest: short(Digest(diff_id))
                for layer, diff_id in zip(manifest.layers, image.diff_ids, strict=True)
            }
        return Document(raw=raw, blobs=[*blobs, manifest.config], names=names)

    def _goes_along(self, layer: Descriptor) -> bool:
        """Foreign layers are fetched from where they are, not from registries."""
        return not (layer.urls or layer.media_type.startswith(OCI_LAYER_FOREIGN)) or self.foreign

    async def record(self, reference: Reference, document: Document) -> None:
        """The repository's digest is a name of the images from now on."""
        raw = document.raw
        for image, made in self._sent:
            if self._deps.store.find(image.id) is None:
                continue  # removed meanwhile
            await self._deps.store.put(
                seen_through(image, made),
                references=[reference.with_digest(raw.digest)],
                target=raw.descriptor,
                blobs=[raw.digest, *(child.raw.digest for child in document.children)],
            )

    async def _raw(self, descriptor: Descriptor) -> Raw:
        data = await settle(lambda: self._deps.content.read(descriptor.digest, limit=MAX_DOCUMENT))
        return Raw(data, descriptor.media_type, descriptor.digest)

    async def _decoded(self, descriptor: Descriptor) -> Manifest | Index:
        return decode_manifest((await self._raw(descriptor)).data, descriptor.media_type)


def _made_of_an_archive(raw: Raw) -> bool:
    """Wherry wrote this manifest for plain tars that came without one."""
    manifest = decode_manifest(raw.data, raw.media_type)
    if not isinstance(manifest, Manifest) or not manifest.layers:
        return False
    plain = any(compression_of(layer) is Compression.NONE for layer in manifest.layers)
    return plain and encode_manifest(manifest.config, manifest.layers).data == raw.data


def _no_platform(reference: Reference, wanted: Platform) -> NotFound:
    return NotFound(
        f"image with reference {reference.familiar} was found but does not provide the specified platform ({wanted})"
    )


def _mounts(deps: Deps, repository: Repository) -> dict[Digest, list[str]]:
    """Blob -> other repositories of the same registry that are known to have it."""
    found: dict[Digest, list[str]] = {}
    for target in deps.store.targets():
        reference = parse(target.name)
        if reference.domain != repository.domain or reference.path == repository.path or reference.digest is None:
            continue  # only a digest says that the registry has it
        for image in filter(None, map(deps.store.find, target.images)):
            for blob in image.blobs:
                paths = found.setdefault(blob, [])
                if reference.path not in paths:
                    paths.append(reference.path)
    return found


class _Sending:
    def __init__(
        self, deps: Deps, repository: Repository, mounts: Mapping[Digest, Sequence[str]], progress: Progress
    ) -> None:
        self._deps = deps
        self._repository = repository
        self._mounts = mounts
        self._progress = progress

    async def send(self, document: Document, name: str) -> None:
        """Blobs, then manifests from the leaves up; the last one as `name`."""
        try:
            async with asyncio.TaskGroup() as group:
                for each in (document, *document.children):
                    self._start(group, each)
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        for child in document.children:
            await put_manifest(self._repository, child.raw, child.raw.digest)
        await put_manifest(self._repository, document.raw, name)

    def _start(self, group: asyncio.TaskGroup, document: Document) -> None:
        bars: dict[Digest, tuple[Descriptor, Bar | None]] = {}
        for blob in reversed(document.blobs):  # the top first, as Docker shows them
            bar = Bar(self._progress, document.names[blob.digest]) if blob.digest in document.names else None
            if bar is not None:
                bar.say("Preparing")
            bars[blob.digest] = blob, bar
        for blob, bar in bars.values():
            group.create_task(self._blob(blob, bar))

    async def _blob(self, blob: Descriptor, bar: Bar | None) -> None:
        if bar is not None and self._deps.uploads.locked():
            bar.say("Waiting")
        key = ("push", self._repository.domain, self._repository.path, blob.digest)
        async with self._deps.locks(key), self._deps.uploads:
            outcome, source = await upload(self._repository, self._described(blob), self._reports(blob, bar))
        if bar is not None:
            said = {
                Outcome.EXISTS: "Layer already exists",
                Outcome.MOUNTED: f"Mounted from {source}",
                Outcome.PUSHED: "Pushed",
            }
            bar.say(said[outcome])

    def _described(self, blob: Descriptor) -> Blob:
        return Blob(
            digest=blob.digest,
            size=blob.size,
            read=lambda offset: self._read(blob.digest, offset),
            sources=self._mounts.get(blob.digest, ()),
        )

    def _reports(self, blob: Descriptor, bar: Bar | None) -> Reports:
        def sent(current: int) -> None:
            if bar is not None:
                bar.show("Pushing", current, blob.size)

        def pausing(left: int) -> None:
            if bar is not None:
                bar.say(f"Retrying in {left} second{'s' if left != 1 else ''}")

        return Reports(sent=sent, pausing=pausing)

    async def _read(self, digest: Digest, offset: int) -> AsyncIterator[bytes]:
        with await settle(self._deps.content.open, digest) as file:
            file.seek(offset)
            while data := await settle(file.read, CHUNK):
                yield data


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell: one of ours if there is one."""
    ours, rest = errors.split(WherryError)
    group = ours or rest
    assert group is not None
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
