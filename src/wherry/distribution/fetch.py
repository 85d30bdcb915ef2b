"""Downloading one blob: resumed where it broke off, tried again after a pause, never longer than its manifest says.

From the endpoint in use, from the next one when a mirror does not have it or does not get on, and a layer that
registries may not hand out from the addresses its manifest names, too.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from wherry.distribution.endpoint import PATIENCE, stream
from wherry.distribution.errors import BadRange, Refused, Unreachable
from wherry.distribution.source import Source
from wherry.errors import Corrupt, WherryError
from wherry.spec.image import Descriptor

ATTEMPTS = 5  # without any progress in between
PAUSE = 5  # seconds before the second try that brings nothing, more with every further one, as in Docker
FIRST_PAUSE = 1  # seconds after a connection that brought something, or before the first try again
JITTER = 0.2  # a pause is so much longer or shorter by chance: many clients must not come back at once
CHUNK = 1 << 20  # bytes collected before they are written


class Sink(Protocol):
    """Where the bytes go."""

    @property
    def offset(self) -> int: ...

    async def write(self, data: bytes | bytearray) -> None: ...

    async def restart(self) -> None:
        """Throw away what was written."""


async def fetch(
    source: Source,
    descriptor: Descriptor,
    sink: Sink,
    *,
    received: Callable[[int], None],
    pausing: Callable[[int], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Bring the whole blob into `sink`; the digest is the sink's business.

    `received` gets the number of bytes there are, `pausing` the seconds until the next attempt. Raises Refused,
    Unreachable when attempts are used up, Corrupt when the registry sends another number of bytes than announced.
    """
    urls = [url for url in descriptor.urls or () if url.startswith(("http://", "https://"))]
    download = _Download(source=source, descriptor=descriptor, sink=sink, received=received, urls=urls)
    attempt = 0
    best = sink.offset  # starting over is no progress until it gets further
    while True:
        connection = source.connection
        try:
            await download.attempt()
            return
        except (Unreachable, Refused) as exc:
            error: Unreachable | Refused = exc
        progress = sink.offset > best
        best = max(best, sink.offset)
        if isinstance(error, BadRange) or (isinstance(error, Refused) and error.status == 416):
            await sink.restart()  # the server has another idea of where we are
        attempt = 1 if progress else attempt + 1
        if may_help(error) and (progress or not (connection.endpoint.mirror or download.has_spare)):
            if attempt >= ATTEMPTS:
                raise error
            await pause(attempt, pausing, sleep)
        else:
            await download.go_elsewhere(error)
            attempt = 0


def may_help(error: Unreachable | Refused) -> bool:
    """Whether to try again at the same place."""
    if isinstance(error, Refused):
        too_long = error.retry_after is not None and error.retry_after > PATIENCE
        return error.status == 416 or (error.transient and not too_long)
    return True


async def pause(attempt: int, pausing: Callable[[int], None], sleep: Callable[[float], Awaitable[None]]) -> None:
    """Wait as long as is right after `attempt` tries without progress, telling the seconds that are left."""
    seconds = (PAUSE * (attempt - 1) or FIRST_PAUSE) * random.uniform(1 - JITTER, 1 + JITTER)
    while seconds > 0:
        pausing(math.ceil(seconds))
        await sleep(min(seconds, 1))
        seconds -= 1


@dataclass(slots=True, kw_only=True)
class _Download:
    source: Source
    descriptor: Descriptor
    sink: Sink
    received: Callable[[int], None]
    urls: list[str]  # not tried yet
    url: str = field(default="")  # the one in use; "": the registry

    @property
    def has_spare(self) -> bool:
        """One of the manifest's addresses is in use, and there are others."""
        return bool(self.url and self.urls)

    async def go_elsewhere(self, cause: WherryError) -> None:
        """Choose another place for the next attempt; raises `cause` when there is none."""
        if not self.url:
            try:
                await self.source.leave(self.source.connection, cause)
                return
            except WherryError:
                if not self.urls or not (isinstance(cause, Refused) and cause.status == 404):
                    raise
        if not self.urls:
            raise cause
        self.url = self.urls.pop(0)

    async def attempt(self) -> None:
        """One request; what came before it broke off is in the sink."""
        descriptor, sink = self.descriptor, self.sink
        if sink.offset == descriptor.size:
            return
        async with self.source.blob(descriptor, offset=sink.offset, url=self.url) as (response, start):
            if start != sink.offset:
                await sink.restart()
            total = sink.offset
            pending = bytearray()
            async with _Writer(sink) as writer:
                try:
                    async for data in stream(response):
                        total += len(data)
                        if total > descriptor.size:
                            raise Corrupt(
                                f"blob {descriptor.digest} is longer than the {descriptor.size} bytes its manifest says"
                            )
                        pending += data
                        if len(pending) >= CHUNK:
                            await writer.write(pending)
                            pending = bytearray()
                        self.received(total)
                except Unreachable:
                    await writer.write(pending)  # the next attempt goes on behind it
                    raise
                await writer.write(pending)
        if total < descriptor.size:
            raise Unreachable(
                f"blob {descriptor.digest} ended after {total} of {descriptor.size} bytes: unexpected EOF"
            )


class _Writer:
    """Writes one piece while the next one comes: the disk and the network work at the same time."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._last: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "_Writer":
        return self

    async def write(self, data: bytearray) -> None:
        """Begin writing `data`, which nobody changes from now on, when the piece before it is written."""
        await self._settle()
        if data:
            self._last = asyncio.create_task(self._sink.write(data))

    async def _settle(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            await last

    async def __aexit__(self, *_: object) -> None:
        await self._settle()
