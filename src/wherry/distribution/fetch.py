"""Downloading one blob: resumed where it broke off, tried again after a pause, never longer than its manifest says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from wherry.distribution.endpoint import stream
from wherry.distribution.errors import Refused, Unreachable
from wherry.distribution.source import Source
from wherry.errors import Corrupt
from wherry.spec.image import Descriptor

ATTEMPTS = 5  # without any progress in between
PAUSE = 5  # seconds, more with every attempt, as in Docker
CHUNK = 1 << 20  # bytes collected before they are written


class Sink(Protocol):
    """Where the bytes go."""

    @property
    def offset(self) -> int: ...

    async def write(self, data: bytes) -> None: ...

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
    attempt = 1
    while True:
        before = sink.offset
        try:
            await _attempt(source, descriptor, sink, received)
            return
        except Refused as exc:
            if exc.status == 416:  # nothing beyond what we have: start over
                await sink.restart()
            elif not exc.transient:
                raise
            error: Refused | Unreachable = exc
        except Unreachable as exc:
            error = exc
        attempt = 1 if sink.offset > before else attempt + 1
        if attempt > ATTEMPTS:
            raise error
        for left in range(PAUSE * attempt, 0, -1):
            pausing(left)
            await sleep(1)


async def _attempt(source: Source, descriptor: Descriptor, sink: Sink, received: Callable[[int], None]) -> None:
    if sink.offset == descriptor.size:
        return
    async with source.blob(descriptor.digest, offset=sink.offset) as (response, start):
        if start != sink.offset:
            await sink.restart()
        total = sink.offset
        pending = bytearray()
        try:
            async for data in stream(response):
                total += len(data)
                if total > descriptor.size:
                    raise Corrupt(
                        f"blob {descriptor.digest} is longer than the {descriptor.size} bytes its manifest says"
                    )
                pending += data
                if len(pending) >= CHUNK:
                    await sink.write(bytes(pending))
                    pending.clear()
                received(total)
        except Unreachable:
            await sink.write(bytes(pending))  # the next attempt goes on behind it
            raise
        await sink.write(bytes(pending))
    if total < descriptor.size:
        raise Unreachable(f"blob {descriptor.digest} ended after {total} of {descriptor.size} bytes: unexpected EOF")
