"""Save: images as one archive that is both an OCI layout and a docker-archive, as Docker writes it since version 25.

    oci-layout  index.json  manifest.json  repositories  blobs/  blobs/sha256/  blobs/sha256/<hex>...

Blobs go out as they are stored, so manifests and indexes keep the digests they were pulled with. An index comes with
those of its platforms that are held, and with their attestations; manifest.json has the one that runs best here.
Streamed: one chunk in memory. The same images give the same bytes: nothing in it depends on when, or on the order of
the names. What is needed first when it is read comes first: documents, then layers, base first.
"""

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import BinaryIO

import msgspec

from wherry.aio import settle
from wherry.digest import Digest, hex_part
from wherry.errors import InvalidParameter, NotFound
from wherry.images.archives.choose import Chosen, choose, resolve
from wherry.images.archives.contents import NAME, REF_NAME
from wherry.images.deps import Deps
from wherry.images.garbage import held
from wherry.spec.image import OCI_INDEX, Descriptor, parse_platform

CHUNK = 1 << 20  # bytes read and sent at a time
BLOCK = tarfile.BLOCKSIZE


def save(deps: Deps, names: Sequence[str], *, platforms: Sequence[str] = ()) -> AsyncIterator[bytes]:
    """The archive of `names`: references, IDs, or repositories (all their tags). Raises NotFound before it begins.

    Of a name with several platforms all that are held go into it, or those of `platforms`; one alone without its index.
    """
    if not names:
        raise InvalidParameter("no image to save: give at least one name")
    return _write(deps, choose(deps, names, [parse_platform(platform) for platform in platforms]))


async def _write(deps: Deps, chosen: Sequence[Chosen]) -> AsyncIterator[bytes]:
    async with held(deps, "save") as lease:  # an image removed meanwhile is still saved whole
        for each in chosen:
            blobs = each.attached.union({each.descriptor.digest}, *(image.blobs for image in each.images))
            await lease.protect(digests=blobs)
            await resolve(deps, each)
        for name, data in _documents(chosen):
            yield _header(name, len(data)) + data + _padding(len(data))
        yield _directory("blobs/") + _directory("blobs/sha256/")
        for digest in dict.fromkeys(digest for each in chosen for digest in each.blobs):
            async with aclosing(_blob(deps, digest)) as chunks:
                async for chunk in chunks:
                    yield chunk
        yield bytes(2 * BLOCK)
    for image in {image.id: image for each in chosen for image in each.images}.values():
        deps.announce("save", image, actor=image.id, name=image.id)


def _documents(chosen: Sequence[Chosen]) -> list[tuple[str, bytes]]:
    entries: list[Descriptor] = []
    listed: list[dict[str, object]] = []
    repositories: dict[str, dict[str, str]] = {}
    for each in chosen:
        entries += _entries(each)
        listed.append(_listed(each))
        top = hex_part(each.layers[-1].digest if each.layers else Digest(each.images[0].id))
        for tag in each.tags:
            repositories.setdefault(tag.familiar_name, {})[str(tag.tag)] = top
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    documents = [
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ("index.json", msgspec.json.encode(index)),
        ("manifest.json", msgspec.json.encode(listed)),
    ]
    if repositories:
        documents.append(("repositories", msgspec.json.encode(repositories)))
    return documents


def _entries(each: Chosen) -> list[Descriptor]:
    """The entries of index.json: one for each name."""
    plain = each.descriptor
    platform = each.images[0].config.platform
    if plain.digest in {manifest.digest for manifest in each.images[0].manifests} and platform.os:
        plain = msgspec.structs.replace(plain, platform=platform)
    named = [msgspec.structs.replace(plain, annotations={NAME: str(tag), REF_NAME: str(tag.tag)}) for tag in each.tags]
    return named or [plain]


def _listed(each: Chosen) -> dict[str, object]:
    """The entry of manifest.json."""
    image = each.images[0]
    sources = zip(image.diff_ids, each.layers, strict=True)
    return {
        "Config": _path(Digest(image.id)),
        "RepoTags": [tag.familiar for tag in each.tags] or None,
        "Layers": [_path(layer.digest) for layer in each.layers],
        "LayerSources": {
            diff_id: {"mediaType": layer.media_type, "size": layer.size, "digest": layer.digest}
            for diff_id, layer in sources
        },
    }


def _path(digest: Digest) -> str:
    return f"blobs/sha256/{hex_part(digest)}"


async def _blob(deps: Deps, digest: Digest) -> AsyncGenerator[bytes, None]:
    size = await settle(deps.content.size, digest)
    yield _header(_path(digest), size)
    with deps.content.open(digest) as file:
        left = size
        while left:
            chunk = await settle(_read, file, min(left, CHUNK))
            left -= len(chunk)
            yield chunk
    yield _padding(size)


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if not data:
        raise NotFound("a blob became shorter while it was read")  # only by hands from outside
    return data


def _header(name: str, size: int, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = size, kind, mode
    return entry.tobuf(tarfile.GNU_FORMAT)


def _directory(name: str) -> bytes:
    return _header(name, 0, kind=tarfile.DIRTYPE, mode=0o755)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)
