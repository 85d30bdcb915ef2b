"""Types oci and docker: the image as an archive that the client receives, or as blobs for a layout of its own.

    oci       oci-layout  index.json  blobs/sha256/<hex>...
    docker    the same with manifest.json, as `docker load` of any age reads it: one platform, no attestations

The same results give the same bytes. Nothing is put into the image store.
"""

from collections.abc import AsyncIterator, Sequence

import msgspec

from wherry.aio import acquire, settle
from wherry.builder.export.assembly import CREATED, Assembly, assemble
from wherry.builder.export.settings import Settings
from wherry.builder.export.work import Work, telling
from wherry.digest import Digest, hex_part
from wherry.errors import InvalidParameter
from wherry.images.archives.contents import NAME, REF_NAME
from wherry.reference import Reference
from wherry.spec.image import OCI_INDEX
from wherry.storage.archive import BLOCK, Entry, Kind
from wherry.storage.archive_writer import header

CHUNK = 1 << 20  # bytes read and sent at a time
STORE = "export"  # the client's name of the content store that blobs are written to


async def export_archive(work: Work, settings: Settings, number: int, *, docker: bool) -> dict[str, str]:
    """Give output `number` its archive; the response."""
    kind = "docker" if docker else "oci"
    if docker and (len(work.variants) > 1 or work.indexed):
        raise InvalidParameter(
            "docker exporter does not currently support exporting manifest lists: use type=oci for several platforms"
        )
    if settings.push:
        raise InvalidParameter(f"an output of type {kind} cannot be pushed: use type=image,push=true")
    with telling(work.log, f"exporting to {kind} image format") as lines:
        assembly = await assemble(work, settings, lines, attested=not docker)
        response = assembly.response([str(name) for name in settings.names])
        if settings.tar:
            with lines.step("sending tarball"):
                await work.client.send_stream(number, response, _archive(work, assembly, settings.names, docker=docker))
        else:
            with lines.step("copying blobs"):
                await _write_blobs(work, assembly)
    return response


async def _write_blobs(work: Work, assembly: Assembly) -> None:
    """What names others comes after them."""
    for digest in reversed(assembly.blobs()):
        size = await settle(work.deps.content.size, digest)
        await work.client.write_blob(STORE, digest, size, _blob(work, digest))


async def _archive(work: Work, assembly: Assembly, names: Sequence[Reference], *, docker: bool) -> AsyncIterator[bytes]:
    documents = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", _index(assembly, names))]
    if docker:
        documents.append(("manifest.json", _listed(assembly, names)))
    for name, data in documents:
        yield _header(name, len(data)) + data + bytes(-len(data) % BLOCK)
    yield _directory("blobs") + _directory("blobs/sha256")
    for digest in assembly.blobs():
        size = await settle(work.deps.content.size, digest)
        yield _header(_path(digest), size)
        async for chunk in _blob(work, digest):
            yield chunk
        yield bytes(-size % BLOCK)
    yield bytes(2 * BLOCK)


def _index(assembly: Assembly, names: Sequence[Reference]) -> bytes:
    """index.json: the image under each of its names."""
    plain = assembly.top.descriptor
    created = assembly.created
    entries = [
        msgspec.structs.replace(plain, annotations={NAME: str(name), CREATED: created, REF_NAME: str(name.tag)})
        for name in names
    ]
    entries = entries or [msgspec.structs.replace(plain, annotations={CREATED: created})]
    return msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _listed(assembly: Assembly, names: Sequence[Reference]) -> bytes:
    """manifest.json."""
    (made,) = assembly.made
    return msgspec.json.encode(
        [
            {
                "Config": _path(made.documents.config.digest),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [_path(layer.digest) for layer in made.documents.layers],
            }
        ]
    )


async def _blob(work: Work, digest: Digest) -> AsyncIterator[bytes]:
    with await acquire(work.deps.content.open, digest) as file:
        while data := await settle(file.read, CHUNK):
            yield data


def _path(digest: Digest) -> str:
    return f"blobs/sha256/{hex_part(digest)}"


def _header(name: str, size: int) -> bytes:
    entry = Entry(name.encode(), Kind.FILE)
    entry.mode, entry.size = 0o644, size
    return header(entry)


def _directory(name: str) -> bytes:
    entry = Entry(name.encode(), Kind.DIRECTORY)
    entry.mode = 0o755
    return header(entry)
