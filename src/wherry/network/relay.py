"""Relay: carries TCP connections that come to an IPv6 address of the host to a container's IPv4 address.

Address translation cannot change the family, so `[::1]:8080` needs a program in between; Docker has its userland proxy
for it, here it is the daemon's event loop. The container sees the bridge as the peer. Connections end with the daemon.
Bounded: CONNECTIONS at once, CHUNK bytes in flight a direction.
"""

import asyncio
import logging
import socket
from contextlib import suppress

log = logging.getLogger(__name__)

CONNECTIONS = 512  # at once, a port; further ones are closed unanswered
CHUNK = 1 << 16  # bytes
CONNECT_TIMEOUT = 10.0  # s


class Relay:
    """Serves one listening socket, which it owns from `open` on."""

    def __init__(self, listening: socket.socket, host: str, port: int) -> None:
        self._listening = listening
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._listening.setblocking(False)
        self._server = await asyncio.start_server(self._accept, sock=self._listening, limit=CHUNK)

    async def close(self) -> None:
        """Stop listening and cut what is open; idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                there_reader, there_writer = await asyncio.open_connection(*self._target, limit=CHUNK)
        except OSError:  # refused, unreachable, or in vain for too long: the caller is refused as well
            await _close(writer)
            return
        except BaseException:
            writer.transport.abort()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, there_writer))
                group.create_task(_carry(there_reader, writer))
        except* OSError:
            pass  # one side reset the connection
        finally:
            await _close(writer)
            await _close(there_writer)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of the stream, which is passed on as a half-close."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort() if writer.is_closing() else writer.close()
    with suppress(OSError):
        await writer.wait_closed()
