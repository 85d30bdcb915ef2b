"""Tar archives, read: v7, ustar, star, pax (with global headers) and GNU (long names, sparse files of every kind).

What is read is hostile. The reader checks every header and refuses with `InvalidParameter`, naming entry and cause;
it holds no more than one chunk of its input and one extended header (`EXTENDED_MAX`). It gives names as they stand in
the archive: `normalize` makes a path of one that cannot leave its root by `..`; symbolic links are the extractor's
business. The writer is in `archive_writer.py`.
"""

import enum
import os
import struct
from collections.abc import Callable, Iterable, Iterator

from wherry.errors import InvalidParameter

BLOCK = 512
ZERO = bytes(BLOCK)
EXTENDED_MAX = 1 << 20  # bytes of one pax or GNU long-name header
SPARSE_MAX = 1 << 17  # pieces of one sparse file
SIZE_MAX = (1 << 63) - 1  # bytes of one file: 8 EiB, the kernel's limit
ID_MAX = (1 << 32) - 2  # the highest uid; the one above means "leave it" to chown
GLOBAL_MAX = 256  # records kept of global headers
XATTR = b"SCHILY.xattr."

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ZEROS = bytes(1 << 16)


class Kind(enum.Enum):
    FILE = enum.auto()
    HARDLINK = enum.auto()
    SYMLINK = enum.auto()
    CHAR = enum.auto()
    BLOCK = enum.auto()
    DIRECTORY = enum.auto()
    FIFO = enum.auto()


_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,  # contiguous
    b"S": Kind.FILE,  # GNU sparse
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


class Entry:
    """One member. Mutable for speed; nobody keeps it beyond the next."""

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "size",
        "sparse",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: Kind) -> None:
        self.name = name  # as in the archive: may begin with ./ or /, end with /
        self.kind = kind
        self.mode = 0o644  # permission bits with setuid, setgid, sticky
        self.uid = self.gid = 0
        self.size = 0  # bytes of the file, holes included
        self.stored = 0  # bytes of it in the archive
        self.mtime = 0  # ns since the epoch, negative before
        self.link = b""  # target of a symlink; name of the earlier member of a hard link
        self.major = self.minor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: list[tuple[int, int]] | None = None  # (offset, length) of the stored pieces, ascending

    def __repr__(self) -> str:
        return f"<Entry {show(self.name)} {self.kind.name} {self.size}>"


def show(name: bytes) -> str:
    """A hostile name, for a message: printable, quoted, of bounded length."""
    text = repr(name[:120].decode("utf-8", "backslashreplace"))
    return text if len(name) <= 120 else f"{text}… ({len(name)} bytes)"


def normalize(name: bytes) -> bytes:
    """A member's name as a path below the root: no leading `/`, no `.` or `..`, no empty part; b"" is the root.

    Raises InvalidParameter when `..` leads out of the root, and for a NUL or a path too long for the kernel.
    """
    if b"\0" in name:
        raise InvalidParameter(f"entry {show(name)}: its name has a NUL byte")
    if len(name) > 4095:
        raise InvalidParameter(f"entry {show(name)}: its name is longer than 4095 bytes")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidParameter(f"entry {show(name)}: its name leads out of the archive's root by '..'")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


class Stream:
    """Bytes in order out of chunks of any size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._data = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        end = self._at + size
        if end <= len(self._data):
            piece = self._data[self._at : end]
            self._at = end
            return piece
        parts = [self._data[self._at :]]
        have = len(parts[0])
        self._data, self._at = b"", 0
        for chunk in self._chunks:
            parts.append(chunk)
            have += len(chunk)
            if have >= size:
                break
        self._data = b"".join(parts)
        self._at = min(size, have)
        return self._data[: self._at]

    def pieces(self, size: int) -> Iterator[memoryview]:
        """`size` bytes without joining chunks; fewer only at the end. All must be consumed."""
        while size:
            if self._at == len(self._data):
                self._data, self._at = next(self._chunks, b""), 0
                if not self._data:
                    return
            step = min(len(self._data) - self._at, size)
            piece = memoryview(self._data)[self._at : self._at + step]
            self._at += step
            size -= step
            yield piece

    def skip(self, size: int) -> int:
        """Bytes really skipped."""
        if self._at + size <= len(self._data):
            self._at += size
            return size
        return sum(len(piece) for piece in self.pieces(size))

    def drain(self) -> None:
        """Read to the end: what stands behind the archive still belongs to its digest."""
        self._data, self._at = b"", 0
        for _ in self._chunks:
            pass


class TarReader:
    """Iterate for the entries; between two, `data` or `stored` give the content of the one just given.

    `what` names the archive in messages. After the end-of-archive marker the rest of the input is read and ignored.
    """

    def __init__(self, chunks: Iterable[bytes], *, what: str = "archive", max_headers: int = SIZE_MAX) -> None:
        self._stream = Stream(chunks)
        self._what = what
        self._headers_left = max_headers
        self._max_headers = max_headers
        self._global: dict[bytes, bytes] = {}
        self._left = 0  # stored bytes of the present entry not yet given
        self._padding = 0
        self._entry: Entry | None = None
        self.marked = False  # the end-of-archive marker was met: the input did not just end

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, None at the end; unread content is skipped."""
        if self._left or self._padding:
            self._finish()
        pax: dict[bytes, bytes] = {}
        while True:
            block = self._stream.take(BLOCK)
            if len(block) < BLOCK or block == ZERO:
                self._end(block, pax)
                return None
            self._check(block)
            flag = block[156:157]
            if flag in b"xXgLK":
                self._extended(block, flag, pax)
                continue
            entry = self._parse(block, flag, pax)
            self._entry = entry
            return entry

    def stored(self) -> Iterator[memoryview]:
        """What the archive holds of the present entry's content, without the holes of a sparse file."""
        for piece in self._stream.pieces(self._left):
            self._left -= len(piece)
            yield piece
        if self._left:
            raise self._truncated()

    def whole(self) -> bytes:
        """`stored` in one piece; for content known to be small."""
        data = self._stream.take(self._left)
        self._left -= len(data)
        if self._left:
            raise self._truncated()
        return data

    def data(self) -> Iterator[bytes | memoryview]:
        """The content of the present entry, holes as zero bytes. `entry.size` bytes, which nothing here bounds."""
        entry = self._entry
        if entry is None or entry.sparse is None:
            yield from self.stored()
            return
        position = 0
        for offset, length in entry.sparse:
            yield from _zeros(offset - position)
            for piece in self._stream.pieces(length):
                self._left -= len(piece)
                position += len(piece)
                yield piece
            position = offset + length
        if self._left:
            raise self._truncated()
        yield from _zeros(entry.size - position)

    def contents(self, limit: int) -> bytes:
        """The content of the present entry in one piece; InvalidParameter when it is longer than `limit`."""
        if self._entry is not None and self._entry.size > limit:
            raise self._error(self._entry.name, f"{self._entry.size} bytes; at most {limit} are accepted here")
        return b"".join(self.data())

    def _finish(self) -> None:
        if self._stream.skip(self._left) < self._left:
            raise self._truncated()
        # Ending where the last content ends is allowed: so does the context of `docker build -f` with a Dockerfile from
        # elsewhere, and Go's reader takes it.
        if 0 < self._stream.skip(self._padding) < self._padding:
            raise self._truncated()
        self._left = self._padding = 0

    def _end(self, block: bytes, pax: dict[bytes, bytes]) -> None:
        if pax:
            raise InvalidParameter(f"{self._what}: ends after an extended header, before the entry it belongs to")
        if 0 < len(block) < BLOCK:
            raise InvalidParameter(f"{self._what}: truncated: ends in the middle of a header")
        self.marked = bool(block)
        second = self._stream.take(BLOCK) if block else b""
        if len(second) == BLOCK and second != ZERO:
            raise InvalidParameter(f"{self._what}: a single zero block stands between entries")
        self._entry = None
        self._stream.drain()

    def _check(self, block: bytes) -> None:
        self._headers_left -= 1
        if self._headers_left < 0:
            raise InvalidParameter(f"{self._what}: more than {self._max_headers} entries")
        stored = _octal(_cut(block[148:156]).strip(b" "))
        if stored != (found := _sum(block)) and stored != _signed_sum(block, found):
            raise self._error(_cut(block[:100]), "its header is damaged (wrong checksum), or this is no tar archive")

    def _extended(self, block: bytes, flag: bytes, pax: dict[bytes, bytes]) -> None:
        """Take in a header that describes the next entry (or, `g`, all that follow)."""
        size = self._number(block[124:136], "size", block)
        if not 0 <= size <= EXTENDED_MAX:
            raise self._error(
                _cut(block[:100]), f"extended header of {size} bytes; at most {EXTENDED_MAX} are accepted"
            )
        body = self._stream.take(size)
        if len(body) < size or self._stream.skip(-size % BLOCK) < -size % BLOCK:
            raise InvalidParameter(f"{self._what}: truncated: ends in the middle of an extended header")
        if flag == b"L":
            pax[b"path"] = _cut(body)
        elif flag == b"K":
            pax[b"linkpath"] = _cut(body)
        elif flag == b"g":
            self._global.update(
                (key, value)
                for key, value in parse_pax(body, self._what).items()
                if key in (b"uid", b"gid", b"mtime") or key.startswith(XATTR)
            )
            if len(self._global) > GLOBAL_MAX:
                raise InvalidParameter(f"{self._what}: more than {GLOBAL_MAX} records in global headers")
        else:
            pax.update(parse_pax(body, self._what))

    def _parse(self, block: bytes, flag: bytes, pax: dict[bytes, bytes]) -> Entry:
        (name, mode, uid, gid, size, mtime, _, _, link, magic, _, _, major, minor, prefix) = _HEADER.unpack(block)
        name = _cut(name)
        if magic == b"ustar\x0000" and prefix[0]:
            if block[508:512] == b"tar\0":  # star keeps times behind a shorter prefix
                prefix = prefix[:131]
            name = _cut(prefix) + b"/" + name
        kind = _KINDS.get(flag)
        if kind is None:
            raise self._error(name, f"entries of type {flag.decode('latin-1')!r} are not supported")
        entry = Entry(name, kind)
        number = self._number
        entry.mode = number(mode, "mode", block) & 0o7777
        entry.uid = number(uid, "uid", block)
        entry.gid = number(gid, "gid", block)
        entry.mtime = number(mtime, "mtime", block) * 1_000_000_000
        entry.size = entry.stored = number(size, "size", block)
        if link[0]:
            entry.link = _cut(link)
        if kind is Kind.CHAR or kind is Kind.BLOCK:
            entry.major = number(major, "device number", block)
            entry.minor = number(minor, "device number", block)
        if self._global or pax:
            self._apply(entry, pax)
        self._complete(entry, flag, block, pax)
        return entry

    def _apply(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        """Let the records of extended headers override the header's fields; an empty one takes an override back."""
        if self._global:
            pax = {**self._global, **pax}
        for key, value in pax.items():
            if key.startswith(XATTR):
                entry.xattrs[key[len(XATTR) :]] = value
            elif not value:
                continue
            elif key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key in (b"size", b"uid", b"gid"):
                if not value.isdigit() or len(value) > 20:
                    raise self._error(entry.name, f"pax record {key.decode()} is {show(value)}, no number")
                if key == b"size":
                    entry.size = entry.stored = int(value)
                elif key == b"uid":
                    entry.uid = int(value)
                else:
                    entry.gid = int(value)
            elif key == b"mtime":
                entry.mtime = self._time(value, entry)

    def _complete(self, entry: Entry, flag: bytes, block: bytes, pax: dict[bytes, bytes]) -> None:
        """Check what the fields say together, and set up the reading of the content."""
        name = entry.name
        if not 0 <= entry.size <= SIZE_MAX:
            raise self._error(name, f"its size is {entry.size} bytes; a file has between 0 and {SIZE_MAX}")
        if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
            raise self._error(name, f"its owner {entry.uid}:{entry.gid} is not between 0 and {ID_MAX}")
        if b"\0" in name or b"\0" in entry.link:
            raise self._error(name, "a NUL byte in its name or link target")
        kind = entry.kind
        if kind is Kind.FILE:
            if name.endswith(b"/") and flag in b"0\0":
                entry.kind = Kind.DIRECTORY  # as v7 and old GNU tar wrote them
        else:
            entry.size = entry.stored = 0  # a size here is what tar knew of the inode, not content that follows
            if kind is Kind.SYMLINK or kind is Kind.HARDLINK:
                if not entry.link:
                    raise self._error(name, "a link without target")
            elif not (0 <= entry.major <= 0xFFF and 0 <= entry.minor <= 0xFFFFF):
                raise self._error(name, f"device number {entry.major}:{entry.minor} is out of range")
        self._left = entry.stored
        self._padding = -entry.stored % BLOCK
        if flag == b"S":
            self._sparse_old(entry, block)
        elif pax and any(key.startswith(b"GNU.sparse.") for key in pax):
            self._sparse_pax(entry, pax)
        if entry.kind is Kind.DIRECTORY:
            entry.size = 0

    # Sparse files

    def _sparse_old(self, entry: Entry, block: bytes) -> None:
        """GNU type S: four pieces in the header, 21 in each further block."""
        pieces: list[tuple[int, int]] = []
        table, more = block[386:482], block[482]
        entry.size = self._number(block[483:495], "real size", block)
        while True:
            for at in range(0, len(table) - 23, 24):
                if table[at] == 0:
                    break
                offset = self._number(table[at : at + 12], "sparse offset", block)
                pieces.append((offset, self._number(table[at + 12 : at + 24], "sparse length", block)))
            if not more:
                break
            if len(pieces) > SPARSE_MAX:
                raise self._error(entry.name, f"more than {SPARSE_MAX} pieces in a sparse file")
            block2 = self._stream.take(BLOCK)
            if len(block2) < BLOCK:
                raise self._truncated()
            table, more = block2[:504], block2[504]
        self._set_sparse(entry, pieces)

    def _sparse_pax(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        """GNU sparse formats 0.0, 0.1 (map in the pax records) and 1.0 (map before the content)."""
        name = pax.get(b"GNU.sparse.name")
        if name:
            entry.name = name
        size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b""
        if not size.isdigit() or len(size) > 20:
            raise self._error(entry.name, "a sparse file without its real size")
        if pax.get(b"GNU.sparse.major") == b"1":
            numbers = self._map_in_content(entry)
        else:
            numbers = self._map_numbers(entry, (pax.get(b"GNU.sparse.map") or b"").split(b","))
        entry.size = int(size)
        self._set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=False)))

    def _map_in_content(self, entry: Entry) -> list[int]:
        """Format 1.0: decimal lines (count, then offset and length each) filling whole blocks."""
        text = b""
        wanted: int | None = None
        while wanted is None or text.count(b"\n") <= wanted:
            if len(text) > EXTENDED_MAX:
                raise self._error(entry.name, f"a sparse map of more than {EXTENDED_MAX} bytes")
            if self._left < BLOCK:
                raise self._error(entry.name, "its sparse map is incomplete")
            block = self._stream.take(BLOCK)
            self._left -= len(block)
            if len(block) < BLOCK:
                raise self._truncated()
            text += block
            if wanted is None and b"\n" in text:
                count = self._map_numbers(entry, [text.partition(b"\n")[0]])[0]
                if count > SPARSE_MAX:
                    raise self._error(entry.name, f"more than {SPARSE_MAX} pieces in a sparse file")
                wanted = 2 * count
        entry.stored = self._left
        return self._map_numbers(entry, text.split(b"\n")[1 : wanted + 1])

    def _map_numbers(self, entry: Entry, words: list[bytes]) -> list[int]:
        if words == [b""]:
            return []
        if not all(word.isdigit() and len(word) <= 20 for word in words):
            raise self._error(entry.name, "its sparse map holds something else than numbers")
        return [int(word) for word in words]

    def _set_sparse(self, entry: Entry, pieces: list[tuple[int, int]]) -> None:
        position = 0
        for offset, length in pieces:
            if offset < position or length < 0 or offset + length > entry.size:
                raise self._error(entry.name, "its sparse map is out of order or leads beyond its size")
            position = offset + length
        if not 0 <= entry.size <= SIZE_MAX or sum(length for _, length in pieces) != self._left:
            raise self._error(entry.name, "its sparse map does not match its size")
        if len(pieces) > SPARSE_MAX:
            raise self._error(entry.name, f"more than {SPARSE_MAX} pieces in a sparse file")
        entry.sparse = pieces

    # Fields

    def _number(self, field: bytes, what: str, block: bytes) -> int:
        """Octal text, or base 256 when the top bit is set."""
        text = _cut(field).strip(b" ")
        value = _octal(text)
        if value is not None:
            return value
        if field[0] & 0x80:
            bits = len(field) * 8 - 1
            value = int.from_bytes(field, "big") & (1 << bits) - 1
            return value - (1 << bits) if value >> bits - 1 else value
        if not text:
            return 0
        raise self._error(_cut(block[:100]), f"its {what} is {show(text)}, no number")

    def _time(self, value: bytes, entry: Entry) -> int:
        whole, _, fraction = value.partition(b".")
        digits = whole.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 18 or (fraction and not fraction.isdigit()):
            raise self._error(entry.name, f"pax record mtime is {show(value)}, no time")
        ns = int(digits) * 1_000_000_000 + int((fraction + b"000000000")[:9])
        return -ns if whole.startswith(b"-") else ns

    def _error(self, name: bytes, cause: str) -> InvalidParameter:
        return InvalidParameter(f"{self._what}: entry {show(name)}: {cause}")

    def _truncated(self) -> InvalidParameter:
        name = self._entry.name if self._entry is not None else b""
        return self._error(name, "truncated: the archive ends in the middle of its content")


def parse_pax(body: bytes, what: str) -> dict[bytes, bytes]:
    """The records of a pax header; the last of a key counts. Old sparse maps come out as `GNU.sparse.map`."""
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []  # sparse format 0.0 repeats its two keys
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 10)
        length = body[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        if not space < end <= len(body) or body[end - 1 : end] != b"\n":
            if not body[at:].strip(b"\0"):
                break  # padding
            raise InvalidParameter(f"{what}: damaged pax header: {show(body[at : at + 60])}")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise InvalidParameter(f"{what}: damaged pax header: {show(body[at : at + 60])}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(pieces) % 2 == 0) != (key == b"GNU.sparse.offset") or b"," in value:
                raise InvalidParameter(f"{what}: damaged sparse map in a pax header")
            pieces.append(value)
        records[key] = value
        at = end
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def chunks(read: Callable[[int], bytes], size: int = 1 << 18) -> Iterator[bytes]:
    """What `read` gives until its end."""
    while data := read(size):
        yield data


def text(name: bytes) -> str:
    """A member's name as a Python path (bytes that are no UTF-8 survive as surrogates)."""
    return os.fsdecode(name)


def _octal(text: bytes) -> int | None:
    if not text.isdigit():
        return None
    try:
        return int(text, 8)
    except ValueError:
        return None


def _cut(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _sum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 256


def _signed_sum(block: bytes, unsigned: int) -> int:
    """As tars of old, with signed characters, computed it."""
    return unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)
