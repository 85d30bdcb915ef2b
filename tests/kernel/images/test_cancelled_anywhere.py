"""Every verb that makes images, cancelled at many moments: nothing of it is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from imagekit.making import make, tar
from imagekit.registry import FakeRegistry
from imagekit.world import NOTHING, World
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.making.bootstrap import bootstrap
from wherry.images.making.import_ import import_
from wherry.images.transfer.pull import pull

pytestmark = pytest.mark.kernel

MADE = make([{"a": b"1" * 100_000}, {"b": b"2" * 100_000}])
TURNS = [0, 1, 2, 3, 5, 8, 13, 21]  # of the loop, before anything can have happened elsewhere
DELAYS = [0.001 * 1.5**step for step in range(18)]  # seconds, up to one: somewhere amid the work of other threads


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 20_000):
        yield data[start : start + 20_000]
        await asyncio.sleep(0)


def quiet(message: dict[str, object]) -> None: ...


async def pulling(world: World, other: World, registry: FakeRegistry) -> Callable[[], Awaitable[object]]:
    registry.add("x", "1", MADE)
    return lambda: pull(world.deps, f"{registry.host}/x:1", progress=quiet)


async def loading(world: World, other: World, registry: FakeRegistry) -> Callable[[], Awaitable[object]]:
    registry.add("x", "1", MADE)
    await pull(other.deps, f"{registry.host}/x:1", progress=quiet)
    data = b"".join([chunk async for chunk in save(other.deps, [f"{registry.host}/x:1"])])
    return lambda: load(world.deps, chunks(data), progress=quiet)


async def importing(world: World, other: World, registry: FakeRegistry) -> Callable[[], Awaitable[object]]:
    data = tar({"a": b"1" * 100_000})
    return lambda: import_(world.deps, chunks(data), progress=quiet)


async def bootstrapping(world: World, other: World, registry: FakeRegistry) -> Callable[[], Awaitable[object]]:
    return lambda: bootstrap(world.deps, "busybox", progress=quiet)


@pytest.mark.parametrize("verb", [pulling, loading, importing, bootstrapping])
async def test_cancelled_at_any_moment_nothing_is_left(
    world: World, other: World, registry: FakeRegistry, verb, require
):
    if verb is bootstrapping:
        require("busybox")
    work = await verb(world, other, registry)
    for moment in (*TURNS, *DELAYS):
        task = asyncio.ensure_future(work())
        if isinstance(moment, int):
            for _ in range(moment):
                await asyncio.sleep(0)
        else:
            await asyncio.wait({task}, timeout=moment)
        if task.done():
            task.result()
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if world.deps.store.all():
            break  # it was complete in that moment
        assert world.held() == NOTHING, f"cancelled at {moment}"
