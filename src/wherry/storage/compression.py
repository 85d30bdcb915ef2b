"""Compression of layers and archives: recognised by content, streamed, bounded.

Read: gzip (any number of members), zstd (any number of frames), bzip2, xz, plain. Written: gzip, zstd.
Output comes in pieces of about `PIECE` bytes however well the input compresses, so a bomb costs time, never memory;
`Limits` then stops it. isal inflates 2-3 times as fast as zlib, which is used where isal is not built.

What is written depends on nothing but the data: no time, no name, not how it was cut into pieces, not the processor.
isal deflates faster than libdeflate, but to other bytes on another processor and for other pieces; zlib is what the
distribution makes of it. Both libraries used are part of their wheels; tests hold their output fixed.
"""

import bz2
import enum
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from wherry.errors import InvalidParameter, NotSupported

PIECE = 1 << 20  # bytes of output at once
INPUT = 1 << 18  # bytes of input at once
HEAD = 16  # bytes that `detect` wants
GZIP_LEVEL = 1  # libdeflate: 9 % larger than zlib's 6 and six times as fast
GZIP_BLOCK = 1 << 20  # bytes of input in one member of what we write
ZSTD_LEVEL = 3
ZSTD_WINDOW_MAX = 1 << 27  # bytes of memory a zstd stream may ask for; what the zstd command accepts by default
XZ_MEMORY_MAX = 1 << 28  # bytes
_ZSTD_BITE = 2048  # bytes; at most 128 KiB per 4 bytes of input come out: 64 MiB at once
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # zstd frames that hold no data


class Compression(enum.StrEnum):
    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one archive may cost. A real layer comes nowhere near; a bomb is stopped with a message that says which."""

    max_bytes: int = 1 << 38  # uncompressed: 256 GiB
    max_entries: int = 10_000_000
    max_ratio: int = 200  # uncompressed : compressed; looked at beyond `ratio_floor` only
    ratio_floor: int = 2 << 30  # bytes
    reserve: int = 256 << 20  # bytes that stay free on the file system extracted to

    def check_size(self, uncompressed: int, compressed: int) -> None:
        """Raises InvalidParameter when the archive has become too large."""
        if uncompressed > self.max_bytes:
            raise InvalidParameter(f"archive too large: more than {self.max_bytes} bytes uncompressed")
        if uncompressed > self.ratio_floor and uncompressed > self.max_ratio * max(compressed, 1):
            raise InvalidParameter(
                f"archive looks like a compression bomb: {compressed} bytes became more than {uncompressed}"
                f" (at most {self.max_ratio} times are accepted beyond {self.ratio_floor} bytes)"
            )


class Decompressor(Protocol):
    """The interface of bz2, lzma and isal's igzip decompressors."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def detect(head: bytes) -> Compression:
    """The compression of a stream by its first `HEAD` bytes; NONE for whatever is not recognised."""
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or int.from_bytes(head[:4], "little") in _SKIPPABLE:
        return Compression.ZSTD
    if head.startswith(b"BZh"):
        return Compression.BZIP2
    if head.startswith(b"\xfd7zXZ\x00"):
        return Compression.XZ
    return Compression.NONE


def check_media_type(media_type: str) -> None:
    """Raises NotSupported for a layer that could not be read anyway: an encrypted one, or no tar at all.

    Which compression it names is not looked at: registries are wrong about it now and then, the bytes are not.
    """
    base = media_type.partition(";")[0].strip()
    if "+encrypted" in base:
        raise NotSupported(f"layer of media type {media_type} is encrypted; decrypt the image first (skopeo copy)")
    if base and "tar" not in base and base != "application/octet-stream":
        raise NotSupported(f"layer of media type {media_type} is not a tar archive")


def prepare(kind: Compression) -> None:
    """Load what `decompress` needs for `kind`: afterwards it opens no file, not even a module."""
    if kind is Compression.ZSTD:
        import zstandard  # noqa: F401
    elif kind is Compression.GZIP:
        _gzip_decompressor()


def decompress(read: Callable[[int], bytes], *, what: str = "archive") -> Iterator[bytes]:
    """The uncompressed stream of what `read(n)` gives (b"" at the end), in pieces of about `PIECE` bytes.

    Raises InvalidParameter for damaged or truncated input, naming it by `what`.
    """
    head = b""
    while len(head) < HEAD and (more := read(INPUT)):
        head += more
    return decompress_as(detect(head), head, read, what=what)


def decompress_as(
    kind: Compression, head: bytes, read: Callable[[int], bytes], *, what: str = "archive"
) -> Iterator[bytes]:
    """`decompress` where the kind is known and `head`, the beginning, has been read already."""
    source = Source(head, read)
    match kind:
        case Compression.NONE:
            return _plain(source)
        case Compression.ZSTD:
            return _zstd(source, what)
        case Compression.GZIP:
            return members(source, _gzip_decompressor, what, kind)
        case Compression.BZIP2:
            return members(source, bz2.BZ2Decompressor, what, kind)
        case Compression.XZ:
            return members(source, lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY_MAX), what, kind)


def compressor(kind: Compression, level: int | None = None) -> Compressor:
    """Only GZIP and ZSTD (and NONE). The same input gives the same bytes, always. `level` None is the usual one."""
    match kind:
        case Compression.NONE:
            return _Through()
        case Compression.GZIP:
            return _GzipBlocks(GZIP_LEVEL if level is None else level)
        case Compression.ZSTD:
            import zstandard

            level = ZSTD_LEVEL if level is None else level
            return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
        case _:
            raise NotSupported(f"{kind} is read, not written")


class _Through:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _GzipBlocks:
    """gzip in members of `GZIP_BLOCK` bytes each, as every reader of gzip takes them (RFC 1952, section 2.2).

    So each can be handed to libdeflate as a whole, and memory stays bounded.
    """

    def __init__(self, level: int) -> None:
        import deflate

        self._pack, self._level = deflate.gzip_compress, level
        self._waiting = bytearray()
        self._empty = True  # nothing was written yet

    def compress(self, data: bytes, /) -> bytes:
        self._waiting += data
        end = len(self._waiting) - len(self._waiting) % GZIP_BLOCK
        if not end:
            return b""
        self._empty = False
        with memoryview(self._waiting) as view:
            found = b"".join(
                self._pack(view[start : start + GZIP_BLOCK], self._level) for start in range(0, end, GZIP_BLOCK)
            )
        del self._waiting[:end]
        return found

    def flush(self) -> bytes:
        """The rest; of no data at all a member with nothing in it."""
        if not self._waiting and not self._empty:
            return b""
        rest, self._waiting = self._waiting, bytearray()
        return bytes(self._pack(rest, self._level))


class Source:
    """A `read` with its first bytes put back."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self._head, self._read = head, read

    def read(self, size: int = INPUT) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._read(size)


def _plain(source: Source) -> Iterator[bytes]:
    while data := source.read(PIECE):
        yield data


def _zstd(source: Source, what: str) -> Iterator[bytes]:
    """Frames one after the other. The decoder knows no bound on its output, so its input comes in small bites."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    frame = None
    ready: list[bytes] = []
    size = 0
    while data := source.read(INPUT):
        position = 0
        rest = b""  # what the decoder did not use: the begin of the next frame
        while rest or position < len(data):
            bite = rest or data[position : position + _ZSTD_BITE]
            position += 0 if rest else _ZSTD_BITE
            frame = frame or decoder.decompressobj()
            try:
                piece = frame.decompress(bite)
            except (zstandard.ZstdError, MemoryError) as exc:
                raise InvalidParameter(f"{what}: damaged zstd data: {exc}") from exc
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
            ready.append(piece)
            size += len(piece)
            if size >= PIECE:
                yield from _cut(b"".join(ready))
                ready, size = [], 0
    if size:
        yield from _cut(b"".join(ready))
    if frame is not None:
        raise InvalidParameter(f"{what}: truncated: the zstd data ends in the middle")


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= 2 * PIECE:
        yield data
    else:
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]


def members(source: Source, new: Callable[[], Decompressor], what: str, kind: Compression) -> Iterator[bytes]:
    """Members one after the other; zero bytes between and after them are padding."""
    data = source.read(INPUT)
    first = True
    while True:
        while data and not first:  # padding
            data = data.lstrip(b"\0")
            if data:
                break
            data = source.read(INPUT)
        if not data:
            return
        first = False
        decoder = new()
        while not decoder.eof:
            try:
                piece = decoder.decompress(data, PIECE)
            except _errors() as exc:
                raise InvalidParameter(f"{what}: damaged {kind} data: {exc}") from exc
            if piece:
                yield piece
            data = b""
            if decoder.needs_input and not decoder.eof:
                data = source.read(INPUT)
                if not data:
                    raise InvalidParameter(f"{what}: truncated: the {kind} data ends in the middle")
        data = decoder.unused_data or source.read(INPUT)


def _errors() -> tuple[type[Exception], ...]:
    kinds: list[type[Exception]] = [OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError]
    try:
        from isal import igzip_lib
    except ImportError:
        pass
    else:
        kinds.append(igzip_lib.IsalError)  # type: ignore[arg-type]  # the stubs make it an instance
    return tuple(kinds)


def _gzip_decompressor() -> Decompressor:
    try:
        from isal import igzip_lib
    except ImportError:
        return ZlibDecompressor()
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


class ZlibDecompressor:
    """zlib's gzip decompressor behind the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)
        self._pending = False  # the output was cut at max_length: more may come without input

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._pending and not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))
        self._pending = len(piece) == max_length
        return piece


def pieces(chunks: Iterable[bytes], limits: Limits, consumed: Callable[[], int]) -> Iterator[bytes]:
    """`chunks`, stopped with InvalidParameter when they become too many; `consumed` tells the compressed bytes."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        limits.check_size(total, consumed())
        yield chunk
