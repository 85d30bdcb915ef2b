"""Pull: an image from a registry into the store.

    manifest or index -> platform -> config -> layers, DOWNLOADS at a time, unpacked base first while others still come
    -> image row and tag in one transaction

A layer that two pulls want at once is downloaded and unpacked by one of them. A pull that fails or is cancelled leaves
no image, no tag and no layer; what it downloaded completely is dropped with its lease.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import ChainID, DiffID, Digest, extend_chain, is_digest
from wherry.distribution.errors import translate
from wherry.distribution.fetch import fetch
from wherry.distribution.source import Source, open_source
from wherry.errors import InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.layers import check_type, short, unpack
from wherry.images.leases import Lease
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, ImageID, Layer
from wherry.reference import Reference, parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import (
    CONFIGS,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    Raw,
    decode_config,
    decode_manifest,
    host_platform,
    media_type_of,
    parse_platform,
    runs_on,
    select,
)
from wherry.storage.content import Ingest

# What early registries called a config; Docker takes them too.
LEGACY_CONFIGS = frozenset(
    {"", "application/octet-stream", "application/json", "text/html", "text/html; charset=utf-8"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The documents of one image as a registry gave them."""

    top: Raw  # what the reference names: an index, or the manifest itself
    manifest: Raw
    config_raw: bytes
    config: ImageConfig
    config_digest: Digest
    layers: Sequence[Descriptor]

    @property
    def blobs(self) -> frozenset[Digest]:
        layers = (layer.digest for layer in self.layers)
        return frozenset({self.top.digest, self.manifest.digest, self.config_digest, *layers})

    @property
    def chains(self) -> list[ChainID]:
        found: list[ChainID] = []
        for diff_id in self.config.rootfs.diff_ids:
            found.append(extend_chain(found[-1] if found else None, diff_id))
        return found


async def pull(
    deps: Deps,
    reference: str,
    *,
    tag: str | None = None,
    platform: str | None = None,
    auth: Auth = ANONYMOUS,
    progress: Progress,
    all_tags: bool = False,
) -> Image:
    """Pull `reference`; `tag` (a tag or a digest) takes precedence over one in it. Answers the (last) image.

    Errors before the first call of `progress` are about the request as a whole: InvalidParameter, NotFound, Failed
    (registry unreachable, or refusing), NotSupported (format).
    """
    wanted = parse_platform(platform) if platform else host_platform()
    named = _name(reference, tag)
    lone = not all_tags or bool(named.tag or named.digest)
    named = named.tagged() if lone else named
    try:
        async with open_source(deps.registry, named, auth) as source:
            if lone:
                tags = [named]
            else:
                tags = [named.with_tag(each) for each in await source.tags()]
            image: Image | None = None
            updated = False
            for each in tags:
                image, changed = await _pull_one(deps, source, each, wanted, progress)
                updated = updated or changed
                if platform and not runs_on(image.config.platform, wanted):
                    progress({"status": _warning(each, wanted, image)})
    except WherryError as exc:
        if (translated := translate(exc, named)) is exc:
            raise
        raise translated from exc
    if image is None:
        raise NotFound(f"repository {named.familiar_name} has no tags")
    state = "Downloaded newer image for" if updated else "Image is up to date for"
    progress({"status": f"Status: {state} {named.familiar}"})
    return image


def _name(text: str, tag: str | None) -> Reference:
    reference = parse(text)
    if not tag:
        return reference
    if is_digest(tag):
        return reference.with_digest(Digest(tag))
    if reference.digest is not None:
        return reference  # a digest is more exact than any tag
    return reference.with_tag(tag)


def _warning(reference: Reference, wanted: Platform, image: Image) -> str:
    return (
        f"WARNING: image with reference {reference.familiar} was found but does not match the specified platform: "
        f"wanted {wanted}, actual: {image.config.platform}"
    )


async def _pull_one(
    deps: Deps, source: Source, reference: Reference, wanted: Platform, progress: Progress
) -> tuple[Image, bool]:
    """One tag or digest; whether it names another image than before."""
    name = reference.digest or reference.tag
    assert name is not None
    top = await source.manifest(name)
    progress({"status": f"Pulling from {reference.path}", "id": name})
    found = await _resolve(source, reference, top, wanted)
    before = deps.store.tagged(reference)
    async with leased(deps, f"pull {reference}") as lease:
        layers = await _held(deps, lease, found) or await _bring(deps, source, lease, found, progress)
        image = await _record(deps, reference, found, layers)
    progress({"status": f"Digest: {top.digest}"})
    deps.announce("pull", image, actor=reference.familiar, name=reference.familiar_name)
    return image, before is None or before.id != image.id


async def _resolve(source: Source, reference: Reference, top: Raw, wanted: Platform) -> Found:
    """From what the reference names to one image's documents."""
    manifest_raw = top
    document = decode_manifest(top.data, top.media_type)
    top = Raw(top.data, media_type_of(document, top.media_type), top.digest)
    if isinstance(document, Index):
        chosen = select(document, wanted)
        if chosen is None:
            raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
        manifest_raw = await source.manifest(chosen.digest)
        document = decode_manifest(manifest_raw.data, manifest_raw.media_type or chosen.media_type)
    if not isinstance(document, Manifest):
        raise NotSupported(f"{reference.familiar}: an index within an index is not supported")
    manifest_raw = Raw(manifest_raw.data, media_type_of(document, manifest_raw.media_type), manifest_raw.digest)
    _check(document)
    config_raw = await source.document(document.config)
    config = decode_config(config_raw)
    if config.os not in ("", "linux"):
        raise NotSupported(f'image operating system "{config.os}" cannot be used on this platform')
    if len(config.rootfs.diff_ids) != len(document.layers):
        raise InvalidParameter(
            f"layers from manifest don't match image configuration: {len(document.layers)} layers, "
            f"{len(config.rootfs.diff_ids)} diffIDs"
        )
    return Found(
        top=top,
        manifest=manifest_raw,
        config_raw=config_raw,
        config=config,
        layers=document.layers,
        config_digest=document.config.digest,
    )


def _check(manifest: Manifest) -> None:
    kind = manifest.config.media_type
    if kind not in CONFIGS and kind not in LEGACY_CONFIGS:
        raise NotSupported(f'Encountered remote "{kind}"(unknown) when fetching: it is not a container image')
    for layer in manifest.layers:
        check_type(layer)


async def _held(deps: Deps, lease: Lease, found: Found) -> Sequence[Layer] | None:
    """The image's layers when everything of it is here already: then there is nothing to tell of layers."""
    await lease.protect(digests=found.blobs, chains=found.chains)
    image = deps.store.find(found.config_digest)
    if image is None or not found.blobs <= image.blobs:
        return None

    def complete() -> bool:
        return all(map(deps.content.has, found.blobs)) and all(map(deps.snapshots.has, found.chains))

    return image.layers if await settle(complete) else None


async def _bring(deps: Deps, source: Source, lease: Lease, found: Found, progress: Progress) -> list[Layer]:
    """Everything of the image into the stores; its layers, base first."""
    await lease.protect(digests=found.blobs, chains=found.chains)
    for document in (found.top.data, found.manifest.data, found.config_raw):
        await settle(deps.content.write, document)
    work = _Work(deps=deps, source=source, lease=lease, found=found, progress=progress)
    try:
        async with asyncio.TaskGroup() as group:
            return await work.run(group)
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    raise AssertionError("unreachable: a TaskGroup either returns or raises")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell: one of ours if there is one."""
    ours, rest = errors.split(WherryError)
    group = ours or rest
    assert group is not None
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One image's layers on their way."""

    deps: Deps
    source: Source
    lease: Lease
    found: Found
    progress: Progress
    bars: dict[Digest, Bar] = field(default_factory=dict)

    async def run(self, group: asyncio.TaskGroup) -> list[Layer]:
        downloads = await self._start(group)
        layers: list[Layer] = []
        for blob, diff_id in zip(self.found.layers, self.found.config.rootfs.diff_ids, strict=True):
            if (download := downloads.get(blob.digest)) is not None:
                await download
            layers.append(await self._unpack(blob, diff_id, layers[-1].chain if layers else None))
            if blob.digest in self.bars:
                self.bars.pop(blob.digest).say("Pull complete")
        return layers

    async def _start(self, group: asyncio.TaskGroup) -> Mapping[Digest, asyncio.Task[None]]:
        """Begin all downloads that are needed, in the order of the layers."""
        downloads: dict[Digest, asyncio.Task[None]] = {}
        seen: set[Digest] = set()
        for blob, chain in zip(self.found.layers, self.found.chains, strict=True):
            if blob.digest in seen:
                continue
            seen.add(blob.digest)
            bar = Bar(self.progress, short(blob.digest))
            if await settle(self._is_there, blob, chain):
                bar.say("Already exists")
                continue
            bar.say("Pulling fs layer")
            self.bars[blob.digest] = bar
            downloads[blob.digest] = group.create_task(self._download(blob, bar))
        return downloads

    def _is_there(self, blob: Descriptor, chain: ChainID) -> bool:
        return self.deps.snapshots.has(chain) and self.deps.content.has(blob.digest)

    async def _unpack(self, blob: Descriptor, diff_id: DiffID, parent: ChainID | None) -> Layer:
        bar = self.bars.get(blob.digest)

        def extracting(current: int) -> None:
            if bar is not None:
                bar.show("Extracting", current, blob.size)

        return await unpack(
            self.deps, self.lease, blob, parent=parent, diff_id=diff_id, extracting=extracting if bar else None
        )

    async def _download(self, blob: Descriptor, bar: Bar) -> None:
        if self.deps.downloads.locked():
            bar.say("Waiting")
        async with self.deps.locks(("blob", blob.digest)):  # another pull may be bringing it
            if await settle(self.deps.content.has, blob.digest):
                bar.say("Download complete")
                return
            async with self.deps.downloads:
                await self._fetch(blob, bar)

    async def _fetch(self, blob: Descriptor, bar: Bar) -> None:
        ingest = self.deps.content.ingest(f"layer {blob.digest}")  # on the loop: a cancelled thread would lose it
        try:
            await fetch(
                self.source,
                blob,
                _IngestSink(ingest),
                received=lambda current: bar.show("Downloading", current, blob.size),
                pausing=lambda left: bar.say(f"Retrying in {left} second{'s' if left != 1 else ''}"),
            )
            bar.say("Verifying Checksum")
            await settle(ingest.commit, blob.digest, blob.size)
        finally:
            await settle(ingest.abort)  # nothing happens after a commit
        bar.say("Download complete")


class _IngestSink:
    """Writes go to a thread: the disk may be slow, the loop must not."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    @property
    def offset(self) -> int:
        return self._ingest.offset

    async def write(self, data: bytes) -> None:
        if data:
            await settle(self._ingest.write, data)

    async def restart(self) -> None:
        await settle(self._ingest.reset)


async def _record(deps: Deps, reference: Reference, found: Found, layers: Sequence[Layer]) -> Image:
    references = [reference.with_digest(found.top.digest)]
    if reference.digest is None:
        references.insert(0, reference)
    image = Image(
        id=ImageID(found.config_digest),
        config=found.config,
        manifests=(found.manifest.descriptor,),
        layers=tuple(layers),
        blobs=found.blobs,
    )
    return await deps.store.put(image, references=references)
