"""Pull: images from a registry into the store.

    manifest or index -> platform(s) -> config -> layers (bring.py) -> image row and tag in one transaction

One platform of an index is brought as a rule; another one, pulled later, is held beside it. All of them, with what the
index names besides images (attestations), are brought by `platform="all"`: then the index can be passed on whole.

A pull that fails or is cancelled leaves no image, no tag and no layer; what it downloaded is kept for a day, for the
next one to go on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from wherry.aio import settle
from wherry.digest import ChainID, Digest, extend_chain, is_digest
from wherry.distribution.errors import Refused, Unreachable, translate
from wherry.distribution.source import Source, open_source
from wherry.errors import Corrupt, Failed, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.progress import Progress
from wherry.images.record import Image, ImageID, Layer, Target
from wherry.images.transfer.bring import Errand, bring_blobs, bring_layers
from wherry.images.transfer.kinds import check_manifest, check_top, is_image
from wherry.reference import Reference, parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import (
    INDEXES,
    MAX_DOCUMENT,
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
    rank,
    runs_on,
    select,
)

ALL = "all"  # for a platform: every one


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The documents of one image as a registry gave them."""

    manifest: Raw
    config_raw: bytes
    config: ImageConfig
    config_digest: Digest
    layers: Sequence[Descriptor]

    @property
    def blobs(self) -> frozenset[Digest]:
        layers = (layer.digest for layer in self.layers)
        return frozenset({self.manifest.digest, self.config_digest, *layers})

    @property
    def chains(self) -> list[ChainID]:
        found: list[ChainID] = []
        for diff_id in self.config.rootfs.diff_ids:
            found.append(extend_chain(found[-1] if found else None, diff_id))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is brought under one name."""

    top: Raw  # what the name names: an index, or the manifest itself
    images: list[Found]
    others: list[tuple[Raw, Manifest]] = field(default_factory=list)  # manifests of no image we could run

    @property
    def attached(self) -> frozenset[Digest]:
        """The blobs of `others`."""
        blobs = (blob.digest for _, manifest in self.others for blob in (manifest.config, *manifest.layers))
        return frozenset({*(raw.digest for raw, _ in self.others), *blobs})

    @property
    def blobs(self) -> frozenset[Digest]:
        return self.attached.union({self.top.digest}, *(found.blobs for found in self.images))


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

    `platform`: `os/arch[/variant]`, `all`, or None for this machine's. Errors before the first call of `progress` are
    about the request as a whole: InvalidParameter, NotFound, Failed (registry unreachable, or refusing), NotSupported
    (no container image).
    """
    named = _name(reference, tag)
    lone = not all_tags or bool(named.tag or named.digest)
    named = named.tagged() if lone else named
    job = _Pull(deps=deps, platform=platform, progress=progress)
    try:
        async with open_source(deps.registry, named, auth) as source:
            if lone:
                image, updated = await job.one(source, named)
            else:
                image, updated = await job.every(source, named)
    except WherryError as exc:
        if (translated := translate(exc, named)) is exc:
            raise
        raise translated from exc
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


class _Pull:
    """One request."""

    def __init__(self, *, deps: Deps, platform: str | None, progress: Progress) -> None:
        self._deps = deps
        self._progress = progress
        self._all = platform == ALL
        self._asked = bool(platform) and not self._all  # for one platform, by name
        self._platform = parse_platform(platform) if platform and not self._all else host_platform()

    async def every(self, source: Source, named: Reference) -> tuple[Image, bool]:
        """All tags; those that are no images are passed over with a word. The last image, and whether any is new."""
        image: Image | None = None
        updated = False
        for tag in await source.tags():
            try:
                image, changed = await self.one(source, named.with_tag(tag))
                updated = updated or changed
            except NotSupported as exc:
                self._progress({"status": f"Skipping {named.familiar_name}:{tag}: {exc.message}"})
        if image is None:
            raise NotFound(f"repository {named.familiar_name} has no tags that are images")
        return image, updated

    async def one(self, source: Source, reference: Reference) -> tuple[Image, bool]:
        """One tag or digest; whether it brought an image its name did not stand for before."""
        name = reference.digest or reference.tag
        assert name is not None
        deps = self._deps
        before = deps.store.target(reference)
        top = await self._top(source, name, before)
        self._progress({"status": f"Pulling from {reference.path}", "id": name})
        wanted = await self._resolve(source, top)
        try:
            async with leased(deps, f"pull {reference}") as lease:
                errand = Errand(deps=deps, source=source, lease=lease, progress=self._progress)
                image = await self._bring(errand, reference, wanted)
        except (Refused, Unreachable):
            raise
        except WherryError as exc:
            await settle(_give_up, deps, wanted, full=isinstance(exc, Failed))
            raise
        await settle(_forget, deps, wanted)
        self._progress({"status": f"Digest: {top.digest}"})
        if self._asked and not runs_on(image.config.platform, self._platform):
            self._progress({"status": _warning(reference, self._platform, image)})
        deps.announce("pull", image, actor=reference.familiar, name=reference.familiar_name)
        known = before.images if before is not None and before.descriptor.digest == top.digest else ()
        return image, any(ImageID(found.config_digest) not in known for found in wanted.images)

    # --- documents ----------------------------------------------------------------------------------------------------

    async def _top(self, source: Source, name: str, before: Target | None) -> Raw:
        """What `name` names. Not asked for again when it is what it was: rate limits count that."""
        if before is not None and await source.held(name) == before.descriptor.digest:
            held = await self._held(before.descriptor)
            if held is not None:
                return Raw(held, before.descriptor.media_type, before.descriptor.digest)
        return await source.manifest(name)

    async def _held(self, descriptor: Descriptor) -> bytes | None:
        """A document from the content store; None when it is not there, or damaged (then it is removed)."""
        content = self._deps.content
        try:
            return await settle(content.read, descriptor.digest, limit=MAX_DOCUMENT)
        except Corrupt:
            await settle(content.delete, descriptor.digest)
        except (NotFound, InvalidParameter):
            pass
        return None

    async def _resolve(self, source: Source, top: Raw) -> Wanted:
        """From what a name names to the images that are wanted of it."""
        check_top(top.media_type)
        document = decode_manifest(top.data, top.media_type)
        top = Raw(top.data, media_type_of(document, top.media_type), top.digest)
        if isinstance(document, Manifest):
            return Wanted(top=top, images=[await self._found(source, top, document)])
        if self._all:
            return await self._resolve_all(source, top, document)
        chosen = select(document, self._platform)
        if chosen is None:
            raise NotFound(f"no matching manifest for {self._platform} in the manifest list entries{_offers(document)}")
        manifest_raw, manifest = await self._manifest(source, chosen)
        return Wanted(top=top, images=[await self._found(source, manifest_raw, manifest)])

    async def _resolve_all(self, source: Source, top: Raw, index: Index) -> Wanted:
        wanted = Wanted(top=top, images=[])
        host = host_platform()
        for entry in sorted(index.manifests, key=lambda entry: _order(entry, host)):
            raw, manifest = await self._manifest(source, entry)
            if is_image(manifest) and entry.platform is not None and entry.platform.os == "linux":
                wanted.images.append(await self._found(source, raw, manifest))
            else:
                wanted.others.append((raw, manifest))
        if not wanted.images:
            raise NotFound(f"no image for linux in the manifest list entries{_offers(index)}")
        return wanted

    async def _manifest(self, source: Source, entry: Descriptor) -> tuple[Raw, Manifest]:
        """A manifest that an index names."""
        if entry.media_type in INDEXES:
            raise NotSupported("an index within an index is not supported")
        held = await self._held(entry)
        raw = Raw(held, entry.media_type, entry.digest) if held is not None else await source.manifest(entry.digest)
        document = decode_manifest(raw.data, raw.media_type or entry.media_type)
        if not isinstance(document, Manifest):
            raise NotSupported("an index within an index is not supported")
        return Raw(raw.data, media_type_of(document, raw.media_type), raw.digest), document

    async def _found(self, source: Source, raw: Raw, manifest: Manifest) -> Found:
        check_manifest(manifest)
        config_raw = await self._held(manifest.config) or await source.document(manifest.config)
        config = decode_config(config_raw)
        if config.os not in ("", "linux"):
            raise NotSupported(f'image operating system "{config.os}" cannot be used on this platform')
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise InvalidParameter(
                f"layers from manifest don't match image configuration: {len(manifest.layers)} layers, "
                f"{len(config.rootfs.diff_ids)} diffIDs"
            )
        return Found(
            manifest=raw,
            config_raw=config_raw,
            config=config,
            config_digest=manifest.config.digest,
            layers=manifest.layers,
        )

    # --- content ------------------------------------------------------------------------------------------------------

    async def _bring(self, errand: Errand, reference: Reference, wanted: Wanted) -> Image:
        """All content, then all records; the image that `reference` was pulled for."""
        chains = [chain for found in wanted.images for chain in found.chains]
        await errand.lease.protect(digests=wanted.blobs, chains=chains)
        content = self._deps.content
        await settle(content.write, wanted.top.data)
        layers = [await self._layers(errand, found) for found in wanted.images]
        for raw, manifest in wanted.others:
            await settle(content.write, raw.data)
            await bring_blobs(errand, (manifest.config, *manifest.layers))
        for found, own in reversed(list(zip(wanted.images, layers, strict=True))):
            image = await self._record(reference, wanted, found, own)
        return image

    async def _layers(self, errand: Errand, found: Found) -> Sequence[Layer]:
        """The layers of one image; of one that is here whole there is nothing to tell."""
        deps = self._deps
        image = deps.store.find(found.config_digest)
        if image is not None and found.blobs <= image.blobs:

            def complete() -> bool:
                return all(map(deps.content.has, found.blobs)) and all(map(deps.snapshots.has, found.chains))

            if await settle(complete):
                return image.layers
        for document in (found.manifest.data, found.config_raw):
            await settle(deps.content.write, document)
        return await bring_layers(errand, found.layers, found.config.rootfs.diff_ids, found.chains)

    async def _record(self, reference: Reference, wanted: Wanted, found: Found, layers: Sequence[Layer]) -> Image:
        references = [reference.with_digest(wanted.top.digest)]
        if reference.digest is None:
            references.insert(0, reference)
        image = Image(
            id=ImageID(found.config_digest),
            config=found.config,
            manifests=(found.manifest.descriptor,),
            layers=tuple(layers),
            blobs=found.blobs,
        )
        return await self._deps.store.put(
            image, references=references, target=wanted.top.descriptor, blobs=wanted.attached
        )


def _order(entry: Descriptor, host: Platform) -> int:
    """This machine's platform first: should the pull be interrupted, it is the one to have."""
    at = rank(entry.platform, host) if entry.platform is not None else None
    return at if at is not None else 1 << 16


def _offers(index: Index) -> str:
    """Which platforms there are instead, for a message."""
    names = {str(entry.platform) for entry in index.manifests if entry.platform is not None}
    known = sorted(names - {"unknown/unknown", ""})
    return f": it has {', '.join(known[:20])}" if known else ""


def _warning(reference: Reference, wanted: Platform, image: Image) -> str:
    return (
        f"WARNING: image with reference {reference.familiar} was found but does not match the specified platform: "
        f"wanted {wanted}, actual: {image.config.platform}"
    )


def _forget(deps: Deps, wanted: Wanted) -> None:
    """All is recorded: nothing of it will have to be gone on with. What is older than it should be goes, too."""
    for blob in wanted.blobs:
        deps.content.forget_download(blob)
    deps.content.expire()


def _give_up(deps: Deps, wanted: Wanted, *, full: bool) -> None:
    """The content is wrong, or the disk is full: what was downloaded helps nobody."""
    _forget(deps, wanted)
    if full:
        deps.content.expire(age=0)
