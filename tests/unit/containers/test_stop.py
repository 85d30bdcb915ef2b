"""stop, kill and restart: signals, deadlines, frozen containers, and what restart policies make of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import REMOVES_ITSELF, LifeWorld, restart, until
from wherry.containers.life import restart as restarting
from wherry.containers.life.pause import pause
from wherry.containers.life.remove import remove
from wherry.containers.life.stop import DEFAULT_TIMEOUT, kill, stop, timeout_of
from wherry.containers.life.wait import register
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, InvalidParameter, NotFound, NotModified, Unavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def ended(world: LifeWorld, container: Container) -> None:
    await until(lambda: not container.running)
    await world.idle()


async def test_stop_asks_first(world: LifeWorld) -> None:
    container = await world.run("web")
    await stop(world.deps, "web")
    assert world.shims.last.signals == [15]
    assert (container.state.status, container.state.exit_code) == (Status.EXITED, 143)
    assert container.state.stopped_by_user
    await until(lambda: world.stored(container) == container)
    assert world.actions() == ["create", "start", "kill", "die", "stop"]
    assert world.networks.connected == set()


async def test_stop_kills_what_does_not_listen(world: LifeWorld) -> None:
    container = await world.run("web")
    world.shims.last.deaf = True
    await stop(world.deps, "web", timeout=0)
    assert world.shims.last.signals == [15, 9]
    assert container.state.exit_code == 137
    assert world.actions() == ["create", "start", "kill", "kill", "die", "stop"]


async def test_without_end_means_without_sigkill(world: LifeWorld) -> None:
    await world.run("web")
    world.shims.last.deaf = True
    stopping = asyncio.create_task(stop(world.deps, "web", timeout=-1))
    await until(lambda: world.shims.last.signals == [15])
    await asyncio.sleep(0.01)
    assert not stopping.done()
    world.shims.last.end(0)
    await stopping
    assert world.shims.last.signals == [15]


async def test_the_signal_is_the_request_s_the_container_s_or_sigterm(world: LifeWorld) -> None:
    await world.run("own", stop_signal="SIGINT")
    await stop(world.deps, "own")
    assert world.shims.last.signals == [2]
    await world.run("asked", stop_signal="SIGINT")
    await stop(world.deps, "asked", signal="QUIT")
    assert world.shims.last.signals == [3]
    await world.run("odd")
    with pytest.raises(InvalidParameter):
        await stop(world.deps, "odd", signal="NOSUCH")
    assert world.shims.last.signals == []


async def test_the_deadline_is_the_request_s_the_container_s_or_ten_seconds(world: LifeWorld) -> None:
    own = await world.create("own", stop_timeout=3)
    plain = await world.create("plain")
    assert [timeout_of(own, 0), timeout_of(own, None), timeout_of(plain, None)] == [0, 3, DEFAULT_TIMEOUT]


async def test_a_client_that_leaves_does_not_stop_a_stop(world: LifeWorld) -> None:
    container = await world.run("web")
    world.shims.last.deaf = True
    stopping = asyncio.create_task(stop(world.deps, "web", timeout=-1))
    await until(lambda: world.shims.last.signals == [15])
    stopping.cancel()
    world.shims.last.end(0)
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert container.state.status is Status.EXITED


@pytest.mark.parametrize("status", [Status.CREATED, Status.EXITED])
async def test_what_does_not_run_is_not_stopped_and_not_killed(world: LifeWorld, status: Status) -> None:
    container = await world.create("web")
    container.state.status = status
    with pytest.raises(NotModified):
        await stop(world.deps, "web")
    with pytest.raises(Conflict, match=f"cannot kill container: web: container {container.id} is not running"):
        await kill(world.deps, "web")
    with pytest.raises(NotFound):
        await kill(world.deps, "nosuch")


async def test_a_container_that_ended_just_now_is_stopped(world: LifeWorld) -> None:
    """The process is gone, the news are not here yet: no error for a stop that found what it wanted."""
    container = await world.run("web")
    shim = world.shims.last
    shim.gone = True
    stopping = asyncio.create_task(stop(world.deps, "web"))
    await until(lambda: "kill" in world.steps.taken)
    shim.end(5)
    await stopping
    assert container.state.exit_code == 5


async def test_a_container_that_ended_just_now_is_not_killed(world: LifeWorld) -> None:
    await world.run("web")
    world.shims.last.gone = True
    with pytest.raises(Conflict, match="is not running"):
        await kill(world.deps, "web")
    assert "kill" not in world.actions()


async def test_stop_while_paused_thaws_it_and_says_so(world: LifeWorld) -> None:
    container = await world.run("web")
    world.shims.last.deaf = True
    await pause(world.deps, "web")
    stopping = asyncio.create_task(stop(world.deps, "web", timeout=-1))
    await until(lambda: container.state.status is Status.RUNNING)
    assert not world.shims.last.paused
    world.shims.last.end(0)
    await stopping
    assert world.actions() == ["create", "start", "pause", "kill", "unpause", "die", "stop"]


async def test_killing_a_paused_container_ends_it(world: LifeWorld) -> None:
    container = await world.run("web")
    await pause(world.deps, "web")
    await kill(world.deps, "web")
    await ended(world, container)
    assert container.state.exit_code == 137


async def test_other_signals_leave_a_paused_container_frozen(world: LifeWorld) -> None:
    container = await world.run("web")
    await pause(world.deps, "web")
    await kill(world.deps, "web", signal="HUP")
    assert (container.state.status, world.shims.last.paused) == (Status.PAUSED, True)


async def test_kill_sends_one_signal_and_waits_for_nothing(world: LifeWorld) -> None:
    container = await world.run("web")
    await kill(world.deps, "web", signal="USR1")
    assert (world.shims.last.signals, container.running) == ([10], True)
    assert not container.state.stopped_by_user
    event = world.events.past(0, 1 << 63)[-1]
    assert (event.action, event.attributes["signal"]) == ("kill", "10")


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
async def test_a_killed_container_is_not_restarted_even_by_the_next_daemon(world: LifeWorld, signal: str) -> None:
    container = await world.run("web", host=restart("unless-stopped"))
    world.shims.last.deaf = True
    await kill(world.deps, "web", signal=signal)
    stored = world.stored(container)
    assert stored is not None
    assert stored.state.stopped_by_user
    world.shims.last.end(137)
    await ended(world, container)
    assert container.state.status is Status.EXITED


async def test_killing_an_auto_remove_container_takes_it_away(world: LifeWorld) -> None:
    empty = world.held()
    await world.run("web", image="data", host=REMOVES_ITSELF)
    waiter = await register(world.deps, "web", "removed")
    await kill(world.deps, "web")
    assert (await waiter).code == 137
    await world.idle()
    assert world.held() == empty
    assert world.actions() == ["create", "start", "kill", "die", "destroy"]


async def test_stopping_a_container_that_waits_for_its_restart_keeps_it_down(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    world.live(container).backoff = 30.0
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    waiter = await register(world.deps, "web", "next-exit")
    await stop(world.deps, "web")
    assert (container.state.status, container.state.stopped_by_user) == (Status.EXITED, True)
    await until(lambda: world.stored(container) == container)
    assert (await waiter).code == 1
    assert world.live(container).restart is None
    await world.idle()
    assert len(world.shims.made) == 1


async def test_restart_gives_a_new_process(world: LifeWorld) -> None:
    container = await world.run("web")
    await restarting.restart(world.deps, "web")
    assert world.shims.made[0].signals == [15]
    assert (container.running, container.state.pid) == (True, world.shims.made[1].pid)
    assert not container.state.stopped_by_user
    assert world.actions() == ["create", "start", "kill", "die", "start", "restart"]


@pytest.mark.parametrize("status", [Status.CREATED, Status.EXITED])
async def test_restart_starts_what_does_not_run(world: LifeWorld, status: Status) -> None:
    container = await world.create("web")
    container.state.status = status
    await restarting.restart(world.deps, "web")
    assert container.running


async def test_restart_of_an_auto_remove_container_keeps_it_this_once(world: LifeWorld) -> None:
    empty = world.held()
    container = await world.run("web", host=REMOVES_ITSELF)
    await restarting.restart(world.deps, "web")
    assert world.store.get(container.id) is container
    assert container.running
    world.shims.last.end(0)
    await until(lambda: world.store.get(container.id) is None)
    await world.idle()
    assert world.held() == empty


async def test_restart_of_an_auto_remove_container_that_cannot_start_again_takes_it_away(world: LifeWorld) -> None:
    empty = world.held()
    await world.run("web", host=REMOVES_ITSELF)
    world.steps.failing = {"create process": Unavailable("no")}
    with pytest.raises(Unavailable):
        await restarting.restart(world.deps, "web")
    assert world.held() == empty


async def test_restart_resets_the_restart_policy_s_count(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("on-failure", 5))
    container.state.restart_count = 4
    await restarting.restart(world.deps, "web")
    assert container.state.restart_count == 0


async def test_restart_of_a_container_that_waits_for_its_restart(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    world.live(container).backoff = 30.0
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    await restarting.restart(world.deps, "web")
    await world.idle()
    assert container.running
    assert len(world.shims.made) == 2


async def test_restart_of_a_paused_container(world: LifeWorld) -> None:
    container = await world.run("web")
    await pause(world.deps, "web")
    await restarting.restart(world.deps, "web")
    assert container.state.status is Status.RUNNING
    assert len(world.shims.made) == 2


async def test_a_dead_container_cannot_be_restarted(world: LifeWorld) -> None:
    container = await world.create("web")
    container.state.status = Status.DEAD
    with pytest.raises(Conflict, match="marked for removal"):
        await restarting.restart(world.deps, "web")
    assert world.shims.made == []


async def test_a_container_removed_while_it_was_being_restarted_is_not_found(world: LifeWorld) -> None:
    await world.run("web")
    world.shims.last.deaf = True
    restart_ = asyncio.create_task(restarting.restart(world.deps, "web", timeout=-1))
    await until(lambda: world.shims.last.signals == [15])
    removal = asyncio.create_task(remove(world.deps, "web", force=True))
    results = await asyncio.gather(restart_, removal, return_exceptions=True)
    assert results[1] is None
    assert results[0] is None or isinstance(results[0], NotFound)
    await world.idle()
    assert world.store.all() == []
    assert world.networks.connected == set()
    assert not any(shim.live for shim in world.shims.made)
