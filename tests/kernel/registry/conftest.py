"""The engine's images behind a registry on loopback."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from imagekit.pushing import Pusher
from imagekit.world import World
from registrykit.hosted import DOMAIN, Hosted
from wherry.daemon.engine_registry import EngineStore, keep_rest
from wherry.images.upkeep.remove import ContainerUse
from wherry.registry.server import build_app
from wherry.storage.overlay import OverlaySnapshotter


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "world"
    root.mkdir()
    made = World(root, OverlaySnapshotter(root))
    yield made
    made.snapshots.close()


@pytest.fixture
async def hosted(world: World) -> AsyncIterator[Hosted]:
    in_use: dict[str, list[ContainerUse]] = {}
    rest = keep_rest(world.deps, world.root / "uploads")
    store = EngineStore(world.deps, rest, domain=DOMAIN, in_use=in_use)
    async with TestServer(build_app(store)) as server, aiohttp.ClientSession() as session:
        yield Hosted(world, store, rest, Pusher(session, str(server.make_url("")).rstrip("/")), in_use)
    await rest.close()
