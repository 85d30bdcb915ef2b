"""`--cache-from`: what other builds resulted in, from a registry, an image, or a directory of the client's.

    type=registry,ref=…     a cache that was exported there, or an image with an inline one
    type=local,src=…,digest=…

Only the documents are fetched. Blobs are known to `Providers` afterwards and brought by who needs them.
"""

import base64
import contextlib
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wherry.aio import settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.export.cache_manifest import (
    BUILDKIT,
    BUILDKIT_INLINE,
    CONFIG,
    INLINE,
    Checksum,
    Contents,
    Record,
    decode,
)
from wherry.builder.options import CacheTransfer
from wherry.builder.run.caches import cache_directory
from wherry.builder.sources.images import Documents
from wherry.builder.sources.providers import ClientStore, Provider, Providers, Registry, bring_blobs, login_host
from wherry.digest import is_digest
from wherry.distribution.errors import translate
from wherry.distribution.source import open_source
from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.images.leases import Lease
from wherry.reference import parse as parse_reference
from wherry.spec.image import CONFIGS, Descriptor, Index, Manifest, Raw, decode_manifest
from wherry.storage.diff import apply_layer
from wherry.storage.tree import remove_tree

MAX_PLATFORMS = 32  # images of one index that are looked into
_STORE = "local:"
_OTHERS = ("gha", "s3", "azblob", "gcs", "inline")


@dataclass(slots=True, kw_only=True)
class ImportedCache:
    """What one import brought."""

    records: dict[str, Record] = field(default_factory=dict)  # by key
    checksums: dict[str, Checksum] = field(default_factory=dict)  # by key
    mounts: dict[str, Descriptor] = field(default_factory=dict)  # blobs by the id of a cache mount
    warnings: list[str] = field(default_factory=list)  # why there is less than was hoped for

    def add(self, contents: Contents) -> None:
        self.records = {**{record.key: record for record in contents.records}, **self.records}
        self.checksums = {**{each.key: each for each in contents.checksums}, **self.checksums}
        self.mounts = {**contents.mounts, **self.mounts}


async def load(deps: Deps, where: CacheTransfer, *, client: Client, providers: Providers) -> ImportedCache:
    """Fetch the documents of a cache.

    A cache of another engine is a warning, not an error. Raises InvalidParameter, NotSupported, and what the registry
    or the client says: a build goes on without.
    """
    check(where)
    if where.type == "local":
        store = ClientStore(client, f"{_STORE}{where.attributes['src']}")
        return await _load(store, where.attributes["digest"], f"directory {where.attributes['src']}", store, providers)
    named = parse_reference(where.attributes["ref"]).tagged()
    auth = await client.credentials(login_host(named.domain))
    provider = Registry(named, client.credentials)
    try:
        async with open_source(deps.images.registry, named, auth) as source:
            return await _load(source, named.digest or named.tag or "", named.familiar, provider, providers)
    except WherryError as exc:
        if (translated := translate(exc, named)) is exc:
            raise
        raise translated from exc


def check(where: CacheTransfer) -> None:
    """Raise InvalidParameter or NotSupported for an import that can never work."""
    attributes = where.attributes
    if where.type in _OTHERS:
        raise NotSupported(f'unknown cache importer: "{where.type}": there are registry and local')
    if where.type not in ("registry", "local"):
        raise InvalidParameter(f'unknown cache importer: "{where.type[:100]}": want registry or local')
    if where.type == "registry":
        if not attributes.get("ref"):
            raise InvalidParameter("registry cache importer requires ref")
        parse_reference(attributes["ref"])
        return
    if not is_digest(attributes.get("digest", "")):
        raise InvalidParameter("local cache importer requires explicit digest")
    if not attributes.get("src"):
        raise InvalidParameter("local cache importer requires src")


async def _load(documents: Documents, name: str, shown: str, provider: Provider, providers: Providers) -> ImportedCache:
    found = ImportedCache()
    work = _Loading(documents, shown, provider, providers, found)
    await work.top(await documents.manifest(name))
    if not found.records and not found.mounts and not found.warnings:
        found.warnings.append(f"{shown} holds no build cache: build it with --cache-to")
    return found


class _Loading:
    """One import."""

    def __init__(
        self, documents: Documents, shown: str, provider: Provider, providers: Providers, found: ImportedCache
    ) -> None:
        self._documents, self._shown, self._provider = documents, shown, provider
        self._providers, self._found = providers, found

    async def top(self, raw: Raw) -> None:
        document = _parse(raw)
        if isinstance(document, Manifest):
            await self._manifest(document)
            return
        if any(entry.media_type.startswith(BUILDKIT) for entry in document.manifests):
            self._foreign()
            return
        images = [entry for entry in document.manifests if entry.platform is None or entry.platform.os != "unknown"]
        for entry in images[:MAX_PLATFORMS]:
            found = _parse(await self._documents.manifest(entry.digest))
            if isinstance(found, Manifest):
                await self._manifest(found)

    async def _manifest(self, manifest: Manifest) -> None:
        kind = manifest.config.media_type
        if kind.startswith(BUILDKIT):
            self._foreign()
        elif kind == CONFIG:
            self._add(await self._documents.document(manifest.config), manifest)
        elif kind in CONFIGS:
            await self._image(manifest)
        else:
            self._found.warnings.append(f"{self._shown} is no build cache but has a config of type {kind[:100]!r}")

    async def _image(self, manifest: Manifest) -> None:
        """An image: it may have a cache in its config."""
        fields = _object(await self._documents.document(manifest.config), "image config")
        said = fields.get(INLINE)
        if isinstance(said, str):
            try:
                data = base64.b64decode(said, validate=True)
            except ValueError as exc:
                raise InvalidParameter(f"build cache of {self._shown} cannot be read: {exc}") from exc
            self._add(data, manifest)
        elif BUILDKIT_INLINE in fields:
            self._foreign()

    def _add(self, data: bytes, manifest: Manifest) -> None:
        self._found.add(decode(data, manifest.layers))
        self._providers.add((blob.digest for blob in manifest.layers), self._provider)

    def _foreign(self) -> None:
        self._found.warnings.append(
            f"{self._shown} holds a cache of BuildKit, whose keys mean nothing here: it is not used; export one with "
            "this engine"
        )


def _parse(raw: Raw) -> Manifest | Index:
    """A manifest of ours may have more layers than that of an image."""
    config = _object(raw.data, "manifest").get("config")
    if not isinstance(config, dict) or config.get("mediaType") != CONFIG:
        return decode_manifest(raw.data, raw.media_type)
    try:
        found = msgspec.json.decode(raw.data, type=Manifest)
    except msgspec.MsgspecError as exc:
        raise InvalidParameter(f"manifest of a build cache cannot be read: {exc}") from exc
    for blob in (found.config, *found.layers):
        if not is_digest(blob.digest) or blob.size < 0:
            raise InvalidParameter(f"manifest of a build cache names the invalid blob {blob.digest[:100]!r}")
    return found


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InvalidParameter(f"{what} is not valid JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidParameter(f"{what} is not a JSON object")
    return found


# --- cache mounts -----------------------------------------------------------------------------------------------------


async def restore_mounts(
    deps: Deps, lease: Lease, imported: ImportedCache, providers: Providers, *, only: Container[str] | None = None
) -> list[str]:
    """Fill the cache mounts that came along and are not here; their ids. `only`: those, if they are among them.

    What cannot be restored is left to the steps, which begin with an empty one; why is among `imported`'s warnings.
    """
    found: list[str] = []
    for name, blob in imported.mounts.items():
        place = cache_directory(deps.settings.root, name) / "0"
        if only is not None and name not in only:
            continue
        async with deps.locks(("make cache", place)):  # as who makes an empty one (run/caches.py)
            if await settle((place / "files").exists):
                continue
            try:
                await bring_blobs(deps.images, lease, [blob], providers)
                await settle(_fill, deps, name, blob, place)
            except WherryError as exc:
                imported.warnings.append(f"cache mount {name} is not restored: {exc.message}")
                continue
        found.append(name)
    return found


def _fill(deps: Deps, name: str, blob: Descriptor, place: Path) -> None:
    making = place / "making"
    with contextlib.suppress(FileNotFoundError):
        remove_tree(making)
    making.mkdir(parents=True)
    try:
        with deps.content.open(blob.digest) as file:
            apply_layer(file, snapshot=making, whiteouts=None)
        (place.parent / "id").write_text(name)
        making.rename(place / "files")
    except BaseException:
        remove_tree(making)
        raise
