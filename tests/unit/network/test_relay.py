"""The relay on loopback, under both event loops the daemon may run on."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from wherry.network import relay
from wherry.network.relay import Relay

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def opened(port: int) -> tuple[Relay, int]:
    """A relay to a local port, and the port it listens at."""
    listening = socket.socket(socket.AF_INET6)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.bind(("::1", 0))
    listening.listen()
    made = Relay(listening, "127.0.0.1", port)
    await made.open()
    return made, int(listening.getsockname()[1])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only after the caller has ended its half."""
    data = await reader.read(-1)
    writer.write(b"got " + data)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("loop", LOOPS)
def test_data_and_half_closes_pass_both_ways(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        made, port = await opened(server.sockets[0].getsockname()[1])
        payload = bytes(range(256)) * 4096
        reader, writer = await asyncio.open_connection("::1", port)
        writer.write(payload)
        writer.write_eof()
        assert await reader.read(-1) == b"got " + payload
        writer.close()
        await writer.wait_closed()
        await made.close()
        server.close()
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await asyncio.open_connection("::1", port)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_a_caller_is_let_go_when_the_container_does_not_listen() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        made, port = await opened(closed.getsockname()[1])
        reader, writer = await asyncio.open_connection("::1", port)
        assert await reader.read(-1) == b""
        writer.close()
        await writer.wait_closed()
        await made.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_closing_cuts_open_connections(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            await reader.read(-1)
            writer.close()
            ended.set()

        server = await asyncio.start_server(wait, "127.0.0.1", 0)
        made, port = await opened(server.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("::1", port)
        assert await reader.readexactly(5) == b"hello"
        await made.close()
        await made.close()
        assert await reader.read(-1) == b""
        await ended.wait()
        writer.close()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_connections_are_limited() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    made, port = await opened(server.sockets[0].getsockname()[1])
    streams = []
    for _ in range(relay.CONNECTIONS):
        reader, writer = await asyncio.open_connection("::1", port)
        streams.append((reader, writer))
        assert await reader.readexactly(1) == b"x"
    reader, writer = await asyncio.open_connection("::1", port)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    for _, one in streams:
        one.close()
    await made.close()
    server.close()
