"""What happens in a build, told as it happens: the doors show it, the record keeps it.

A vertex's events carry its `key` (unique in the build, and the same as in another build that waits for the same work).
Replayed from the beginning, the events give the whole of a build's progress; nothing of a log is ever left out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from wherry.builder.graph import Location

KEPT = 32 << 20  # bytes of output


@dataclass(frozen=True, slots=True, kw_only=True)
class VertexEvent:
    """The state of a vertex; a later one replaces an earlier one."""

    key: str  # sha256:...
    name: str
    inputs: tuple[str, ...] = ()  # keys
    started: int = 0  # ns since the epoch; 0 = not yet
    completed: int = 0
    cached: bool = False
    error: str = ""
    why: str = ""  # it was not found in the cache: "requirements.txt changed"
    slot: str = ""  # the vertex's: which instruction of which stage this is


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusEvent:
    """A line below a vertex: "transferring context:", "sha256:…", "exporting layers"."""

    vertex: str
    id: str  # shown as text
    current: int = 0
    total: int = 0  # 0 = not known
    started: int = 0
    completed: int = 0
    at: int = field(default_factory=time.time_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    vertex: str
    stream: int  # 1 stdout, 2 stderr
    data: bytes
    at: int = field(default_factory=time.time_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningEvent:
    """What the linter found."""

    vertex: str
    rule: str
    short: str
    detail: tuple[str, ...] = ()
    url: str = ""
    location: Location | None = None


Event = VertexEvent | StatusEvent | LogEvent | WarningEvent


class BuildLog:
    """The events of one build, kept until it is forgotten; any number of readers, each from the beginning.

    Output is kept up to KEPT bytes: a reader that begins later, or is slower, than that misses the oldest and is told
    so. The sink (the record on disk) misses nothing.
    """

    def __init__(self, sink: Callable[[Event], None] | None = None, *, kept: int = KEPT) -> None:
        self._events: list[Event | None] = []  # None: output that is not kept any more
        self._changed = asyncio.Event()
        self._sink = sink
        self._kept = kept
        self._held = 0  # bytes of output
        self._oldest = 0  # no output before this number is kept
        self.closed = False

    def add(self, event: Event) -> None:
        self._events.append(event)
        if self._sink is not None:
            self._sink(event)
        if isinstance(event, LogEvent):
            self._held += len(event.data)
            self._let_go()
        self._wake()

    def _let_go(self) -> None:
        while self._held > self._kept:
            event = self._events[self._oldest]
            if isinstance(event, LogEvent):
                self._held -= len(event.data)
                self._events[self._oldest] = None
            self._oldest += 1

    def close(self) -> None:
        """The build has ended: readers end after the last event."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def events(self) -> list[Event]:
        """Those that are kept."""
        return [event for event in self._events if event is not None]

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Batches of events: what is there, then what comes."""
        at = 0
        while True:
            batch = self._events[at:]
            at += len(batch)
            if batch:
                yield _told(batch)
            elif self.closed:
                return
            else:
                changed = self._changed
                await changed.wait()


def _told(batch: Sequence[Event | None]) -> list[Event]:
    """With a word in place of output that is not kept."""
    found: list[Event] = []
    missed = 0
    for event in batch:
        if event is None:
            missed += 1
            continue
        if missed and isinstance(event, LogEvent):
            said = f"[{missed} pieces of output came too fast to be shown; the build's record has them]\n"
            found.append(LogEvent(vertex=event.vertex, stream=2, data=said.encode(), at=event.at))
            missed = 0
        found.append(event)
    return found
