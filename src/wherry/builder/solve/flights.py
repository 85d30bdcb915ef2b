"""The same work wanted by several builds at once is done once; all of them see its output from the beginning.

It goes on as long as somebody waits for it. Of very much output who comes later hears the last part.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from wherry.aio import finish

T = TypeVar("T")
E = TypeVar("E")
Emit = Callable[[E], None]


KEPT = 1000  # things said that who comes later is told


class _Flight(Generic[T, E]):
    def __init__(self) -> None:
        self.said: deque[E] = deque(maxlen=KEPT)
        self.listeners: list[Emit[E]] = []
        self.task: asyncio.Task[T] | None = None

    def emit(self, event: E) -> None:
        self.said.append(event)
        for listener in self.listeners:
            listener(event)


async def _ended(task: "asyncio.Task[T]") -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # retrieved: nobody wants it any more


class Flights(Generic[T, E]):
    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T, E]] = {}

    def is_under_way(self, key: str) -> bool:
        return key in self._flights

    async def join(self, key: str, work: Callable[[Emit[E]], Awaitable[T]], emit: Emit[E]) -> T:
        """The result of `work` for `key`, begun unless it is under way. `emit` gets all it says."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.get_running_loop().create_task(self._fly(key, flight, work))
        assert flight.task is not None
        for event in list(flight.said):
            emit(event)
        flight.listeners.append(emit)
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.listeners.remove(emit)
            if not flight.listeners and not flight.task.done():
                if self._flights.get(key) is flight:
                    del self._flights[key]  # who comes now begins anew
                flight.task.cancel()
                await finish(_ended(flight.task))

    async def _fly(self, key: str, flight: _Flight[T, E], work: Callable[[Emit[E]], Awaitable[T]]) -> T:
        try:
            return await work(flight.emit)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
