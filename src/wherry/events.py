"""Events: what happened to which object, for `GET /events` and for rooms that react.

`publish` never blocks and never fails. The last 256 events are kept for `since`, as in Docker. A subscriber that does
not read loses its oldest events after `BACKLOG`; everybody else is unaffected.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

KEPT = 256  # Docker's own number
BACKLOG = 4096  # events a slow subscriber may be behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    type: str  # container, image, network, volume, daemon
    action: str  # start, die, "exec_start: sh", ...
    actor: str  # id or name of the object
    attributes: Mapping[str, str] = field(default_factory=dict)
    time: int = field(default_factory=time.time_ns)  # ns since the epoch
    scope: str = "local"


class Subscription:
    """An open ear; iterate for events as they come."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque(maxlen=BACKLOG)
        self._ready = asyncio.Event()

    def put(self, event: Event) -> None:
        self._queue.append(event)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            self._ready.clear()
            await self._ready.wait()


class Events:
    """The hub. Used from the event loop only."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._ears: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        self._kept.append(event)
        for ear in self._ears:
            ear.put(event)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Events from now on; combine with `past` (no await in between) to miss none and repeat none."""
        ear = Subscription()
        self._ears.add(ear)
        try:
            yield ear
        finally:
            self._ears.discard(ear)

    def past(self, since: int, until: int) -> list[Event]:
        """Kept events with since <= time <= until (ns), oldest first."""
        return [event for event in self._kept if since <= event.time <= until]
