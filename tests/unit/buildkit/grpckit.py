"""Both ends of a gRPC connection in one process, over a socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from grpclib.const import Handler

from wherry.buildkit.channel import Channel
from wherry.buildkit.server import serve
from wherry.buildkit.session import Session
from wherry.buildkit.wire import Protocol


@asynccontextmanager
async def joined(server: asyncio.Protocol, client: asyncio.Protocol) -> AsyncIterator[None]:
    """The two protocols talk to each other as long as the block."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    one, _ = await loop.connect_accepted_socket(lambda: server, ours)
    two, _ = await loop.connect_accepted_socket(lambda: client, theirs)
    try:
        yield
    finally:
        two.close()
        one.close()
        for each in (server, client):
            if isinstance(each, Protocol):
                await each.lost.wait()
        if isinstance(server, Protocol):
            await server.handler.wait_closed()


@asynccontextmanager
async def channel_to(methods: Mapping[str, Handler]) -> AsyncIterator[Channel]:
    channel = Channel()
    async with joined(serve(methods), channel.protocol):
        yield channel


@asynccontextmanager
async def session_to(methods: Mapping[str, Handler], *, shared_key: str = "dir:node") -> AsyncIterator[Session]:
    """A session whose client has `methods`."""
    session = Session("s1", shared_key=shared_key, methods=list(methods))
    async with joined(serve(methods), session.channel.protocol):
        yield session
