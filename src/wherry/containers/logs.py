"""logs: what a container has written, from its log, in Docker's framing; on request until the container ends."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus

import msgspec

from wherry.aio import settle
from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.containers.relay import STDERR, STDOUT, Stream, frame
from wherry.containers.times import parse_time
from wherry.errors import InvalidParameter, NotSupported

POLL = 0.05  # s between two looks at a followed log

Entry = tuple[str, int, bytes, Mapping[str, str]]  # stream, ns since the epoch, line, attributes
Position = tuple[int, int]  # inode and offset

_STREAMS = {"stdout": STDOUT, "stderr": STDERR}
_SECOND = 10**9  # ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How log entries are shown."""

    stdout: bool
    stderr: bool
    tty: bool
    timestamps: bool = False
    details: bool = False

    def render(self, stream: str, at: int, data: bytes, attrs: Mapping[str, str]) -> bytes:
        """One entry, `at` in ns since the epoch, framed unless it is a terminal's; b"" for an unwanted stream."""
        if not (self.stderr if stream == "stderr" else self.stdout):
            return b""
        if self.details:
            data = b",".join(_attribute(key, attrs[key]) for key in sorted(attrs)) + b" " + data
        if self.timestamps:
            data = _timestamp(at) + b" " + data
        return data if self.tty else frame(_STREAMS.get(stream, STDOUT), data)


def _attribute(key: str, value: str) -> bytes:
    return f"{quote_plus(key)}={quote_plus(value)}".encode()


def _timestamp(at: int) -> bytes:
    """RFC 3339 with nine digits always, in UTC."""
    seconds, fraction = divmod(at, _SECOND)
    return (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z").encode()


def parse_tail(text: str) -> int | None:
    """How many lines from the end; None for all of them, which as in Docker is also what nonsense means."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None


def parse_moment(text: str) -> int | None:
    """`since` or `until` in ns since the epoch; None when it is not limited. Raises InvalidParameter."""
    return (parse_time(text, now=time.time_ns()) or None) if text else None


@dataclass(frozen=True, slots=True)
class LogStream:
    """A log ready to be sent: iterate for chunks of it, which end at entries' borders."""

    tty: bool
    chunks: AsyncIterator[bytes]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.chunks


async def open_logs(
    deps: Deps,
    name: str,
    *,
    stdout: bool,
    stderr: bool,
    follow: bool = False,
    since: str = "",
    until: str = "",
    timestamps: bool = False,
    tail: str = "",
    details: bool = False,
) -> LogStream:
    """The log of a container; with `follow` until its present run ends, and then to the end of what it wrote.

    `since` and `until` are points in time as users type them, `tail` a number of lines or `all`. Raises NotFound,
    InvalidParameter, NotSupported (the container has no log to be read).
    """
    if not (stdout or stderr):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    container = deps.store.resolve(name)
    check_readable(container)
    form = Form(stdout=stdout, stderr=stderr, tty=container.config.tty, timestamps=timestamps, details=details)
    entries = _entries(
        deps,
        container,
        since=parse_moment(since),
        until=parse_moment(until),
        tail=parse_tail(tail),
        follow=follow and container.running,
    )
    return LogStream(container.config.tty, _render(form, entries))


def check_readable(container: Container) -> None:
    """Raise NotSupported when nothing of what it writes is kept."""
    if container.host_config.log_config.type == "none":
        raise NotSupported("configured logging driver does not support reading")


async def replay(
    deps: Deps, container: Container, stream: Stream, *, stdout: bool, stderr: bool, until: int | None = None
) -> None:
    """Send what was logged up to now, or to `until` (ns since the epoch), as an attached client would have seen it."""
    form = Form(stdout=stdout, stderr=stderr, tty=container.config.tty)
    async for chunk in _render(form, _entries(deps, container, until=until)):
        await stream.write(chunk)


async def _render(form: Form, batches: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(batches):
        async for entries in batches:
            chunk = b"".join([form.render(*entry) for entry in entries])
            if chunk:
                yield chunk


async def _entries(
    deps: Deps,
    container: Container,
    *,
    since: int | None = None,
    until: int | None = None,
    tail: int | None = None,
    follow: bool = False,
) -> AsyncGenerator[list[Entry], None]:
    """The chosen entries in order, in batches as they are there."""
    ended = deps.live_of(container).ended
    path = Path(container.log_path)
    found, position = await settle(_history, path)
    chosen = [entry for entry in found if _within(entry, since, until)]
    if tail is not None:
        chosen = chosen[len(chosen) - min(tail, len(chosen)) :]
    if chosen:
        yield chosen
    while follow:
        last = ended.is_set()  # looked at first: what is read below is then all there is
        found, position = await settle(_read_on, path, position)
        if chosen := [entry for entry in found if _within(entry, since, until)]:
            yield chosen
        if last:
            return
        if not found:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await ended.wait()


class _Line(msgspec.Struct):
    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Line)


def _parse(data: bytes) -> list[Entry]:
    """Whole lines; what is no entry is left out."""
    found: list[Entry] = []
    for raw in data.split(b"\n"):
        if raw:
            with suppress(msgspec.MsgspecError, InvalidParameter):
                line = _DECODER.decode(raw)
                found.append((line.stream, parse_time(line.time, now=0), line.log.encode(), line.attrs))
    return found


def _within(entry: Entry, since: int | None, until: int | None) -> bool:
    return (since is None or entry[1] >= since) and (until is None or entry[1] <= until)


def _history(path: Path) -> tuple[list[Entry], Position]:
    """All entries of the rotated files and the present one, and where the present one was read to."""
    older: list[Path] = []
    while (rotated := path.with_name(f"{path.name}.{len(older) + 1}")).exists():
        older.append(rotated)
    found = [entry for each in reversed(older) for entry in _parse(each.read_bytes())]
    present, position = _read_on(path, (0, 0))
    return found + present, position


def _read_on(path: Path, position: Position) -> tuple[list[Entry], Position]:
    """What was appended since `position`, the end of a file that was rotated away meanwhile included."""
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            found: list[Entry] = []
            if position[0] and position[0] != info.st_ino:
                with suppress(OSError), open(f"{path}.1", "rb") as before:
                    if os.fstat(before.fileno()).st_ino == position[0]:
                        before.seek(position[1])
                        found = _parse(before.read())
            offset = position[1] if position[0] == info.st_ino and position[1] <= info.st_size else 0
            file.seek(offset)
            data = file.read()
            end = data.rfind(b"\n") + 1
            return found + _parse(data[:end]), (info.st_ino, offset + end)
    except FileNotFoundError:
        return [], (0, 0)
