"""Answers that tell what is going on: one JSON document a line, each line flushed as it is known.

Work reports synchronously and need not wait for the client: of several reports about the same thing (a layer's bytes)
a slow client gets the newest. Who has much to say that is not of that kind waits for `taken`. An error before the first
line is an ordinary HTTP error; after it, the last line.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from wherry.api import errors
from wherry.api.call import Call
from wherry.api.connection import JSON

Report = Callable[[Mapping[str, object]], None]

HIGH = 1 << 20  # bytes of lines not sent yet at which `taken` waits

_encode = msgspec.json.Encoder().encode


class Pending:
    """Lines not sent yet; bounded by the number of things there are progress bars for, plus what is said once.

    To be called with a message.
    """

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._size = 0  # bytes
        self._lines: list[bytes] = []
        self._newest: dict[object, tuple[object, int]] = {}  # id -> status and index of the last line about it

    def __call__(self, message: Mapping[str, object]) -> None:
        line = _encode(message) + b"\r\n"  # as Docker ends them
        subject, status = message.get("id"), message.get("status")
        known, index = self._newest.get(subject, (None, -1))
        if message.get("progressDetail") and index >= 0 and known == status:
            self._lines[index] = line
            return
        if subject is not None:
            self._newest[subject] = status, len(self._lines)
        self._lines.append(line)
        self._size += len(line)
        if self._size > HIGH:
            self._room.clear()
        self.ready.set()

    async def taken(self) -> None:
        """Until the client is no longer far behind."""
        await self._room.wait()

    def take(self) -> bytes:
        self.ready.clear()
        self._size = 0
        self._room.set()
        lines, self._lines = self._lines, []
        self._newest.clear()
        return b"".join(lines)


async def follow(call: Call, work: Callable[[Pending], Awaitable[object]]) -> web.StreamResponse:
    """Run `work` and stream what it reports; the client's going away cancels it."""
    pending = Pending()
    task = asyncio.ensure_future(work(pending))
    task.add_done_callback(lambda _: pending.ready.set())
    response: web.StreamResponse | None = None
    call.watch()
    try:
        while not task.done() or pending.ready.is_set():
            await pending.ready.wait()
            if lines := pending.take():
                if response is None:
                    response = await call.stream(JSON)
                await response.write(lines)
    finally:
        await _end(task)
    error = task.exception()
    if response is None:
        if error is not None:
            raise error
        return await call.stream(JSON)
    if error is not None:
        errors.record(error, f"{call.request.method} {call.request.path_qs}")
        await response.write(_encode(errors.line_of(error)) + b"\r\n")
    return response


async def _end(task: asyncio.Future[object]) -> None:
    """Cancel what still runs and wait until it has cleaned up."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
