"""Sockets in containers' namespaces, made by one thread that does nothing else.

For hundreds of questions a second a thread each would be too dear. This one enters a namespace, makes the socket and
goes home; were it ever lost on the way, nothing but its next errand would depend on where it is.
"""

import asyncio
import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from wherry.kernel.libc import check, libc
from wherry.kernel.netns import CLONE_NEWNET, current

SIOCGSKNS = 0x894C  # an fd of the namespace a socket is in (linux/sockios.h)
SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Made:
    """A socket, not blocking and not yet connected, and the address to connect it to."""

    socket: socket.socket
    address: SocketAddress

    def close(self) -> None:
        self.socket.close()


def make(server: str, port: int, *, tcp: bool) -> Made:
    """For a server given as address, in the calling thread's namespace (which knows the zone in fe80::1%eth0).

    Raises OSError.
    """
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    family, _, _, _, address = socket.getaddrinfo(server, port, type=kind, flags=socket.AI_NUMERICHOST)[0]
    assert isinstance(address[0], str)
    return Made(socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC), address)


class Sockets:
    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    async def make(self, beside: socket.socket, server: str, port: int, *, tcp: bool) -> Made:
        """As `make`, in the namespace of the socket `beside`. Raises OSError."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "dns-sockets")
        making = self._thread.submit(_make_beside, beside, server, port, tcp=tcp)
        try:
            return await asyncio.wrap_future(making)
        except asyncio.CancelledError:
            if not making.cancel():
                making.add_done_callback(lambda done: done.result().close() if not done.exception() else None)
            raise

    def close(self) -> None:
        """Idempotent; made again when it is needed again."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None


def _make_beside(beside: socket.socket, server: str, port: int, *, tcp: bool) -> Made:
    if beside.fileno() < 0:
        raise OSError("the resolver is closed")
    there = fcntl.ioctl(beside, SIOCGSKNS)
    try:
        home = current()
        try:
            check(libc.setns(there, CLONE_NEWNET), "network namespace")
            try:
                return make(server, port, tcp=tcp)
            finally:
                check(libc.setns(home, CLONE_NEWNET), "network namespace")
        finally:
            os.close(home)
    finally:
        os.close(there)
