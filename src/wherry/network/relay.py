"""Relays: carry what comes to a port of the host to a container where address translation cannot.

Translation cannot change the address family, so `[::1]:8080` needs a program in between when the container has IPv4
only; and in firewall mode `respect` everything from outside comes this way, so that the host's input rules judge it.
Docker has its userland proxy for it, here it is the daemon's event loop. Connections end with the daemon.
The container sees the bridge as the peer, unless a `Speaker` lets the relay speak for its clients.
Bounded: CONNECTIONS at once, CHUNK bytes in flight a direction; for UDP SESSIONS, WAITING datagrams each.
"""

import asyncio
import logging
import socket
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from wherry.aio import finish, settle
from wherry.errors import WherryError

log = logging.getLogger(__name__)

CONNECTIONS = 512  # at once, a port; further ones are closed unanswered
CHUNK = 1 << 16  # bytes
CONNECT_TIMEOUT = 10.0  # s
SESSIONS = 256  # of UDP at once, a port; the one that was silent longest makes room
WAITING = 16  # datagrams while a session is made; further ones are dropped
IDLE = 90.0  # s a UDP session lives without a packet, as in Docker
BURST = 64  # datagrams at a time: others want the event loop as well
IP_PKTINFO = 8  # not in every Python's socket module
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


class Speaker(Protocol):
    """The firewall, as far as it lets a relay speak for its clients. Blocking."""

    def speak_for(self, protocol: int, address: str, port: int, client: str) -> None: ...

    def fall_silent(self, protocol: int, address: str, port: int, client: str) -> None: ...

    def is_ours(self, address: str) -> bool: ...


class Relay:
    """Serves one socket, listening (TCP) or bound (UDP), which it owns from `open` on."""

    def __init__(self, listening: socket.socket, host: str, port: int, speaker: Speaker | None = None) -> None:
        target = _Target(host, port, speaker)
        kind = _Datagrams if listening.type == socket.SOCK_DGRAM else _Streams
        self._server: _Datagrams | _Streams = kind(listening, target)

    async def open(self) -> None:
        await self._server.open()

    async def close(self) -> None:
        """Stop listening and cut what is open; idempotent."""
        await self._server.close()


class _Target:
    """Where a relay leads."""

    def __init__(self, host: str, port: int, speaker: Speaker | None) -> None:
        self.address = (host, port)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._speaker = speaker

    @asynccontextmanager
    async def socket(self, kind: socket.SocketKind, client: str) -> AsyncIterator[socket.socket]:
        """A socket to connect to it with, which the block closes; `client` is what the container is to see.

        Where it cannot be, it is the bridge: another address family, and clients on networks of ours, to whom the
        container would answer directly.
        """
        with socket.socket(self._family, kind) as made:
            made.setblocking(False)
            speaker = self._speaker
            same = (":" in client) == (self._family == socket.AF_INET6)
            if speaker is None or not same or "%" in client or _is_local(client) or speaker.is_ours(client):
                yield made
                return
            protocol = UDP if kind == socket.SOCK_DGRAM else TCP
            here = _source(self._family, self.address)
            made.bind((here, 0))
            mine = (protocol, here, made.getsockname()[1], client)
            try:
                await settle(speaker.speak_for, *mine)
                yield made
            finally:
                with suppress(OSError, WherryError):
                    await finish(settle(speaker.fall_silent, *mine))


def _is_local(client: str) -> bool:
    return client.startswith("127.") or client == "::1"


def _source(family: int, target: tuple[str, int]) -> str:
    """The host's address that the target sees."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


class _Streams:
    def __init__(self, listening: socket.socket, target: _Target) -> None:
        self._listening = listening
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._listening.setblocking(False)
        self._server = await asyncio.start_server(self._accept, sock=self._listening, limit=CHUNK)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                there_reader, there_writer = await self._connect(writer)
        except (OSError, WherryError):  # refused, unreachable, or in vain for too long: the caller is refused as well
            await _close(writer)
            return
        except BaseException:
            writer.transport.abort()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, there_writer))
                group.create_task(_carry(there_reader, writer))
        except* OSError:
            pass  # one side reset the connection
        finally:
            await _close(writer)
            await _close(there_writer)

    async def _connect(self, writer: asyncio.StreamWriter) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Once the connection is there the kernel remembers whom it is for."""
        peer = writer.get_extra_info("peername")
        async with self._target.socket(socket.SOCK_STREAM, peer[0] if peer else "::1") as made:
            await asyncio.get_running_loop().sock_connect(made, self._target.address)
            return await asyncio.open_connection(sock=made.dup(), limit=CHUNK)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of the stream, which is passed on as a half-close."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort() if writer.is_closing() else writer.close()
    with suppress(OSError):
        await writer.wait_closed()


Client = tuple[tuple[Any, ...], bytes]  # its address, and the one of ours it wrote to, as ancillary data


class _Session:
    """One client of a UDP relay."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.upstream: socket.socket | None = None
        self.task: asyncio.Task[None] | None = None
        self.heard = 0.0  # on the loop's clock


async def _idle(session: _Session) -> None:
    """Until it was silent for IDLE."""
    loop = asyncio.get_running_loop()
    left = IDLE
    while left > 0:
        await asyncio.sleep(left)
        left = session.heard + IDLE - loop.time()


class _Datagrams:
    def __init__(self, bound: socket.socket, target: _Target) -> None:
        self._socket = bound
        self._target = target
        self._six = bound.family == socket.AF_INET6
        self._sessions: OrderedDict[Client, _Session] = OrderedDict()  # the one heard last is the last
        self._open = False

    async def open(self) -> None:
        self._socket.setblocking(False)
        if self._six:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        self._open = True

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._socket)
        tasks = [session.task for session in self._sessions.values() if session.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sessions.clear()
        self._socket.close()

    def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(BURST):
            try:
                data, ancillary, _, address = self._socket.recvmsg(CHUNK, 128)
            except BlockingIOError:
                return
            except OSError:  # an earlier answer came back undeliverable
                continue
            client = (address, self._local(ancillary))
            session = self._sessions.get(client)
            if session is None:
                session = self._sessions[client] = _Session()
                session.task = loop.create_task(self._serve(client, session))
                self._make_room()
            self._sessions.move_to_end(client)
            session.heard = loop.time()
            if session.upstream is not None:
                with suppress(OSError):
                    session.upstream.send(data)
            elif len(session.waiting) < WAITING:
                session.waiting.append(data)

    def _make_room(self) -> None:
        if len(self._sessions) > SESSIONS:
            _, oldest = self._sessions.popitem(last=False)
            if oldest.task is not None:
                oldest.task.cancel()

    def _local(self, ancillary: list[tuple[int, int, bytes]]) -> bytes:
        """What makes an answer come from the address that was written to."""
        for _, kind, data in ancillary:
            if self._six and kind == socket.IPV6_PKTINFO:
                return data
            if not self._six and kind == IP_PKTINFO:
                _, specific, _ = struct.unpack("=i4s4s", data)
                return struct.pack("=i4s4s", 0, specific, bytes(4))
        return b""

    async def _serve(self, client: Client, session: _Session) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._target.socket(socket.SOCK_DGRAM, client[0][0]) as upstream:
                upstream.connect(self._target.address)
                loop.add_reader(upstream, self._answer, client, session, upstream)
                try:
                    for data in session.waiting:
                        upstream.send(data)
                    session.waiting.clear()
                    session.upstream = upstream
                    await _idle(session)
                finally:
                    session.upstream = None
                    loop.remove_reader(upstream)
        except (OSError, WherryError) as exc:
            log.debug("a UDP session with %s ended: %s", client[0][0], exc)
        finally:
            if self._sessions.get(client) is session:
                del self._sessions[client]

    def _answer(self, client: Client, session: _Session, upstream: socket.socket) -> None:
        address, local = client
        level, kind = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) if self._six else (socket.IPPROTO_IP, IP_PKTINFO)
        for _ in range(BURST):
            try:
                data = upstream.recv(CHUNK)
            except OSError:  # nothing more; or refused, which a client of UDP is not told here
                return
            session.heard = asyncio.get_running_loop().time()
            with suppress(OSError):
                self._socket.sendmsg([data], [(level, kind, local)] if local else [], 0, address)
