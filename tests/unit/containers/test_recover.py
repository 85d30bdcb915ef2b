"""Recovery: whatever the last daemon left, records, shims, waiters and events agree again, and there are no orphans."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from containerkit.life import ENDPOINT, NOW, PORT, REMOVES_ITSELF, LifeWorld, restart, until
from wherry.containers.life.recover import KILLED, recover
from wherry.containers.life.remove import remove
from wherry.containers.life.start import start
from wherry.containers.life.stop import stop
from wherry.containers.life.wait import register
from wherry.containers.record import Container, MountPoint, Status
from wherry.errors import Failed, NotFound, Unavailable
from wherry.network.networks import Running
from wherry.runtime.shim_client import Exit
from wherry.spec.engine import HostConfig

LATER = NOW + 60 * 10**9  # after every `finished_at` of the records here
SEEN = NOW + 5  # `finished_at` of a record whose exit was dealt with

GOES_ON = "a process that was started"
WAITS = "a process that waits to be started"
ENDED = "an exit that nobody has seen"
STALE = "an exit that was dealt with"
NOTHING = "nothing"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def left(world: LifeWorld, container: Container, found: str) -> None:
    """Make the state that the next daemon finds."""
    await world.store.add(container)
    match found:
        case "a process that was started":
            world.shims.add(container.id, started=True)
        case "a process that waits to be started":
            world.shims.add(container.id)
        case "an exit that nobody has seen":
            world.shims.directories[container.id] = Exit(code=5, at=LATER, oom_killed=True, error="")
        case "an exit that was dealt with":
            world.shims.directories[container.id] = Exit(code=5, at=SEEN, oom_killed=False, error="")
    await world.restart_daemon()


async def recovered(world: LifeWorld, status: Status, found: str, **state: Any) -> Container:
    await left(world, world.record(status, **state), found)
    await recover(world.deps)
    await world.idle()
    return world.store.resolve("web")


@pytest.mark.parametrize(
    ("row", "found", "status", "code", "events"),
    [
        (Status.CREATED, NOTHING, Status.CREATED, 0, []),
        (Status.CREATED, WAITS, Status.CREATED, 0, []),
        (Status.CREATED, GOES_ON, Status.RUNNING, 0, []),
        (Status.CREATED, ENDED, Status.EXITED, 5, ["oom", "die"]),
        (Status.RUNNING, NOTHING, Status.EXITED, KILLED, ["die"]),
        (Status.RUNNING, WAITS, Status.EXITED, KILLED, ["die"]),
        (Status.RUNNING, GOES_ON, Status.RUNNING, 0, []),
        (Status.RUNNING, ENDED, Status.EXITED, 5, ["oom", "die"]),
        (Status.PAUSED, NOTHING, Status.EXITED, KILLED, ["die"]),
        (Status.PAUSED, WAITS, Status.EXITED, KILLED, ["die"]),
        (Status.PAUSED, GOES_ON, Status.RUNNING, 0, []),  # it was thawed, and the daemon ended before it could say so
        (Status.PAUSED, ENDED, Status.EXITED, 5, ["oom", "die"]),
        (Status.EXITED, NOTHING, Status.EXITED, 3, []),
        (Status.EXITED, WAITS, Status.EXITED, 3, []),
        (Status.EXITED, STALE, Status.EXITED, 3, []),
        (Status.EXITED, GOES_ON, Status.RUNNING, 3, []),
        (Status.EXITED, ENDED, Status.EXITED, 5, ["oom", "die"]),
    ],
)
async def test_the_record_says_what_is_so(
    world: LifeWorld, row: Status, found: str, status: Status, code: int, events: list[str]
) -> None:
    container = await recovered(world, row, found, exit_code=3 if row is Status.EXITED else 0)
    state, live = container.state, world.live(container)
    assert (state.status, state.exit_code) == (status, code)
    assert world.stored(container) == container
    assert world.actions() == events
    up = status is Status.RUNNING
    assert (live.shim is not None, live.ended.is_set()) == (up, not up)
    assert (state.pid != 0) == up
    assert world.networks.running is not None
    assert (container.id in world.networks.running) == up
    assert (container.id in world.shims.directories) == up
    assert any(shim.live for shim in world.shims.made) == up
    assert bool(container.endpoints) == (up and row in (Status.RUNNING, Status.PAUSED))


@pytest.mark.parametrize("found", [NOTHING, WAITS, STALE])
async def test_a_restart_that_waited_waits_again(world: LifeWorld, found: str) -> None:
    """The exit was told already: it is not told again, nor made another one."""
    await left(world, world.record(Status.RESTARTING, host=restart("on-failure"), exit_code=5, restart_count=2), found)
    await recover(world.deps)
    container = world.store.resolve("web")
    assert (container.state.status, container.state.exit_code) == (Status.RESTARTING, 5)
    assert container.state.finished_at == SEEN
    assert world.actions() == []
    waiter = await register(world.deps, "web", "next-exit")
    await until(lambda: container.running)
    assert container.state.restart_count == 2
    world.shims.last.end(0)
    assert (await waiter).code == 0


async def test_a_run_that_nobody_saw_after_a_restart_is_followed_by_another(world: LifeWorld) -> None:
    await left(world, world.record(Status.RESTARTING, host=restart("on-failure", 9), exit_code=3), ENDED)
    await recover(world.deps)
    container = world.store.resolve("web")
    assert (container.state.status, container.state.exit_code) == (Status.RESTARTING, 5)
    assert world.actions() == ["oom", "die"]
    await until(lambda: container.running)


async def test_a_restart_that_had_begun_goes_on(world: LifeWorld) -> None:
    container = await recovered(world, Status.RESTARTING, GOES_ON, host=restart("always"))
    assert container.running
    assert world.live(container).restart is None


@pytest.mark.parametrize("found", [WAITS, NOTHING])
@pytest.mark.parametrize("row", [Status.CREATED, Status.EXITED, Status.RESTARTING])
async def test_a_start_that_did_not_happen_leaves_no_address(world: LifeWorld, row: Status, found: str) -> None:
    """The row tells what the process will have, for a daemon that dies after letting it go."""
    container = world.record(row, host=restart("on-failure"))
    container.endpoints, container.ports = (ENDPOINT,), (PORT,)
    await left(world, container, found)
    await recover(world.deps)
    container = world.store.resolve("web")
    assert container.state.status is row
    assert (container.endpoints, container.ports) == ((), ())
    assert world.stored(container) == container


@pytest.mark.parametrize("found", [GOES_ON, ENDED])
async def test_a_run_that_was_not_recorded_is_a_run_like_any_other(world: LifeWorld, found: str) -> None:
    """The daemon died between letting the process go and saying so: what the last run left is over."""
    container = world.record(Status.EXITED, host=restart("unless-stopped"), stopped_by_user=True, error="old")
    container.endpoints, container.ports = (ENDPOINT,), (PORT,)
    await left(world, container, found)
    await recover(world.deps)
    container = world.store.resolve("web")
    assert container.state.started_at > SEEN
    assert (container.state.stopped_by_user, container.state.error) == (False, "")
    if found == GOES_ON:
        assert world.networks.running == {container.id: Running(netns_path=world.shims.last.netns_path)}
        assert (container.running, container.ports) == (True, (PORT,))
    else:
        assert container.state.status is Status.RESTARTING
        die = next(event for event in world.events.past(0, 1 << 63) if event.action == "die")
        assert die.attributes["execDuration"] == "0"


async def test_a_frozen_process_is_a_paused_container(world: LifeWorld) -> None:
    for row in (Status.RUNNING, Status.PAUSED):
        container = world.record(row, row)
        await left(world, container, GOES_ON)
        world.shims.last.paused = True
    await recover(world.deps)
    assert {each.name: each.state.status for each in world.store} == {
        "running": Status.PAUSED,
        "paused": Status.PAUSED,
    }


async def test_an_adopted_container_obeys_and_its_exit_is_seen(world: LifeWorld) -> None:
    container = await recovered(world, Status.RUNNING, GOES_ON)
    assert world.networks.running == {container.id: Running(netns_path=world.shims.last.netns_path)}
    assert container.endpoints
    waiter = await register(world.deps, "web", "not-running")
    await stop(world.deps, "web")
    assert (await waiter).code == 143
    await world.idle()
    assert world.shims.directories == {}
    await start(world.deps, "web")
    assert container.running


async def test_a_waiter_after_recovery_learns_of_an_exit_that_nobody_saw(world: LifeWorld) -> None:
    await recovered(world, Status.RUNNING, ENDED)
    assert (await (await register(world.deps, "web", ""))).code == 5


async def test_the_end_of_a_process_is_when_it_ended_not_when_it_was_noticed(world: LifeWorld) -> None:
    container = await recovered(world, Status.RUNNING, ENDED)
    assert container.state.finished_at == LATER
    assert container.state.oom_killed


@pytest.mark.parametrize("found", [ENDED, NOTHING, WAITS])
async def test_an_auto_remove_container_that_has_ended_goes(world: LifeWorld, found: str) -> None:
    empty = world.held()
    await left(world, world.record(Status.RUNNING, host=REMOVES_ITSELF), found)
    await recover(world.deps)
    await world.idle()
    assert world.held() == empty
    assert world.actions()[-2:] == ["die", "destroy"]


async def test_an_auto_remove_container_kept_for_a_restart_that_did_not_come_goes(world: LifeWorld) -> None:
    empty = world.held()
    await left(world, world.record(Status.EXITED, host=REMOVES_ITSELF), STALE)
    await recover(world.deps)
    await world.idle()
    assert world.held() == empty


@pytest.mark.parametrize(
    ("policy", "stopped", "comes"),
    [
        ("no", False, False),
        ("on-failure", False, False),
        ("always", False, True),
        ("always", True, True),
        ("unless-stopped", False, True),
        ("unless-stopped", True, False),
    ],
)
async def test_restart_policies_at_the_daemon_s_start(
    world: LifeWorld, policy: str, stopped: bool, comes: bool
) -> None:
    container = await recovered(
        world, Status.EXITED, NOTHING, host=restart(policy), stopped_by_user=stopped, exit_code=1, restart_count=7
    )
    assert container.running is comes
    if comes:
        assert (container.state.restart_count, container.state.stopped_by_user) == (0, False)
        assert world.actions() == ["start"]


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
async def test_policies_apply_to_exits_that_nobody_saw(world: LifeWorld, policy: str) -> None:
    await left(world, world.record(Status.RUNNING, host=restart(policy)), ENDED)
    await recover(world.deps)
    container = world.store.resolve("web")
    assert (container.state.status, container.state.exit_code) == (Status.RESTARTING, 5)
    await until(lambda: container.running)
    assert container.state.restart_count == 1


async def test_a_container_that_was_killed_by_its_user_before_the_daemon_ended_stays_down(world: LifeWorld) -> None:
    container = await recovered(world, Status.RUNNING, ENDED, host=restart("unless-stopped"), stopped_by_user=True)
    assert container.state.status is Status.EXITED


async def test_what_was_never_started_is_not_started(world: LifeWorld) -> None:
    container = await recovered(world, Status.CREATED, NOTHING, host=restart("always"))
    assert container.state.status is Status.CREATED


async def test_one_that_cannot_be_started_keeps_no_other_from_it(
    world: LifeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    bad = world.record(Status.EXITED, "bad", host=restart("always"))
    bad.runtime = "gone"
    missing = world.record(Status.EXITED, "missing", host=restart("always"))
    world.deps.settings.directory(missing).rmdir()
    await left(world, bad, NOTHING)
    await left(world, missing, NOTHING)
    await left(world, world.record(Status.EXITED, "good", host=restart("always")), NOTHING)
    await recover(world.deps)
    assert {each.name: each.running for each in world.store} == {"bad": False, "missing": False, "good": True}
    assert "cannot start container bad" in caplog.text


async def test_a_failure_with_one_container_does_not_keep_the_daemon_from_starting(
    world: LifeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    await left(world, world.record(Status.CREATED, "one"), STALE)  # only `forget` is left to do, and fails
    await left(world, world.record(Status.RUNNING, "two"), GOES_ON)
    world.steps.failing = {"forget": Failed("no")}
    await recover(world.deps)
    assert world.store.resolve("two").running


async def test_a_half_made_container_goes_with_all_it_names(world: LifeWorld) -> None:
    empty = world.held()
    container = world.record(Status.CREATED)
    container.complete = False
    await world.volumes.ensure("a" * 64)
    container.mounts = (MountPoint(type="volume", source="", destination="/d", name="a" * 64, anonymous=True),)
    await left(world, container, NOTHING)
    await recover(world.deps)
    assert world.held() == empty


@pytest.mark.parametrize("after", ["prepare", "fill volume"])
async def test_a_create_that_the_daemon_s_end_broke_off_leaves_nothing(world: LifeWorld, after: str) -> None:
    """For real: the daemon is gone in the middle, no clean-up ran."""
    empty = world.held()
    reached, _ = world.steps.hold("ensure volume" if after == "prepare" else "fill volume")
    creating = asyncio.create_task(world.create("web", image="data"))
    await reached.wait()
    world.open()
    await recover(world.deps)
    assert world.held() == empty
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert world.held() == empty


@pytest.mark.parametrize("status", [Status.REMOVING, Status.DEAD])
@pytest.mark.parametrize("found", [NOTHING, ENDED, WAITS, GOES_ON])
async def test_a_half_removed_container_goes(world: LifeWorld, status: Status, found: str) -> None:
    empty = world.held()
    await left(world, world.record(status), found)
    await recover(world.deps)
    await world.idle()
    assert world.held() == empty


@pytest.mark.parametrize("found", [NOTHING, ENDED])
async def test_a_half_removed_container_that_still_cannot_go_can_be_removed_later(world: LifeWorld, found: str) -> None:
    empty = world.held()
    await left(world, world.record(Status.REMOVING), found)
    world.steps.failing = {"remove snapshot": Unavailable("busy")}
    await recover(world.deps)
    container = world.store.resolve("web")
    assert container.state.status is Status.DEAD
    world.steps.failing = {}
    await remove(world.deps, "web")
    assert world.held() == empty


async def test_what_belongs_to_nobody_goes(world: LifeWorld) -> None:
    kept = world.record(Status.RUNNING)
    await left(world, kept, GOES_ON)
    before = world.held()
    running = world.shims.add("1" * 64, started=True)
    created = world.shims.add("2" * 64)
    world.shims.directories["3" * 64] = Exit(code=0, at=LATER, oom_killed=False, error="")
    world.shims.directories["4" * 64] = None
    world.snapshots.rw["5" * 64] = None
    (world.root / "containers" / ("6" * 64)).mkdir()
    (world.root / "containers" / ("6" * 64) / "hosts").write_text("x")
    await recover(world.deps)
    assert not running.live
    assert not created.live
    assert world.held() == before | {f"live {kept.id[:12]}", f"network {kept.id[:12]}"}


async def test_recovery_twice_is_recovery_once(world: LifeWorld) -> None:
    container = await recovered(world, Status.RUNNING, GOES_ON)
    before = container.state
    await world.restart_daemon()
    await recover(world.deps)
    assert world.store.resolve("web").state == before
    assert world.actions() == []


async def test_the_network_of_another_is_kept_by_its_owner_alone(world: LifeWorld) -> None:
    other = world.record(Status.RUNNING, "other")
    await left(world, other, GOES_ON)
    host = HostConfig(runtime="crun", network_mode="container:other")
    joined = world.record(Status.RUNNING, "joined", host=host)
    joined.endpoints, joined.ports = (), ()
    await left(world, joined, GOES_ON)
    await recover(world.deps)
    shims = zip((other, joined), world.shims.made, strict=True)
    assert world.networks.running == {each.id: Running(netns_path=shim.netns_path) for each, shim in shims}


async def test_an_unknown_container_is_still_unknown(world: LifeWorld) -> None:
    await recover(world.deps)
    with pytest.raises(NotFound):
        world.store.resolve("web")
