"""Between an asynchronous stream of chunks and blocking code: `consume` feeds a file that it reads, `produce` gives
what it writes.

A pipe in between: the kernel bounds what is buffered, and whatever ends the sender (a client that went away, a
cancellation) is an end of file to the reader, which therefore never hangs.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import BinaryIO, TypeVar

from wherry.aio import finish, settle

PIPE = 1 << 20  # bytes in flight; the most an unprivileged process may ask for
CHUNK = 256 << 10  # bytes read from a pipe at once

T = TypeVar("T")


async def consume(chunks: AsyncIterator[bytes], read: Callable[[BinaryIO], T]) -> T:
    """Run `read` in a thread on a file with the bytes of `chunks`. What `chunks` raises is raised, before `read`'s.

    Cancelled, it ends the file and waits for `read` to notice.
    """
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    os.set_blocking(writer, False)
    pump = asyncio.ensure_future(_pump(chunks, writer))
    work = asyncio.ensure_future(settle(_read, reader, read))
    try:
        await asyncio.wait({work})
    finally:
        pump.cancel()  # the reader has seen all it wants, or nobody wants it any more
        await finish(_both(pump, work))
    if not pump.cancelled() and (error := pump.exception()) is not None:
        raise error
    return work.result()


async def _both(pump: "asyncio.Future[None]", work: "asyncio.Future[T]") -> None:
    await asyncio.wait({pump})
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # retrieved: when it is not raised, another error was first


def _read(reader: int, read: Callable[[BinaryIO], T]) -> T:
    with open(reader, "rb", buffering=0) as file:
        return read(file)


async def _pump(chunks: AsyncIterator[bytes], writer: int) -> None:
    try:
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(writer, view) :]
                except BlockingIOError:
                    await _writable(writer)
    except BrokenPipeError:
        pass  # nobody reads on
    finally:
        os.close(writer)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)


async def produce(write: Callable[[Callable[[bytes], object]], None]) -> AsyncGenerator[bytes, None]:
    """Run the blocking `write(out)` in a thread and give what it puts out, as fast as it is taken.

    What `write` raises is raised after what it put out before. When the iterator is given up, `write` gets a
    BrokenPipeError and is waited for.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    work = asyncio.ensure_future(settle(_write, writer, write))
    try:
        while data := await _readable(reader):
            yield data
        await work
    finally:
        os.close(reader)
        await finish(_written(work))


def _write(writer: int, write: Callable[[Callable[[bytes], object]], None]) -> None:
    with open(writer, "wb", buffering=0) as file:

        def out(data: bytes) -> None:
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]

        write(out)


async def _written(work: "asyncio.Future[None]") -> None:
    await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # retrieved: raised already, or nobody is there to be told


async def _readable(fd: int) -> bytes:
    """The next bytes of a pipe; b"" at its end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
