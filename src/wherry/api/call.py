"""One request as the handlers see it, and the answers they give.

Reading follows Docker's own rules: what counts as true, which content types carry JSON, what an empty body means.
"""

import re
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, nullcontext
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from wherry import filters
from wherry.api.connection import JSON, Connection
from wherry.api.services import API_VERSION, Services
from wherry.errors import InvalidParameter
from wherry.spec import engine

BODY_LIMIT = 16 << 20  # bytes of a JSON body
_FALSE = frozenset({"", "0", "no", "false", "none"})
_PEER = struct.Struct("iII")  # struct ucred
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")
_MEDIA_TYPE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(;.*)?\Z")

TAR = "application/x-tar"

Version = tuple[int, ...]
D = TypeVar("D", bound=engine.Document)

_encode = msgspec.json.Encoder().encode


def parse_version(text: str) -> Version:
    return tuple(int(part) for part in text.split(".") if part)


class Call:
    """A request that found its handler."""

    __slots__ = ("headers", "path", "request", "services", "started", "version")

    def __init__(
        self,
        request: BaseRequest,
        services: Services,
        *,
        version: Version,
        path: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        self.request = request
        self.services = services
        self.version = version
        self.path = path  # what the route's pattern caught
        self.headers = headers  # every answer carries these
        self.started = False  # an answer's head has been sent

    # reading

    def __getitem__(self, name: str) -> str:
        """The part of the path that the route calls `name`."""
        return self.path[name]

    def text(self, name: str, default: str = "") -> str:
        """Query parameter, `default` when it is not there."""
        return self.request.query.get(name, default)

    def texts(self, name: str) -> list[str]:
        """All values of a repeated query parameter."""
        return list(self.request.query.getall(name, []))

    def flag(self, name: str, default: bool = False) -> bool:
        """Query parameter as Docker reads booleans: anything but "", 0, no, false, none is true."""
        value = self.request.query.get(name)
        return default if value is None else value.strip().lower() not in _FALSE

    def number(self, name: str) -> int | None:
        """Query parameter as an integer; None when missing or empty. Raises InvalidParameter."""
        value = self.text(name)
        if not value:
            return None
        if not _NUMBER.match(value):
            raise InvalidParameter(f'strconv.Atoi: parsing "{value}": invalid syntax')
        if len(value) > 19:
            raise InvalidParameter(f'strconv.Atoi: parsing "{value}": value out of range')
        return int(value)

    def filters(self) -> filters.Filters:
        return filters.parse(self.text("filters"))

    def speaks(self, *version: int) -> bool:
        """The client speaks this API version or a newer one."""
        return self.version >= version

    def caller(self) -> tuple[int, int] | None:
        """uid and gid of the process that asks; None when it is not on this machine's socket."""
        transport = self.request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        _, uid, gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return uid, gid

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """The whole body. Raises InvalidParameter when it is longer than `limit` bytes."""
        if (self.request.content_length or 0) > limit:
            raise InvalidParameter("http: request body too large")
        chunks, size = [], 0
        async for chunk in self.request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise InvalidParameter("http: request body too large")
            chunks.append(chunk)
        return b"".join(chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, for uploads of any size."""
        async for chunk in self.request.content.iter_any():
            yield chunk

    async def json(self) -> bytes:
        """The body, which must say that it is JSON unless it is empty."""
        raw = await self.body()
        kind = self.request.headers.get("Content-Type", "")
        if raw or kind:
            check_json(kind)
        return raw

    async def document(self, kind: type[D]) -> D:
        """The body as a document; an empty body is an empty document. Raises InvalidParameter."""
        return engine.decode(kind, await self.json())

    # answering

    def reply(self, document: object, status: int = 200) -> web.Response:
        headers = CIMultiDict(self.headers)
        headers["Content-Type"] = JSON
        return web.Response(body=_encode(document) + b"\n", status=status, headers=headers)

    def empty(self, status: int = 204) -> web.Response:
        return web.Response(status=status, headers=self.headers)

    async def stream(
        self, content_type: str, *, watch: bool = True, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """Send the head now; the caller writes the body, the dispatcher ends it.

        With `watch` the handler is cancelled as soon as the client goes away; without, when a write finds it gone.
        """
        all_headers = CIMultiDict({**self.headers, **(headers or {}), "Content-Type": content_type})
        response = web.StreamResponse(status=200, headers=all_headers)
        if watch:
            self.watch()
        self.started = True
        await response.prepare(self.request)
        return response

    async def send(
        self, chunks: AsyncIterator[bytes], content_type: str, *, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """A body of unknown length. What fails before its first bytes is an ordinary error."""
        async with aclosing(chunks) if isinstance(chunks, AsyncGenerator) else nullcontext():
            first = await anext(chunks, b"")
            response = await self.stream(content_type, watch=False, headers=headers)
            if first:
                await response.write(first)
            async for chunk in chunks:
                await response.write(chunk)
        return response

    def watch(self) -> None:
        """Cancel this handler when the client goes away, even if that only shows as the end of its sending."""
        if isinstance(self.request.protocol, Connection):
            self.request.protocol.watch()


def check_json(content_type: str) -> None:
    """Raise InvalidParameter unless the header names JSON, parameters aside."""
    if not content_type.strip():
        raise InvalidParameter(f"malformed Content-Type header ({content_type}): mime: no media type")
    match = _MEDIA_TYPE.match(content_type)
    if match is None:
        raise InvalidParameter(
            f"malformed Content-Type header ({content_type}): mime: expected slash after first token"
        )
    if match[1].lower() != JSON:
        raise InvalidParameter(f"unsupported Content-Type header ({content_type}): must be '{JSON}'")


DEFAULT_VERSION = parse_version(API_VERSION)
