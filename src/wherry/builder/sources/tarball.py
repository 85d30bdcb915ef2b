"""Contexts that come as one stream: an archive (plain, gzip, bzip2, xz, zstd), or a Dockerfile alone.

`docker build - < context.tar`, `docker build - < Dockerfile`, the body of `POST /build`, and what a URL names. Files
belong to 0:0 and keep their times and modes. Unpacking is confined as that of layers is (storage/confined.py).
"""

import io
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from wherry.aio import settle
from wherry.builder.trees import Directory
from wherry.errors import Failed, InvalidParameter
from wherry.images.feed import consume
from wherry.storage.archive import BLOCK
from wherry.storage.compression import Compression, Limits, detect
from wherry.storage.diff import apply_layer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

MAX_DOCKERFILE = 16 << 20  # bytes of a Dockerfile that comes alone
DOCKERFILE = "Dockerfile"
_HEAD = BLOCK
_CHUNK = 1 << 18  # bytes

Transferred = Callable[[int], None]  # is told the bytes so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    directory: Directory
    alone: bool  # it was no archive but a Dockerfile, which is now the directory's only file, `Dockerfile`


def _quiet(size: int) -> None: ...


async def receive(
    chunks: AsyncIterator[bytes], into: Path, *, limits: Limits | None = None, transferred: Transferred = _quiet
) -> Context:
    """What `chunks` bring, in the empty directory `into`, which is the caller's to remove.

    Raises InvalidParameter for an archive that is damaged or too large (naming the entry), or no context at all; Failed
    when the disk is full; and what `chunks` raises.
    """
    total = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal total
        async for chunk in chunks:
            total += len(chunk)
            transferred(total)
            yield chunk

    alone = await consume(counted(), lambda stream: _take(stream, into, limits))
    return Context(directory=Directory(path=into, identity=""), alone=alone)


async def open_file(file: Path, into: Path, *, limits: Limits | None = None) -> Context:
    """Likewise of a file on disk: what was downloaded."""

    def take() -> bool:
        with open(file, "rb", buffering=0) as stream:
            return _take(stream, into, limits)

    return Context(directory=Directory(path=into, identity=""), alone=await settle(take))


def is_archive(head: bytes) -> bool:
    """By its first block (512 bytes)."""
    return detect(head) is not Compression.NONE or _is_header(head)


def _is_header(head: bytes) -> bool:
    """The checksum of a tar header fits; or all zeros, the end of an archive without entries."""
    block = head[:BLOCK]
    if len(block) < BLOCK:
        return False
    if not any(block):
        return True
    try:
        said = int(block[148:156].split(b"\0")[0].strip() or b"x", 8)
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    return said in (sum(rest), sum(byte - 256 if byte > 127 else byte for byte in rest))


def _take(stream: BinaryIO, into: Path, limits: Limits | None) -> bool:
    """True when it was a Dockerfile alone."""
    head = b""
    while len(head) < _HEAD and (more := stream.read(_HEAD - len(head))):
        head += more
    if not head:
        raise InvalidParameter("the build context is empty: want a tar archive or a Dockerfile")
    if is_archive(head):
        whole = io.BufferedReader(_Again(head, stream), _CHUNK)
        apply_layer(whole, snapshot=into, whiteouts=None, owner=(0, 0), limits=limits)
        return False
    data = bytearray(head)
    while more := stream.read(_CHUNK):
        data += more
        if len(data) > MAX_DOCKERFILE:
            raise InvalidParameter(
                f"the build context is neither a tar archive nor a Dockerfile: more than {MAX_DOCKERFILE} bytes of text"
            )
    _write(into / DOCKERFILE, bytes(data))
    return True


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
        os.chmod(path, 0o644)
        os.utime(path, ns=(0, 0))  # nobody knows how old it is
    except OSError as exc:
        raise Failed(f"cannot keep the Dockerfile: {exc.strerror}") from exc


class _Again(io.RawIOBase):
    """A stream whose beginning was read already: `head` once more, then the rest."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self._head[: len(view)] or self._rest.read(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        return len(data)
