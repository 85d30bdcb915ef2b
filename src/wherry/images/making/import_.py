"""Import: a tar of a root file system, sent with the request or fetched from a URL, becomes an image of one layer.

The stream is kept as it came when registries know its compression (gzip, zstd, none); xz and bzip2 become gzip.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import BinaryIO

from wherry.distribution.download import complete, open_download
from wherry.distribution.proxy import masked
from wherry.errors import InvalidParameter
from wherry.images.deps import Deps
from wherry.images.feed import consume
from wherry.images.garbage import leased
from wherry.images.layers import unpack
from wherry.images.leases import Lease
from wherry.images.making import changes as dockerfile
from wherry.images.making.make import add_image, keep, now
from wherry.images.progress import Bar, Progress
from wherry.images.record import Image
from wherry.reference import Reference, parse_repository
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    History,
    host_platform,
    parse_platform,
)
from wherry.storage.compression import HEAD, Compression, Limits, compressor, decompress_as, detect, pieces
from wherry.storage.content import ContentStore, Ingest

CHUNK = 1 << 20  # bytes

_TYPES = {
    Compression.NONE: OCI_LAYER,
    Compression.GZIP: OCI_LAYER_GZIP,
    Compression.ZSTD: OCI_LAYER_ZSTD,
}


BODY = "-"  # as a source: what comes with the request


async def import_(
    deps: Deps,
    chunks: AsyncIterator[bytes],
    *,
    source: str = BODY,
    repository: str = "",
    tag: str = "",
    changes: Sequence[str] = (),
    message: str = "",
    platform: str | None = None,
    progress: Progress,
) -> Image:
    """Make the image and, when `repository` is given, tag it. `source`: `-` for `chunks`, else a URL.

    Raises InvalidParameter for bad names, changes and URLs before anything is read, and for a bad archive; as
    `open_download` for what cannot be fetched.
    """
    references = [_name(repository, tag)] if repository else []
    target = parse_platform(platform) if platform else host_platform()
    if target.os != "linux":
        raise InvalidParameter(f"operating system {target.os} is not supported: an image for linux can be imported")
    config = dockerfile.apply(ContainerConfig(), changes)
    url = "" if source == BODY else complete(source)
    async with leased(deps, "import") as lease:
        if url:
            async with _fetched(deps, url, progress) as fetched:
                blob = await consume(fetched, lambda stream: _receive(deps.content, lease, stream))
        else:
            blob = await consume(chunks, lambda stream: _receive(deps.content, lease, stream))
        await keep(deps, lease, blob.digest)
        layer = await unpack(deps, lease, blob, parent=None, diff_id=None)
        image = await add_image(
            deps,
            lease,
            layers=[layer],
            config=config,
            platform=target,
            history=[History(created=now(), comment=message or f"Imported from {masked(url) or source}")],
            references=references,
        )
    progress({"status": image.id})
    deps.announce("import", image, actor=image.id, name=image.id)
    return image


@asynccontextmanager
async def _fetched(deps: Deps, url: str, progress: Progress) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes `url` stands for, with Docker's progress."""
    bar = Bar(lambda message: progress({key: value for key, value in message.items() if value != ""}), "")

    async def counted(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
        done = 0
        async for chunk in chunks:
            done += len(chunk)
            bar.show("Importing", done, size)
            yield chunk

    async with open_download(deps.registry, url) as download:
        progress({"status": f"Downloading from {download.url}"})
        yield counted(download.chunks, download.size or 0)


def _name(repository: str, tag: str) -> Reference:
    if "@" in repository:
        raise InvalidParameter("cannot import digest reference")
    return parse_repository(repository, tag or None)


def _receive(content: ContentStore, lease: Lease, stream: BinaryIO) -> Descriptor:
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    if not head:
        raise InvalidParameter("nothing to import: the archive is empty")
    kind = detect(head)
    ingest = content.ingest_new("the archive to import")
    try:
        if kind in _TYPES:
            _copy(head, stream, ingest)
        else:
            _recompress(kind, head, stream, ingest)
        size = ingest.offset
        lease.note(ingest.digest)
        digest = ingest.commit(None)
    finally:
        ingest.abort()
    return Descriptor(media_type=_TYPES.get(kind, OCI_LAYER_GZIP), digest=digest, size=size)


def _copy(head: bytes, stream: BinaryIO, ingest: Ingest) -> None:
    ingest.write(head)
    while data := stream.read(CHUNK):
        ingest.write(data)


def _recompress(kind: Compression, head: bytes, stream: BinaryIO, ingest: Ingest) -> None:
    consumed = len(head)

    def counted(size: int) -> bytes:
        nonlocal consumed
        data = stream.read(size)
        consumed += len(data)
        return data

    packer = compressor(Compression.GZIP)
    inflated = decompress_as(kind, head, counted, what="archive to import")
    for piece in pieces(inflated, Limits(), lambda: consumed):
        ingest.write(packer.compress(piece))
    ingest.write(packer.flush())
