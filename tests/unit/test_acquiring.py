import asyncio
import threading
from contextlib import closing

import pytest

from wherry.aio import acquire


class Thing:
    closed = False

    def close(self) -> None:
        self.closed = True


async def test_what_a_thread_opens_for_who_is_cancelled_meanwhile_is_closed() -> None:
    go, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    thing = Thing()

    def open_slowly(name: str) -> Thing:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(10)
        return thing

    task = asyncio.create_task(acquire(open_slowly, "x"))
    await begun.wait()
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert thing.closed


async def test_who_is_not_cancelled_gets_it_open() -> None:
    with closing(await acquire(Thing)) as thing:
        assert not thing.closed


async def test_an_error_of_opening_is_passed_on() -> None:
    with pytest.raises(FileNotFoundError):
        await acquire(open, "/nowhere/at/all")
