"""A log as it grows: read to its end, then on whenever the kernel says that something was written."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from wherry.aio import settle
from wherry.kernel import inotify
from wherry.logs.reader import Entry, LogReader


async def read(path: str, *, tail: int | None = None, since: int = 0, until: int = 0) -> AsyncIterator[list[Entry]]:
    """What the log holds now, in batches; see `LogReader` for the arguments."""
    reader = await settle(LogReader, path, tail=tail, since=since, until=until)
    try:
        while entries := await settle(reader.read):
            yield entries
    finally:
        reader.close()


async def follow(
    path: str, *, ended: asyncio.Event, tail: int | None = None, since: int = 0, until: int = 0
) -> AsyncIterator[list[Entry]]:
    """`read`, and what comes afterwards, until `ended` is set and everything written before was read, or until the
    time `until`. The directory of the log must exist.
    """
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    watcher = inotify.Inotify()
    reader: LogReader | None = None
    timer = loop.call_later(max(0.0, (until - time.time_ns()) / 1e9), changed.set) if until else None
    waiting = asyncio.ensure_future(ended.wait())
    waiting.add_done_callback(lambda _: changed.set())
    try:
        # The directory: its files change, and new ones appear when the log is rotated.
        watcher.add(Path(path).parent, inotify.MODIFY | inotify.CREATE | inotify.MOVED_TO)
        loop.add_reader(watcher.fileno(), _drain, watcher, changed)
        reader = await settle(LogReader, path, tail=tail, since=since, until=until)
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
        if reader is not None:
            reader.close()


def _drain(watcher: inotify.Inotify, changed: asyncio.Event) -> None:
    while watcher.read():
        pass
    changed.set()
