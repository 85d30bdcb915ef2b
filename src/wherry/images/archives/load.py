"""Load: images from an archive, as `docker save`, skopeo, buildx and others write them.

    docker-archive    manifest.json names config, layers and tags; layers are files, or links to such
    OCI layout        index.json, blobs/sha256/<hex>; names in annotations

Both may be in one archive. It is read once, as it comes: every file goes into the content store under its digest, and
what no image turns out to need is dropped in the end. Names in the archive are only ever looked up, never paths on
disk. Outer compression: gzip, zstd, bzip2, xz or none.
"""

import asyncio
import posixpath
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import msgspec

from wherry.aio import settle
from wherry.digest import ChainID, DiffID, Digest, extend_chain, is_digest
from wherry.errors import InvalidParameter, NotFound, Unavailable, WherryError
from wherry.images.deps import Deps
from wherry.images.feed import consume
from wherry.images.garbage import leased
from wherry.images.layers import check_type, short, unpack
from wherry.images.leases import Lease
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image, ImageID, Layer
from wherry.reference import Reference, parse
from wherry.spec.image import (
    INDEXES,
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    Raw,
    decode_config,
    decode_manifest,
    encode_manifest,
    host_platform,
    media_type_of,
    normalize,
    parse_platform,
    runs_on,
    select,
)
from wherry.storage.archive import Entry, Kind, TarReader, show, text
from wherry.storage.archive import normalize as normalize_name
from wherry.storage.compression import HEAD, Compression, Limits, decompress, detect, pieces

MAX_FILES = 100_000  # members of an archive
MAX_LINKS = 10  # links followed to one file
MAX_DEPTH = 4  # indexes within indexes
MAX_IMAGES = 1000  # of one archive

NAME = "io.containerd.image.name"  # annotation: a full reference
REF_NAME = "org.opencontainers.image.ref.name"  # annotation: a tag, or a full reference

_LAYER_TYPES = {
    Compression.NONE: OCI_LAYER,
    Compression.GZIP: OCI_LAYER_GZIP,
    Compression.ZSTD: OCI_LAYER_ZSTD,
}
LIMITS = Limits(reserve=0)  # of the archive itself; its layers are held to their own


class ArchiveImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of manifest.json."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str] | None = None


@dataclass(frozen=True, slots=True)
class File:
    digest: Digest
    size: int
    compression: Compression


@dataclass(slots=True)
class Archive:
    """What was in it: files by normalised name, links apart."""

    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> File | None:
        """By name as a document gives it, links followed."""
        name = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if (file := self.files.get(name)) is not None:
                return file
            if name not in self.links:
                return None
            name = self.links[name]
        return None

    def blob(self, digest: Digest) -> File | None:
        return self.files.get("blobs/" + digest.replace(":", "/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image the archive is said to hold."""

    manifest: Raw
    config_raw: bytes
    config: ImageConfig
    config_digest: Digest
    layers: Sequence[Descriptor]
    names: Sequence[Reference] = ()


async def load(
    deps: Deps,
    chunks: AsyncIterator[bytes],
    *,
    quiet: bool = False,
    platform: str | None = None,
    progress: Progress,
    limits: Limits = LIMITS,
) -> list[Image]:
    """Load all images of the archive; each is there, with its names, when it is reported.

    Raises InvalidParameter for what is no such archive, naming the entry; Corrupt for content that is not what its
    name says. Of an archive that is refused half-way the images already reported stay.
    """
    wanted = parse_platform(platform) if platform else None
    async with leased(deps, "load") as lease:
        loop = asyncio.get_running_loop()
        spool = _Spool(deps, lease, loop, limits)
        archive = await consume(chunks, spool.read)
        candidates = await settle(_candidates, deps, archive, wanted)
        if not candidates:
            raise NotFound(f"no image for {wanted} in the archive" if wanted else "no image in the archive")
        return [await _register(deps, lease, each, quiet, progress) for each in candidates]


class _Spool:
    """Reads the archive in a thread, once, into the content store."""

    def __init__(self, deps: Deps, lease: Lease, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._deps = deps
        self._lease = lease
        self._loop = loop
        self._limits = limits

    def read(self, stream: BinaryIO) -> Archive:
        consumed = 0

        def counted(size: int) -> bytes:
            nonlocal consumed
            data = stream.read(size)
            consumed += len(data)
            return data

        archive = Archive()
        inflated = pieces(decompress(counted, what="image archive"), self._limits, lambda: consumed)
        reader = TarReader(inflated, what="image archive")
        for count, entry in enumerate(reader):
            if count >= MAX_FILES:
                raise InvalidParameter(f"image archive has more than {MAX_FILES} entries")
            self._keep(archive, reader, entry)
        if not consumed:
            raise InvalidParameter("image archive is empty")
        return archive

    def _keep(self, archive: Archive, reader: TarReader, entry: Entry) -> None:
        if entry.name.startswith(b"/"):
            raise InvalidParameter(f"image archive: entry {show(entry.name)} has an absolute name")
        name = text(normalize_name(entry.name))
        match entry.kind:
            case Kind.FILE if entry.sparse is not None:
                raise InvalidParameter(f"image archive: entry {show(entry.name)} is a sparse file")
            case Kind.FILE:
                archive.links.pop(name, None)
                archive.files[name] = self._store(name, reader)
            case Kind.SYMLINK:
                target = posixpath.join(posixpath.dirname(name), text(entry.link))
                archive.links[name] = _inside(target, entry)
            case Kind.HARDLINK:
                archive.links[name] = _inside(text(entry.link), entry)
            case Kind.DIRECTORY:
                pass
            case _:
                raise InvalidParameter(f"image archive: entry {show(entry.name)} is a {entry.kind.name.lower()}")

    def _store(self, name: str, reader: TarReader) -> File:
        """One file into the content store; a blob's name is checked against its content."""
        parts = name.split("/")
        expected = f"sha256:{parts[2]}" if len(parts) == 3 and parts[:2] == ["blobs", "sha256"] else ""
        head = b""
        ingest = self._deps.content.ingest(f"{name} of image archive {id(self)}")
        try:
            for piece in reader.stored():
                if len(head) < HEAD:
                    head += bytes(piece[: HEAD - len(head)])
                ingest.write(piece)
            size = ingest.offset
            digest = ingest.commit(Digest(expected) if is_digest(expected) else None)
        finally:
            ingest.abort()
        self._protect(digest)
        return File(digest, size, detect(head))

    def _protect(self, digest: Digest) -> None:
        self._lease.note(digest)
        asyncio.run_coroutine_threadsafe(self._lease.protect(digests=[digest]), self._loop).result()
        if not self._deps.content.has(digest):  # it was garbage of another removal in the moment before
            raise Unavailable(f"blob {digest} was removed while it was loaded: try again")


def _inside(target: str, entry: Entry) -> str:
    normal = posixpath.normpath(target)
    if normal.startswith(("/", "../")) or normal == "..":
        raise InvalidParameter(
            f"image archive: link {show(entry.name)} leads out of the archive, to {show(entry.link)}"
        )
    return normal


# --- which images there are -------------------------------------------------------------------------------------------


def _candidates(deps: Deps, archive: Archive, wanted: Platform | None) -> list[Candidate]:
    """manifest.json decides which images and tags there are; index.json has the manifests, and decides without it."""
    layout = _read_layout(deps, archive)
    listed = archive.find("manifest.json")
    if listed is None and layout is None:
        raise InvalidParameter("invalid image archive: it has neither manifest.json nor index.json")
    if listed is None:
        assert layout is not None
        found = _from_layout(deps, archive, layout, wanted)
    else:
        known = _by_config(_walk(deps, archive, layout, 0)) if layout is not None else {}
        found = [_from_docker(deps, archive, entry, known) for entry in _read_list(deps, listed)]
        found = [each for each in found if wanted is None or runs_on(each.config.platform, wanted)]
    if len(found) > MAX_IMAGES:
        raise InvalidParameter(f"image archive has more than {MAX_IMAGES} images")
    return found


def _read(deps: Deps, file: File) -> bytes:
    return deps.content.read(file.digest, limit=MAX_DOCUMENT)


def _read_list(deps: Deps, file: File) -> list[ArchiveImage]:
    try:
        return msgspec.json.decode(_read(deps, file), type=list[ArchiveImage])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise InvalidParameter(f"invalid image archive: manifest.json cannot be read: {exc}") from exc


def _read_layout(deps: Deps, archive: Archive) -> Index | None:
    file = archive.find("index.json")
    if file is None:
        return None
    try:
        document = decode_manifest(_read(deps, file))
    except WherryError as exc:
        raise InvalidParameter(f"invalid image archive: index.json cannot be read: {exc.message}") from exc
    if not isinstance(document, Index):
        raise InvalidParameter("invalid image archive: index.json is not an index")
    return document


def _walk(deps: Deps, archive: Archive, index: Index, depth: int) -> list[tuple[Raw, Manifest]]:
    """All image manifests reachable from `index` whose blobs are in the archive."""
    found: list[tuple[Raw, Manifest]] = []
    for entry in index.manifests:
        opened = _open(deps, archive, entry)
        if opened is None:
            continue
        raw, document = opened
        if isinstance(document, Index):
            if depth < MAX_DEPTH:
                found += _walk(deps, archive, document, depth + 1)
        elif archive.blob(document.config.digest) and all(archive.blob(layer.digest) for layer in document.layers):
            found.append((raw, document))
    return found


def _open(deps: Deps, archive: Archive, entry: Descriptor) -> tuple[Raw, Manifest | Index] | None:
    """The document an index entry points to; None when it is not in the archive."""
    file = archive.blob(entry.digest)
    if file is None:
        return None
    data = _read(deps, file)
    document = decode_manifest(data, entry.media_type)
    return Raw(data, media_type_of(document, entry.media_type), entry.digest), document


def _by_config(found: Sequence[tuple[Raw, Manifest]]) -> Mapping[Digest, tuple[Raw, Manifest]]:
    return {manifest.config.digest: (raw, manifest) for raw, manifest in found}


def _from_docker(
    deps: Deps, archive: Archive, entry: ArchiveImage, known: Mapping[Digest, tuple[Raw, Manifest]]
) -> Candidate:
    """An entry of manifest.json; with the manifest that an OCI layout in the same archive has for it, if any."""
    file = archive.find(entry.config)
    if file is None:
        raise InvalidParameter(f"invalid image archive: the config {entry.config[:200]!r} is missing")
    names = [_tag(name) for name in entry.repo_tags or ()]
    if file.digest in known:
        return _candidate(deps, archive, *known[file.digest], names)
    layers: list[Descriptor] = []
    for name in entry.layers or ():
        layer = archive.find(name)
        if layer is None:
            raise InvalidParameter(f"invalid image archive: the layer {name[:200]!r} is missing")
        if layer.compression not in _LAYER_TYPES:
            raise InvalidParameter(
                f"invalid image archive: the layer {name[:200]!r} is compressed by {layer.compression}"
            )
        layers.append(Descriptor(media_type=_LAYER_TYPES[layer.compression], digest=layer.digest, size=layer.size))
    raw = _read(deps, file)
    descriptor = Descriptor(media_type=OCI_CONFIG, digest=file.digest, size=file.size)
    return _checked(
        Candidate(
            manifest=encode_manifest(descriptor, layers),
            config_raw=raw,
            config=decode_config(raw),
            config_digest=file.digest,
            layers=layers,
            names=names,
        )
    )


def _tag(name: str) -> Reference:
    reference = parse(name)
    if reference.tag is None or reference.digest is not None:
        raise InvalidParameter(f"invalid tag {name[:200]!r}")
    return reference


def _candidate(
    deps: Deps, archive: Archive, manifest_raw: Raw, manifest: Manifest, names: Sequence[Reference]
) -> Candidate:
    config = archive.blob(manifest.config.digest)
    if config is None:
        raise InvalidParameter(f"invalid image archive: the config {manifest.config.digest} is missing")
    for layer in manifest.layers:
        check_type(layer)
        if archive.blob(layer.digest) is None:
            raise InvalidParameter(f"invalid image archive: the layer {layer.digest} is missing")
    raw = _read(deps, config)
    return _checked(
        Candidate(
            manifest=manifest_raw,
            config_raw=raw,
            config=decode_config(raw),
            config_digest=manifest.config.digest,
            layers=manifest.layers,
            names=names,
        )
    )


def _checked(candidate: Candidate) -> Candidate:
    config = candidate.config
    if len(candidate.layers) != len(config.rootfs.diff_ids):
        raise InvalidParameter(
            f"invalid manifest, layers length mismatch: expected {len(config.rootfs.diff_ids)}, "
            f"got {len(candidate.layers)}"
        )
    if config.os not in ("", "linux"):
        raise InvalidParameter(f"cannot load {config.os} image on linux")
    return candidate


def _from_layout(deps: Deps, archive: Archive, layout: Index, wanted: Platform | None) -> list[Candidate]:
    """Every top entry of an OCI layout is an image, an index one of several platforms: the best that is there."""
    found: dict[Digest, Candidate] = {}
    entries = layout.manifests
    if wanted is not None and (best := select(layout, wanted)) is not None:
        entries = [best, *(each for each in entries if each.platform is None)]
    for entry in entries:
        chosen = _choose(deps, archive, entry, wanted, 0)
        if chosen is None:
            continue
        raw, manifest = chosen
        candidate = _candidate(deps, archive, raw, manifest, _annotated(entry))
        if wanted is not None and not runs_on(candidate.config.platform, wanted):
            continue
        names = [*(found[raw.digest].names if raw.digest in found else ()), *candidate.names]
        found[raw.digest] = replace(candidate, names=list(dict.fromkeys(names)))
    return list(found.values())


def _choose(
    deps: Deps, archive: Archive, entry: Descriptor, wanted: Platform | None, depth: int
) -> tuple[Raw, Manifest] | None:
    if entry.platform is not None and normalize(entry.platform).os == "unknown":
        return None  # an attestation
    opened = _open(deps, archive, entry)
    if opened is None:
        if entry.media_type in INDEXES:
            return None
        raise InvalidParameter(f"invalid image archive: the manifest {entry.digest} is missing")
    raw, document = opened
    if isinstance(document, Manifest):
        return raw, document
    if depth >= MAX_DEPTH:
        raise InvalidParameter("invalid image archive: indexes are nested too deeply")
    there = [each for each in document.manifests if archive.blob(each.digest) is not None]
    reduced = msgspec.structs.replace(document, manifests=there)
    best = select(reduced, wanted or host_platform())
    if best is None and wanted is None:
        best = next((each for each in there if each.platform is None or normalize(each.platform).os == "linux"), None)
    return None if best is None else _choose(deps, archive, best, wanted, depth + 1)


def _annotated(entry: Descriptor) -> list[Reference]:
    annotations = entry.annotations or {}
    name = annotations.get(NAME) or annotations.get(REF_NAME) or ""
    if not annotations.get(NAME) and ":" not in name and "/" not in name:
        return []  # a tag without a repository names nothing
    try:
        reference = parse(name)
    except InvalidParameter:
        return []
    return [reference.tagged()] if reference.digest is None else []


# --- into the stores --------------------------------------------------------------------------------------------------


async def _register(deps: Deps, lease: Lease, found: Candidate, quiet: bool, progress: Progress) -> Image:
    blobs = frozenset({found.manifest.digest, found.config_digest, *(layer.digest for layer in found.layers)})
    await lease.protect(digests=blobs)
    await settle(deps.content.write, found.manifest.data)
    layers: list[Layer] = []
    for blob, diff_id in zip(found.layers, found.config.rootfs.diff_ids, strict=True):
        parent = layers[-1].chain if layers else None
        layers.append(await _unpack(deps, lease, blob, parent, diff_id, None if quiet else progress))
    image = Image(
        id=ImageID(found.config_digest),
        config=found.config,
        manifests=(found.manifest.descriptor,),
        layers=tuple(layers),
        blobs=blobs,
    )
    for name in found.names:
        old = deps.store.tagged(name)
        if old is not None and old.id != image.id and not quiet:
            told = f"The image {name.familiar} already exists, renaming the old one with ID {old.id} to empty string\n"
            progress({"stream": told})
    image = await deps.store.put(image, references=found.names)
    for name in found.names:
        progress({"stream": f"Loaded image: {name.familiar}\n"})
    if not found.names:
        progress({"stream": f"Loaded image ID: {image.id}\n"})
    deps.announce("load", image, actor=image.id, name=image.id)
    return image


async def _unpack(
    deps: Deps, lease: Lease, blob: Descriptor, parent: ChainID | None, diff_id: DiffID, progress: Progress | None
) -> Layer:
    there = await settle(deps.snapshots.has, extend_chain(parent, diff_id))
    if progress is None or there:
        return await unpack(deps, lease, blob, parent=parent, diff_id=diff_id)
    bar = Bar(progress, short(Digest(diff_id)))

    def loading(current: int) -> None:
        bar.show("Loading layer", current, blob.size)

    layer = await unpack(deps, lease, blob, parent=parent, diff_id=diff_id, extracting=loading)
    loading(blob.size)
    return layer
