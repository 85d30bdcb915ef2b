"""Health checks: what probes say of a container, when they run, and what becomes of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from containerkit.life import LifeWorld
from containerkit.world import World, until
from wherry.containers.life import health, pause, start, stop
from wherry.containers.life.recover import recover
from wherry.containers.record import Container, Health, HealthStatus, Probe, Status, decode, encode
from wherry.containers.streams import execs
from wherry.containers.streams.relay import STDERR, STDOUT, frame
from wherry.containers.views import inspect as views
from wherry.containers.views.listing import list_containers
from wherry.containers.views.shapes import human_status
from wherry.errors import Failed, InvalidParameter
from wherry.filters import parse
from wherry.spec.engine import ContainerConfig, ExecConfig, HealthConfig

MS = 10**6
HOUR = 3600 * 10**9
SOON = HealthConfig(test=["CMD-SHELL", "check"], interval=MS, timeout=HOUR, retries=2)
LATER = HealthConfig(test=["CMD", "check", "it"], interval=HOUR)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


def probe(code: int, *, start: int = 0, output: str = "") -> Probe:
    return Probe(start=start, end=start + 1, exit_code=code, output=output)


def checked(check: HealthConfig, *, started: int = 0) -> Any:
    """A container of which only the check and the start matter."""
    from types import SimpleNamespace

    return SimpleNamespace(config=ContainerConfig(healthcheck=check), state=SimpleNamespace(started_at=started))


def judged(container: Any, *codes: int, before: Health | None = None, start: int = 0) -> Health:
    found = before or Health()
    for code in codes:
        found = health.judge(container, found, probe(code, start=start))
    return found


# What probes say


def test_one_success_makes_healthy_and_retries_failures_in_a_row_make_unhealthy() -> None:
    container = checked(HealthConfig(test=["CMD", "x"], retries=2))
    assert judged(container, 0).status is HealthStatus.HEALTHY
    assert judged(container, 0, 1).status is HealthStatus.HEALTHY
    assert judged(container, 0, 1, 0, 1).status is HealthStatus.HEALTHY
    failed = judged(container, 0, 1, 7)
    assert (failed.status, failed.failing_streak) == (HealthStatus.UNHEALTHY, 2)
    assert judged(container, 0, before=failed) == Health(status=HealthStatus.HEALTHY, log=(*failed.log, probe(0)))


def test_without_retries_it_takes_three_failures() -> None:
    container = checked(HealthConfig(test=["CMD", "x"]))
    assert judged(container, 1, 1).status is HealthStatus.STARTING
    assert judged(container, 1, 1, -1).status is HealthStatus.UNHEALTHY


def test_failures_in_the_start_period_do_not_count_until_it_was_healthy_once() -> None:
    container = checked(HealthConfig(test=["CMD", "x"], retries=1, start_period=100), started=1000)
    early = judged(container, 1, 1, start=1099)
    assert (early.status, early.failing_streak, len(early.log)) == (HealthStatus.STARTING, 0, 2)
    assert judged(container, 1, start=1100).status is HealthStatus.UNHEALTHY
    assert judged(container, 0, 1, start=1050).status is HealthStatus.UNHEALTHY


def test_the_last_five_probes_are_kept() -> None:
    found = judged(checked(HealthConfig(test=["CMD", "x"])), *range(9))
    assert [each.exit_code for each in found.log] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("check", "runs"),
    [
        (None, False),
        (HealthConfig(), False),
        (HealthConfig(test=[]), False),
        (HealthConfig(test=["NONE"]), False),
        (HealthConfig(test=["BOGUS", "x"]), False),
        (HealthConfig(test=["CMD", "x"]), True),
        (HealthConfig(test=["CMD-SHELL", "x"]), True),
    ],
)
def test_only_commands_are_checks(check: HealthConfig | None, runs: bool) -> None:
    assert (health.check_of(checked(check)) is not None) is runs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (200 * MS, "200ms"), (1500 * MS, "1.5s"), (30 * 10**9, "30s"), (90 * 10**9, "1m30s"), (60 * 10**9, "1m0s"),
        (HOUR, "1h0m0s"), (MS, "1ms"), (1_250_000, "1.25ms"),
    ],
)  # fmt: skip
def test_times_are_written_as_docker_writes_them(ns: int, shown: str) -> None:
    assert health.duration(ns) == shown


# Running them


async def running(world: World, check: HealthConfig, **config: Any) -> Container:
    container = await world.add("web", config=ContainerConfig(image="busybox", healthcheck=check, **config))
    health.watch(world.deps, container, at_once=True)
    return container


class Probes:
    """The test as the shim's side of probes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen = 0

    async def next(self) -> Any:
        """The next probe's spec; it runs until `end`."""
        await until(lambda: len(self.world.shim.clients) > self.seen)
        self.seen += 1
        return self.world.shim.execs[-1]

    async def end(self, code: int, *output: bytes) -> None:
        writer = self.world.shim.clients[self.seen - 1][1]
        writer.writelines(output)
        exited, self.world.shim.exec_exit = self.world.shim.exec_exit, asyncio.get_running_loop().create_future()
        writer.close()
        exited.set_result(code)


def state(container: Container) -> Health:
    assert container.state.health is not None
    return container.state.health


async def test_probes_follow_each_other_and_every_change_is_an_event(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    for code in (0, 0, 1, 1, 1, 0):
        await probes.next()
        await probes.end(code, frame(STDOUT, b"two\nlines\n"), frame(STDERR, b"!"))
    await probes.next()
    told = [action for action in world.actions() if action.startswith("health")]
    assert told == ["health_status: healthy", "health_status: unhealthy", "health_status: healthy"]
    assert [each.exit_code for each in state(container).log] == [0, 1, 1, 1, 0]
    assert {each.output for each in state(container).log} == {"two\nlines\n!"}


async def test_probes_have_docker_s_exec_events(world: World) -> None:
    await running(world, SOON)
    probes = Probes(world)
    await probes.next()
    await probes.end(0)
    await until(lambda: "health_status: healthy" in world.actions())
    assert world.actions()[:2] == ["exec_create: /bin/sh -c check", "exec_start: /bin/sh -c check"]
    assert "exec_die" in world.actions()


async def test_an_event_of_trouble_says_what_the_probe_said(world: World) -> None:
    await running(world, HealthConfig(test=["CMD", "check"], interval=HOUR, retries=1))
    probes = Probes(world)
    await probes.next()
    await probes.end(3, frame(STDERR, b"connection\nrefused\n" + b"x" * 9999))
    await until(lambda: "health_status: unhealthy" in world.actions())
    attributes = world.last_attributes()
    assert attributes["exitCode"] == "3"
    assert attributes["output"].startswith("connection refused xxx")
    assert len(attributes["output"]) == health.ATTRIBUTE_LIMIT


async def test_a_probe_runs_as_the_container_s_user_with_its_shell_and_is_tied(world: World) -> None:
    await running(world, SOON, user="web", shell=["/bin/ash", "-e", "-c"])
    spec = await Probes(world).next()
    assert list(spec.args) == ["/bin/ash", "-e", "-c", "check"]
    assert (spec.user, spec.tied, spec.tty, spec.stdin, spec.stdout, spec.stderr) == (
        "web", True, False, False, True, True,
    )  # fmt: skip


async def test_output_is_cut_as_docker_cuts_it(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    await probes.next()
    await probes.end(0, *(frame(STDOUT, b"x" * 1000) for _ in range(5)))
    await until(lambda: bool(state(container).log))
    assert state(container).log[0].output == "x" * 4096 + "..."


async def test_a_probe_that_takes_too_long_is_cut_off_and_counts_as_failed(world: World) -> None:
    container = await running(world, HealthConfig(test=["CMD", "x"], interval=HOUR, timeout=20 * MS, retries=1))
    probes = Probes(world)
    await probes.next()
    reader, writer = world.shim.clients[0]
    writer.write(frame(STDOUT, b"half"))
    async with asyncio.timeout(10):
        assert await reader.read() == b""  # our side has closed: the shim kills it now
    world.shim.exec_exit.set_result(137)
    await until(lambda: bool(state(container).log))
    assert state(container).log[0].exit_code == -1
    assert state(container).log[0].output == "Health check exceeded timeout (20ms): half"
    assert state(container).status is HealthStatus.UNHEALTHY


async def test_a_probe_that_cannot_start_counts_as_failed_with_the_reason(world: World) -> None:
    world.shim.exec_error = InvalidParameter('exec: "check": executable file not found in $PATH: unknown')
    container = await running(world, HealthConfig(test=["CMD", "check"], interval=HOUR, retries=1))
    await until(lambda: bool(state(container).log))
    (found,) = state(container).log
    assert (found.exit_code, found.output) == (-1, 'exec: "check": executable file not found in $PATH: unknown')
    assert state(container).status is HealthStatus.UNHEALTHY


async def test_a_probe_that_ends_with_its_container_says_nothing(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    await probes.next()
    world.shim.live = False
    await probes.end(137)
    task = world.live(container).health
    assert task is not None
    async with asyncio.timeout(10):
        await task
    assert state(container).log == ()


async def test_nothing_of_probes_is_kept_among_the_execs(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    for _ in range(3):
        await probes.next()
        assert len(world.live(container).execs) == 1
        await probes.end(0)
    await until(lambda: len(state(container).log) == 3)
    health.stop(world.deps, container)
    await until(lambda: not world.live(container).execs)


async def test_to_stop_cuts_a_running_probe_off(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    await probes.next()
    task = health.stop(world.deps, container)
    assert task is not None
    async with asyncio.timeout(10):
        await asyncio.wait((task,))
        assert await world.shim.clients[0][0].read() == b""
    assert state(container) == Health(status=HealthStatus.UNHEALTHY)
    assert world.live(container).health is None


async def test_healthy_is_written_down_once_and_not_at_every_probe(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    for _ in range(4):
        await probes.next()
        await probes.end(0)
    await until(lambda: len(state(container).log) == 4)
    written = decode(world.state.rows("containers")[container.id])
    assert written.state.health is not None
    assert written.state.health.status is HealthStatus.HEALTHY
    assert len(written.state.health.log) == 1


async def test_a_disk_that_is_full_does_not_end_the_checks(world: World) -> None:
    container = await running(world, SOON)
    probes = Probes(world)
    save = world.deps.store.save

    async def fail(_container: Container) -> None:
        raise Failed("no space left on device")

    world.deps.store.save = fail  # type: ignore[method-assign]
    await probes.next()
    await probes.end(0)
    await probes.next()
    world.deps.store.save = save  # type: ignore[method-assign]
    assert state(container).status is HealthStatus.HEALTHY


@pytest.mark.usefixtures("world")
async def test_capture_takes_frames_of_any_size_and_forgets_what_is_beyond_the_limit(world: World) -> None:
    container = await world.add("web")
    probes = Probes(world)
    work = asyncio.ensure_future(execs.capture(world.deps, container, ExecConfig(cmd=["x"]), limit=10, timeout=3600))
    await probes.next()
    await probes.end(5, frame(STDOUT, b""), frame(STDOUT, b"abc"), frame(STDERR, b"d" * 300_000))
    async with asyncio.timeout(10):
        found = await work
    assert found == execs.Captured(code=5, output=b"abcddddddd", cut=True, timed_out=False)


# Life


async def test_a_start_begins_anew_and_keeps_what_was_said(life: LifeWorld) -> None:
    container = await life.run("web", healthcheck=LATER)
    assert state(container) == Health()
    task = life.live(container).health
    assert task is not None
    assert not task.done()
    container.state.health = Health(status=HealthStatus.HEALTHY, log=(probe(0),))
    life.shims.last.end(0)
    await life.idle()
    assert task.done()
    assert state(container) == Health(status=HealthStatus.UNHEALTHY, log=(probe(0),))
    await start.start(life.deps, "web")
    assert state(container) == Health(log=(probe(0),))
    assert life.live(container).health is not None


async def test_without_a_check_there_is_no_health_and_no_task(life: LifeWorld) -> None:
    for name, check in (("none", None), ("off", HealthConfig(test=["NONE"]))):
        container = await life.run(name, healthcheck=check)
        assert container.state.health is None
        assert life.live(container).health is None
        assert "Health" not in views.state(container)


async def test_a_paused_container_is_not_probed_and_is_probed_at_once_afterwards(life: LifeWorld) -> None:
    container = await life.run("web", healthcheck=LATER)
    container.state.health = Health(status=HealthStatus.HEALTHY)
    await pause.pause(life.deps, "web")
    assert life.live(container).health is None
    assert state(container).status is HealthStatus.UNHEALTHY
    tried = asyncio.Event()

    async def exec_(_spec: Any) -> Any:
        tried.set()
        raise Failed("no")

    life.shims.last.exec = exec_  # type: ignore[method-assign]
    await pause.unpause(life.deps, "web")
    async with asyncio.timeout(10):
        await tried.wait()


async def test_a_pause_that_fails_changes_nothing(life: LifeWorld) -> None:
    container = await life.run("web", healthcheck=LATER)
    container.state.health = Health(status=HealthStatus.HEALTHY)
    life.steps.failing["pause"] = Failed("cannot freeze")
    with pytest.raises(Failed):
        await pause.pause(life.deps, "web")
    assert state(container).status is HealthStatus.HEALTHY
    assert life.live(container).health is not None


async def test_a_daemon_that_starts_again_goes_on(life: LifeWorld) -> None:
    container = await life.run("web", healthcheck=LATER)
    container.state.health = Health(status=HealthStatus.HEALTHY, log=(probe(0),))
    await life.deps.store.save(container)
    await life.restart_daemon()
    await recover(life.deps)
    found = life.store.resolve("web")
    assert state(found) == Health(status=HealthStatus.HEALTHY, log=(probe(0),))
    assert life.live(found).health is not None
    await stop.stop(life.deps, "web")
    assert life.live(found).health is None


async def test_a_record_of_before_there_were_checks_is_read_and_checked(life: LifeWorld) -> None:
    container = await life.run("web", healthcheck=LATER)
    container.state.health = None
    raw = encode(container).replace(b',"health":null', b"")
    assert decode(raw).state.health is None
    await life.deps.store.save(container)
    await life.restart_daemon()
    await recover(life.deps)
    assert state(life.store.resolve("web")) == Health()


# Views


async def test_inspect_ps_and_filters_show_it(world: World) -> None:
    container = await world.add("web", config=ContainerConfig(image="busybox", healthcheck=LATER))
    await world.add("plain")
    container.state.health = Health(
        status=HealthStatus.UNHEALTHY,
        failing_streak=3,
        log=(Probe(start=1_700_000_000 * 10**9, end=1_700_000_000 * 10**9 + 5, exit_code=1, output="no\n"),),
    )
    assert views.state(container)["Health"] == {
        "Status": "unhealthy",
        "FailingStreak": 3,
        "Log": [
            {
                "Start": "2023-11-14T22:13:20Z",
                "End": "2023-11-14T22:13:20.000000005Z",
                "ExitCode": 1,
                "Output": "no\n",
            }
        ],
    }
    now = container.state.started_at + 2 * 10**9
    shown = {}
    for status in HealthStatus:
        container.state.health = Health(status=status)
        shown[str(status)] = human_status(container, now)
        found = await list_containers(world.deps, filters=parse(f'{{"health":["{status}"]}}'))
        assert [each["Names"] for each in found] == [["/web"]]
    assert shown == {
        "starting": "Up 2 seconds (health: starting)",
        "healthy": "Up 2 seconds (healthy)",
        "unhealthy": "Up 2 seconds (unhealthy)",
    }
    found = await list_containers(world.deps, filters=parse('{"health":["none"]}'))
    assert [each["Names"] for each in found] == [["/plain"]]
    container.state.status = Status.PAUSED
    assert human_status(container, now) == "Up 2 seconds (Paused)"
