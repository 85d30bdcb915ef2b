"""A log as it grows: read to its end, then on whenever the kernel says that something was written."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from wherry.aio import settle
from wherry.kernel import inotify
from wherry.logs.reader import Entry, LogReader


@contextlib.asynccontextmanager
async def _opened(path: str, *, tail: int | None, since: int, until: int) -> AsyncIterator[LogReader]:
    """A reader, closed in every case: also when the cancellation comes while it is being opened."""
    made: list[LogReader] = []
    try:
        await settle(lambda: made.append(LogReader(path, tail=tail, since=since, until=until)))
        yield made[0]
    finally:
        for reader in made:
            reader.close()


async def read(
    path: str, *, tail: int | None = None, since: int = 0, until: int = 0
) -> AsyncGenerator[list[Entry], None]:
    """What the log holds now, in batches; see `LogReader` for the arguments. Who stops early closes it."""
    async with _opened(path, tail=tail, since=since, until=until) as reader:
        while entries := await settle(reader.read):
            yield entries


async def follow(
    path: str, *, ended: asyncio.Event, tail: int | None = None, since: int = 0, until: int = 0
) -> AsyncGenerator[list[Entry], None]:
    """`read`, and what comes afterwards, until `ended` is set and everything written before was read, or until the
    time `until`. The directory of the log must exist.
    """
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    watcher = inotify.Inotify()
    timer = loop.call_later(max(0.0, (until - time.time_ns()) / 1e9), changed.set) if until else None
    waiting = asyncio.ensure_future(ended.wait())
    waiting.add_done_callback(lambda _: changed.set())
    try:
        # The directory: its files change, and new ones appear when the log is rotated.
        watcher.add(Path(path).parent, inotify.MODIFY | inotify.CREATE | inotify.MOVED_TO)
        loop.add_reader(watcher.fileno(), _drain, watcher, changed)
        async with _opened(path, tail=tail, since=since, until=until) as reader:
            while True:
                changed.clear()  # before reading: what is written from here on is noticed
                last = ended.is_set() or (until and time.time_ns() >= until)
                while entries := await settle(reader.read):
                    yield entries
                if last or reader.done:
                    return
                await changed.wait()
    finally:
        loop.remove_reader(watcher.fileno())
        watcher.close()
        if timer is not None:
            timer.cancel()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


def _drain(watcher: inotify.Inotify, changed: asyncio.Event) -> None:
    while watcher.read():
        pass
    changed.set()
