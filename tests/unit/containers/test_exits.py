"""Exits: what is recorded and told, restart policies, and containers that remove themselves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import NOW, REMOVES_ITSELF, LifeWorld, restart, until
from wherry.containers.life import exits
from wherry.containers.life.exits import FIRST_DELAY, LONG_RUN, LONGEST_DELAY, should_restart
from wherry.containers.life.rename import rename
from wherry.containers.life.start import start, start_locked
from wherry.containers.life.wait import register
from wherry.containers.live import WaitResult
from wherry.containers.record import Container, Status
from wherry.errors import Failed, Unavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def ends(world: LifeWorld, container: Container, code: int, *, at: int = 0, **options: object) -> None:
    world.shims.last.end(code, at=at, **options)  # type: ignore[arg-type]
    await until(lambda: not container.running)


async def test_an_exit_is_recorded_told_and_tidied_up_after(world: LifeWorld) -> None:
    container = await world.run("web")
    container.state.started_at = NOW
    waiter = await register(world.deps, "web", "not-running")
    await ends(world, container, 7, at=NOW + 90 * 10**9, error="words")
    assert await waiter == WaitResult(7, "words")
    await world.idle()
    state = container.state
    assert (state.status, state.exit_code, state.error) == (Status.EXITED, 7, "words")
    assert (state.pid, state.finished_at) == (0, NOW + 90 * 10**9)
    assert (container.endpoints, container.ports) == ((), ())
    await until(lambda: world.stored(container) == container)
    assert world.live(container).ended.is_set()
    assert world.live(container).shim is None
    assert world.networks.connected == set()
    assert world.shims.directories == {}
    assert world.actions() == ["create", "start", "die"]
    die = next(event for event in world.events.past(0, 1 << 63) if event.action == "die")
    assert (die.attributes["exitCode"], die.attributes["execDuration"]) == ("7", "90")
    assert world.actions("network") == ["connect", "disconnect"]


async def test_a_container_killed_for_its_memory_says_so(world: LifeWorld) -> None:
    container = await world.run("web")
    await ends(world, container, 137, oom=True)
    await world.idle()
    assert container.state.oom_killed
    assert world.actions() == ["create", "start", "oom", "die"]


async def test_a_process_that_ends_as_soon_as_it_starts(world: LifeWorld) -> None:
    world.shims.at_once = 3
    container = await world.create("web")
    waiter = await register(world.deps, "web", "next-exit")
    await start(world.deps, "web")
    assert (await waiter).code == 3
    assert world.actions() == ["create", "start", "die"]
    assert container.state.status is Status.EXITED


@pytest.mark.parametrize("step", ["release", "write containers"])
async def test_the_world_learns_of_an_exit_even_when_a_step_fails(world: LifeWorld, step: str) -> None:
    container = await world.run("web")
    world.steps.failing = {step: Unavailable("no")}
    waiter = await register(world.deps, "web", "next-exit")
    await ends(world, container, 4)
    assert (await waiter).code == 4
    assert world.live(container).ended.is_set()
    assert container.state.status is Status.EXITED


async def test_a_tidying_up_that_fails_is_only_logged(world: LifeWorld, caplog: pytest.LogCaptureFixture) -> None:
    container = await world.run("web")
    world.steps.failing = {"forget": Failed("no")}
    await ends(world, container, 0)
    await world.idle()
    assert "tidying up" in caplog.text


async def test_the_tidying_up_leaves_a_new_run_alone(world: LifeWorld) -> None:
    """It was asked for after the last exit, and comes to its turn only when the next run is there."""
    container = await world.run("web")
    world.shims.last.end(0)
    async with world.deps.locks(container.id):
        pass
    await until(lambda: not container.running)
    async with world.deps.locks(container.id):
        if not container.running:
            await start_locked(world.deps, container)
    await world.idle()
    assert world.shims.directories == {container.id: world.shims.last}


async def test_an_auto_remove_container_disappears_with_its_volumes(world: LifeWorld) -> None:
    empty = world.held()
    container = await world.run("web", image="data", host=REMOVES_ITSELF)
    removed = await register(world.deps, "web", "removed")
    exited = await register(world.deps, "web", "next-exit")
    await ends(world, container, 9)
    assert [(await exited).code, (await removed).code] == [9, 9]
    await world.idle()
    assert world.held() == empty
    assert world.actions() == ["create", "start", "die", "destroy"]


async def test_an_automatic_removal_that_fails_is_told_to_who_waits(world: LifeWorld) -> None:
    container = await world.run("web", host=REMOVES_ITSELF)
    removed = await register(world.deps, "web", "removed")
    world.steps.failing = {"remove snapshot": Unavailable("busy")}
    await ends(world, container, 9)
    result = await removed
    assert result.code == 9
    assert "busy" in (result.error or "")
    assert container.state.status is Status.DEAD
    await until(lambda: world.stored(container) == container)


@pytest.mark.parametrize(
    ("policy", "retries", "code", "count", "stopped", "again"),
    [
        ("no", 0, 1, 0, False, False),
        ("", 0, 1, 0, False, False),
        ("always", 0, 0, 0, False, True),
        ("always", 0, 1, 99, False, True),
        ("always", 0, 0, 0, True, False),
        ("unless-stopped", 0, 0, 0, False, True),
        ("unless-stopped", 0, 0, 0, True, False),
        ("on-failure", 0, 0, 0, False, False),
        ("on-failure", 0, 1, 99, False, True),
        ("on-failure", 2, 1, 1, False, True),
        ("on-failure", 2, 1, 2, False, False),
        ("on-failure", 0, 1, 0, True, False),
    ],
)
def test_restart_policies(
    world: LifeWorld, policy: str, retries: int, code: int, count: int, stopped: bool, again: bool
) -> None:
    container = world.record(
        Status.RUNNING, host=restart(policy, retries), restart_count=count, stopped_by_user=stopped
    )
    assert should_restart(container, code) is again


async def test_on_failure_tries_so_often_and_gives_up(world: LifeWorld) -> None:
    world.shims.at_once = 1
    delays: list[float] = []
    container = await world.run("web", host=restart("on-failure", 2))
    live = world.live(container)
    while True:
        await until(lambda: live.restart is not None or container.state.status is Status.EXITED)
        if live.restart is None:
            break
        delays.append(live.backoff)
        await until(lambda: live.restart is None)
    await world.idle()
    assert len(world.shims.made) == 3
    assert delays == [FIRST_DELAY, 2 * FIRST_DELAY]
    assert (container.state.restart_count, container.state.exit_code) == (2, 1)
    await until(lambda: world.stored(container) == container)
    assert world.actions() == ["create", *["start", "die"] * 3]


def test_the_delay_doubles_up_to_a_limit_and_begins_anew_after_a_long_run() -> None:
    delays, delay = [], 0.0
    for _ in range(12):
        delay = exits._next_delay(delay, 10**9)
        delays.append(delay)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == LONGEST_DELAY
    assert exits._next_delay(LONGEST_DELAY, LONG_RUN) == FIRST_DELAY


async def test_waiters_learn_of_an_exit_that_is_followed_by_a_restart(world: LifeWorld) -> None:
    """As with Docker: both conditions are fulfilled by each exit."""
    container = await world.run("web", host=restart("always"))
    waiters = [await register(world.deps, "web", condition) for condition in ("not-running", "next-exit")]
    world.live(container).backoff = 30.0
    await ends(world, container, 3)
    assert [(await waiter).code for waiter in waiters] == [3, 3]
    assert container.state.status is Status.RESTARTING
    await until(lambda: world.stored(container) == container)


async def test_a_restart_that_fails_ends_in_exited_and_tells_who_waits(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    world.steps.failing = {"create process": Unavailable("no more")}
    await ends(world, container, 3)
    waiter = await register(world.deps, "web", "next-exit")
    result = await waiter
    assert result.error == "no more"
    await world.idle()
    assert (container.state.status, container.state.error) == (Status.EXITED, "no more")
    await until(lambda: world.stored(container) == container)
    assert world.networks.connected == set()


async def test_a_restart_whose_start_fails_at_the_last_step_ends_in_exited(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    world.steps.failing = {"start": Unavailable("no more")}
    await ends(world, container, 3)
    await until(lambda: container.state.status is Status.EXITED)
    await world.idle()
    stored = world.stored(container)
    assert stored is not None
    assert stored.state.status is Status.EXITED


async def test_a_failure_of_the_host_s_files_at_a_restart_leaves_nobody_waiting(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    directory = world.deps.settings.directory(container)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    await ends(world, container, 3)
    result = await (await register(world.deps, "web", "not-running"))
    assert "cannot start container web" in (result.error or "")


async def test_a_container_can_be_renamed_while_it_waits_for_its_restart(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    await ends(world, container, 3)
    await rename(world.deps, "web", "www")
    await until(lambda: container.running)
    assert world.store.resolve("www") is container


async def test_the_daemon_s_end_amid_a_restart_leaves_a_record_to_go_on_from(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    reached, _ = world.steps.hold("start")
    await ends(world, container, 3)
    await reached.wait()
    await world.background.close()
    stored = world.stored(container)
    assert stored is not None
    assert (stored.state.status, stored.state.exit_code) == (Status.RESTARTING, 3)
    assert world.networks.connected == set()
    assert not world.shims.last.live


async def test_an_exit_of_an_older_run_changes_nothing(world: LifeWorld) -> None:
    container = await world.run("web")
    old = world.shims.last
    world.live(container).shim = world.shims.add("f" * 64)  # type: ignore[assignment]
    old.end(1)
    await asyncio.sleep(0.01)
    assert container.running
