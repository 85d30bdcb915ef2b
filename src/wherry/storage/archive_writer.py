"""Tar archives, written: ustar, with pax records only where ustar has no room.

The same entries give the same bytes. Times are whole seconds, as in Docker's layers, unless `subsecond` is asked for.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from typing import BinaryIO

from wherry.digest import DiffID
from wherry.storage.archive import BLOCK, XATTR, ZERO, Entry, Kind

Out = Callable[[bytes], object] | BinaryIO

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_BUFFER = 1 << 20  # bytes gathered before `out` is called
_ID_MAX = 0o7777777
_SIZE_MAX = 0o77777777777
_NS = 1_000_000_000
_FLAGS = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}


class TarWriter:
    """`out` is called with pieces of about 1 MiB, or is a binary file. Ends with `finish`."""

    def __init__(self, out: Out, *, subsecond: bool = False) -> None:
        self._out: Callable[[bytes], object] = out if callable(out) else out.write
        self._subsecond = subsecond
        self._held: list[bytes] = []
        self._held_size = 0
        self._hash = hashlib.sha256()
        self.size = 0  # bytes written so far

    @property
    def diff_id(self) -> DiffID:
        """The digest of what was written; final after `finish`."""
        return DiffID(f"sha256:{self._hash.hexdigest()}")

    def add(self, entry: Entry, data: Iterable[bytes] = ()) -> None:
        """One member. `data` must come to `entry.size` bytes for a file (ValueError), and is ignored otherwise.

        A directory's name gets its `/` here.
        """
        self._write(header(entry, subsecond=self._subsecond))
        if entry.kind is Kind.FILE:
            left = entry.size
            for piece in data:
                left -= len(piece)
                if left < 0:
                    break
                self._write(piece)
            if left:
                raise ValueError(f"content of {entry.name!r} is not {entry.size} bytes")
            self._pad(entry.size)

    def add_file(self, entry: Entry, fd: int) -> None:
        """One file with its content read from `fd`; what the file lacks of `entry.size` meanwhile is zero bytes."""
        self._write(header(entry, subsecond=self._subsecond))
        left = entry.size
        while left:
            piece = os.read(fd, min(left, _BUFFER)) or bytes(min(left, _BUFFER))
            left -= len(piece)
            self._write(piece)
        self._pad(entry.size)

    def add_sparse(self, entry: Entry, fd: int) -> None:
        """Likewise, with the holes left out (GNU's format 1.0): `entry.sparse` are the pieces of it that are data."""
        pieces = list(entry.sparse or ())
        if not pieces or sum(pieces[-1]) < entry.size:
            pieces.append((entry.size, 0))  # as GNU tar tells of a hole at the end
        text = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % piece for piece in pieces)
        table = text + ZERO[: -len(text) % BLOCK]
        stored = len(table) + sum(length for _, length in pieces)
        self._write(header(entry, subsecond=self._subsecond, stored=stored))
        self._write(table)
        for offset, length in pieces:
            end = offset + length
            while offset < end:
                piece = os.pread(fd, min(end - offset, _BUFFER), offset) or bytes(min(end - offset, _BUFFER))
                offset += len(piece)
                self._write(piece)
        self._pad(stored)

    def finish(self) -> None:
        """Write the end marker, and all that is still held."""
        self._write(ZERO + ZERO)
        self._flush()

    def _pad(self, size: int) -> None:
        if size % BLOCK:
            self._write(ZERO[: -size % BLOCK])

    def _write(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_size += len(piece)
        if self._held_size >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._held, self._held_size = [], 0
        self._hash.update(data)
        self.size += len(data)
        self._out(data)


def header(entry: Entry, *, subsecond: bool = False, stored: int | None = None) -> bytes:
    """The blocks before the content of `entry`: its header, and a pax header where one is needed.

    `stored`: of a sparse file, the bytes that follow.
    """
    records: dict[bytes, bytes] = {XATTR + name: value for name, value in entry.xattrs.items()}
    name, prefix = entry.name, b""
    if stored is not None:
        directory, slash, base = name.rpartition(b"/")
        records |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": name}
        records[b"GNU.sparse.realsize"] = b"%d" % entry.size
        name = directory + slash + b"GNUSparseFile.0/" + base  # what a reader that does not know of this will make
    if entry.kind is Kind.DIRECTORY and not name.endswith(b"/"):
        name += b"/"
    if len(name) > 100:
        prefix, name = _split(name)
        if not name:
            records[b"path"] = prefix
            prefix, name = b"", prefix[:99]
    link = entry.link
    if len(link) > 100:
        records[b"linkpath"] = link
        link = link[:100]
    size = entry.size if entry.kind is Kind.FILE else 0
    size = size if stored is None else stored
    seconds, fraction = divmod(entry.mtime, _NS)
    if not subsecond:
        fraction = 0
    uid = _fit(records, b"uid", entry.uid, _ID_MAX)
    gid = _fit(records, b"gid", entry.gid, _ID_MAX)
    size = _fit(records, b"size", size, _SIZE_MAX)
    if fraction or not 0 <= seconds <= _SIZE_MAX:
        records[b"mtime"] = _decimal(seconds, fraction)
        seconds = max(0, min(seconds, _SIZE_MAX))
    flag = _FLAGS[entry.kind]
    block = _pack(name, entry.mode, uid, gid, size, seconds, flag, link, entry.major, entry.minor, prefix)
    if not records:
        return block
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    pax = _pack(b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2][:80], 0o644, 0, 0, len(body), 0, b"x")
    return pax + body + ZERO[: -len(body) % BLOCK] + block


def _fit(records: dict[bytes, bytes], key: bytes, value: int, top: int) -> int:
    """`value` for the header; 0 when it only fits into a pax record."""
    if value <= top:
        return value
    records[key] = b"%d" % value
    return 0


def _pack(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
) -> bytes:
    block = _HEADER.pack(
        name,
        b"%07o" % mode,
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % mtime,
        b"        ",
        flag,
        link,
        b"ustar\x0000",
        b"",
        b"",
        b"%07o" % major,
        b"%07o" % minor,
        prefix,
    )
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])


def _split(name: bytes) -> tuple[bytes, bytes]:
    """(prefix, name) for ustar, or (name, b"") when it does not fit."""
    at = name.rfind(b"/", 0, min(156, len(name) - 1))
    if at > 0 and len(name) - at - 1 <= 100:
        return name[:at], name[at + 1 :]
    return name, b""


def _decimal(seconds: int, fraction: int) -> bytes:
    if seconds < 0 and fraction:  # -1.5 s is (-2, 0.5)
        seconds, fraction = seconds + 1, _NS - fraction
        sign = b"-" if seconds == 0 else b""
    else:
        sign = b""
    text = sign + b"%d" % seconds
    return text + (b".%09d" % fraction).rstrip(b"0") if fraction else text


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + len(str(len(body)))
    size = len(body) + len(str(size))  # its own digits count, and may add one
    return b"%d" % size + body
