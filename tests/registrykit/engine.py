"""The engine's images as a registry, served by a thread of this process."""

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path

from aiohttp.test_utils import TestServer

from imagekit.world import World
from wherry.daemon.engine_registry import EngineStore, keep_rest
from wherry.registry.server import build_app
from wherry.storage.overlay import OverlaySnapshotter

from .client import Client


class EngineServer:
    """Needs root: what is pushed is unpacked at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(30) or not self._port:
            raise AssertionError("the registry did not start")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self) -> Client:
        return Client("127.0.0.1", self._port)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        with ExitStack() as stack:
            stack.callback(self._ready.set)
            snapshots = OverlaySnapshotter(self._root)
            stack.callback(snapshots.close)
            world = World(self._root, snapshots)
            stack.callback(world.state.close)
            rest = keep_rest(world.deps, self._root / "uploads")
            store = EngineStore(world.deps, rest, domain="registry.test:5000", in_use={})
            async with TestServer(build_app(store)) as server:
                assert server.port
                self._port = server.port
                self._ready.set()
                await self._end.wait()
            await rest.close()
