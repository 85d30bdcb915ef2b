"""Questions to other servers, as a stub resolver asks them (resolv.conf(5): timeout, attempts, rotate, use-vc).

Each question goes from a socket of its own, from a port the kernel draws, under a number drawn here; an answer counts
only from that server, with that number and question. What a client says about EDNS goes through as it is.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Self

from wherry.network.dns import message
from wherry.network.dns.message import HEADER, Code, MalformedError, Query
from wherry.network.dns.sockets import Made, Sockets, make
from wherry.network.endpoint import NameServers

PORT = 53
SERVERS = 3  # asked of each kind, as libc and Docker
TIMEOUT, TIMEOUT_LIMIT = 2.0, 30.0  # s, for a server; a client waits for 5 s, so the second one must come before that
ATTEMPTS, ATTEMPTS_LIMIT = 2, 5
DEADLINE = 30.0  # s, for a question, whatever the options say
SILENT = 30.0  # s in which a server that did not answer is asked last
AT_ONCE = 1024  # questions under way, of all containers


@dataclass(frozen=True, slots=True)
class Server:
    address: str
    from_host: bool  # asked from the host's namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    timeout: float = TIMEOUT
    attempts: int = ATTEMPTS
    rotate: bool = False
    tcp: bool = False
    ndots: int | None = None  # None = not set

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """What libc would make of them; unknown ones and nonsense are passed over."""
        found = cls()
        for word in words:
            key, _, value = word.partition(":")
            number = int(value) if value.isdecimal() and len(value) < 6 else None
            if key == "rotate":
                found = replace(found, rotate=True)
            elif key in ("use-vc", "usevc"):
                found = replace(found, tcp=True)
            elif key == "timeout" and number:
                found = replace(found, timeout=min(float(number), TIMEOUT_LIMIT))
            elif key == "attempts" and number:
                found = replace(found, attempts=min(number, ATTEMPTS_LIMIT))
            elif key == "ndots" and number is not None:
                found = replace(found, ndots=number)
        return found


class Upstream:
    """The servers of one container; `beside` is a socket in its namespace."""

    def __init__(self, given: NameServers, beside: socket.socket, sockets: Sockets, slots: asyncio.Semaphore) -> None:
        self.options = Options.parse(given.options)
        self._servers = [Server(address, True) for address in given.from_host[:SERVERS]]  # the host's first, usually
        self._servers += [Server(address, False) for address in given.servers[:SERVERS]]
        self._beside = beside
        self._sockets = sockets
        self._slots = slots
        self._turns = count()
        self._silent: dict[Server, float] = {}  # when a server last did not answer

    @property
    def asks(self) -> bool:
        """There is somebody to ask."""
        return bool(self._servers)

    async def ask(self, query: Query, data: bytes, *, tcp: bool, host_only: bool, inside_only: bool) -> bytes | None:
        """The answer of the first server that has one; None when none answers.

        `host_only`: all are asked from the host's namespace (the container's own way is closed by a policy).
        `inside_only`: none is (the container's networks do not lead out).
        """
        servers = [
            replace(server, from_host=server.from_host or host_only)
            for server in self._servers
            if not (inside_only and server.from_host)
        ]
        if not servers:
            return None
        try:
            async with asyncio.timeout(DEADLINE), self._slots:
                return await self._ask(self._in_order(servers), query, data, tcp=tcp or self.options.tcp)
        except TimeoutError:
            return None

    def _in_order(self, servers: list[Server]) -> list[Server]:
        if self.options.rotate:
            turn = next(self._turns) % len(servers)
            servers = servers[turn:] + servers[:turn]
        now = asyncio.get_running_loop().time()
        return sorted(servers, key=lambda server: self._silent.get(server, -SILENT) > now - SILENT)

    async def _ask(self, servers: Sequence[Server], query: Query, data: bytes, *, tcp: bool) -> bytes | None:
        failed = None
        for _ in range(self.options.attempts):
            answered = False
            for server in servers:
                answer = await self._ask_one(server, query, data, tcp=tcp)
                if answer is not None and answer[3] & message.RCODE not in (Code.SERVER_FAILURE, Code.REFUSED):
                    return answer
                failed = answer or failed
                answered = answered or answer is not None
            if answered:
                break  # those that are there said no
        return failed

    async def _ask_one(self, server: Server, query: Query, data: bytes, *, tcp: bool) -> bytes | None:
        number = os.urandom(2)
        asked = number + data[2:]
        try:
            async with asyncio.timeout(self.options.timeout):
                answer = await (self._by_tcp if tcp else self._by_udp)(server, query, asked)
        except TimeoutError:
            self._silent[server] = asyncio.get_running_loop().time()
            return None
        except (OSError, EOFError):
            return None
        self._silent.pop(server, None)
        if not tcp and answer[2] & message.TRUNCATED >> 8:
            answer = await self._ask_one(server, query, data, tcp=True) or answer
        return struct.pack(">H", query.id) + answer[2:]

    async def _open(self, server: Server, *, tcp: bool) -> Made:
        if server.from_host:
            return make(server.address, PORT, tcp=tcp)
        return await self._sockets.make(self._beside, server.address, PORT, tcp=tcp)

    async def _by_udp(self, server: Server, query: Query, asked: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        made = await self._open(server, tcp=False)
        with made.socket as connection:
            connection.connect(made.address)
            connection.send(asked)
            while True:
                answer = await loop.sock_recv(connection, message.MESSAGE_LIMIT)
                if _answers(answer, asked[:2], query):
                    return answer

    async def _by_tcp(self, server: Server, query: Query, asked: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        made = await self._open(server, tcp=True)
        with made.socket as connection:
            await loop.sock_connect(connection, made.address)
            await loop.sock_sendall(connection, struct.pack(">H", len(asked)) + asked)
            (size,) = struct.unpack(">H", await _read(connection, 2))
            answer = await _read(connection, size)
        if not _answers(answer, asked[:2], query):
            raise EOFError
        return answer


async def _read(connection: socket.socket, size: int) -> bytes:
    """Raises EOFError."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(connection, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _answers(answer: bytes, number: bytes, query: Query) -> bool:
    """An answer to that question. A server that understood nothing need not repeat it."""
    if len(answer) < HEADER.size or answer[:2] != number:
        return False
    _, flags, questions, _, _, _ = HEADER.unpack_from(answer)
    if not flags & message.ANSWER:
        return False
    if not questions:
        return bool(flags & message.RCODE)
    try:
        name, end = message.read_name(answer, HEADER.size)
    except MalformedError:
        return False
    same = name == query.name and answer[end : end + 4] == query.question[-4:]
    return same and questions == 1
