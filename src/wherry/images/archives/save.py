"""Save: images as one archive that is both an OCI layout and a docker-archive, as Docker writes it since version 25.

    oci-layout  index.json  manifest.json  repositories  blobs/  blobs/sha256/  blobs/sha256/<hex>...

Blobs go out as they are stored, so manifests keep the digests they were pulled with. Streamed: one chunk in memory.
"""

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from wherry.aio import settle
from wherry.digest import Digest, hex_part
from wherry.errors import InvalidParameter, NotFound
from wherry.images.archives.load import NAME, REF_NAME
from wherry.images.deps import Deps
from wherry.images.record import Image
from wherry.reference import Reference, is_identifier, parse
from wherry.spec.image import OCI_INDEX, Descriptor, parse_platform, runs_on

CHUNK = 1 << 20  # bytes read and sent at a time
BLOCK = tarfile.BLOCKSIZE


@dataclass(slots=True)
class Chosen:
    """An image to save, with the tags it was asked for by."""

    image: Image
    tags: list[Reference] = field(default_factory=list)


def save(deps: Deps, names: Sequence[str], *, platform: str | None = None) -> AsyncIterator[bytes]:
    """The archive of `names`: references, IDs, or repositories (all their tags). Raises NotFound before it begins."""
    if not names:
        raise InvalidParameter("no image to save: give at least one name")
    chosen = _choose(deps, names)
    if platform:
        wanted = parse_platform(platform)
        for each in chosen:
            if not runs_on(each.image.config.platform, wanted):
                raise NotFound(
                    f"image with reference {each.image.name} was found but does not provide the specified platform "
                    f"({wanted})"
                )
    return _write(deps, chosen)


def _choose(deps: Deps, names: Sequence[str]) -> list[Chosen]:
    found: dict[str, Chosen] = {}
    for name in names:
        for image, reference in _matching(deps, name):
            entry = found.setdefault(image.id, Chosen(image))
            if reference is not None and reference not in entry.tags:
                entry.tags.append(reference)
    return list(found.values())


def _matching(deps: Deps, name: str) -> list[tuple[Image, Reference | None]]:
    """A bare repository name stands for all its tags, as in Docker; a digest or an ID saves no name."""
    if is_identifier(name) or name.startswith("sha256:"):
        return [(deps.store.get(name), None)]
    reference = parse(name)
    if reference.tag is None and reference.digest is None:
        tagged = [
            (image, tag)
            for image in deps.store.all()
            for tag in map(parse, image.repo_tags)
            if tag.name == reference.name
        ]
        if tagged:
            return [(image, tag) for image, tag in sorted(tagged, key=lambda pair: str(pair[1]))]
    image = deps.store.get(name)
    is_tag = reference.digest is None and reference.tagged().familiar in image.repo_tags
    return [(image, reference.tagged() if is_tag else None)]


async def _write(deps: Deps, chosen: Sequence[Chosen]) -> AsyncIterator[bytes]:
    with deps.leases.pin() as lease:  # an image removed meanwhile is still saved whole
        for each in chosen:
            await lease.protect(digests=each.image.blobs)
        for name, data in _documents(chosen):
            yield _header(name, len(data)) + data + _padding(len(data))
        yield _directory("blobs/") + _directory("blobs/sha256/")
        seen: set[Digest] = set()
        for each in chosen:
            for digest in _blobs(each.image):
                if digest not in seen:
                    seen.add(digest)
                    async with aclosing(_blob(deps, digest)) as chunks:
                        async for chunk in chunks:
                            yield chunk
        yield bytes(2 * BLOCK)
    for each in chosen:
        deps.announce("save", each.image, actor=each.image.id, name=each.image.id)


def _blobs(image: Image) -> list[Digest]:
    """What the archive needs of an image: the manifest that is used, config, layers."""
    return [image.manifests[0].digest, Digest(image.id), *(layer.digest for layer in image.layers)]


def _documents(chosen: Sequence[Chosen]) -> list[tuple[str, bytes]]:
    entries: list[Descriptor] = []
    listed: list[dict[str, object]] = []
    repositories: dict[str, dict[str, str]] = {}
    for each in chosen:
        image = each.image
        platform = image.config.platform
        plain = msgspec.structs.replace(image.manifests[0], platform=platform if platform.os else None)
        named = [
            msgspec.structs.replace(plain, annotations={NAME: str(tag), REF_NAME: str(tag.tag)}) for tag in each.tags
        ]
        entries += named or [plain]
        listed.append(
            {
                "Config": _path(Digest(image.id)),
                "RepoTags": [tag.familiar for tag in each.tags] or None,
                "Layers": [_path(layer.digest) for layer in image.layers],
                "LayerSources": {
                    layer.diff_id: {"mediaType": layer.media_type, "size": layer.size, "digest": layer.digest}
                    for layer in image.layers
                },
            }
        )
        for tag in each.tags:
            top = hex_part(image.layers[-1].digest if image.layers else Digest(image.id))
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
