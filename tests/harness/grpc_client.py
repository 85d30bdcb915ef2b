"""A client of the daemon's gRPC doors, message by message: for what no stock client here can be made to send."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpclib.const import Cardinality

from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.channel import Channel
from wherry.buildkit.control import CONTROL
from wherry.buildkit.gateway import BRIDGE, BUILD_ID


async def _upgrade(path: Path, protocol: asyncio.Protocol) -> asyncio.BaseTransport:
    """Leave HTTP/1.1 for HTTP/2 on a new connection."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    await loop.sock_connect(connection, str(path))
    head = "POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
    await loop.sock_sendall(connection, head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):  # not a byte of what follows may be taken
        answer += await loop.sock_recv(connection, 1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    return transport


class GrpcClient:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ref = secrets.token_hex(12)

    async def call(self, path: str, request: Message, reply: type[Message], **metadata: str) -> Any:
        opened = self.channel.request(
            path, Cardinality.UNARY_UNARY, type(request), reply, metadata=list(metadata.items())
        )
        async with opened as stream:
            await stream.send_message(request, end=True)
            return await stream.recv_message()

    async def solve(self, **fields: Any) -> dict[str, str]:
        found = await self.call(CONTROL + "Solve", pb.SolveRequest(ref=self.ref, **fields), pb.SolveResponse)
        return dict(found.exporter_response)

    async def bridge(self, method: str, request: Message, reply: type[Message]) -> Any:
        return await self.call(BRIDGE + method, request, reply, **{BUILD_ID: self.ref})


@asynccontextmanager
async def grpc_client(path: Path) -> AsyncIterator[GrpcClient]:
    channel = Channel()
    transport = await _upgrade(path, channel.protocol)
    try:
        yield GrpcClient(channel)
    finally:
        transport.close()
        await channel.lost.wait()
