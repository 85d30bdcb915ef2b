import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import FakeClient, World, until
from wherry.containers.record import Container, Status
from wherry.containers.streams import execs
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound
from wherry.ids import ExecID
from wherry.spec.engine import ContainerConfig, ExecConfig, ExecStart, HostConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


@pytest.fixture
async def container(world: World) -> Container:
    config = ContainerConfig(
        image="busybox", hostname="box", env=["A=1", "PATH=/bin"], user="web", working_dir="/srv", labels={"l": "v"}
    )
    return await world.add("web", config=config, host=HostConfig(group_add=["audio"]))


def command(*words: str, **changes: object) -> ExecConfig:
    return ExecConfig(cmd=list(words), attach_stdout=True, attach_stderr=True, **changes)  # type: ignore[arg-type]


class Running:
    """An exec whose session runs."""

    def __init__(self, session: execs.ExecSession) -> None:
        self.client = FakeClient()
        self.task = asyncio.ensure_future(session.run(self.client))

    async def end(self) -> None:
        async with asyncio.timeout(10):
            await self.task


async def started(world: World, count: int = 1) -> None:
    await until(lambda: len(world.shim.clients) >= count)


async def ended(world: World, exec_id: str) -> None:
    await until(lambda: (found := world.deps.live.find_exec(exec_id)) is not None and not found.running)


@pytest.mark.usefixtures("container")
async def test_a_new_exec_is_inspected_as_docker_shows_it(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("ls", "-l", user="root", attach_stdin=True))
    assert await execs.inspect(world.deps, exec_id) == {
        "ID": exec_id,
        "Running": False,
        "ExitCode": None,
        "ProcessConfig": {
            "tty": False,
            "entrypoint": "ls",
            "arguments": ["-l"],
            "privileged": False,
            "user": "root",
        },
        "OpenStdin": True,
        "OpenStderr": True,
        "OpenStdout": True,
        "CanRemove": False,
        "ContainerID": container.id,
        "DetachKeys": "",
        "Pid": 0,
    }
    assert world.actions() == ["exec_create: ls -l"]
    assert world.last_attributes() == {"execID": exec_id, "image": "busybox", "name": "web", "l": "v"}


@pytest.mark.usefixtures("container")
async def test_the_process_gets_the_container_s_surroundings_with_the_exec_s_over_them(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("env", env=["A=2", "B=3"]))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart()))
    await started(world)
    (spec,) = world.shim.execs
    assert spec.args == ["env"]
    assert set(spec.env) == {"PATH=/bin", "HOSTNAME=box", "A=2", "B=3"}
    assert (spec.cwd, spec.user) == ("", "")  # the container's
    assert list(spec.group_add) == ["audio"]
    assert (spec.stdout, spec.stderr) == (True, True)
    assert (spec.tty, spec.privileged, spec.stdin, spec.detach) == (False, False, False, False)
    assert spec.console_size is None
    running.task.cancel()


@pytest.mark.usefixtures("container")
async def test_user_directory_terminal_and_privileges_can_be_chosen(world: World) -> None:
    config = command("sh", tty=True, attach_stdin=True, user="0:5", working_dir="/tmp", privileged=True)
    exec_id = await execs.create(world.deps, "web", config)
    session = await execs.open_exec(world.deps, exec_id, ExecStart(tty=True, console_size=[24, 80]))
    assert session.tty
    running = Running(session)
    await started(world)
    (spec,) = world.shim.execs
    assert (spec.cwd, spec.user, spec.tty, spec.privileged, spec.stdin) == ("/tmp", "0:5", True, True, True)
    assert spec.console_size == (24, 80)
    assert "TERM=xterm" in spec.env
    running.task.cancel()


@pytest.mark.usefixtures("container")
async def test_the_exit_code_is_known_when_the_stream_ends(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("false"))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart()))
    await started(world)
    document = await execs.inspect(world.deps, exec_id)
    assert (document["Running"], document["ExitCode"], document["Pid"]) == (True, None, 777)
    world.shim.clients[0][1].write(b"out")
    world.shim.clients[0][1].close()
    await running.client.expect(b"out")
    assert not running.task.done()
    world.shim.exec_exit.set_result(3)
    await running.end()
    await ended(world, exec_id)
    document = await execs.inspect(world.deps, exec_id)
    assert (document["Running"], document["ExitCode"]) == (False, 3)
    assert world.actions() == ["exec_create: false", "exec_start: false", "exec_die"]
    assert world.last_attributes()["exitCode"] == "3"
    assert world.last_attributes()["execID"] == exec_id


@pytest.mark.usefixtures("container")
async def test_an_exec_starts_once(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("true"))
    await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))
    assert world.shim.execs[0].detach
    with pytest.raises(Conflict, match=f"exec command {exec_id} is already running"):
        await execs.open_exec(world.deps, exec_id, ExecStart())
    world.shim.exec_exit.set_result(0)
    await ended(world, exec_id)
    with pytest.raises(Conflict, match=f"exec command {exec_id} has already run"):
        await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))


@pytest.mark.usefixtures("container")
async def test_a_detached_exec_never_reads(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("cat", attach_stdin=True))
    await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))
    assert not world.shim.execs[0].stdin


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('OCI runtime exec failed: exec failed: exec: "nosuch": executable file not found in $PATH: unknown', 127),
        ("OCI runtime exec failed: exec: /x: no such file or directory", 127),
        ("OCI runtime exec failed: exec: /etc: permission denied", 126),
        ("unable to find user nobody9: no matching entries in passwd file", 126),
    ],
)
@pytest.mark.usefixtures("container")
async def test_a_failed_start_is_told_in_the_stream_and_in_the_exit_code(world: World, message: str, code: int) -> None:
    world.shim.exec_error = InvalidParameter(message)
    exec_id = await execs.create(world.deps, "web", command("nosuch"))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart()))
    await running.end()
    text = f"{message}\r\n".encode()
    assert running.client.got == b"\x01\0\0\0" + len(text).to_bytes(4, "big") + text
    document = await execs.inspect(world.deps, exec_id)
    assert (document["Running"], document["ExitCode"]) == (False, code)
    assert "exec_die" not in world.actions()


@pytest.mark.usefixtures("container")
async def test_a_failed_start_on_a_terminal_is_told_without_frame(world: World) -> None:
    world.shim.exec_error = InvalidParameter("it failed")
    exec_id = await execs.create(world.deps, "web", command("sh", tty=True))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart()))
    await running.end()
    assert running.client.got == b"it failed\r\n"


@pytest.mark.usefixtures("container")
async def test_a_failed_detached_start_is_an_error(world: World) -> None:
    world.shim.exec_error = InvalidParameter("executable file not found in $PATH")
    exec_id = await execs.create(world.deps, "web", command("nosuch"))
    with pytest.raises(InvalidParameter, match="executable file not found"):
        await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))
    assert (await execs.inspect(world.deps, exec_id))["ExitCode"] == 127


@pytest.mark.usefixtures("container")
async def test_the_process_goes_on_when_its_client_leaves(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("sleep", "9"))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart()))
    await started(world)
    running.task.cancel()
    await asyncio.gather(running.task, return_exceptions=True)
    assert (await execs.inspect(world.deps, exec_id))["Running"]
    world.shim.exec_exit.set_result(5)
    await ended(world, exec_id)
    assert (await execs.inspect(world.deps, exec_id))["ExitCode"] == 5


@pytest.mark.usefixtures("container")
async def test_detach_keys_leave_the_process_running(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("sh", tty=True, attach_stdin=True, detach_keys="ctrl-a"))
    running = Running(await execs.open_exec(world.deps, exec_id, ExecStart(tty=True)))
    running.client.typed.put_nowait(b"x\x01")
    await running.end()
    assert await world.shim.clients[0][0].read() == b"x"
    document = await execs.inspect(world.deps, exec_id)
    assert document["Running"]
    assert document["DetachKeys"] == "AQ=="
    assert world.actions()[-1] == "exec_detach"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.CREATED, "container {id} is not running"),
        (Status.EXITED, "container {id} is not running"),
        (Status.PAUSED, "container web is paused, unpause the container before exec"),
        (Status.RESTARTING, "container web is restarting, wait until the container is running"),
    ],
)
async def test_only_a_running_container_takes_an_exec(world: World, status: Status, words: str) -> None:
    container = await world.add("web", status=status)
    with pytest.raises(Conflict) as error:
        await execs.create(world.deps, "web", command("true"))
    assert error.value.message == words.format(id=container.id)


async def test_an_exec_made_before_the_pause_is_not_started_in_it(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("true"))
    container.state.status = Status.PAUSED
    with pytest.raises(Conflict, match="is paused"):
        await execs.open_exec(world.deps, exec_id, ExecStart())
    container.state.status = Status.RUNNING
    await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))


@pytest.mark.usefixtures("container")
async def test_bad_requests_are_refused(world: World) -> None:
    with pytest.raises(InvalidParameter, match="No exec command specified"):
        await execs.create(world.deps, "web", ExecConfig(cmd=[]))
    with pytest.raises(InvalidParameter, match=r"\(foo\) provided"):
        await execs.create(world.deps, "web", command("true", detach_keys="foo"))
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await execs.create(world.deps, "nosuch", command("true"))
    for verb in (execs.inspect(world.deps, "abc"), execs.open_exec(world.deps, "abc", ExecStart())):
        with pytest.raises(NotFound, match="No such exec instance: abc"):
            await verb


async def test_an_exec_not_started_in_the_run_it_was_made_for_is_forgotten(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("true"))
    execs.end_run(world.live(container).execs)
    with pytest.raises(NotFound, match=f"No such exec instance: {exec_id}"):
        await execs.inspect(world.deps, exec_id)


async def test_an_exec_that_ends_with_its_container_can_be_inspected(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("sleep", "9"))
    await execs.start_detached(world.deps, exec_id, ExecStart(detach=True))
    execs.end_run(world.live(container).execs)
    world.shim.exec_exit.set_result(137)
    await ended(world, exec_id)
    assert (await execs.inspect(world.deps, exec_id))["ExitCode"] == 137
    with pytest.raises(Conflict, match=f"exec command {exec_id} has already run"):
        await execs.open_exec(world.deps, exec_id, ExecStart())


async def test_an_exec_claimed_as_its_container_ends_is_dropped_one_day(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("true"))
    await execs.open_exec(world.deps, exec_id, ExecStart())
    execs.end_run(world.live(container).execs)
    assert world.live(container).execs[ExecID(exec_id)].finished


async def test_long_finished_execs_are_dropped_one_day(world: World, container: Container) -> None:
    old = await execs.create(world.deps, "web", command("true"))
    world.live(container).execs[old].finished = 1e-9
    new = await execs.create(world.deps, "web", command("true"))
    assert set(world.live(container).execs) == {new}


@pytest.mark.usefixtures("container")
async def test_resizing_waits_for_the_exec_to_be_started(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("sh", tty=True))
    resizing = asyncio.ensure_future(execs.resize(world.deps, exec_id, height=24, width=80))
    await asyncio.sleep(0)
    await execs.start_detached(world.deps, exec_id, ExecStart(detach=True, tty=True))
    await resizing
    assert world.shim.exec_sizes == [(exec_id, 24, 80)]


async def test_resizing_an_exec_that_has_ended_finds_none(world: World, container: Container) -> None:
    exec_id = await execs.create(world.deps, "web", command("sh", tty=True))
    found = world.live(container).execs[ExecID(exec_id)]
    found.started, found.exit_code = True, 0
    found.ready.set()
    with pytest.raises(NotFound, match="no such exec"):
        await execs.resize(world.deps, exec_id, height=24, width=80)


@pytest.mark.usefixtures("container")
async def test_resizing_an_exec_that_nobody_starts_gives_up(world: World) -> None:
    exec_id = await execs.create(world.deps, "web", command("sh", tty=True))
    with pytest.raises(Failed, match="timeout waiting for exec session ready"):
        await execs.resize(world.deps, exec_id, height=24, width=80, patience=0.01)
