"""start: the process and all it stands on, or nothing; and what a start that fails leaves to be seen."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import ENDPOINT, PORT, REMOVES_ITSELF, LifeWorld, cancelled_at, restart, until
from wherry.containers.life.pause import pause
from wherry.containers.life.remove import remove
from wherry.containers.life.start import exit_code_of, start, start_locked
from wherry.containers.life.stop import stop
from wherry.containers.life.wait import register
from wherry.containers.live import PendingAttach
from wherry.containers.record import Status
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, NotModified, Unavailable
from wherry.spec.engine import HostConfig, Mount

STEPS = ["connect", "create process", "attach", "write containers", "start", "write containers"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


def waiting_client(world: LifeWorld, container: object) -> PendingAttach:
    session = PendingAttach(stdin=False, stdout=True, stderr=True)
    world.live(container).pending.append(session)  # type: ignore[arg-type]
    return session


async def test_a_started_container_runs_and_says_so(world: LifeWorld) -> None:
    container = await world.create("web", cmd=["sleep", "9"])
    await start(world.deps, "web")
    state = container.state
    assert (state.status, state.pid, state.pid_start) == (Status.RUNNING, world.shims.last.pid, 77)
    assert (state.started_at > 0, state.error, state.stopped_by_user) == (True, "", False)
    assert (container.endpoints, container.ports) == ((ENDPOINT,), (PORT,))
    assert world.stored(container) == container
    assert world.shims.last.started
    assert world.shims.specs[0].spec["process"]["args"] == ["sleep", "9"]
    assert world.actions() == ["create", "start"]
    assert world.actions("network") == ["connect"]
    assert not any("netns" in each for each in world.held())  # ours is closed: the shim has its own


async def test_the_row_says_running_only_once_the_process_is_let_go(world: LifeWorld) -> None:
    container = await world.create("web")
    reached, go_on = world.steps.hold("start")
    starting = asyncio.create_task(start(world.deps, "web"))
    await reached.wait()
    stored = world.stored(container)
    assert stored is not None
    assert (stored.state.status, stored.endpoints) == (Status.CREATED, container.endpoints)
    assert container.endpoints
    go_on.set()
    await starting
    stored = world.stored(container)
    assert stored is not None
    assert (stored.state.status, stored.state.pid) == (Status.RUNNING, world.shims.last.pid)


async def test_a_waiting_client_is_attached_before_the_process_runs(world: LifeWorld) -> None:
    container = await world.create("web")
    session = waiting_client(world, container)
    await start(world.deps, "web")
    assert world.shims.last.clients == ["created"]
    assert session.streams.result() is not None
    assert world.live(container).pending == []


@pytest.mark.parametrize("step", ["write containers", "start"])
async def test_a_client_that_comes_while_the_process_is_being_let_go_is_attached(world: LifeWorld, step: str) -> None:
    container = await world.create("web")
    sessions: list[PendingAttach] = []
    loop = asyncio.get_running_loop()

    def come(name: str) -> None:
        if name == step and not sessions:
            loop.call_soon_threadsafe(lambda: sessions.append(waiting_client(world, container)))

    world.steps.notice = come
    await start(world.deps, "web")
    assert sessions[0].streams.done()
    assert sessions[0].streams.result() is not None
    assert world.live(container).pending == []


async def test_start_takes_these_steps(world: LifeWorld) -> None:
    waiting_client(world, await world.create("web"))
    world.steps.clear()
    await start(world.deps, "web")
    assert world.steps.taken == STEPS


@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_failure_at_any_step_undoes_the_rest(world: LifeWorld, step: int) -> None:
    container = await world.create("web")
    session = waiting_client(world, container)
    before = world.held()
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable, match=STEPS[step]):
        await start(world.deps, "web")
    assert world.held() == before
    state = container.state
    assert (state.status, state.pid, state.started_at) == (Status.CREATED, 0, 0)
    assert (container.endpoints, container.ports) == ((), ())
    assert state.error == f"{STEPS[step]} cannot be done"
    assert state.exit_code == 128
    assert world.stored(container) == container
    assert session.streams.done()
    assert world.live(container).shim is None
    assert world.live(container).ended.is_set()
    assert world.actions() == ["create"]
    await start(world.deps, "web")
    assert container.running


@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_a_start_again_that_fails_leaves_what_is_known_of_the_last_run(world: LifeWorld, step: int) -> None:
    container = await world.run("web")
    world.shims.last.end(3)
    await until(lambda: not container.running)
    await world.idle()
    ended = container.state.started_at, container.state.finished_at
    waiting_client(world, container)
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable):
        await start(world.deps, "web")
    assert container.state.status is Status.EXITED
    assert (container.state.started_at, container.state.finished_at) == ended


@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_a_start_of_an_auto_remove_container_that_fails_takes_it_away(world: LifeWorld, step: int) -> None:
    empty = world.held()
    container = await world.create("web", host=REMOVES_ITSELF)
    waiting_client(world, container)
    waiter = asyncio.ensure_future(await register(world.deps, "web", "removed"))
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable):
        await start(world.deps, "web")
    assert world.held() == empty
    assert (await waiter).code == 128
    assert world.actions()[-1] == "destroy"


async def test_failures_of_the_host_s_files_are_told_as_failures(world: LifeWorld) -> None:
    """No OSError may leave a client waiting or the record without a word."""
    container = await world.create("web")
    session = waiting_client(world, container)
    world.deps.settings.directory(container).rmdir()
    with pytest.raises(Failed, match=r"cannot start container web: .*No such file"):
        await start(world.deps, "web")
    assert session.streams.result() is None
    assert "No such file" in container.state.error
    assert world.networks.connected == set()


async def test_a_disk_that_refuses_everything_hides_not_the_first_error(world: LifeWorld) -> None:
    container = await world.create("web")
    session = waiting_client(world, container)
    world.steps.failing = {"create process": InvalidParameter("first"), "write containers": Unavailable("full")}
    with pytest.raises(InvalidParameter, match="first"):
        await start(world.deps, "web")
    assert session.streams.result() is None


async def test_a_client_that_leaves_does_not_stop_a_start(world: LifeWorld) -> None:
    for number in range(100):
        container = await world.create(f"web{number}")
        if not await cancelled_at(number, start(world.deps, container.id)):
            break
        if number:  # at the first wait nothing may have begun
            assert container.running
            assert world.live(container).shim is world.shims.last
    assert number >= 1


async def test_cancellation_of_the_work_itself_at_any_wait_holds_nothing(world: LifeWorld) -> None:
    """As when the daemon ends while a restart policy starts a container."""
    container = await world.create("web")
    world.live(container)
    before, cancelled = world.held(), 0
    for number in range(200):
        session = waiting_client(world, container)
        finished = not await cancelled_at(number, start_locked(world.deps, container))
        if finished or world.actions()[-1] == "start":
            break
        assert world.held() == before, f"cancelled at wait {number}"
        assert (container.state.status, container.state.pid) == (Status.CREATED, 0), f"cancelled at wait {number}"
        stored = world.stored(container)
        assert stored is not None
        assert stored.state.status is Status.CREATED, f"cancelled at wait {number}"
        world.live(container).pending.clear()
        session.give_up()
        cancelled += 1
    assert cancelled >= len(STEPS)


async def test_of_two_starts_at_once_one_is_told_that_it_runs_already(world: LifeWorld) -> None:
    await world.create("web")
    results = await asyncio.gather(start(world.deps, "web"), start(world.deps, "web"), return_exceptions=True)
    assert [type(each) for each in results] == [type(None), NotModified]
    assert len(world.shims.made) == 1


async def test_what_cannot_be_started_is_refused(world: LifeWorld) -> None:
    container = await world.run("web")
    with pytest.raises(NotModified):
        await start(world.deps, "web")
    await pause(world.deps, "web")
    with pytest.raises(Conflict, match="cannot start a paused container"):
        await start(world.deps, "web")
    container.state.status = Status.DEAD
    with pytest.raises(Conflict, match="marked for removal"):
        await start(world.deps, "web")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await start(world.deps, "nosuch")


async def test_a_start_that_waited_for_a_removal_is_refused(world: LifeWorld) -> None:
    await world.create("web", image="data")
    reached, go_on = world.steps.hold("discard volume")
    removing = asyncio.create_task(remove(world.deps, "web", volumes=True))
    await reached.wait()
    starting = asyncio.create_task(start(world.deps, "web"))
    await asyncio.sleep(0)
    go_on.set()
    await removing
    with pytest.raises(Conflict, match="marked for removal"):
        await starting
    assert world.shims.made == []
    assert world.live_table._by_id == {}


async def test_a_new_run_waits_until_the_last_one_s_files_are_gone(world: LifeWorld) -> None:
    container = await world.run("web")
    reached, go_on = world.steps.hold("forget")
    world.shims.last.end(0)
    await reached.wait()
    starting = asyncio.create_task(start(world.deps, "web"))
    await asyncio.sleep(0.01)
    assert not starting.done()
    go_on.set()
    await starting  # `StepShims.create` refuses a directory that is still there
    await world.idle()
    assert container.running
    assert world.shims.directories == {container.id: world.shims.last}


async def test_a_container_that_waits_for_its_restart_is_started_at_once(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    world.live(container).backoff = 30.0
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    await start(world.deps, "web")
    assert container.running
    assert (container.state.restart_count, container.state.stopped_by_user) == (0, False)
    assert world.live(container).restart is None


async def test_missing_directories_of_binds_are_made_those_of_mounts_are_missed(
    world: LifeWorld, tmp_path: Path
) -> None:
    await world.create("bind", host=HostConfig(binds=[f"{tmp_path}/made/here:/m"]))
    await start(world.deps, "bind")
    assert (tmp_path / "made" / "here").is_dir()
    (tmp_path / "there").mkdir()
    await world.create("mount", host=HostConfig(mounts=[Mount(type="bind", source=f"{tmp_path}/there", target="/m")]))
    (tmp_path / "there").rmdir()
    with pytest.raises(InvalidParameter, match="bind source path does not exist"):
        await start(world.deps, "mount")


async def test_a_runtime_that_is_gone_is_named(world: LifeWorld) -> None:
    container = await world.create("web")
    container.runtime = "kata"
    with pytest.raises(InvalidParameter, match="unknown or invalid runtime name: kata"):
        await start(world.deps, "web")
    assert container.state.error == "unknown or invalid runtime name: kata"


async def test_the_host_s_network_needs_no_namespace(world: LifeWorld) -> None:
    await world.run("web", host=HostConfig(network_mode="host"))
    assert world.networks.fds == []
    assert all(each["type"] != "network" for each in world.shims.specs[0].spec["linux"]["namespaces"])


async def test_a_shared_network_is_joined_through_the_other_s_process(world: LifeWorld) -> None:
    other = await world.run("other")
    await world.run("web", host=HostConfig(network_mode="container:other"))
    spec = world.shims.specs[1].spec
    joined = [each.get("path") for each in spec["linux"]["namespaces"] if each["type"] == "network"]
    assert joined == [f"/proc/{other.state.pid}/ns/net"]
    hosts = next(each for each in spec["mounts"] if each["destination"] == "/etc/hosts")
    assert hosts["source"] == str(world.deps.settings.directory(other) / "hosts")
    assert world.networks.connected == {other.id}
    await stop(world.deps, "other")
    await stop(world.deps, "web")
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        await start(world.deps, "web")


async def test_the_container_s_own_files_are_written_at_each_start(world: LifeWorld) -> None:
    container = await world.run("web", hostname="box")
    directory = world.deps.settings.directory(container)
    assert sorted(os.listdir(directory)) == ["hostname", "hosts", "resolv.conf"]
    assert (directory / "hostname").read_text() == "box\n"
    assert "172.17.0.2\tbox" in (directory / "hosts").read_text()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ('exec: "x": executable file not found in $PATH: unknown', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ('exec: "/x": permission denied', 126),
        ("no space left on device", 128),
    ],
)
def test_the_exit_code_of_a_failed_start_is_docker_s(words: str, code: int) -> None:
    assert exit_code_of(words) == code
