"""Between the event loop and blocking code.

`settle` is the only way to a thread. It waits for the thread even when the caller is cancelled, so an effect that began
(a mount, a file) is always followed by its undo in the caller's `finally`.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> object: ...


P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Closable)

log = logging.getLogger(__name__)


async def settle(func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `func` in a thread and wait for its end; a cancellation is delivered after the thread has finished."""
    return await _outlast(asyncio.get_running_loop().run_in_executor(None, functools.partial(func, *args, **kwargs)))


async def acquire(func: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> C:
    """`settle` for what has to be closed: when the caller is cancelled, who then gets nothing, it is."""
    held: list[C] = []
    try:
        await settle(lambda: held.append(func(*args, **kwargs)))
    except asyncio.CancelledError:
        for each in held:
            each.close()
        raise
    return held[0]


async def finish(work: Coroutine[object, object, T]) -> T:
    """Run `work` to its end even when the caller is cancelled meanwhile: for changes that must not stop half-way."""
    return await _outlast(asyncio.ensure_future(work))


async def _outlast(future: asyncio.Future[T]) -> T:
    """The result of `future`, awaited through any cancellation of the caller, which is delivered afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as exc:
            if future.cancelled():
                raise
            cancelled = exc
        except BaseException:
            break  # the future's own exception: raised from result() below
    if cancelled is not None:
        future.exception()  # retrieved, so that it is not reported as never looked at
        raise cancelled
    return future.result()


class KeyedLock:
    """One `asyncio.Lock` per key, made on demand and forgotten when nobody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def __call__(self, key: Hashable) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


class SharedLock:
    """Many at a time, or one alone. Who wants to be alone goes before those who come later."""

    def __init__(self) -> None:
        self._free = asyncio.Condition()
        self._sharing = 0
        self._waiting = 0
        self._alone = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._free:
            await self._free.wait_for(lambda: not self._alone and not self._waiting)
            self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1
            await finish(self._notify())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._free:
            self._waiting += 1
            try:
                await self._free.wait_for(lambda: not self._alone and not self._sharing)
                self._alone = True
            finally:
                self._waiting -= 1
                self._free.notify_all()
        try:
            yield
        finally:
            self._alone = False
            await finish(self._notify())

    async def _notify(self) -> None:
        async with self._free:
            self._free.notify_all()


class Background:
    """Long-lived tasks owned by one place: failures are logged with their name, `close` cancels and awaits the rest."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guard(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step it was never awaited
        return task

    async def _guard(self, work: Coroutine[object, object, None], name: str) -> None:
        try:
            await work
        except Exception:
            log.exception("background task failed: %s", name)

    async def close(self) -> None:
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
