"""One client connection: aiohttp's HTTP/1.1 protocol with what Docker's clients need besides.

- A client that ends its sending right after its request (`socat`, `nc -N`) still gets its answer. A streaming answer
  (`watch`) takes the end of sending as the client's going away, as Docker does.
- Bytes sent right behind a request with `Upgrade: tcp` or `h2c` belong to the raw stream that follows. aiohttp's parser
  would drop them or read them as a request; they are held back here until `take_over`.
- Everything that goes wrong before a handler runs is answered as `{"message": ...}`.
"""

import asyncio
import logging
import re
from collections.abc import Mapping

import msgspec
from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server as HTTPServer

JSON = "application/json"  # exactly: the docker CLI prints the body raw for anything else
EARLY_LIMIT = 64 << 10  # bytes held before a hijack; then reading pauses

_UPGRADE = re.compile(rb"\r\nUpgrade:[ \t]*(?:tcp|h2c)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\nTransfer-Encoding:", re.IGNORECASE)

log = logging.getLogger(__name__)


class Connection(RequestHandler):
    __slots__ = ("_answered", "_body_left", "_early", "_ended", "_headers", "_last_payload", "_watched")

    def __init__(
        self,
        manager: HTTPServer,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            logger=log,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp is told not to log
            max_line_size=128 << 10,  # filters and build arguments travel in the URL
            max_field_size=64 << 10,  # X-Registry-Config grows with the number of registries
            lingering_time=2.0,  # s to swallow the rest of a body that nobody read
            read_bufsize=256 << 10,
            auto_decompress=False,
        )
        self._headers = headers  # of every answer
        self._watched = False
        self._ended = False  # the client has ended its sending
        self._answered = False  # the newest request has its answer, which may still be on its way out
        self._early: bytearray | None = None  # held back, once an upgrade's request is complete
        self._body_left = -1  # bytes of an upgrade's request still to come; -1: no upgrade in sight
        self._last_payload: StreamReader | None = None  # body of the newest request, complete or not

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._hold(data)
            return
        if self._body_left < 0 and self._between_requests():
            self._body_left = _upgrade_length(data)
        if self._body_left < 0:
            self._parse(data)
            return
        request, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(request)
        if self._body_left == 0:
            self._early = bytearray()
        self._parse(request)
        if rest:
            self._hold(rest)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if not self._messages:
            return
        self._answered = False
        message, payload = self._messages[-1]
        reading = self._last_payload
        if isinstance(message, _ErrInfo) and reading is not None and not reading.is_eof():
            # The parser gave up within a body, and does not tell the handler that waits for the rest of it.
            reading.set_exception(RequestPayloadError(message.message))
            reading.feed_eof()
            self._messages.pop()  # the handler's answer is the last one on this connection
            self.close()
        self._last_payload = payload

    def _between_requests(self) -> bool:
        return self._last_payload is None or self._last_payload.is_eof()

    def _hold(self, data: bytes) -> None:
        assert self._early is not None
        self._early += data
        if len(self._early) >= EARLY_LIMIT and self.transport is not None:
            self.transport.pause_reading()

    def take_over(self) -> tuple[bytes, bool]:
        """Leave HTTP: what was sent behind the request, and whether the client has ended its sending since."""
        self._watched = True
        return self._take_early(), self._ended

    def _take_early(self) -> bytes:
        early = bytes(self._early or b"")
        self._early = None
        self._body_left = -1
        return early

    def watch(self) -> None:
        """The running handler only makes sense while the client is there; it is cancelled when it is not."""
        self._watched = True
        if self._ended and self.transport is not None:
            self._loop.call_soon(self.transport.close)

    @property
    def watched(self) -> bool:
        """The running handler only ends with its client, or is a taken-over connection."""
        return self._watched

    def answered(self) -> None:
        """The handler is done and its answer is about to be completed."""
        self._watched = False
        self._answered = not self._messages
        early = self._take_early()
        if early or (self._ended and not self._messages):
            self.close()  # behind a refused upgrade nobody can say what the next bytes are

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp says None and means "never"
        self._ended = True
        idle = self._waiter is not None and not self._waiter.done()
        if self._answered and not idle:
            self.close()  # once the answer that is being written is out
        return not (self._watched or idle) and self._between_requests()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500 and not isinstance(exc, ConnectionError):  # a client that left, or an error reported already
            log.error("request failed outside its handler: %s", message or exc, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        words = " ".join((message or str(exc) or "bad request").split())
        body = msgspec.json.encode({"message": words[:500]}) + b"\n"
        response = web.Response(body=body, status=status, headers={**self._headers, "Content-Type": JSON})
        response.force_close()
        return response


def _upgrade_length(data: bytes) -> int:
    """Length of head and body when `data` begins with the whole head of a request for a raw stream, else -1."""
    if not data.startswith((b"POST ", b"GET ")) or _UPGRADE.search(data, 0, 64 << 10) is None:
        return -1
    end = data.find(b"\r\n\r\n")
    head = data[: end + 2]
    if end < 0 or _UPGRADE.search(head) is None or _CHUNKED.search(head):
        return -1
    length = _LENGTH.search(head)
    return end + 4 + (int(length[1]) if length else 0)
