"""wait: nothing is missed between asking and waiting, and every waiter is told in the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import REMOVES_ITSELF, LifeWorld, restart, until
from wherry.containers.life.remove import remove
from wherry.containers.life.start import start
from wherry.containers.life.stop import stop
from wherry.containers.life.wait import register
from wherry.containers.live import WaitResult
from wherry.containers.record import Status
from wherry.errors import InvalidParameter, NotFound, Unavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def test_what_does_not_run_needs_no_waiting(world: LifeWorld) -> None:
    container = await world.create("web")
    assert await (await register(world.deps, "web", "not-running")) == WaitResult(0)
    container.state.status, container.state.exit_code, container.state.error = Status.EXITED, 5, "words"
    assert await (await register(world.deps, "web", "")) == WaitResult(5, "words")


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.RESTARTING])
async def test_what_is_up_is_waited_for(world: LifeWorld, status: Status) -> None:
    container = await world.create("web")
    container.state.status = status
    waiter = asyncio.ensure_future(await register(world.deps, "web", ""))
    assert not waiter.done()
    world.live(container).finish_exit(WaitResult(3))
    assert await waiter == WaitResult(3)


async def test_the_next_exit_of_a_container_that_was_not_started_yet(world: LifeWorld) -> None:
    await world.create("web")
    waiter = await register(world.deps, "web", "next-exit")
    await start(world.deps, "web")
    await stop(world.deps, "web")
    assert (await waiter).code == 143


async def test_the_next_exit_is_not_the_last_one(world: LifeWorld) -> None:
    container = await world.create("web")
    container.state.status = Status.EXITED
    waiter = asyncio.ensure_future(await register(world.deps, "web", "next-exit"))
    await asyncio.sleep(0)
    assert not waiter.done()


@pytest.mark.parametrize("condition", ["next-exit", "removed"])
async def test_the_removal_ends_all_waiting_after_the_name_is_free(world: LifeWorld, condition: str) -> None:
    container = await world.create("web")
    container.state.exit_code = 6
    waiter = asyncio.ensure_future(await register(world.deps, "web", condition))
    free: list[bool] = []
    waiter.add_done_callback(lambda _: free.append("web" not in world.state.rows("names")))
    await remove(world.deps, "web")
    assert (await waiter).code == 6
    assert free == [True]


async def test_an_exit_is_no_removal(world: LifeWorld) -> None:
    await world.run("web")
    waiter = asyncio.ensure_future(await register(world.deps, "web", "removed"))
    await stop(world.deps, "web")
    assert not waiter.done()


@pytest.mark.parametrize("step", ["connect", "create process", "start"])
async def test_who_waits_for_a_removal_is_told_when_the_start_fails(world: LifeWorld, step: str) -> None:
    await world.create("web", host=REMOVES_ITSELF)
    waiter = await register(world.deps, "web", "removed")
    world.steps.failing = {step: Unavailable('exec: "x": executable file not found in $PATH')}
    with pytest.raises(Unavailable):
        await start(world.deps, "web")
    assert (await waiter).code == 127
    with pytest.raises(NotFound):
        world.store.resolve("web")


async def test_who_waits_for_a_removal_is_told_that_it_failed(world: LifeWorld) -> None:
    await world.create("web")
    waiter = await register(world.deps, "web", "removed")
    world.steps.failing = {"remove snapshot": Unavailable("busy")}
    with pytest.raises(Unavailable):
        await remove(world.deps, "web")
    assert "cannot remove container web: busy" in ((await waiter).error or "")


async def test_a_waiter_that_leaves_is_forgotten(world: LifeWorld) -> None:
    container = await world.run("web")
    for condition in ("not-running", "next-exit", "removed"):
        waiter = asyncio.ensure_future(await register(world.deps, "web", condition))
        waiter.cancel()
        await asyncio.sleep(0)
    assert not world.live(container).exit_waiters
    assert not world.live(container).removal_waiters
    await stop(world.deps, "web")


async def test_all_who_wait_are_told(world: LifeWorld) -> None:
    await world.run("web")
    waiters = [await register(world.deps, "web", "next-exit") for _ in range(20)]
    await stop(world.deps, "web")
    assert {(await waiter).code for waiter in waiters} == {143}


async def test_who_waits_while_it_waits_for_its_restart_learns_the_next_exit(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("on-failure"))
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    waiter = await register(world.deps, "web", "")
    await until(lambda: container.running)
    world.shims.last.end(0)
    assert (await waiter).code == 0


async def test_conditions_that_do_not_exist_are_refused(world: LifeWorld) -> None:
    await world.create("web")
    with pytest.raises(InvalidParameter, match='invalid condition: "odd"'):
        await register(world.deps, "web", "odd")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await register(world.deps, "nosuch", "")
