"""Base images: what a reference means now, without bringing any layer and without tagging anything.

Asked, as the mode says, are the engine's own images, a registry, or an OCI layout of the client's. Documents are kept
in the content store under the build's lease; layers are named, with those who have them (see providers.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.graph import ImageSource, ResolveMode
from wherry.builder.sources.oci_layout import open_layout
from wherry.builder.sources.providers import Credentials, Provider, Providers, Registry, login_host
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import Digest, extend_chain, is_digest
from wherry.distribution.errors import translate
from wherry.distribution.source import Source, open_source
from wherry.errors import Corrupt, InvalidParameter, NotFound, NotSupported, WherryError
from wherry.images.deps import Deps
from wherry.images.leases import Lease
from wherry.images.record import Image
from wherry.images.transfer.kinds import check_manifest, check_top
from wherry.reference import DEFAULT_DOMAIN, OFFICIAL, Reference, is_identifier, parse
from wherry.spec.image import (
    MAX_DOCUMENT,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    Raw,
    decode_config,
    decode_manifest,
    media_type_of,
    rank,
    select,
)

_MIN_ID = 12  # hex digits of an image ID that are taken for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference stands for at this moment, for one platform."""

    reference: str  # full
    top: Descriptor  # what the name names: an index, or the manifest itself
    manifest: Descriptor
    image_id: Digest  # of the config
    config: ImageConfig
    config_raw: bytes
    tree: Tree
    local: bool  # it is an image of the engine's

    @property
    def digest(self) -> Digest:
        """By which the reference could be pinned."""
        return self.top.digest


class Documents(Protocol):
    """Distribution's `Source`, or a content store of the client's."""

    async def manifest(self, name: str) -> Raw: ...

    async def document(self, descriptor: Descriptor) -> bytes: ...


async def resolve(
    deps: Deps, lease: Lease, source: ImageSource, platform: Platform, client: Client, providers: Providers
) -> Resolved:
    """What `source` means for `platform`. Layers of an image for another machine are no error here.

    Raises InvalidParameter for no reference, NotFound, NotSupported (no image), Unauthorized or Failed in the
    registry's words.
    """
    named = _name(source)
    if source.store:
        layout = open_layout(client, source.store, named)
        return await _Documents(deps, lease, layout).resolve(named, platform, providers, layout)
    image = await _held(deps, lease, named, platform)
    if image is not None and (source.mode is ResolveMode.LOCAL or named.digest is not None or _is_id(named)):
        return await _local(deps, named, image)
    try:
        return await _remote(deps, lease, named, platform, client.credentials, providers, image)
    except WherryError as exc:
        if image is not None and source.mode is not ResolveMode.PULL:
            return await _local(deps, named, image)
        raise _told_of_others(deps, named, exc) from exc


def _name(source: ImageSource) -> Reference:
    named = parse(source.reference)
    if source.digest is not None and named.digest is None:
        named = named.with_digest(source.digest)
    return named.tagged()


# --- the engine's images ----------------------------------------------------------------------------------------------


async def _held(deps: Deps, lease: Lease, named: Reference, platform: Platform) -> Image | None:
    """The engine's image of that name and platform, which stays until the lease ends."""
    while (image := _find(deps, named, platform)) is not None:
        await lease.protect(
            digests={image.manifest.digest, Digest(image.id), *image.blobs},
            chains=[layer.chain for layer in image.layers],
        )
        if _find(deps, named, platform) == image:
            return image
    return None


def _find(deps: Deps, named: Reference, platform: Platform) -> Image | None:
    ranked = [
        (at, number, image)
        for number, image in enumerate(_of_name(deps, named))
        if (at := rank(image.config.platform, platform)) is not None
    ]
    return min(ranked, key=lambda each: each[:2])[2] if ranked else None


def _of_name(deps: Deps, named: Reference) -> Iterator[Image]:
    """Of all platforms."""
    target = deps.store.target(named)
    if target is not None:
        yield from filter(None, map(deps.store.find, target.images))
    elif (image_id := _id(named)) is not None:
        try:
            yield deps.store.get(image_id)
        except WherryError:
            return


def _id(named: Reference) -> str | None:
    """A reference that an image ID was taken for: `FROM 3f57d9401f8d`, `FROM sha256:…`."""
    if named.domain != DEFAULT_DOMAIN or named.digest is not None:
        return None
    path = named.path.removeprefix(OFFICIAL)
    if path == "sha256" and is_identifier(named.tag or ""):
        return f"sha256:{named.tag}"
    is_hex = len(path) >= _MIN_ID and all(c in "0123456789abcdef" for c in path)
    return path if is_hex and named.tag == "latest" else None


def _is_id(named: Reference) -> bool:
    return _id(named) is not None


async def _local(deps: Deps, named: Reference, image: Image) -> Resolved:
    target = deps.store.target(named)
    raw = await settle(lambda: deps.content.read(Digest(image.id), limit=MAX_DOCUMENT))
    steps = _steps(image.config, len(image.layers))
    layers = tuple(
        TreeLayer(
            chain=layer.chain,
            diff_id=layer.diff_id,
            size=layer.unpacked,
            blob=Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size),
            created_by=step,
        )
        for layer, step in zip(image.layers, steps, strict=True)
    )
    return Resolved(
        reference=str(named),
        top=target.descriptor if target is not None else image.manifest,
        manifest=image.manifest,
        image_id=Digest(image.id),
        config=image.config,
        config_raw=raw,
        tree=Tree(layers),
        local=True,
    )


def _steps(config: ImageConfig, count: int) -> list[str]:
    """What made each layer, as far as the history says."""
    found = [entry.created_by for entry in config.history if not entry.empty_layer]
    return [*found, *[""] * count][:count]


def _told_of_others(deps: Deps, named: Reference, exc: WherryError) -> WherryError:
    """The registry's word; and that there is an image of the name here, for another machine."""
    platforms = sorted({str(image.config.platform) for image in _of_name(deps, named)})
    if not platforms or not isinstance(exc, NotFound):
        return exc
    return NotFound(f"{exc.message} (an image of that name is held here for {', '.join(platforms)} only)")


# --- registries -------------------------------------------------------------------------------------------------------


async def _remote(
    deps: Deps,
    lease: Lease,
    named: Reference,
    platform: Platform,
    credentials: Credentials,
    providers: Providers,
    image: Image | None,
) -> Resolved:
    provider = Registry(named, credentials)
    if named.digest is not None:  # it can mean nothing new: all may be here
        try:
            return await _Documents(deps, lease, None).resolve(named, platform, providers, provider)
        except _Elsewhere:
            pass
    auth = await credentials(login_host(named.domain))
    try:
        async with open_source(deps.registry, named, auth) as source:
            if image is not None and await _is_current(deps, named, source):
                return await _local(deps, named, image)
            return await _Documents(deps, lease, source).resolve(named, platform, providers, provider)
    except WherryError as exc:
        if (translated := translate(exc, named)) is exc:
            raise
        raise translated from exc


async def _is_current(deps: Deps, named: Reference, source: Source) -> bool:
    """The registry's tag still means what it means here: a question that rate limits do not count."""
    held = deps.store.target(named)
    return held is not None and named.tag is not None and await source.held(named.tag) == held.descriptor.digest


class _Elsewhere(NotFound):
    """A document is not held, and nobody was to be asked."""


class _Documents:
    """Documents that are held, else from `inner`, and then kept."""

    def __init__(self, deps: Deps, lease: Lease, inner: Documents | None) -> None:
        self._deps, self._lease, self._inner = deps, lease, inner

    async def resolve(self, named: Reference, platform: Platform, providers: Providers, provider: Provider) -> Resolved:
        top = await self._manifest(named.digest or named.tag or "", "")
        check_top(top.media_type)
        raw, manifest = await self._choose(named, top, platform)
        check_manifest(manifest)
        config_raw = await self._document(manifest.config)
        config = decode_config(config_raw)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise InvalidParameter(
                f"{named.familiar}: layers from manifest don't match image configuration: {len(manifest.layers)} "
                f"layers, {len(config.rootfs.diff_ids)} diffIDs"
            )
        providers.add((layer.digest for layer in manifest.layers), provider)
        return Resolved(
            reference=str(named),
            top=top.descriptor,
            manifest=raw.descriptor,
            image_id=manifest.config.digest,
            config=config,
            config_raw=config_raw,
            tree=Tree(tuple(_layers(manifest, config))),
            local=False,
        )

    async def _choose(self, named: Reference, top: Raw, platform: Platform) -> tuple[Raw, Manifest]:
        document = decode_manifest(top.data, top.media_type)
        if isinstance(document, Manifest):
            return top, document
        entry = select(document, platform)
        if entry is None:
            raise NotFound(f"{named}: no match for platform in manifest: not found: want {platform}{_offers(document)}")
        raw = await self._manifest(entry.digest, entry.media_type)
        found = decode_manifest(raw.data, raw.media_type)
        if not isinstance(found, Manifest):
            raise NotSupported(f"{named}: an index within an index is not supported")
        return raw, found

    async def _manifest(self, name: str, said: str) -> Raw:
        if is_digest(name) and (held := await self._held(Digest(name))) is not None:
            raw = Raw(held, said, Digest(name))
        elif self._inner is not None:
            raw = await self._inner.manifest(name)
            await self._keep(raw.digest, raw.data)
        else:
            raise _Elsewhere(f"{name} is not held")
        media_type = media_type_of(decode_manifest(raw.data, raw.media_type or said), raw.media_type or said)
        return Raw(raw.data, media_type, raw.digest)

    async def _document(self, descriptor: Descriptor) -> bytes:
        if (held := await self._held(descriptor.digest)) is not None:
            return held
        if self._inner is None:
            raise _Elsewhere(f"{descriptor.digest} is not held")
        data = await self._inner.document(descriptor)
        await self._keep(descriptor.digest, data)
        return data

    async def _held(self, digest: Digest) -> bytes | None:
        await self._lease.protect(digests=[digest])
        content = self._deps.content
        try:
            return await settle(lambda: content.read(digest, limit=MAX_DOCUMENT))
        except Corrupt:
            await settle(content.delete, digest)
        except (NotFound, InvalidParameter):
            pass
        return None

    async def _keep(self, digest: Digest, data: bytes) -> None:
        await self._lease.protect(digests=[digest])
        await settle(self._deps.content.write, data)


def _layers(manifest: Manifest, config: ImageConfig) -> Iterator[TreeLayer]:
    chain = None
    steps = _steps(config, len(manifest.layers))
    for blob, diff_id, step in zip(manifest.layers, config.rootfs.diff_ids, steps, strict=True):
        chain = extend_chain(chain, diff_id)
        yield TreeLayer(chain=chain, diff_id=diff_id, blob=blob, created_by=step)


def _offers(index: Index) -> str:
    names = sorted({str(entry.platform) for entry in index.manifests if entry.platform} - {"unknown/unknown", ""})
    return f"; it has {', '.join(names[:20])}" if names else ""
