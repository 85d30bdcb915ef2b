"""The engine's images as a registry's store do what every store does."""

from collections.abc import AsyncIterator

import pytest

from imagekit.world import World
from registrykit.behaviour import RegistryStoreBehaviour
from wherry.daemon.engine_registry import EngineStore, keep_rest


class EngineKeeper:
    def __init__(self, world: World) -> None:
        self._world = world
        self._open()

    def _open(self) -> None:
        self.rest = keep_rest(self._world.deps, self._world.root / "uploads")
        self.store = EngineStore(self._world.deps, self.rest, domain="registry.test:5000", in_use={})

    async def reopen(self) -> None:
        await self.rest.close()
        self._world.open()
        self._open()


@pytest.fixture
async def keeper(world: World) -> AsyncIterator[EngineKeeper]:
    made = EngineKeeper(world)
    yield made
    await made.rest.close()


class TestEngineStore(RegistryStoreBehaviour):
    """The behaviour suite, with this file's `keeper`."""
