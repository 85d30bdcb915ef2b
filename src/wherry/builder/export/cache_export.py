"""`--cache-to`: a build's cache to a registry or into a directory of the client's.

    type=registry,ref=…[,mode=max]     type=local,dest=…[,mode=max]     type=inline (see `cache_manifest.inline`)

mode=min sends the layers of the results and the names of all others; mode=max all layers. `cache-mounts=true` sends the
contents of the build's cache mounts as well, `ignore-error=true` makes a failure a line in the log.
"""

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from wherry.aio import acquire, settle
from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.export.cache_manifest import MOUNT, Checksum, Contents, Packed, Record, pack
from wherry.builder.export.seal import Form, seal
from wherry.builder.export.settings import flag, parse
from wherry.builder.export.work import Telling, telling
from wherry.builder.log import BuildLog
from wherry.builder.options import CacheTransfer
from wherry.builder.run.caches import cache_directory
from wherry.builder.sources.providers import Providers, bring_blobs, login_host
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import ChainID, Digest
from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.images.leases import Lease
from wherry.images.making.make import keep
from wherry.images.transfer.plan import Document
from wherry.images.transfer.push import push_document
from wherry.reference import Reference
from wherry.reference import parse as parse_reference
from wherry.spec.image import Descriptor, oci_layer_type
from wherry.storage.compression import Compression, compressor
from wherry.storage.content import ContentStore
from wherry.storage.diff import write_tree

RESPONSE = "cache.manifest"  # key of the exporter's response, by which the client of type=local makes its index.json
_STORE = "local:"  # beginning of a content store's name in the client's session
_CHUNK = 1 << 20  # bytes
_OTHERS = ("gha", "s3", "azblob", "gcs")  # what BuildKit has besides

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What a build has to export."""

    records: Sequence[Record]  # of its steps, whatever `kept` says
    checksums: Sequence[Checksum]
    results: Sequence[Tree]  # one for each platform
    mounts: Sequence[str] = ()  # ids of its cache mounts


async def export(
    deps: Deps,
    what: Exported,
    where: CacheTransfer,
    *,
    client: Client,
    lease: Lease,
    providers: Providers,
    log: BuildLog,
) -> dict[str, str]:
    """Send the cache; what the client is to be told of it. Layers must be protected by `lease`.

    Raises InvalidParameter and NotSupported for what cannot be done, and what the registry or the client says.
    """
    check(where)
    if where.type == "inline":
        return {}
    place = "registry" if where.type == "registry" else "client directory"
    with telling(log, f"exporting cache to {place}") as lines:
        try:
            with lines.step("preparing build cache for export"):
                contents = await _prepare(deps, what, where, lease, providers)
                packed = pack(contents, docker_types=not flag(where.attributes, "oci-mediatypes", True))
            for blob in packed.parsed.layers:
                lines.done(f"writing layer {blob.digest}")
            await _send(deps, packed, where, client, lease, lines)
        except WherryError as exc:
            if not flag(where.attributes, "ignore-error"):
                raise
            lines.done(f"not exported: {exc.message}")
            return {}
    return {RESPONSE: msgspec.json.encode(packed.manifest.descriptor).decode()}


def check(where: CacheTransfer) -> None:
    """Raise InvalidParameter or NotSupported for an export that can never work: before anything is built."""
    attributes = where.attributes
    if where.type in _OTHERS:
        raise NotSupported(f'unknown cache exporter: "{where.type}": there are registry, local and inline')
    if where.type not in ("registry", "local", "inline"):
        raise InvalidParameter(f'unknown cache exporter: "{where.type[:100]}": want registry, local or inline')
    mode = attributes.get("mode", "min")
    if mode not in ("min", "max"):
        raise InvalidParameter(f'unsupported cache mode "{mode[:100]}": want min or max')
    if where.type == "registry":
        _reference(attributes)
    if where.type == "local" and not attributes.get("dest"):
        raise InvalidParameter("local cache exporter requires dest")
    for name in ("oci-mediatypes", "image-manifest", "ignore-error", "cache-mounts"):
        flag(attributes, name)
    parse(_forms(attributes))


def _forms(attributes: Mapping[str, str]) -> dict[str, str]:
    """Those that are as for images."""
    names = ("compression", "compression-level", "force-compression", "registry.insecure")
    return {name: attributes[name] for name in names if name in attributes}


def _reference(attributes: Mapping[str, str]) -> Reference:
    if not attributes.get("ref"):
        raise InvalidParameter("registry cache exporter requires ref")
    named = parse_reference(attributes["ref"]).tagged()
    if named.digest is not None:
        raise InvalidParameter(f"a cache cannot be exported to a digest: {named.familiar}")
    return named


# --- what goes along --------------------------------------------------------------------------------------------------


async def _prepare(deps: Deps, what: Exported, where: CacheTransfer, lease: Lease, providers: Providers) -> Contents:
    settings = parse(_forms(where.attributes))
    form = Form(kind=settings.compression, level=settings.level, force=settings.force)
    wanted = {layer.chain: layer for tree in what.results for layer in tree.layers}
    if where.attributes.get("mode") == "max":
        wanted |= {each.chain: each for record in what.records for layers in record.outputs.values() for each in layers}
    sealed = await _sealed(deps, lease, wanted, form, providers, results=what.results)
    records = [_with_blobs(record, sealed) for record in what.records]
    mounts = {}
    if flag(where.attributes, "cache-mounts"):
        mounts = await _mounts(deps, lease, what.mounts)
    return Contents(records=records, checksums=what.checksums, mounts=mounts)


async def _sealed(
    deps: Deps,
    lease: Lease,
    layers: Mapping[ChainID, TreeLayer],
    form: Form,
    providers: Providers,
    *,
    results: Iterable[Tree],
) -> dict[ChainID, Descriptor]:
    """Blobs of the layers, held and protected. Those of results must be; of the others what nobody has is left out."""
    needed = {layer.chain for tree in results for layer in tree.layers}
    blobs = [layer.blob for layer in layers.values() if layer.blob is not None]
    await bring_blobs(deps.images, lease, blobs, providers)
    here = [layer for layer in layers.values() if layer.chain in needed or await _is_here(deps, layer)]
    made = await seal(deps.images, lease, Tree(tuple(here)), form)
    return {
        layer.chain: Descriptor(media_type=oci_layer_type(layer.media_type), digest=layer.digest, size=layer.size)
        for layer in made
    }


async def _is_here(deps: Deps, layer: TreeLayer) -> bool:
    def look() -> bool:
        return deps.snapshots.has(layer.chain) or (layer.blob is not None and deps.content.has(layer.blob.digest))

    return await settle(look)


def _with_blobs(record: Record, blobs: Mapping[ChainID, Descriptor]) -> Record:
    outputs = {
        number: tuple(replace(layer, blob=blobs.get(layer.chain)) for layer in layers)
        for number, layers in record.outputs.items()
    }
    whole = all(layer.blob is not None for layers in outputs.values() for layer in layers)
    return replace(record, outputs=outputs, kept=whole)


async def _mounts(deps: Deps, lease: Lease, names: Iterable[str]) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    for name in dict.fromkeys(names):
        files = cache_directory(deps.settings.root, name) / "0" / "files"
        try:
            blob = await settle(_pack_files, deps.content, lease, name, files)
        except FileNotFoundError:
            continue  # pruned meanwhile
        except (WherryError, OSError) as exc:  # a step of another build writes to it
            log.warning("cache mount %s is left out of the export: %s", name, exc)
            continue
        await keep(deps.images, lease, blob.digest)
        found[name] = blob
    return found


def _pack_files(content: ContentStore, lease: Lease, name: str, files: Path) -> Descriptor:
    packer = compressor(Compression.GZIP)
    with content.ingest_new(f"cache mount {name}") as ingest:
        write_tree(files, lambda data: ingest.write(packer.compress(data)), include_root=True)
        ingest.write(packer.flush())
        size = ingest.offset
        lease.note(ingest.digest)
        digest = ingest.commit(None)
    return Descriptor(media_type=MOUNT, digest=digest, size=size)


# --- sending ----------------------------------------------------------------------------------------------------------


async def _send(deps: Deps, packed: Packed, where: CacheTransfer, client: Client, lease: Lease, lines: Telling) -> None:
    await lease.protect(digests=[packed.parsed.config.digest, packed.manifest.digest])
    for data in (packed.config, packed.manifest.data):
        await settle(deps.content.write, data)
    with lines.step(f"writing config {packed.parsed.config.digest}"):
        if where.type == "registry":
            await _push(deps, packed, _reference(where.attributes), client)
        else:
            await _hand_over(deps, packed, where.attributes["dest"], client)
    lines.done(f"writing cache image manifest {packed.manifest.digest}")


async def _push(deps: Deps, packed: Packed, named: Reference, client: Client) -> None:
    auth = await client.credentials(login_host(named.domain))
    document = Document(raw=packed.manifest, manifest=packed.parsed)
    await push_document(deps.images, document, named, auth=auth, progress=lambda message: None)


async def _hand_over(deps: Deps, packed: Packed, directory: str, client: Client) -> None:
    for blob in (*packed.parsed.layers, packed.parsed.config, packed.manifest.descriptor):
        await client.write_blob(f"{_STORE}{directory}", blob.digest, blob.size, _read(deps.content, blob.digest))


async def _read(content: ContentStore, digest: Digest) -> AsyncIterator[bytes]:
    with await acquire(content.open, digest) as file:
        while data := await settle(file.read, _CHUNK):
            yield data
