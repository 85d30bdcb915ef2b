"""Reader of Docker's json-file logs: all of it or the tail, rotated files included, and on as it grows.

Blocking. What cannot be read is passed over: a line that another program spoilt, or the last one while it is being
written. Files are opened by one reader at a time; the writer may rotate them meanwhile.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader, FileIO
from typing import NamedTuple

import msgspec

CHUNK = 256 << 10  # bytes read at a time
_BLOCK = 64 << 10  # bytes read at a time backwards
_MAX_LINE = 1 << 20  # bytes; a longer one is no line of ours
_OPEN_TRIES = 5  # rotations that may cross the opening of files

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Entry(NamedTuple):
    """One object of the log."""

    stream: str  # stdout or stderr
    time: int  # ns since the epoch
    data: bytes  # with its newline, unless it is a part of a line
    attrs: Mapping[str, str]


class _Line(msgspec.Struct):
    time: str
    log: str = ""
    stream: str = ""
    attrs: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Line).decode
_NO_ATTRS: Mapping[str, str] = {}


class Clock:
    """Parses RFC 3339 times; most come within the second of the one before."""

    def __init__(self) -> None:
        self._prefix = ""
        self._seconds = 0

    def parse(self, text: str) -> int:
        """Nanoseconds since the epoch. Raises ValueError."""
        prefix, rest = text[:19], text[19:]
        if prefix != self._prefix:
            moment = datetime.datetime.fromisoformat(prefix).replace(tzinfo=datetime.UTC)
            self._seconds = round((moment - _EPOCH).total_seconds())
            self._prefix = prefix
        fraction = "0"
        if rest.startswith("."):
            digits = len(rest) - len(rest[1:].lstrip("0123456789"))
            fraction, rest = rest[1:digits], rest[digits:]
        nanoseconds = int(fraction[:9].ljust(9, "0"))
        return (self._seconds - _offset(rest)) * 10**9 + nanoseconds


def _offset(zone: str) -> int:
    """Seconds east of UTC."""
    if zone == "Z":
        return 0
    sign = {"+": 1, "-": -1}[zone[:1]] if zone[:1] in ("+", "-") else None
    if sign is None or len(zone) != 6:
        raise ValueError(f"no time zone: {zone!r}")
    return sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)


class LogReader:
    """A position in a log. `read` goes on where the last one stopped, through rotations."""

    def __init__(self, path: str, *, tail: int | None = None, since: int = 0, until: int = 0) -> None:
        """`tail` counts objects from the end, None for all; `since` and `until` in ns, 0 for no limit.

        As in Docker the tail is taken first, and times are looked at afterwards. A log that does not exist is empty.
        """
        self._path = path
        self._since = since
        self._until = until
        self._clock = Clock()
        self._rest = b""
        self._skipping = False  # within a line too long to be one
        self._files = _open_all(path)  # oldest first; the one being read is the first
        self.done = False  # past `until`: there is nothing more to come
        if tail is not None:
            try:
                self._seek_tail(tail)
            except BaseException:
                self.close()
                raise

    def read(self) -> list[Entry]:
        """The next objects in order; empty when there are none now."""
        while not self.done:
            if not self._files:
                self._files = _open_all(self._path)
                if not self._files:
                    break
            data = self._files[0].read(CHUNK)
            if data:
                if entries := self._parse(data):
                    return entries
            elif not self._advance():
                break
        return []

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def _advance(self) -> bool:
        """At the end of a file: go to the next, if there is one. False: this is the end of the log."""
        current = self._files[0]
        if len(self._files) > 1:
            self._files.pop(0).close()
            self._rest = b""
            return True
        if os.fstat(current.fileno()).st_size < current.tell():  # rotated in place
            current.seek(0)
            self._rest = b""
            return True
        successors = _newer_than(self._path, current)
        if successors is None:
            return False
        if current.peek(1):  # written between our last read and its rotation
            for file in successors:
                file.close()
            return True
        current.close()
        self._rest = b""
        self._files = successors
        return bool(successors)

    def _parse(self, data: bytes) -> list[Entry]:
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        if len(self._rest) > _MAX_LINE:
            self._rest, self._skipping = b"", True
        lines = data[:end].split(b"\n")[:-1] if end else []
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        entries = []
        for line in lines:
            entry = self._entry(line)
            if entry is None or entry.time < self._since:
                continue
            if self._until and entry.time > self._until:
                self.done = True
                break
            entries.append(entry)
        return entries

    def _entry(self, line: bytes) -> Entry | None:
        try:
            found = _decode(line)
            when = self._clock.parse(found.time)
        except (msgspec.DecodeError, ValueError, KeyError):
            return None
        return Entry(found.stream, when, found.log.encode("utf-8", "replace"), found.attrs or _NO_ATTRS)

    def _seek_tail(self, count: int) -> None:
        """Position so that `count` objects are left."""
        left = count
        for index in range(len(self._files) - 1, -1, -1):
            file = self._files[index]
            offset, found = _tail_offset(file, left)
            file.seek(offset)
            left -= found
            if left <= 0:
                for older in self._files[:index]:
                    older.close()
                self._files = self._files[index:]
                return


def read(path: str, *, tail: int | None = None, since: int = 0, until: int = 0) -> Iterator[list[Entry]]:
    """What the log holds now, in batches."""
    reader = LogReader(path, tail=tail, since=since, until=until)
    try:
        while entries := reader.read():
            yield entries
    finally:
        reader.close()


def _tail_offset(file: BufferedReader, count: int) -> tuple[int, int]:
    """Where the last `count` whole lines begin, and how many there are of them."""
    position = file.seek(0, os.SEEK_END)
    if count <= 0:
        return position, 0
    found = -1  # the newline that ends the last line is not the beginning of another
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        here = block.count(b"\n")
        if found + here < count:
            found += here
            continue
        at = len(block)
        while found < count:
            at = block.rindex(b"\n", 0, at)
            found += 1
        return position + at + 1, count
    return 0, found + 1


def _names(path: str) -> list[str]:
    """The files of a log, newest first."""
    names, number = [path], 1
    while os.path.exists(f"{path}.{number}"):
        names.append(f"{path}.{number}")
        number += 1
    return names


def _open_all(path: str) -> list[BufferedReader]:
    """All files of a log as of one moment, oldest first."""
    for _ in range(_OPEN_TRIES):
        files: list[BufferedReader] = []
        try:
            for name in _names(path):
                files.append(BufferedReader(FileIO(name), _BLOCK))
            if _is_current(path, files[0]):
                return files[::-1]
        except FileNotFoundError:
            if not os.path.exists(path):
                break
        for file in files:
            file.close()
    else:
        raise OSError(f"log {path} is rotated faster than it can be opened")
    for file in files:
        file.close()
    return []


def _is_current(path: str, file: BufferedReader) -> bool:
    info = os.fstat(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        now = os.stat(path)
        return (now.st_dev, now.st_ino) == (info.st_dev, info.st_ino)
    return False


def _newer_than(path: str, current: BufferedReader) -> list[BufferedReader] | None:
    """The files that came after `current`, oldest first; None while it is still the newest."""
    if _is_current(path, current):
        return None
    files = _open_all(path)
    if not files:
        return None  # between two renames: it comes in a moment
    mine = os.fstat(current.fileno()).st_ino
    for index, file in enumerate(files):
        if os.fstat(file.fileno()).st_ino == mine:
            for older in files[: index + 1]:
                older.close()
            return files[index + 1 :]
    return files  # so much was written that ours is gone already
