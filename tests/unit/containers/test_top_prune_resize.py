import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import NOW, World
from wherry.containers.life.prune import prune
from wherry.containers.record import Status
from wherry.containers.streams.resize import resize
from wherry.containers.views.times import parse_time
from wherry.containers.views.top import TITLES, find_ps, from_proc, parse, top
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound
from wherry.filters import Filters
from wherry.spec.engine import ContainerConfig

PS = """UID          PID    PPID  C STIME TTY          TIME CMD
root           1       0  0 05:00 ?        00:00:01 /sbin/init with  spaces
root          20       1  0 05:00 ?        00:00:00 sh -c "a b"
root          21      20  0 05:00 ?        00:00:00 sleep 1
"""

needs_ps = pytest.mark.skipif(find_ps() is None, reason="ps is not installed")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def test_a_table_of_ps_is_reduced_to_the_container_s_rows() -> None:
    assert parse(PS, {20, 21}) == {
        "Titles": ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
        "Processes": [
            ["root", "20", "1", "0", "05:00", "?", "00:00:00", 'sh -c "a b"'],
            ["root", "21", "20", "0", "05:00", "?", "00:00:00", "sleep 1"],
        ],
    }


def test_threads_stay_with_their_process() -> None:
    output = "  PID   LWP COMMAND\n    1     - init\n    -     1 -\n   20     - sh\n    -    20 -\n    -    22 -\n"
    assert parse(output, {20})["Processes"] == [["20", "-", "sh"], ["-", "20", "-"], ["-", "22", "-"]]


def test_a_table_without_pids_is_refused() -> None:
    with pytest.raises(Failed, match="Couldn't find PID field in ps output"):
        parse("COMMAND\ninit\n", {1})
    with pytest.raises(Failed, match="Unexpected pid 'x' in ps output"):
        parse("PID COMMAND\nx init\n", {1})


@needs_ps
async def test_top_shows_the_processes_of_the_container(world: World) -> None:
    await world.add("web")
    world.shim.pids = [os.getpid()]
    document = await top(world.deps, "web")
    assert document["Titles"] == TITLES
    (row,) = document["Processes"]  # type: ignore[misc]
    assert row[1] == str(os.getpid())  # type: ignore[has-type]
    chosen = await top(world.deps, "web", ps_args="-o pid,comm")
    assert chosen["Titles"] == ["PID", "COMMAND"]
    assert len(chosen["Processes"]) == 1  # type: ignore[arg-type]
    assert world.actions() == ["top", "top"]


@needs_ps
async def test_wrong_options_of_ps_are_explained_by_ps(world: World) -> None:
    await world.add("web")
    world.shim.pids = [os.getpid()]
    with pytest.raises(Failed, match=r"ps: .*option"):
        await top(world.deps, "web", ps_args="--nosuch")
    with pytest.raises(Failed, match="Couldn't find PID field"):
        await top(world.deps, "web", ps_args="-o comm")
    with pytest.raises(InvalidParameter, match="custom header"):
        await top(world.deps, "web", ps_args="-o pid=PID")


async def test_top_needs_a_running_container(world: World) -> None:
    container = await world.add("web", status=Status.EXITED)
    with pytest.raises(Conflict, match=f"container {container.id} is not running"):
        await top(world.deps, "web")
    await world.add("again", status=Status.RESTARTING)
    with pytest.raises(Conflict, match="container again is restarting"):
        await top(world.deps, "again")


def test_without_ps_the_table_is_made_from_proc() -> None:
    document = from_proc([os.getpid(), 1 << 22])
    assert document["Titles"] == TITLES
    (row,) = document["Processes"]  # type: ignore[misc]
    assert row[1:3] == [str(os.getpid()), str(os.getppid())]  # type: ignore[has-type]
    assert "python" in row[7] or "pytest" in row[7]  # type: ignore[has-type]


async def test_resizing_a_terminal(world: World) -> None:
    await world.add("shell", config=ContainerConfig(image="busybox", tty=True))
    await resize(world.deps, "shell", height=24, width=80)
    assert world.shim.sizes == [(24, 80)]
    assert world.actions() == ["resize"]
    assert world.last_attributes()["height"] == "24"


async def test_resizing_needs_a_running_container(world: World) -> None:
    container = await world.add("web", status=Status.CREATED)
    with pytest.raises(Conflict, match=f"container {container.id} is not running"):
        await resize(world.deps, "web", height=1, width=1)
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await resize(world.deps, "nosuch", height=1, width=1)


async def test_prune_takes_what_does_not_run(world: World) -> None:
    await world.add("up")
    await world.add("held", status=Status.PAUSED)
    done = await world.add("done", status=Status.EXITED)
    new = await world.add("new", status=Status.CREATED, created=NOW + 1)
    world.snapshots.bytes = {done.id: 10, new.id: 5}
    assert await prune(world.deps) == {"ContainersDeleted": [done.id, new.id], "SpaceReclaimed": 15}
    assert {container.name for container in world.store} == {"up", "held"}
    assert world.actions()[-1] == "prune"
    assert world.last_attributes() == {"reclaimed": "15"}
    assert await prune(world.deps) == {"ContainersDeleted": None, "SpaceReclaimed": 0}


async def test_prune_filters(world: World) -> None:
    labelled = ContainerConfig(image="busybox", labels={"keep": "1"})
    await world.add("old", status=Status.EXITED, created=NOW)
    await world.add("kept", status=Status.EXITED, created=NOW, config=labelled)
    await world.add("young", status=Status.EXITED, created=1 << 62)
    await prune(world.deps, Filters({"label!": ("keep",), "until": ("1h",)}))
    assert {container.name for container in world.store} == {"kept", "young"}
    await prune(world.deps, Filters({"label": ("keep=1",)}))
    assert {container.name for container in world.store} == {"young"}


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"foo": ("x",)}, "invalid filter 'foo'"),
        ({"until": ("1m", "2m")}, "more than one until filter specified"),
        ({"until": ("zz",)}, 'failed to parse value as time or duration: "zz"'),
    ],
)
async def test_prune_refuses_filters_that_make_no_sense(
    world: World, filters: dict[str, tuple[str, ...]], words: str
) -> None:
    await world.add("done", status=Status.EXITED)
    with pytest.raises(InvalidParameter, match=words):
        await prune(world.deps, Filters(filters))
    assert len(world.store.all()) == 1


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1700000000", 1_700_000_000 * 10**9),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.123456789", NOW),
        ("0", 0),
        ("10m", NOW - 600 * 10**9),
        ("1h30m", NOW - 5400 * 10**9),
        ("1.5s", NOW - 1_500_000_000),
        ("100ms", NOW - 100_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20.123456789Z", NOW),
        ("2023-11-14T23:13:20.123456789+01:00", NOW),
        ("2023-11-14T22:13:20", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13", 1_699_999_980 * 10**9),
        ("2023-11-14", 1_699_920_000 * 10**9),
    ],
)
def test_points_in_time_are_read(text: str, ns: int) -> None:
    assert parse_time(text, now=NOW) == ns


@pytest.mark.parametrize("text", ["", "x", "2023-13-01", "2023-11-14T25:00:00Z", "1h30", "9" * 40, "1e9", "--1"])
def test_what_is_no_point_in_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="failed to parse value as time or duration"):
        parse_time(text, now=NOW)
