"""The log of a build on disk: every event, one JSON object a line, appended while it happens.

    <data root>/build/records/<ref>/log

    {"vertex": {...}} | {"status": {...}} | {"log": {...}} | {"warning": {...}}

Output is text where it is UTF-8, so that the file can be read and searched as it is, else base64. Nothing is fsynced:
when the power fails the last lines may be missing, and the very last be broken; a reader passes over such a line.
Synchronous.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from wherry.builder.log import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent

log = logging.getLogger(__name__)

BUFFER = 1 << 16  # bytes gathered before the file is written to


class _Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A LogEvent; `text` or `data`, whichever takes its bytes."""

    vertex: str
    stream: int
    at: int
    text: str = ""
    data: bytes = b""


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    vertex: VertexEvent | None = None
    status: StatusEvent | None = None
    log: _Output | None = None
    warning: WarningEvent | None = None


_decoder = msgspec.json.Decoder(_Line)


def encode(event: Event) -> bytes:
    """The line, its end included."""
    match event:
        case VertexEvent():
            line = _Line(vertex=event)
        case StatusEvent():
            line = _Line(status=event)
        case WarningEvent():
            line = _Line(warning=event)
        case LogEvent():
            line = _Line(log=_output(event))
    return msgspec.json.encode(line) + b"\n"


def _output(event: LogEvent) -> _Output:
    try:
        return _Output(vertex=event.vertex, stream=event.stream, at=event.at, text=event.data.decode())
    except UnicodeDecodeError:
        return _Output(vertex=event.vertex, stream=event.stream, at=event.at, data=event.data)


def decode(line: bytes) -> Event | None:
    """None for a line that is none of ours."""
    try:
        found = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if found.log is not None:
        output = found.log
        data = output.data or output.text.encode()
        return LogEvent(vertex=output.vertex, stream=output.stream, data=data, at=output.at)
    return found.vertex or found.status or found.warning


class LogWriter:
    """Appends; never raises, as a build does not fail because of its log: `complete` says whether all was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = bytearray()
        self.complete = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as exc:
            self._refused(exc)

    def add(self, event: Event) -> None:
        if not self.complete:
            return
        self._held += encode(event)
        if len(self._held) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand what is held to the kernel: it survives the daemon."""
        if not self.complete:
            return
        try:
            while self._held:
                written = self._file.write(self._held)
                del self._held[: written or 0]
        except OSError as exc:
            self._file.close()
            self._refused(exc)

    def _refused(self, error: OSError) -> None:
        log.error("the log of a build cannot be written to %s: %s", self._path, error.strerror)
        self.complete = False
        self._held.clear()

    def close(self) -> None:
        self.flush()
        if self.complete:
            self._file.close()


def read(path: Path) -> Iterator[Event]:
    """All events, from the beginning; none when there is no log."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - in the `with` below
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        for line in file:
            event = decode(line)
            if event is not None:
                yield event
