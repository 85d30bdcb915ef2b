import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import FakeClient, World, connected, until
from wherry.containers.record import Container, Status
from wherry.containers.streams.attach import AttachSession, open_attach
from wherry.errors import Conflict, InvalidParameter, NotFound, NotSupported
from wherry.spec.engine import ContainerConfig, HostConfig, LogConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def attach(world: World, name: str, **changes: object) -> AttachSession:
    options = {"stdin": True, "stdout": True, "stderr": True, "stream": True, "logs": False, **changes}
    return await open_attach(world.deps, name, **options)  # type: ignore[arg-type]


def interactive(*, tty: bool = False) -> ContainerConfig:
    return ContainerConfig(image="busybox", tty=tty, open_stdin=True)


class Attached:
    """A session that runs, and its client."""

    def __init__(self, session: AttachSession) -> None:
        self.client = FakeClient()
        self.task = asyncio.ensure_future(session.run(self.client))

    async def end(self) -> None:
        async with asyncio.timeout(10):
            await self.task

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def connections(world: World, count: int) -> None:
    await until(lambda: len(world.shim.clients) >= count)


async def test_output_and_input_pass_and_the_session_ends_with_the_container(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web"))
    await connections(world, 1)
    reader, writer = world.shim.clients[0]
    writer.write(b"\x01\x00\x00\x00\x00\x00\x00\x02hi")
    await attached.client.expect(b"\x01\x00\x00\x00\x00\x00\x00\x02hi")
    attached.client.typed.put_nowait(b"ls\n")
    assert await reader.readexactly(3) == b"ls\n"
    writer.close()
    await attached.end()
    assert world.actions() == ["attach"]


async def test_the_end_of_input_is_passed_on_and_output_goes_on(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web"))
    await connections(world, 1)
    reader, writer = world.shim.clients[0]
    attached.client.typed.put_nowait(b"last")
    attached.client.typed.put_nowait(b"")
    assert await reader.read() == b"last"
    writer.write(b"answer")
    await attached.client.expect(b"answer")
    writer.close()
    await attached.end()


async def test_a_client_of_input_alone_is_done_when_its_input_is(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web", stdout=False, stderr=False))
    attached.client.typed.put_nowait(b"x")
    attached.client.typed.put_nowait(b"")
    await attached.end()
    reader, _ = world.shim.clients[0]
    assert await reader.read() == b"x"


async def test_the_shim_is_asked_for_the_wanted_streams_only(world: World) -> None:
    await world.add("deaf")  # without -i its stdin is not open
    attached = Attached(await attach(world, "deaf", stderr=False))
    await connections(world, 1)
    assert world.shim.flags == [{"stdin": False, "stdout": True, "stderr": False}]
    await attached.leave()


async def test_a_leaving_client_takes_its_connection_to_the_shim_along(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web"))
    await connections(world, 1)
    await attached.leave()
    reader, _ = world.shim.clients[0]
    assert await reader.read() == b""


async def test_a_client_that_takes_no_output_any_more_ends_the_session(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web"))
    await connections(world, 1)
    attached.client.gone = True
    world.shim.clients[0][1].write(b"x")
    await attached.end()


async def test_detach_keys_on_a_terminal_end_the_session_and_leave_the_container(world: World) -> None:
    await world.add("shell", config=interactive(tty=True))
    session = await attach(world, "shell")
    assert session.tty
    attached = Attached(session)
    await connections(world, 1)
    attached.client.typed.put_nowait(b"exit\x10")
    attached.client.typed.put_nowait(b"\x11more")
    await attached.end()
    reader, _ = world.shim.clients[0]
    assert await reader.read() == b"exit"
    assert world.actions() == ["attach", "detach"]


async def test_other_detach_keys_can_be_chosen(world: World) -> None:
    await world.add("shell", config=interactive(tty=True))
    attached = Attached(await attach(world, "shell", detach_keys="ctrl-a,d"))
    attached.client.typed.put_nowait(b"\x10\x11")
    attached.client.typed.put_nowait(b"\x01d")
    await attached.end()
    assert await world.shim.clients[0][0].read() == b"\x10\x11"


async def test_without_a_terminal_the_keys_are_data(world: World) -> None:
    await world.add("web", config=interactive())
    attached = Attached(await attach(world, "web"))
    attached.client.typed.put_nowait(b"\x10\x11")
    await connections(world, 1)
    reader, writer = world.shim.clients[0]
    assert await reader.readexactly(2) == b"\x10\x11"
    writer.close()
    await attached.end()


async def test_several_clients_each_have_their_own_connection(world: World) -> None:
    await world.add("web", config=interactive())
    first, second = Attached(await attach(world, "web")), Attached(await attach(world, "web"))
    await connections(world, 2)
    for _, writer in world.shim.clients:
        writer.write(b"both")
    await first.client.expect(b"both")
    await second.client.expect(b"both")
    await first.leave()
    world.shim.clients[1][1].write(b"!")
    await second.client.expect(b"both!")
    await second.leave()


async def pending(world: World, container: Container) -> None:
    await until(lambda: bool(world.live(container).pending))


@pytest.mark.parametrize("status", [Status.CREATED, Status.EXITED])
async def test_a_session_before_the_start_is_connected_by_it(world: World, status: Status) -> None:
    container = await world.add("web", status=status, config=interactive())
    attached = Attached(await attach(world, "web"))
    await pending(world, container)
    ours, theirs = await connected()
    waiting = world.live(container).pending.pop()
    assert (waiting.stdin, waiting.stdout, waiting.stderr) == (True, True, True)
    waiting.streams.set_result(theirs)
    ours[1].write(b"from the first byte")
    await attached.client.expect(b"from the first byte")
    ours[1].close()
    await attached.end()


async def test_a_start_that_fails_ends_the_sessions_that_wait_for_it(world: World) -> None:
    container = await world.add("web", status=Status.CREATED)
    attached = Attached(await attach(world, "web"))
    await pending(world, container)
    world.live(container).give_up_pending()
    await attached.end()
    assert attached.client.got == b""


async def test_a_client_that_left_before_the_start_is_not_kept_connected(world: World) -> None:
    container = await world.add("web", status=Status.CREATED)
    attached = Attached(await attach(world, "web"))
    await pending(world, container)
    await attached.leave()
    ours, theirs = await connected()
    world.live(container).pending[0].streams.set_result(theirs)
    async with asyncio.timeout(10):
        assert await ours[0].read() == b""
    ours[1].close()


async def test_a_session_is_known_as_soon_as_it_runs(world: World) -> None:
    """The client goes on to start the container once it has the answer, which is sent in the same step."""
    container = await world.add("web", status=Status.CREATED)
    attached = Attached(await attach(world, "web"))
    await asyncio.sleep(0)
    assert len(world.live(container).pending) == 1
    await attached.leave()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.PAUSED, "container web is paused, unpause the container before attach"),
        (Status.RESTARTING, "container web is restarting, wait until the container is running before attach"),
        (Status.REMOVING, "marked for removal"),
    ],
)
async def test_attaching_is_refused_in_these_states(world: World, status: Status, words: str) -> None:
    await world.add("web", status=status)
    with pytest.raises(Conflict, match=words):
        await attach(world, "web")


async def test_bad_detach_keys_and_missing_containers_are_refused(world: World) -> None:
    await world.add("web")
    with pytest.raises(InvalidParameter, match=r"(?i)invalid detach keys \(ctrl-!!\) provided"):
        await attach(world, "web", detach_keys="ctrl-!!")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await attach(world, "nosuch")


async def test_history_of_a_container_without_a_readable_log_is_refused(world: World) -> None:
    await world.add("web", host=HostConfig(log_config=LogConfig(type="none")))
    with pytest.raises(NotSupported, match="configured logging driver does not support reading"):
        await attach(world, "web", logs=True)
    await attach(world, "web")


async def test_history_comes_before_what_is_live(world: World, tmp_path: Path) -> None:
    container = await world.add("web", config=interactive())
    container.log_path = str(tmp_path / "web-json.log")
    Path(container.log_path).write_text(
        '{"log":"old\\n","stream":"stdout","time":"2023-01-01T00:00:00Z"}\n'
        '{"log":"bad\\n","stream":"stderr","time":"2023-01-01T00:00:01Z"}\n'
    )
    attached = Attached(await attach(world, "web", logs=True))
    await connections(world, 1)
    world.shim.clients[0][1].write(b"live")
    await attached.client.expect(b"\x01\0\0\0\0\0\0\x04old\n\x02\0\0\0\0\0\0\x04bad\nlive")
    await attached.leave()


async def test_history_alone_ends_by_itself(world: World, tmp_path: Path) -> None:
    container = await world.add("shell", config=interactive(tty=True))
    container.log_path = str(tmp_path / "shell-json.log")
    Path(container.log_path).write_text('{"log":"old\\r\\n","stream":"stdout","time":"2023-01-01T00:00:00Z"}\n')
    attached = Attached(await attach(world, "shell", logs=True, stream=False))
    await attached.end()
    assert attached.client.got == b"old\r\n"
    assert world.shim.clients == []
