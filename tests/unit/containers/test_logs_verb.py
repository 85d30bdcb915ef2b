import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import World, open_files
from wherry.containers.record import Container, Status
from wherry.containers.streams.logs import Form, LogStream, open_logs, parse_moment, parse_tail
from wherry.errors import InvalidParameter, NotFound, NotSupported
from wherry.spec.engine import ContainerConfig, HostConfig, LogConfig

AT = 1_700_000_000 * 10**9


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def out(data: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def append(container: Container, *lines: tuple[str, str, int], attrs: dict[str, str] | None = None) -> None:
    """(stream, text, ns) each."""
    with open(container.log_path, "a") as file:
        for stream, text, at in lines:
            seconds, fraction = divmod(at, 10**9)
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"
            entry: dict[str, object] = {"log": text, "stream": stream}
            if attrs:
                entry["attrs"] = attrs
            file.write(json.dumps({**entry, "time": when}) + "\n")


async def logged(world: World, name: str, **state: object) -> Container:
    container = await world.add(name, **state)  # type: ignore[arg-type]
    container.log_path = str(world.root / f"{container.id}-json.log")
    Path(container.log_path).touch()
    return container


@pytest.fixture
async def done(world: World) -> Container:
    """Ended, with three lines, one second apart."""
    container = await logged(world, "done", status=Status.EXITED)
    append(
        container,
        ("stdout", "one\n", AT),
        ("stderr", "two\n", AT + 10**9 + 5),
        ("stdout", "three\n", AT + 2 * 10**9),
    )
    return container


async def opened(world: World, name: str, **changes: object) -> LogStream:
    options = {
        "stdout": True,
        "stderr": True,
        "follow": False,
        "since": "",
        "until": "",
        "timestamps": False,
        "tail": "",
        "details": False,
        **changes,
    }
    return await open_logs(world.deps, name, **options)  # type: ignore[arg-type]


async def shown(world: World, name: str, **changes: object) -> bytes:
    stream = await opened(world, name, **changes)
    async with asyncio.timeout(10):
        return b"".join([chunk async for chunk in stream])


@pytest.mark.usefixtures("done")
async def test_both_streams_are_framed_in_order(world: World) -> None:
    assert not (await opened(world, "done")).tty
    assert await shown(world, "done") == out(b"one\n") + out(b"two\n", 2) + out(b"three\n")


@pytest.mark.usefixtures("done")
async def test_one_stream_alone(world: World) -> None:
    assert await shown(world, "done", stderr=False) == out(b"one\n") + out(b"three\n")
    assert await shown(world, "done", stdout=False) == out(b"two\n", 2)


@pytest.mark.usefixtures("done")
async def test_timestamps_have_nine_digits(world: World) -> None:
    assert await shown(world, "done", timestamps=True, stderr=False) == out(
        b"2023-11-14T22:13:20.000000000Z one\n"
    ) + out(b"2023-11-14T22:13:22.000000000Z three\n")


async def test_details_come_before_the_line_and_after_its_time(world: World) -> None:
    container = await logged(world, "done", status=Status.EXITED)
    append(container, ("stdout", "x\n", AT), attrs={"b": "2 3", "a": "1"})
    append(container, ("stdout", "y\n", AT))
    assert await shown(world, "done", details=True) == out(b"a=1,b=2+3 x\n") + out(b" y\n")
    assert (await shown(world, "done", details=True, timestamps=True)).startswith(
        out(b"2023-11-14T22:13:20.000000000Z a=1,b=2+3 x\n")
    )


async def test_a_terminal_s_log_is_not_framed(world: World) -> None:
    container = await logged(world, "shell", status=Status.EXITED, config=ContainerConfig(image="busybox", tty=True))
    append(container, ("stdout", "$ ls\r\n", AT), ("stdout", "bin\r\n", AT))
    assert (await opened(world, "shell")).tty
    assert await shown(world, "shell") == b"$ ls\r\nbin\r\n"


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize(
    ("tail", "lines"),
    [
        ("1", [b"three\n"]),
        ("2", [b"two\n", b"three\n"]),
        ("99", [b"one\n", b"two\n", b"three\n"]),
        ("0", []),
        ("all", [b"one\n", b"two\n", b"three\n"]),
        ("nonsense", [b"one\n", b"two\n", b"three\n"]),
    ],
)
async def test_only_the_last_lines(world: World, tail: str, lines: list[bytes]) -> None:
    assert await shown(world, "done", tail=tail) == b"".join(out(line, 2 if line == b"two\n" else 1) for line in lines)


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize(
    ("since", "until", "lines"),
    [
        ("1700000001", "", [b"two\n", b"three\n"]),
        ("1700000001.000000006", "", [b"three\n"]),
        ("2023-11-14T22:13:22Z", "", [b"three\n"]),
        ("", "1700000001", [b"one\n"]),
        ("1700000001", "1700000001.5", [b"two\n"]),
        ("0", "0", [b"one\n", b"two\n", b"three\n"]),
        ("1800000000", "", []),
    ],
)
async def test_only_a_span_of_time(world: World, since: str, until: str, lines: list[bytes]) -> None:
    found = await shown(world, "done", since=since, until=until)
    assert found == b"".join(out(line, 2 if line == b"two\n" else 1) for line in lines)


@pytest.mark.usefixtures("done")
async def test_following_a_container_that_does_not_run_ends_at_once(world: World) -> None:
    assert (await shown(world, "done", follow=True)).count(b"\n") == 3


async def test_following_goes_on_until_the_container_ends(world: World) -> None:
    container = await logged(world, "web")
    append(container, ("stdout", "before\n", AT))
    stream = aiter(await opened(world, "web", follow=True))
    async with asyncio.timeout(10):
        assert await anext(stream) == out(b"before\n")
        append(container, ("stdout", "after\n", AT + 1))
        assert await anext(stream) == out(b"after\n")
        append(container, ("stdout", "last\n", AT + 2))
        world.live(container).ended.set()
        assert [chunk async for chunk in stream] == [out(b"last\n")]


async def test_following_begins_at_the_tail(world: World) -> None:
    container = await logged(world, "web")
    append(container, ("stdout", "old\n", AT), ("stdout", "older\n", AT))
    stream = aiter(await opened(world, "web", follow=True, tail="1"))
    async with asyncio.timeout(10):
        assert await anext(stream) == out(b"older\n")
        append(container, ("stdout", "new\n", AT + 1))
        assert await anext(stream) == out(b"new\n")
    await stream.aclose()  # type: ignore[attr-defined]


async def test_rotated_files_are_part_of_the_log(world: World, done: Container) -> None:
    Path(done.log_path).rename(f"{done.log_path}.1")
    append(done, ("stdout", "four\n", AT + 3 * 10**9))
    assert await shown(world, "done", tail="2") == out(b"three\n") + out(b"four\n")
    assert (await shown(world, "done")).count(b"\n") == 4


async def test_following_goes_on_in_the_next_file(world: World) -> None:
    container = await logged(world, "web")
    append(container, ("stdout", "old\n", AT))
    stream = aiter(await opened(world, "web", follow=True))
    async with asyncio.timeout(10):
        assert await anext(stream) == out(b"old\n")
        Path(container.log_path).rename(f"{container.log_path}.1")
        append(container, ("stdout", "new\n", AT + 1))
        assert await anext(stream) == out(b"new\n")
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_follower_that_leaves_leaves_nothing_open(world: World) -> None:
    container = await logged(world, "web")
    append(container, ("stdout", "x\n", AT))
    before = open_files("anon_inode:inotify")
    stream = aiter(await opened(world, "web", follow=True))
    async with asyncio.timeout(10):
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    assert open_files("anon_inode:inotify") == before
    assert open_files(container.log_path) == []


async def test_a_container_that_never_ran_has_an_empty_log(world: World) -> None:
    container = await world.add("new", status=Status.CREATED)
    container.log_path = str(world.root / "nowhere.log")
    assert await shown(world, "new") == b""
    assert await shown(world, "new", follow=True) == b""


async def test_bad_requests_are_refused(world: World, done: Container) -> None:
    with pytest.raises(InvalidParameter, match="you must choose at least one stream"):
        await opened(world, "done", stdout=False, stderr=False)
    with pytest.raises(InvalidParameter, match='failed to parse value as time or duration: "x"'):
        await opened(world, "done", since="x")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await opened(world, "nosuch")
    await world.add("silent", host=HostConfig(log_config=LogConfig(type="none")))
    with pytest.raises(NotSupported, match="configured logging driver does not support reading"):
        await opened(world, "silent")


def test_unwanted_streams_render_to_nothing() -> None:
    form = Form(stdout=False, stderr=True, tty=False)
    assert form.render("stdout", AT, b"x", {}) == b""
    assert form.render("stderr", AT, b"x", {}) == out(b"x", 2)


def test_parameters_as_docker_reads_them() -> None:
    assert [parse_tail(text) for text in ("", "all", "5", "-1", "x", "0", "9" * 30)] == [
        None,
        None,
        5,
        None,
        None,
        0,
        None,
    ]
    assert parse_moment("") == 0
    assert parse_moment("0") == 0
    assert parse_moment("5") == 5 * 10**9
