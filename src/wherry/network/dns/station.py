"""Where questions come in: a UDP and a TCP socket, served in the event loop.

What a `Desk` can answer is answered at once; for the rest it is asked in a task, QUESTIONS at most at a time. Who
sends without a pause gets a part of the event loop's time (SHARE, divided among all who do); the kernel drops the rest
of what he sends: a flood makes neither the daemon nor other containers wait.
"""

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from wherry.network.dns import message
from wherry.network.dns.message import MalformedError, Query
from wherry.network.dns.redirect import Listening

QUESTIONS = 256  # forwarded at once; further ones are dropped, and asked again by the client
CONNECTIONS = 32  # at once; further ones are closed
IDLE = 10.0  # s a connection may be silent
BATCH = 32  # datagrams read before others have their turn
SHARE = 0.5  # of the event loop's time for all who flood
ALLOWANCE = 0.05  # s of it that one may use before he counts as flooding


@dataclass(slots=True)
class Flood:
    """Who is being slowed down, of all containers."""

    paused: int = 0


class Pace:
    """How long to pause after work, so that the work of all who never stop takes SHARE of the time."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._credit = ALLOWANCE
        self._since = 0.0

    def spend(self, began: float, ended: float) -> float:
        """Seconds to wait after work from `began` to `ended`; 0 = none."""
        part = SHARE / (self._flood.paused + 1)
        self._credit = min(ALLOWANCE, self._credit + (began - self._since) * part) - (ended - began) * (1 - part)
        self._since = ended
        return -self._credit / part if self._credit < 0 else 0.0


class Desk(Protocol):
    """Who knows the answers."""

    def answer(self, query: Query, *, limit: int = message.MESSAGE_LIMIT) -> bytes | None:
        """At once, in at most `limit` bytes; None when others have to be asked."""

    async def inquire(self, query: Query, data: bytes, *, tcp: bool) -> bytes:
        """Ask others; `data` is the question as it came. Any length."""


class Station:
    """Owns the listening sockets."""

    def __init__(self, desk: Desk, sockets: Listening, flood: Flood) -> None:
        self._desk = desk
        self._sockets = sockets
        self._flood = flood
        self._pace = Pace(flood)
        self._pause: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._sockets.tcp, limit=message.MESSAGE_LIMIT)
        asyncio.get_running_loop().add_reader(self._sockets.udp, self._receive)

    async def close(self) -> None:
        """Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
            self._end_pause()
        if self._sockets.udp.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sockets.udp)
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = (*self._questions, *self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sockets.close()

    # -- UDP

    def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        udp = self._sockets.udp
        for _ in range(BATCH):
            try:
                data, peer = udp.recvfrom(message.SIZE_LIMIT)
            except BlockingIOError:
                break
            except OSError:  # of an earlier answer that nobody took
                continue
            self._take(data, peer)
        pause = self._pace.spend(began, loop.time())
        if pause:
            loop.remove_reader(udp)
            self._flood.paused += 1
            self._pause = loop.call_later(pause, self._resume)

    def _resume(self) -> None:
        self._end_pause()
        asyncio.get_running_loop().add_reader(self._sockets.udp, self._receive)

    def _end_pause(self) -> None:
        self._pause = None
        self._flood.paused -= 1

    def _take(self, data: bytes, peer: tuple[str, int]) -> None:
        try:
            query = message.parse_query(data)
        except MalformedError:
            reply = message.refuse_unread(data)
        else:
            reply = self._desk.answer(query, limit=query.udp_limit)
            if reply is None:
                self._delegate(query, data, peer)
        if reply is not None:
            self._send(reply, peer)

    def _send(self, reply: bytes, peer: tuple[str, int]) -> None:
        with suppress(OSError):  # nobody there any more, or no room: the client asks again
            self._sockets.udp.sendto(reply, peer)

    def _delegate(self, query: Query, data: bytes, peer: tuple[str, int]) -> None:
        if len(self._questions) >= QUESTIONS:
            return
        task = asyncio.get_running_loop().create_task(self._forward_udp(query, data, peer))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _forward_udp(self, query: Query, data: bytes, peer: tuple[str, int]) -> None:
        reply = await self._desk.inquire(query, data, tcp=False)
        self._send(reply if len(reply) <= query.udp_limit else message.truncate(reply, query), peer)

    # -- TCP

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                async with asyncio.timeout(IDLE):
                    (size,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(size)
                began = loop.time()
                reply = await self._answer(data)
                if reply is None:
                    return
                writer.write(struct.pack(">H", len(reply)) + reply)
                async with asyncio.timeout(IDLE):
                    await writer.drain()
                await asyncio.sleep(self._pace.spend(began, loop.time()))
        except (OSError, EOFError):  # gone, silent, or broken off
            return
        finally:
            writer.transport.abort() if self._server is None else writer.close()

    async def _answer(self, data: bytes) -> bytes | None:
        try:
            query = message.parse_query(data)
        except MalformedError:
            return message.refuse_unread(data)
        return self._desk.answer(query) or await self._desk.inquire(query, data, tcp=True)
