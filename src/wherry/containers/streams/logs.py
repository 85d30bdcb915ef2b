"""logs: what a container has written, from its log, in Docker's framing; on request until the container ends."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote_plus

from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.containers.streams.relay import STDERR, STDOUT, Stream, frame
from wherry.containers.views.times import parse_time
from wherry.errors import InvalidParameter, NotSupported
from wherry.logs import follow as following
from wherry.logs.reader import Entry

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


def parse_moment(text: str) -> int:
    """`since` or `until` in ns since the epoch; 0 when it is not limited. Raises InvalidParameter."""
    return max(0, parse_time(text, now=time.time_ns())) if text else 0


@dataclass(frozen=True, slots=True)
class LogStream:
    """A log ready to be sent: iterate for chunks, which end at entries' borders; who stops early closes them."""

    tty: bool
    chunks: AsyncGenerator[bytes, None]

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
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
    start, end, lines = parse_moment(since), parse_moment(until), parse_tail(tail)
    if follow and container.running:
        ended = deps.live_of(container).ended
        entries = following.follow(container.log_path, ended=ended, tail=lines, since=start, until=end)
    else:
        entries = following.read(container.log_path, tail=lines, since=start, until=end)
    return LogStream(container.config.tty, _render(form, entries))


def check_readable(container: Container) -> None:
    """Raise NotSupported when nothing of what it writes is kept."""
    if container.host_config.log_config.type == "none":
        raise NotSupported("configured logging driver does not support reading")


async def replay(container: Container, stream: Stream, *, stdout: bool, stderr: bool, until: int = 0) -> None:
    """Send what was logged up to now, or to `until` (ns since the epoch), as an attached client would have seen it."""
    form = Form(stdout=stdout, stderr=stderr, tty=container.config.tty)
    async with aclosing(_render(form, following.read(container.log_path, until=until))) as chunks:
        async for chunk in chunks:
            await stream.write(chunk)


async def _render(form: Form, batches: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(batches):  # its files are closed now, not when somebody collects it
        async for entries in batches:
            if chunk := b"".join([form.render(*entry) for entry in entries]):
                yield chunk
