"""BuildKit's two doors: POST /grpc and POST /session leave HTTP/1.1 for HTTP/2 on the same connection.

In the first the client calls us, in the second we call the client. What is spoken there is `buildkit`'s; here the
connection is handed over.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from wherry.api.call import Call
from wherry.api.connection import Connection
from wherry.api.hijack import Hijacked, head_of
from wherry.api.router import Router
from wherry.api.services import Doors, Taken
from wherry.errors import InvalidParameter, NotSupported

SESSION = "X-Docker-Expose-Session-"


def add(router: Router) -> None:
    router.add("POST", "/grpc", grpc)
    router.add("POST", "/session", session)


async def grpc(call: Call) -> web.StreamResponse:
    return await hand_over(call, _doors(call).grpc)


async def session(call: Call) -> web.StreamResponse:
    headers = call.request.headers
    told = {name: headers.get(SESSION + name, "") for name in ("uuid", "name", "sharedkey")}
    methods = headers.getall(SESSION + "Grpc-Method", [])
    doors = _doors(call)
    return await hand_over(call, lambda: doors.session(told, methods))


def _doors(call: Call) -> Doors:
    if call.services.buildkit is None:
        raise NotSupported("this engine does not build")
    if call.request.headers.get("Upgrade", "").lower() != "h2c":
        raise InvalidParameter("no upgrade: want the request header Upgrade: h2c")
    return call.services.buildkit()


class _Bridge(asyncio.Protocol):
    """Gives the bytes of the connection to `inner`, and its end to aiohttp as well."""

    def __init__(self, inner: asyncio.Protocol, http: Connection) -> None:
        self._inner = inner
        self._http = http
        self.data_received = inner.data_received  # type: ignore[method-assign]  # one call less for every piece
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._http.connection_lost(exc)  # cancels the handler


def _keep_alive(transport: asyncio.Transport) -> None:
    """A client that vanishes from the network is missed within a minute: its build must not go on for hours."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)


async def hand_over(call: Call, take: Callable[[], Taken]) -> web.StreamResponse:
    """Give the connection to what `take` makes, until it ends."""
    http, transport = call.request.protocol, call.request.transport
    if transport is None or not isinstance(http, Connection):
        raise ConnectionResetError("the client is gone")
    taken = take()
    _keep_alive(transport)
    early, ended = http.take_over()
    transport.set_protocol(_Bridge(taken.protocol, http))
    call.started = True
    transport.write(head_of("101 Switching Protocols", {"Connection": "Upgrade", "Upgrade": "h2c", **call.headers}))
    taken.protocol.connection_made(transport)
    if early:
        taken.protocol.data_received(early)
    if ended:
        transport.close()
    else:
        with suppress(RuntimeError):  # it was not paused
            transport.resume_reading()
    try:
        await taken.run()
    finally:
        transport.close()
    return Hijacked()
