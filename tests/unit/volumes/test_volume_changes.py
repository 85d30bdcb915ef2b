"""Rename, clone, snapshots and the way back, of volumes that are plain directories."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidParameter, NotFound, NotSupported
from wherry.events import Events
from wherry.state import Delete, Insert, Put, State
from wherry.volumes import changes, files
from wherry.volumes.record import Volume, encode
from wherry.volumes.volumes import Volumes


class World:
    def __init__(self, root: Path) -> None:
        self.root = root / "volumes"
        self.state = State(root / "state.db")
        self.events = Events()
        self.used: dict[str, Sequence[str]] = {}

    async def open(self) -> Volumes:
        volumes = Volumes(self.state, self.root, self.events, users=self.users)
        await volumes.start()
        return volumes

    def users(self) -> Mapping[str, Sequence[str]]:
        return self.used

    def write(self, volume: str, **content: str) -> None:
        for name, text in content.items():
            (self.root / volume / "_data" / name).write_text(text)

    def read(self, volume: str) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.root / volume / "_data").iterdir()}

    def left(self) -> list[str]:
        """What is beside the volumes and what belongs to them."""
        inner = [str(path.relative_to(self.root)) for path in self.root.glob("*/*") if path.name != "_data"]
        return [name for name in os.listdir(self.root) if name.startswith(".")] + inner

    def actions(self) -> list[tuple[str, str]]:
        return [(event.action, event.actor) for event in self.events.past(0, 1 << 63)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def volumes(world: World) -> Volumes:
    volumes = await world.open()
    await volumes.create("data", labels={"a": "b"})
    world.write("data", x="one")
    return volumes


# -- rename ------------------------------------------------------------------------------------------------------------


async def test_a_renamed_volume_keeps_content_labels_and_snapshots(world: World, volumes: Volumes) -> None:
    await changes.snapshot(volumes, "data", "before")
    await changes.rename(volumes, "data", "other")
    assert world.read("other") == {"x": "one"}
    assert volumes.get("other").labels == {"a": "b"}
    assert not volumes.has("data")
    assert [each.name for each in await changes.list_snapshots(volumes, "other")] == ["before"]
    assert (await world.open()).get("other") == volumes.get("other")
    assert world.actions()[-1] == ("rename", "other")


async def test_a_volume_that_a_container_names_is_not_renamed(world: World, volumes: Volumes) -> None:
    world.used["data"] = ["c1"]
    with pytest.raises(Conflict, match=r"rename data: volume is in use - \[c1\].*clone the volume"):
        await changes.rename(volumes, "data", "other")
    assert world.read("data") == {"x": "one"}


@pytest.mark.parametrize(
    ("new", "kind"), [("data", InvalidParameter), ("taken", Conflict), ("../up", InvalidParameter)]
)
async def test_a_name_that_cannot_be_is_refused(
    world: World, volumes: Volumes, new: str, kind: type[Exception]
) -> None:
    await volumes.create("taken")
    with pytest.raises(kind):
        await changes.rename(volumes, "data", new)
    assert world.read("data") == {"x": "one"}


async def test_a_missing_volume_is_not_renamed(volumes: Volumes) -> None:
    with pytest.raises(NotFound):
        await changes.rename(volumes, "nothing", "other")


@pytest.mark.parametrize("moved", [False, True])
async def test_a_rename_goes_on_after_a_crash(world: World, volumes: Volumes, moved: bool) -> None:
    row = replace(volumes.get("data"), name="other", moving="data")
    world.state.write(Insert("volumes", "other", encode(row)), Delete("volumes", "data"))
    if moved:
        (world.root / "data").rename(world.root / "other")
    volumes = await world.open()
    assert volumes.get("other").moving == ""
    assert world.read("other") == {"x": "one"}
    assert not volumes.has("data")


# -- clone -------------------------------------------------------------------------------------------------------------


async def test_a_clone_has_the_content_and_its_own_life(world: World, volumes: Volumes) -> None:
    made = await changes.clone(volumes, "data", "copy", labels={"c": "d"})
    assert made.labels == {"a": "b", "c": "d"}
    world.write("copy", x="two")
    assert (world.read("data"), world.read("copy")) == ({"x": "one"}, {"x": "two"})
    assert world.left() == []
    assert (await world.open()).get("copy") == made


async def test_a_clone_of_an_anonymous_volume_is_not_anonymous(volumes: Volumes) -> None:
    name = str((await volumes.create(""))["Name"])
    assert not (await changes.clone(volumes, name, "kept")).anonymous


async def test_nothing_is_cloned_over_a_volume(world: World, volumes: Volumes) -> None:
    await volumes.create("taken")
    with pytest.raises(Conflict, match="volume taken exists already"):
        await changes.clone(volumes, "data", "taken")
    assert world.left() == []


async def test_of_two_clones_to_one_name_one_wins(world: World, volumes: Volumes) -> None:
    results = await asyncio.gather(*(changes.clone(volumes, "data", "copy") for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, Volume) for result in results) == 1
    assert all(isinstance(result, (Volume, Conflict)) for result in results)
    assert world.read("copy") == {"x": "one"}
    assert world.left() == []


async def test_the_source_of_a_clone_is_not_removed_meanwhile(world: World, volumes: Volumes) -> None:
    tried: list[str] = []

    @asynccontextmanager
    async def still() -> AsyncIterator[None]:
        with pytest.raises(Conflict) as error:
            await volumes.remove("data")
        tried.append(error.value.message)
        with pytest.raises(Conflict, match="is being copied"):
            await changes.rename(volumes, "data", "other")
        await volumes.discard("data")
        yield

    await changes.clone(volumes, "data", "copy", still=still)
    assert tried == ["remove data: volume is in use - []"]
    assert world.read("copy") == world.read("data") == {"x": "one"}
    await volumes.remove("data")


async def test_a_cancelled_clone_leaves_nothing(world: World, volumes: Volumes) -> None:
    begun = asyncio.Event()

    @asynccontextmanager
    async def still() -> AsyncIterator[None]:
        begun.set()
        await asyncio.sleep(60)
        yield

    work = asyncio.ensure_future(changes.clone(volumes, "data", "copy", still=still))
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not volumes.has("copy")
    assert world.left() == []
    assert volumes.users_now("data") == []


@pytest.mark.parametrize("moved", [False, True])
async def test_a_clone_whose_row_is_written_arrives_after_a_crash(world: World, moved: bool) -> None:
    own = world.root / f"{files.MAKING}copy-123"
    (own / "_data").mkdir(parents=True)
    (own / "_data" / "x").write_text("whole")
    row = Volume(name="copy", created=1, labels={"a": "b"}, moving=own.name)
    world.state.write(Insert("volumes", "copy", encode(row)))
    if moved:
        own.rename(world.root / "copy")
    volumes = await world.open()
    assert volumes.get("copy") == replace(row, moving="")
    assert world.read("copy") == {"x": "whole"}
    assert world.left() == []


async def test_what_has_no_row_when_the_daemon_dies_is_dropped(world: World, volumes: Volumes) -> None:
    (world.root / f"{files.MAKING}copy-123" / "_data").mkdir(parents=True)
    (world.root / f"{files.PARCEL}123").write_text("half a download")
    (world.root / "data" / "_snapshots" / f"{files.MAKING}1").mkdir(parents=True)
    again = await world.open()
    assert world.left() == ["data/_snapshots"]
    assert os.listdir(world.root / "data" / "_snapshots") == []
    assert not again.has("copy")


async def test_a_place_that_is_taken_does_not_keep_the_daemon_from_starting(world: World, volumes: Volumes) -> None:
    own = world.root / f"{files.MAKING}data-123"
    (own / "_data").mkdir(parents=True)
    (own / "_data" / "y").write_text("the other")
    world.state.write(Put("volumes", "data", encode(replace(volumes.get("data"), moving=own.name))))
    await world.open()
    assert world.read("data") == {"x": "one"}
    assert (own / "_data" / "y").exists()


# -- snapshots ---------------------------------------------------------------------------------------------------------


async def test_a_rollback_brings_back_what_was(world: World, volumes: Volumes) -> None:
    assert await changes.snapshot(volumes, "data", "before") == "before"
    world.write("data", x="two", y="new")
    await changes.snapshot(volumes, "data", "after")
    await changes.rollback(volumes, "data", "before")
    assert world.read("data") == {"x": "one"}
    await changes.rollback(volumes, "data", "after")
    assert world.read("data") == {"x": "two", "y": "new"}
    listed = await changes.list_snapshots(volumes, "data")
    assert [(each.name, each.size) for each in listed] == [("before", 3), ("after", 6)]
    assert [action for action, _ in world.actions()] == ["create", "snapshot", "snapshot", "rollback", "rollback"]
    await changes.remove_snapshot(volumes, "data", "before")
    await changes.remove_snapshot(volumes, "data", "after")
    assert await changes.list_snapshots(volumes, "data") == []


async def test_a_snapshot_without_a_name_is_called_by_its_time(volumes: Volumes) -> None:
    name = await changes.snapshot(volumes, "data")
    assert len(name) == len("20260102-030405")
    assert [each.document()["Name"] for each in await changes.list_snapshots(volumes, "data")] == [name]


async def test_a_volume_in_use_has_snapshots_and_no_way_back(world: World, volumes: Volumes) -> None:
    await volumes.mount("data", "c1")
    await changes.snapshot(volumes, "data", "s")
    with pytest.raises(Conflict, match=r"volume is in use: stop these containers first - \[c1\]"):
        await changes.rollback(volumes, "data", "s")
    await volumes.unmount("data", "c1")
    await changes.rollback(volumes, "data", "s")


@pytest.mark.parametrize("name", ["../../other", "_data", "", ".making-1", "a/b", "x" * 129])
async def test_a_snapshot_s_name_leads_nowhere_else(world: World, volumes: Volumes, name: str) -> None:
    if name:
        with pytest.raises(InvalidParameter):
            await changes.snapshot(volumes, "data", name)
    for act in (changes.rollback, changes.remove_snapshot):
        with pytest.raises(NotFound):
            await act(volumes, "data", name)
    assert world.read("data") == {"x": "one"}


async def test_two_snapshots_of_one_name_are_one_too_many(world: World, volumes: Volumes) -> None:
    await changes.snapshot(volumes, "data", "s")
    with pytest.raises(Conflict, match="snapshot data@s exists already"):
        await changes.snapshot(volumes, "data", "s")
    assert os.listdir(world.root / "data" / "_snapshots") == ["s"]


async def test_what_shows_another_place_is_not_kept_here(world: World, volumes: Volumes) -> None:
    await volumes.create("shown", options={"type": "none", "o": "bind", "device": "/srv"})
    for act in (changes.snapshot, changes.rollback):
        with pytest.raises(NotSupported, match="clone it first"):
            await act(volumes, "shown", "s")


def half_replaced(own: Path, step: int) -> None:
    """As far as `files.replace_content` comes before it is killed."""
    (own / "_next").mkdir()
    (own / "_next" / "x").write_text("new")
    if step > 0:
        (own / "_data").rename(own / "_old")
    if step > 1:
        (own / "_next").rename(own / "_data")


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_an_exchange_of_content_goes_on_after_a_crash(world: World, volumes: Volumes, step: int) -> None:
    half_replaced(world.root / "data", step)
    await world.open()
    assert world.read("data") == {"x": "new"}
    assert world.left() == []


async def test_removing_a_volume_takes_its_snapshots_along(world: World, volumes: Volumes) -> None:
    await changes.snapshot(volumes, "data", "s")
    await volumes.remove("data")
    assert os.listdir(world.root) == []


# -- together ----------------------------------------------------------------------------------------------------------


async def test_everything_at_once_leaves_whole_volumes_only(world: World, volumes: Volumes) -> None:
    async def tried(act: Callable[[], Coroutine[object, object, object]]) -> None:
        for _ in range(6):
            with suppress(Conflict, NotFound):
                await act()

    async def use() -> None:
        path = await volumes.mount("data", "c")
        await asyncio.sleep(0)
        assert path.is_dir()
        await volumes.unmount("data", "c")

    await changes.snapshot(volumes, "data", "s")
    async with asyncio.TaskGroup() as group:
        for act in (
            lambda: changes.clone(volumes, "data", "copy"),
            lambda: volumes.remove("copy"),
            lambda: changes.rename(volumes, "copy", "again"),
            lambda: volumes.remove("again"),
            lambda: changes.rollback(volumes, "data", "s"),
            lambda: volumes.create("again"),
            use,
        ):
            group.create_task(tried(act))
    assert world.read("data") == {"x": "one"}
    if volumes.has("copy"):
        assert world.read("copy") == {"x": "one"}
    assert set(os.listdir(world.root)) == {name for name in ("data", "copy", "again") if volumes.has(name)}
    again = await world.open()
    assert [again.has(name) for name in ("copy", "again")] == [volumes.has(name) for name in ("copy", "again")]
