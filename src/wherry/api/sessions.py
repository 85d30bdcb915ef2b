"""Conversations with containers: attach, exec, logs, wait."""

import asyncio
import struct
from contextlib import aclosing

import msgspec
from aiohttp import WSMsgType, web

from wherry.aio import finish
from wherry.api import errors
from wherry.api.call import Call
from wherry.api.connection import JSON
from wherry.api.containers import window
from wherry.api.hijack import MULTIPLEXED, MULTIPLEXED_SINCE, RAW, Session, hijack
from wherry.api.router import Router
from wherry.containers.life import wait
from wherry.containers.streams import attach as attaching
from wherry.containers.streams import execs, logs
from wherry.containers.views import stats
from wherry.errors import InvalidParameter
from wherry.spec import engine

_FRAME = struct.Struct(">BxxxI")  # stream, length of the payload


def add(router: Router) -> None:
    router.add("GET", "/containers/{name}/attach/ws", attach_websocket)
    router.add("POST", "/containers/{name}/attach", attach)
    router.add("GET", "/containers/{name}/logs", logs_)
    router.add("GET", "/containers/{name}/stats", stats_)
    router.add("POST", "/containers/{name}/wait", wait_)
    router.add("POST", "/containers/{name}/exec", exec_create)
    router.add("POST", "/exec/{id}/start", exec_start)
    router.add("POST", "/exec/{id}/resize", exec_resize)
    router.add("GET", "/exec/{id}/json", exec_inspect)


async def attach(call: Call) -> web.StreamResponse:
    return await hijack(call, await _open_attach(call))


async def _open_attach(call: Call) -> Session:
    return await attaching.open_attach(
        call.services.containers,
        call["name"],
        stdin=call.flag("stdin"),
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        stream=call.flag("stream"),
        logs=call.flag("logs"),
        detach_keys=call.text("detachKeys") or None,
    )


async def logs_(call: Call) -> web.StreamResponse:
    stdout, stderr, following = call.flag("stdout"), call.flag("stderr"), call.flag("follow")
    if not (stdout or stderr):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    stream = await logs.open_logs(
        call.services.containers,
        call["name"],
        stdout=stdout,
        stderr=stderr,
        follow=following,
        since=call.text("since"),
        until=call.text("until"),
        timestamps=call.flag("timestamps"),
        tail=call.text("tail"),
        details=call.flag("details"),
    )
    framed = not stream.tty and call.version >= MULTIPLEXED_SINCE
    async with aclosing(stream.chunks) as chunks:
        response = await call.stream(MULTIPLEXED if framed else RAW, watch=following)
        async for chunk in chunks:
            await response.write(chunk)
    return response


async def stats_(call: Call) -> web.StreamResponse:
    """A document, or one a second."""
    following, once = call.flag("stream", default=True), call.flag("one-shot")
    if following and once:
        raise InvalidParameter("cannot have stream=true and one-shot=true")
    found = await stats.open_stats(call.services.containers, call["name"], stream=following, one_shot=once)
    response = await call.stream(JSON)
    async for document in found:
        await response.write(msgspec.json.encode(document) + b"\n")
    return response


async def wait_(call: Call) -> web.StreamResponse:
    """The head goes out as soon as the waiter is registered: clients start the container only then."""
    waiter = await wait.register(call.services.containers, call["name"], call.text("condition"))
    response = await call.stream(JSON)
    result = await waiter
    document: dict[str, object] = {"StatusCode": result.code}
    if result.error:
        document["Error"] = {"Message": result.error}
    await response.write(msgspec.json.encode(document) + b"\n")
    return response


async def exec_create(call: Call) -> web.StreamResponse:
    config = await call.document(engine.ExecConfig)
    return call.reply({"Id": await execs.create(call.services.containers, call["name"], config)}, 201)


async def exec_start(call: Call) -> web.StreamResponse:
    options = await call.document(engine.ExecStart)
    if options.detach:
        await finish(execs.start_detached(call.services.containers, call["id"], options))
        return call.empty(200)
    return await hijack(call, await execs.open_exec(call.services.containers, call["id"], options))


async def exec_resize(call: Call) -> web.StreamResponse:
    height, width = window(call)
    await execs.resize(call.services.containers, call["id"], height=height, width=width)
    return call.empty(200)


async def exec_inspect(call: Call) -> web.StreamResponse:
    return call.reply(await execs.inspect(call.services.containers, call["id"]))


class WebSocketStream:
    """A session's other end in a browser: binary messages without frames (streams are not told apart, as in Docker)."""

    def __init__(self, socket: web.WebSocketResponse, *, framed: bool) -> None:
        self._socket = socket
        self._unframe = Unframer() if framed else None
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)

    async def receive(self) -> None:
        """Feed `read` until the client closes the socket."""
        while True:
            message = await self._socket.receive()
            match message.type:
                case WSMsgType.BINARY | WSMsgType.TEXT:
                    data = message.data.encode() if isinstance(message.data, str) else bytes(message.data)
                    if data:
                        await self._arrived.put(data)
                case _:
                    return

    async def read(self) -> bytes:
        return await self._arrived.get()

    async def write(self, data: bytes) -> None:
        if self._unframe is not None:
            data = self._unframe.feed(data)
        if data:
            await self._socket.send_bytes(data)

    def write_eof(self) -> None:
        """A websocket has no half-close."""

    def close(self) -> None:
        """The socket is closed by the handler, when the session has ended."""


class Unframer:
    """Takes Docker's 8-byte frame headers out of a stream that may be cut anywhere."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of the present frame's payload

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        view = memoryview(data)
        while view:
            if self._left:
                part = view[: self._left]
                out.append(bytes(part))
                self._left -= len(part)
                view = view[len(part) :]
                continue
            need = _FRAME.size - len(self._head)
            self._head += bytes(view[:need])
            view = view[need:]
            if len(self._head) == _FRAME.size:
                _, self._left = _FRAME.unpack(self._head)
                self._head = b""
        return b"".join(out)


async def attach_websocket(call: Call) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=(), max_msg_size=1 << 20)
    if not socket.can_prepare(call.request):
        raise InvalidParameter("not a websocket handshake")
    session = await _open_attach(call)
    call.watch()
    call.started = True
    await socket.prepare(call.request)
    stream = WebSocketStream(socket, framed=not session.tty)
    talking = asyncio.ensure_future(session.run(stream))
    receiving = asyncio.ensure_future(stream.receive())
    try:
        await asyncio.wait((talking, receiving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (talking, receiving):
            task.cancel()
        for outcome in await asyncio.gather(talking, receiving, return_exceptions=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
                errors.record(outcome, f"attach to {call['name']} by websocket")
    await socket.close()
    return socket
