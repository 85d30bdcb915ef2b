"""From a parsed request to its handler and back: dispatch, headers of every answer, errors, the end of the server.

    Server(services, router)    made once; `api.listeners.serve` gives it sockets

One function on the way of a request, no middleware: version and route, handler, error to answer.
"""

import asyncio
import logging

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server as HTTPServer
from multidict import CIMultiDict

from wherry.api import errors
from wherry.api.call import Call
from wherry.api.connection import JSON, Connection
from wherry.api.router import Router
from wherry.api.services import API_VERSION, Services
from wherry.errors import InvalidParameter, NotModified

IDLE = 300.0  # s a connection may be silent before and between requests, a half-sent head included; as in dockerd

log = logging.getLogger(__name__)


class Server(HTTPServer):
    """Protocol factory for every listener's connections, and their owner."""

    def __init__(self, services: Services, router: Router, *, idle: float = IDLE) -> None:
        super().__init__(self._dispatch, handler_cancellation=True)
        self._services = services
        self._router = router
        self._idle = idle
        self._headers = CIMultiDict(
            {
                "Api-Version": API_VERSION,
                "Docker-Experimental": "false",
                "Ostype": "linux",
                "Server": f"Docker/{services.facts.version} (linux)",  # the form clients parse
            }
        )

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, keepalive_timeout=self._idle, headers=self._headers)

    async def stop(self, grace: float) -> None:
        """End all connections: idle ones and endless answers at once, others within `grace` seconds."""
        await asyncio.sleep(0)  # what was accepted before the listeners closed begins first
        self.pre_shutdown()
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.watched and connection.transport is not None:
                connection.transport.close()
        await self.shutdown(grace / 2)  # once for answers to end, once for cancelled handlers to clean up

    async def _dispatch(self, request: BaseRequest) -> web.StreamResponse:
        call: Call | None = None
        what = f"{request.method} {request.path_qs}"
        log.debug("%s", what)
        try:
            handler, version, path = self._router.find(request.method, request.path)
            await _continue(request)
            call = Call(request, self._services, version=version, path=path, headers=self._headers)
            response = await handler(call)
            await self._complete(call, response)
            return response
        except Exception as exc:
            if isinstance(exc, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                raise  # the client is gone: nobody to answer
            if isinstance(exc, (RequestPayloadError, HttpProcessingError)):
                exc = InvalidParameter(f"the body of the request is broken: {' '.join(str(exc).split())}")
            return self._answer(call, what, exc)
        finally:
            if isinstance(request.protocol, Connection):
                request.protocol.answered()

    async def _complete(self, call: Call, response: web.StreamResponse) -> None:
        """End a streamed body here, while the client's going away still ends the handler."""
        if call.started and response.prepared:
            await response.write_eof()

    def _answer(self, call: Call | None, what: str, exc: Exception) -> web.StreamResponse:
        errors.record(exc, what)
        if call is not None and call.started:
            # Cut the connection: an answer that ends as if complete would be a lie.
            raise ConnectionResetError(f"{what}: failed after the answer had begun") from exc
        if isinstance(exc, NotModified):
            return web.Response(status=304, headers=self._headers)
        headers = CIMultiDict(self._headers)
        headers["Content-Type"] = JSON
        body = msgspec.json.encode({"message": errors.message_of(exc)}) + b"\n"
        return web.Response(status=errors.status_of(exc), body=body, headers=headers)


async def _continue(request: BaseRequest) -> None:
    """Ask for the body of a client that waits to be asked (curl, with bodies over 1 MiB)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun
