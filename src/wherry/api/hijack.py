"""Taking over a connection: attach and exec leave HTTP and talk raw bytes in both directions.

The head is written by hand; from then on aiohttp sees no byte of the connection, only its end. Half-close is kept
apart in each direction: the client may end its sending and still read the output to its end.
"""

import asyncio
import select
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from wherry.api.call import Call
from wherry.api.connection import Connection

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
MULTIPLEXED_SINCE = (1, 42)

READ_HIGH = 512 << 10  # bytes unread by the session: the client is not read from any more
WRITE_HIGH = 512 << 10  # bytes unread by the client: `write` waits


class Stream(Protocol):
    """Both ends of a conversation with a client; what a session talks to."""

    async def read(self) -> bytes:
        """The next bytes from the client; b"" once it has ended its sending."""

    async def write(self, data: bytes) -> None:
        """Send; waits while the client is behind. Raises ConnectionError when it is gone."""

    def write_eof(self) -> None:
        """Nothing more will be written."""

    def close(self) -> None:
        """End both directions once everything written is sent."""


class Session(Protocol):
    """An attach or exec that is ready to talk."""

    @property
    def tty(self) -> bool: ...

    async def run(self, stream: Stream) -> None:
        """Talk until either side is done."""


class RawStream(asyncio.Protocol):
    """The taken-over connection. Bounded both ways; `read` and `write` have one user each at a time."""

    def __init__(self, transport: asyncio.Transport, http: Connection) -> None:
        self._transport = transport
        self._http = http
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._unread = 0  # bytes
        self._reading_paused = False
        self._eof = False
        self._lost = False
        self._eof_written = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._hangup: select.epoll | None = None

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._unread += len(data)
        self._readable.set()
        if self._unread > READ_HIGH and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._readable.set()
        self._watch_hangup()
        return True  # or else asyncio closes the other direction, too

    def connection_lost(self, exc: BaseException | None) -> None:
        self._eof = self._lost = True
        self._readable.set()
        self._writable.set()
        self._unwatch_hangup()
        self._http.connection_lost(exc)  # cancels the handler, and with it the session

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Stream

    async def read(self) -> bytes:
        while not self._chunks:
            if self._eof:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        if self._reading_paused:
            self._reading_paused = False
            if not self._lost:
                self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        if self._lost or self._eof_written:
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._lost:
                raise ConnectionResetError("the client is gone")

    def write_eof(self) -> None:
        if self._eof_written or self._lost:
            return
        self._eof_written = True
        with suppress(OSError, RuntimeError, NotImplementedError):
            self._transport.write_eof()

    def close(self) -> None:
        self._unwatch_hangup()
        if not self._lost:
            self.write_eof()
            self._transport.close()

    # A client that has half-closed and then vanishes is not seen by reading any more. On UNIX sockets the kernel tells
    # the two apart: RDHUP for the first, HUP for both directions, which epoll reports even for an empty event mask.

    def _watch_hangup(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._lost or self._hangup is not None:
            return
        try:
            self._hangup = select.epoll(1)
            self._hangup.register(sock.fileno(), 0)
            self._loop.add_reader(self._hangup.fileno(), self._hung_up)
        except (OSError, ValueError):
            self._unwatch_hangup()

    def _unwatch_hangup(self) -> None:
        if self._hangup is not None:
            self._loop.remove_reader(self._hangup.fileno())
            self._hangup.close()
            self._hangup = None

    def _hung_up(self) -> None:
        self._unwatch_hangup()
        self._transport.abort()


class Hijacked(web.StreamResponse):
    """Tells aiohttp that the answer is given and the connection is not its own any more."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    @property
    def keep_alive(self) -> bool:
        return False


async def hijack(call: Call, session: Session) -> web.StreamResponse:
    """Give the connection to `session` until it ends. Everything that can be refused has been checked before.

    The client's bytes reach the session before the head reaches the client, so nothing it says at once is lost.
    """
    http = call.request.protocol
    transport = call.request.transport
    if transport is None or not isinstance(http, Connection):
        raise ConnectionResetError("the client is gone")
    early, ended = http.take_over()
    stream = RawStream(transport, http)
    if early:
        stream.data_received(early)
    transport.set_protocol(stream)
    transport.set_write_buffer_limits(high=WRITE_HIGH)
    call.started = True
    transport.write(head(call, session.tty))
    if ended:
        stream.eof_received()
    else:
        with suppress(RuntimeError):  # it was not paused
            transport.resume_reading()
    try:
        await session.run(stream)
    finally:
        stream.close()
    return Hijacked()


def head(call: Call, tty: bool) -> bytes:
    """The response head: 101 when the client asks for an upgrade, else 200 and a body that ends with the connection."""
    framed = not tty and call.version >= MULTIPLEXED_SINCE
    if "Upgrade" in call.request.headers:
        lines = {
            "Content-Type": MULTIPLEXED if framed else RAW,
            "Connection": "Upgrade",
            "Upgrade": "tcp",
        }
        return head_of("101 UPGRADED", {**lines, **call.headers})
    return head_of("200 OK", {"Content-Type": RAW, **call.headers})


def head_of(status: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()
