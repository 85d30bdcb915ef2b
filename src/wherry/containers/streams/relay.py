"""A session: bytes carried between one client's connection and a container's, or an exec's, streams at its shim.

The shim sends output ready for the client (framed, or raw for a terminal), so nothing is looked at here but what the
client types, for the detach keys. Both directions wait for their receiver: no buffer grows.
"""

import asyncio
import struct
from contextlib import suppress
from typing import Protocol

from wherry.containers.live import Streams
from wherry.containers.streams.detach import Watcher

CHUNK = 256 << 10  # bytes read at a time
STDOUT, STDERR = 1, 2
_FRAME = struct.Struct(">BxxxI")  # stream, length of the payload
HEADER = _FRAME.size


class Stream(Protocol):
    """The client's end of a session, as the API provides it."""

    async def read(self) -> bytes:
        """The next bytes from the client; b"" once it has ended its sending."""

    async def write(self, data: bytes) -> None:
        """Send; waits while the client is behind. Raises ConnectionError when it is gone."""

    def write_eof(self) -> None:
        """Nothing more will be written."""

    def close(self) -> None:
        """End both directions once everything written is sent."""


def frame(stream: int, payload: bytes) -> bytes:
    """Docker's framing of output without a terminal."""
    return _FRAME.pack(stream, len(payload)) + payload


def unframe(header: bytes) -> tuple[int, int]:
    """Stream and length of the payload from the first `HEADER` bytes of a frame."""
    stream, length = _FRAME.unpack(header)
    return stream, length


async def relay(client: Stream, shim: Streams, *, stdin: bool, output: bool, keys: bytes = b"") -> bool:
    """Carry bytes until the output ends, or without `output` until the input does; True when `keys` were typed.

    The client may end its sending before: the shim is told, and output goes on. Ends quietly when either side vanishes.
    The connection to the shim is closed in every case.
    """
    reader, writer = shim
    down = asyncio.ensure_future(_carry_output(client, reader))
    up = asyncio.ensure_future(_carry_input(client, writer, Watcher(keys) if keys else None)) if stdin else None
    try:
        if up is not None:
            await asyncio.wait((down, up), return_when=asyncio.FIRST_COMPLETED)
            if up.done() and (not output or up.result()):
                return up.result()
        await asyncio.wait((down,))
        return False
    finally:
        tasks = [task for task in (down, up) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _carry_output(client: Stream, reader: asyncio.StreamReader) -> None:
    with suppress(OSError):  # the client is gone, or the shim: either ends the session
        while data := await reader.read(CHUNK):
            await client.write(data)


async def _carry_input(client: Stream, writer: asyncio.StreamWriter, watcher: Watcher | None) -> bool:
    """True when the detach keys were typed."""
    with suppress(OSError):  # the process no longer reads, and its output may go on
        while data := await client.read():
            complete = False
            if watcher is not None:
                data, complete = watcher.feed(data)
            writer.write(data)
            await writer.drain()
            if complete:
                return True
        if watcher is not None:
            writer.write(watcher.flush())
        await writer.drain()
        writer.write_eof()
    return False
