"""A server over a UNIX socket with routes of the test's own, and a client that speaks bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from wherry.api.listeners import parse, serve
from wherry.api.router import Handler, Router
from wherry.api.server import Server
from wherry.api.services import EngineFacts, Services

FACTS = EngineFacts(id="id", name="host", version="9.9", root=Path("/nowhere"), started=0)


def wire_only() -> Services:
    """Enough for routes that do not touch the engine."""
    return cast(Services, SimpleNamespace(facts=FACTS))


@asynccontextmanager
async def served(
    path: Path, routes: Mapping[tuple[str, str], Handler], *, services: Services | None = None, idle: float = 60
) -> AsyncIterator[Server]:
    router = Router()
    for (method, pattern), handler in routes.items():
        router.add(method, pattern, handler)
    server = Server(services or wire_only(), router, idle=idle)
    listening = await serve(server, [parse(f"unix://{path}")])
    try:
        yield server
    finally:
        await listening.stop(grace=2)


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = raw.split("\r\n")[:-2]
        return int(first.split(" ")[1]), {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, await self._chunks()
        return status, headers, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return body

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await self.reader.read()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(20):
            yield Client(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def connected_later(path: Path) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """For connections that are to outlive the server."""
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_unix_connection(path)
        writers.append(writer)
        return Client(reader, writer)

    try:
        async with asyncio.timeout(20):
            yield connect
    finally:
        for writer in writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def ask(path: Path, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async with connected(path) as client:
        await client.send(request)
        return await client.answer()


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: d", *headers, "", ""]).encode()


def post(target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: d", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
