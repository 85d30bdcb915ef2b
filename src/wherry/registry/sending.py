"""A part of a file as the body of an answer, without a copy through user space where there is no TLS.

Neither aiohttp's file responses (they fall back to reading on uvloop) nor a thread per download will do: the file is
handed to the kernel in pieces from a thread, which waits for the disk but never for the client; for that the event loop
waits.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from wherry.aio import settle

SMALL = 64 << 10  # bytes sent together with the head
PIECE = 8 << 20  # bytes handed to the kernel at most before other downloads have their turn in the thread
CHUNK = 1 << 20  # bytes read and sent at a time where it must be copied


async def send(
    answer: web.StreamResponse, request: web.Request, file: BinaryIO, start: int, end: int, *, stall: float
) -> None:
    """Send `answer` with the bytes from `start` up to `end` of `file`.

    ConnectionError when the client is gone, or takes nothing for `stall` seconds.
    """
    answer.content_length = end - start
    writer = await answer.prepare(request)
    transport = request.transport
    if writer is None or transport is None:
        raise ConnectionResetError("the client is gone")
    sock = transport.get_extra_info("socket")
    if end - start <= SMALL or sock is None or transport.get_extra_info("ssl_object") is not None:
        await _copy(answer, file, start, end, stall)
    else:
        await _flush(transport, writer, stall)
        out = os.dup(sock.fileno())  # the event loop lets nobody wait for a descriptor that a transport has
        try:
            await _hand_over(out, file.fileno(), start, end, stall)
        finally:
            os.close(out)
        writer.output_size += end - start
    await answer.write_eof()


async def _flush(transport: asyncio.Transport, writer: AbstractStreamWriter, stall: float) -> None:
    """Wait until all that was written before has gone out."""
    transport.set_write_buffer_limits(0)
    try:
        async with _patience(stall):
            await writer.drain()
    finally:
        transport.set_write_buffer_limits()


async def _hand_over(out: int, source: int, offset: int, end: int, stall: float) -> None:
    while offset < end:
        sent = await settle(_send_piece, out, source, offset, min(end - offset, PIECE))
        offset += sent
        if not sent:
            await _writable(out, stall)


def _send_piece(out: int, source: int, offset: int, size: int) -> int:
    """As much of the piece as the socket takes now; 0 when it takes nothing."""
    done = 0
    while done < size:
        try:
            sent = os.sendfile(out, source, offset + done, size - done)
        except BlockingIOError:
            break
        if not sent:
            raise ConnectionResetError("a blob became shorter while it was sent")
        done += sent
    return done


async def _writable(fd: int, stall: float) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        async with _patience(stall):
            await ready.wait()
    finally:
        loop.remove_writer(fd)


async def _copy(answer: web.StreamResponse, file: BinaryIO, start: int, end: int, stall: float) -> None:
    while start < end:
        data = await settle(os.pread, file.fileno(), min(CHUNK, end - start), start)
        if not data:
            raise ConnectionResetError("a blob became shorter while it was sent")
        start += len(data)
        async with _patience(stall):
            await answer.write(data)


@asynccontextmanager
async def _patience(stall: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(stall):
            yield
    except TimeoutError:
        raise ConnectionAbortedError(f"nothing was taken for {stall:g} s") from None
