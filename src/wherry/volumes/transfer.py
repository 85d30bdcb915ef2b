"""Volumes in registries: an OCI artifact with the content as its one layer, a compressed tar.

    {"artifactType": "application/vnd.wherry.volume.v1", "config": {}, "layers": [the tar], "annotations": …}

Any registry that keeps OCI artifacts keeps volumes. What is on its way is a file beside the volumes,
`<root>/.parcel-<random>`, garbage at start-up.
Source: OCI image-spec 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from wherry import digest
from wherry.aio import acquire, finish, settle
from wherry.digest import Digest
from wherry.distribution.config import RegistryConfig
from wherry.distribution.errors import mismatch
from wherry.distribution.fetch import fetch
from wherry.distribution.repository import Repository, open_repository
from wherry.distribution.source import Source, open_source
from wherry.distribution.upload import Blob, Outcome, Reports, put_manifest, upload
from wherry.errors import Failed, InvalidParameter
from wherry.reference import Reference, parse
from wherry.spec.distribution import Auth
from wherry.spec.image import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Raw,
    decode_manifest,
)
from wherry.storage.compression import Compression, compressor
from wherry.volumes import changes, files
from wherry.volumes.changes import Still
from wherry.volumes.record import ANONYMOUS, check_name
from wherry.volumes.volumes import Volumes

ARTIFACT = "application/vnd.wherry.volume.v1"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_EMPTY = b"{}"
_TITLE, _CREATED = "org.opencontainers.image.title", "org.opencontainers.image.created"
_LABEL = "dev.wherry.volume.label."  # annotation of each label
_LIMIT = "dev.wherry.volume.size"
_TYPES = {Compression.NONE: OCI_LAYER, Compression.GZIP: OCI_LAYER_GZIP, Compression.ZSTD: OCI_LAYER_ZSTD}
_CHUNK = 1 << 20  # bytes

Report = Callable[[Mapping[str, object]], None]  # lines of Docker's progress stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The registry that is meant, and how to talk to it."""

    config: RegistryConfig
    reference: Reference
    auth: Auth


def peer(config: RegistryConfig, reference: str, auth: Auth, *, push: bool) -> Peer:
    """Raises InvalidParameter."""
    if not reference:
        raise InvalidParameter("a reference is needed: registry/repository[:tag]")
    named = parse(reference)
    if push and named.digest is not None:
        raise InvalidParameter("cannot push a digest reference")
    return Peer(config=config, reference=named.tagged() if named.digest is None else named, auth=auth)


# --- push -------------------------------------------------------------------------------------------------------------


async def push(
    volumes: Volumes, name: str, to: Peer, report: Report, *, compression: str = "", still: Still | None = None
) -> Digest:
    """Push the volume's content as it is now; the manifest's digest. `compression`: gzip, zstd (the usual one), none.

    Raises NotFound, InvalidParameter, Failed, and what the registry says. `still` holds while the content is read.
    """
    try:
        kind = Compression(compression or "zstd")
        media_type = _TYPES[kind]
    except (ValueError, KeyError) as exc:
        raise InvalidParameter(f"unknown compression {compression!r}: gzip, zstd or none") from exc
    volume = volumes.get(name)
    report({"status": f"The push refers to repository [{to.reference.name}]"})
    async with _parcel(volumes.root) as file:
        async with changes.exporting(volumes, name) as write:
            report({"status": "Packing", "id": name, "progressDetail": {}})
            async with changes.standing(still):
                layer = await settle(_pack, file, write, kind)
            layer = msgspec.structs.replace(layer, media_type=media_type)
        labels = {_LABEL + key: value for key, value in (volume.labels or {}).items() if key != ANONYMOUS}
        limit = {_LIMIT: str(volume.limit)} if volume.limit else {}
        raw = _manifest(layer, {_TITLE: name, _CREATED: datetime.now(UTC).isoformat(), **labels, **limit})
        async with open_repository(to.config, to.reference, to.auth, push=True) as repository:
            await _send(repository, layer, file, name, report)
            await put_manifest(repository, raw, to.reference.tag or raw.digest, Reports())
    report({"status": f"{to.reference.tag}: digest: {raw.digest} size: {len(raw.data)}"})
    aux = {"Tag": to.reference.tag, "Digest": raw.digest, "Size": len(raw.data)}
    report({"progressDetail": {}, "aux": aux})
    volumes.publish("push", name, reference=to.reference.familiar)
    return raw.digest


def _pack(file: BinaryIO, write: Callable[[Callable[[bytes], object]], None], kind: Compression) -> Descriptor:
    squeeze = compressor(kind)
    hasher = hashlib.sha256()
    size = 0

    def out(data: bytes) -> None:
        nonlocal size
        hasher.update(data)
        size += len(data)
        _write(file, data)

    try:
        write(lambda data: out(squeeze.compress(data)))
        out(squeeze.flush())
    except OSError as exc:
        raise Failed(f"cannot pack the volume: {exc.strerror}") from exc
    return Descriptor(digest=Digest(f"sha256:{hasher.hexdigest()}"), size=size)


def _manifest(layer: Descriptor, annotations: Mapping[str, str]) -> Raw:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": _EMPTY_TYPE, "digest": digest.of(_EMPTY), "size": len(_EMPTY)},
        "layers": [layer],
        "annotations": annotations,
    }
    data = msgspec.json.encode(document)
    return Raw(data, OCI_MANIFEST, digest.of(data))


async def _send(repository: Repository, layer: Descriptor, file: BinaryIO, name: str, report: Report) -> None:
    async def content(offset: int) -> AsyncGenerator[bytes, None]:
        at = offset
        while data := await settle(os.pread, file.fileno(), _CHUNK, at):
            at += len(data)
            yield data

    async def empty(offset: int) -> AsyncGenerator[bytes, None]:
        yield _EMPTY[offset:]

    def sent(current: int) -> None:
        detail = {"current": current, "total": layer.size}
        report({"status": "Pushing", "id": name, "progressDetail": detail})

    await upload(repository, Blob(digest=digest.of(_EMPTY), size=len(_EMPTY), read=empty), Reports())
    blob = Blob(digest=layer.digest, size=layer.size, read=content)
    outcome, _ = await upload(repository, blob, Reports(sent=sent))
    said = "Layer already exists" if outcome is Outcome.EXISTS else "Pushed"
    report({"status": said, "id": name, "progressDetail": {}})


# --- pull -------------------------------------------------------------------------------------------------------------


async def pull(volumes: Volumes, name: str, origin: Peer, report: Report, *, replacing: bool = False) -> str:
    """Make volume `name`, or one called as the volume that was pushed, of what a registry has; its name.

    With its labels and limit; one that exists must be empty, unless `replacing`: see `changes.import_`. Raises
    InvalidParameter for what is no volume, Conflict, Failed, and what the registry says.
    """
    if name and not replacing:
        check_name(name)
    reference = origin.reference
    report({"status": f"Pulling from {reference.path}", "id": reference.tag or ""})
    async with open_source(origin.config, reference, origin.auth) as source:
        raw = await source.manifest(str(reference.digest or reference.tag))
        layer, annotations = _read_manifest(raw, reference)
        name = name or annotations.get(_TITLE, "")
        if not name:
            raise InvalidParameter(f"{reference.familiar} does not say what its volume is called: give a name")
        check_name(name)
        if volumes.has(name) and not replacing:
            await changes.check_empty(volumes, name)
        async with _parcel(volumes.root) as file:
            await _bring(source, layer, file, name, report)
            report({"status": "Extracting", "id": name, "progressDetail": {}})

            async def feed(read: Callable[[BinaryIO], None]) -> None:
                file.seek(0)
                await settle(read, file)

            labels = {key.removeprefix(_LABEL): value for key, value in annotations.items() if key.startswith(_LABEL)}
            options = {"size": annotations[_LIMIT]} if _LIMIT in annotations else None
            await changes.import_(volumes, name, feed, options=options, labels=labels, replacing=replacing)
    report({"status": "Pull complete", "id": name, "progressDetail": {}})
    report({"status": f"Digest: {raw.digest}"})
    volumes.publish("pull", name, reference=reference.familiar)
    return name


def _read_manifest(raw: Raw, reference: Reference) -> tuple[Descriptor, Mapping[str, str]]:
    document = decode_manifest(raw.data, raw.media_type)
    if not isinstance(document, Manifest) or document.artifact_type != ARTIFACT:
        found = getattr(document, "artifact_type", "") or raw.media_type
        raise InvalidParameter(f"{reference.familiar} is no volume, but {found}: images are pulled by `pull`")
    if len(document.layers) != 1 or document.layers[0].media_type not in _TYPES.values():
        raise InvalidParameter(f"{reference.familiar} is a volume of a form that is not known here")
    return document.layers[0], document.annotations or {}


class _Sink:
    """Where the bytes of a download go."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.offset = 0

    async def write(self, data: bytes | bytearray) -> None:
        await settle(self._write, data)

    def _write(self, data: bytes | bytearray) -> None:
        try:
            _write(self._file, data)
        except OSError as exc:
            raise Failed(f"cannot store the volume's content: {exc.strerror}") from exc
        self._hash.update(data)
        self.offset += len(data)

    async def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._hash.hexdigest()}")


async def _bring(source: Source, layer: Descriptor, file: BinaryIO, name: str, report: Report) -> None:
    def received(current: int) -> None:
        detail = {"current": current, "total": layer.size}
        report({"status": "Downloading", "id": name, "progressDetail": detail})

    sink = _Sink(file)
    await fetch(source, layer, sink, received=received, pausing=lambda _: None)
    if sink.digest != layer.digest:
        raise mismatch("blob", layer.digest, sink.digest)


@asynccontextmanager
async def _parcel(root: Path) -> AsyncIterator[BinaryIO]:
    """An empty file beside the volumes, gone at the end."""
    path = root / f"{files.PARCEL}{os.urandom(6).hex()}"
    file = await acquire(_open, path)
    try:
        yield file
    finally:
        await finish(settle(_close, file, path))


def _write(file: BinaryIO, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "x+b", buffering=0)
    except OSError as exc:
        raise Failed(f"cannot make {path}: {exc.strerror}") from exc


def _close(file: BinaryIO, path: Path) -> None:
    file.close()
    path.unlink(missing_ok=True)
