"""Sockets of ssh agents for steps: each connection to one is carried to the client's agent and back."""

import asyncio
import logging
import os
from pathlib import Path

from wherry.aio import settle
from wherry.builder.client import AgentConnection, Client
from wherry.errors import WherryError

log = logging.getLogger(__name__)

_CHUNK = 64 << 10  # bytes


class Agents:
    """The sockets of one step, in its `directory`."""

    def __init__(self, directory: Path, client: Client) -> None:
        self._directory, self._client = directory, client
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, agent_id: str, *, uid: int, gid: int, mode: int) -> Path:
        """A new socket for `agent_id`."""
        path = self._directory / f"agent{len(self._servers)}"

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(agent_id, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_unix_server(accept, os.fspath(path))
        self._servers.append(server)

        def own() -> None:
            os.chown(path, uid, gid)
            os.chmod(path, mode)

        await settle(own)
        return path

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, agent_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = await self._client.agent(agent_id)
            try:
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(_carry_in(reader, connection))
                    await _carry_out(connection, writer)
                    asking.cancel()
            finally:
                await connection.close()
        except (WherryError, OSError, ExceptionGroup) as exc:
            log.warning("ssh agent %s: %s", agent_id, exc)
        finally:
            writer.close()


async def _carry_in(reader: asyncio.StreamReader, connection: AgentConnection) -> None:
    while data := await reader.read(_CHUNK):
        await connection.write(data)
    await connection.close()


async def _carry_out(connection: AgentConnection, writer: asyncio.StreamWriter) -> None:
    while data := await connection.read():
        writer.write(data)
        await writer.drain()
