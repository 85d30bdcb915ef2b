"""The wires to one shim: the control connection, streams, and its process.

What is said on them is in `shim.frames`; who says it to whom in `shim_client`.
"""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wherry.errors import Failed
from wherry.runtime.shim import frames
from wherry.runtime.shim.requests import error_of

log = logging.getLogger(__name__)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Document = dict[str, Any]

_READ_LIMIT = 256 << 10  # bytes a client's stream buffers
_CONNECT_TRIES = 50  # a shim that is busy has its backlog full
_PAUSE = 0.02  # s


class Unreachable(Failed):
    """There is no shim to talk to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    code: int  # 128 + the number of the signal that killed it
    at: int  # ns since the epoch
    oom_killed: bool
    error: str = ""


def exit_of(document: Document) -> Exit:
    return Exit(code=document["code"], at=document["at"], oom_killed=document["oom"], error=document.get("error", ""))


def read_exit(directory: Path) -> Exit | None:
    """The exit a shim has written down."""
    try:
        return exit_of(json.loads((directory / "exit.json").read_bytes()))
    except FileNotFoundError:
        return None


class Control(asyncio.Protocol):
    """The control connection to one shim: requests, answers, events."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder()
        self._transport: asyncio.Transport | None = None
        self._sequence = 0
        self._pending: dict[int, asyncio.Future[Document]] = {}
        self._lost = False
        self.hello: asyncio.Future[Document] = self._loop.create_future()
        self.end: asyncio.Future[Exit | None] = self._loop.create_future()  # None: the connection broke before
        self.execs: dict[str, asyncio.Future[int]] = {}
        self.process: ShimProcess | None = None  # the shim
        self.known = asyncio.Event()  # `process` is, or there will be none

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)
        for document in self._decoder:
            self._dispatch(document)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.known.set()
        gone = Unreachable("the container's shim has ended")
        for future in (*self._pending.values(), self.hello):
            if not future.done():
                future.set_exception(gone)
        self.hello.exception() if not self.hello.cancelled() else None  # perhaps nobody waits any more
        self._pending.clear()
        for ended in self.execs.values():
            if not ended.done():
                ended.set_result(137)
        if not self.end.done():
            self.end.set_result(None)

    def send(self, document: Mapping[str, object]) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(frames.encode(document))

    async def request(self, op: str, **arguments: object) -> Document:
        """Ask and wait for the answer; raises what the shim says went wrong."""
        if self._lost:
            raise Unreachable("the container's shim has ended")
        self._sequence += 1
        future: asyncio.Future[Document] = self._loop.create_future()
        self._pending[self._sequence] = future
        self.send({"op": op, "seq": self._sequence, **arguments})
        return await future

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _dispatch(self, document: Document) -> None:
        match document.get("event"):
            case "forked":
                self._found(document["shim"])
            case "hello":
                if self.process is None:
                    self._found(document["shim"])
                if not self.hello.done():
                    self.hello.set_result(document)
            case "exit":
                if not self.end.done():
                    self.end.set_result(exit_of(document))
            case "exec-exit":
                self._exec_ended(document["id"], document["code"])
            case None:
                self._answered(document)

    def _found(self, pid: int) -> None:
        self.process = ShimProcess(pid)
        self.known.set()

    def _answered(self, document: Document) -> None:
        future = self._pending.pop(document.get("seq", 0), None) or self.hello  # create is answered by hello
        if future.done():
            return
        if "error" in document:
            future.set_exception(error_of(document["error"]))
        else:
            future.set_result(document["ok"])

    def _exec_ended(self, exec_id: str, code: int) -> None:
        future = self.execs.pop(exec_id, None)  # none: an earlier daemon's
        if future is not None and not future.done():
            future.set_result(code)


class ShimProcess:
    """The process of a shim, watched through a pidfd."""

    def __init__(self, pid: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1
            self._gone.set_result(None)
        else:
            self._loop.add_reader(self._fd, self._ended)

    async def wait(self, limit: float) -> None:
        """Until it has ended; it is killed after `limit` seconds."""
        done, _ = await asyncio.wait((self._gone,), timeout=limit)
        if not done and self._fd >= 0:
            log.warning("a shim does not end: killing it")
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            await asyncio.wait((self._gone,))

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self._gone.done():
            self._gone.set_result(None)

    def _ended(self) -> None:
        self.close()


async def connect(sock: socket.socket, path: str) -> None:
    for _ in range(_CONNECT_TRIES):
        try:
            sock.connect(path)
            return
        except BlockingIOError:  # the backlog is full
            await asyncio.sleep(_PAUSE)
    raise TimeoutError("the shim does not accept connections")


async def open_stream(sock: socket.socket, document: Mapping[str, object]) -> tuple[Streams, Document]:
    """Say what a connection is for and wait for the answer; afterwards it is a stream."""
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_READ_LIMIT)
    try:
        writer.write(frames.encode(document))
        length = frames.length(await reader.readexactly(frames.LENGTH))
        answer: Document = json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as exc:
        writer.close()
        raise Unreachable("the container's shim has ended") from exc
    except BaseException:
        writer.close()
        raise
    if "error" in answer:
        writer.close()
        raise error_of(answer["error"])
    return (reader, writer), answer["ok"]
