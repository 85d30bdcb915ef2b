"""rename, pause and unpause."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import LifeWorld, restart, until
from wherry.containers.life.pause import pause, unpause
from wherry.containers.life.remove import remove
from wherry.containers.life.rename import rename
from wherry.containers.record import Status
from wherry.errors import Conflict, InvalidParameter, NotFound, Unavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def test_a_renamed_container_is_found_by_its_new_name_alone(world: LifeWorld) -> None:
    container = await world.create("web")
    await rename(world.deps, "web", "/www")
    assert world.store.resolve("www") is container
    with pytest.raises(NotFound):
        world.store.resolve("web")
    assert world.state.rows("names") == {"www": container.id.encode()}
    assert world.stored(container) == container
    event = world.events.past(0, 1 << 63)[-1]
    assert (event.action, event.attributes["name"], event.attributes["oldName"]) == ("rename", "www", "/web")
    await world.create("web")


async def test_names_that_are_taken_bad_or_the_same_are_refused(world: LifeWorld) -> None:
    await world.create("web")
    await world.create("other")
    with pytest.raises(Conflict, match='"/other" is already in use'):
        await rename(world.deps, "web", "other")
    for bad, words in (("", "may be empty"), ("/", "may be empty"), ("a b", "Invalid container name"), ("web", "same")):
        with pytest.raises(InvalidParameter, match=words):
            await rename(world.deps, "web", bad)
    with pytest.raises(NotFound):
        await rename(world.deps, "nosuch", "new")
    assert set(world.state.rows("names")) == {"web", "other"}


async def test_a_rename_that_is_not_written_changes_nothing(world: LifeWorld) -> None:
    container = await world.create("web")
    world.steps.clear(fail_at=0)
    with pytest.raises(Unavailable):
        await rename(world.deps, "web", "www")
    assert world.store.resolve("web") is container
    await world.create("www")
    assert "rename" not in world.actions()


async def test_of_two_renames_to_one_name_one_wins(world: LifeWorld) -> None:
    await world.create("one")
    await world.create("two")
    results = await asyncio.gather(
        rename(world.deps, "one", "new"), rename(world.deps, "two", "new"), return_exceptions=True
    )
    assert [type(each) for each in results] == [type(None), Conflict]
    assert set(world.state.rows("names")) == {"new", "two"}


async def test_a_container_that_was_removed_meanwhile_is_not_brought_back(world: LifeWorld) -> None:
    empty = world.held()
    await world.create("web", image="data")
    reached, go_on = world.steps.hold("discard volume")
    removing = asyncio.create_task(remove(world.deps, "web", volumes=True))
    await reached.wait()
    renaming = asyncio.create_task(rename(world.deps, "web", "www"))
    await asyncio.sleep(0)
    go_on.set()
    await removing
    with pytest.raises(NotFound, match="No such container: web"):
        await renaming
    assert world.held() == empty


async def test_a_paused_container_is_frozen_until_it_is_unpaused(world: LifeWorld) -> None:
    container = await world.run("web")
    await pause(world.deps, "web")
    assert (container.state.status, world.shims.last.paused) == (Status.PAUSED, True)
    assert world.stored(container) == container
    with pytest.raises(Conflict, match="Container web is already paused"):
        await pause(world.deps, "web")
    await unpause(world.deps, "web")
    assert (container.state.status, world.shims.last.paused) == (Status.RUNNING, False)
    assert world.stored(container) == container
    with pytest.raises(Conflict, match="Container web is not paused"):
        await unpause(world.deps, "web")
    assert world.actions() == ["create", "start", "pause", "unpause"]


async def test_only_what_runs_can_be_paused(world: LifeWorld) -> None:
    await world.create("web")
    with pytest.raises(Conflict, match="Container web is not running"):
        await pause(world.deps, "web")
    with pytest.raises(Conflict, match="Container web is not paused"):
        await unpause(world.deps, "web")
    container = await world.run("again", host=restart("always"))
    world.live(container).backoff = 30.0
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    with pytest.raises(Conflict, match="Container again is restarting"):
        await pause(world.deps, "again")


async def test_a_freeze_that_fails_leaves_it_running(world: LifeWorld) -> None:
    container = await world.run("web")
    world.steps.failing = {"pause": Unavailable("no")}
    with pytest.raises(Unavailable):
        await pause(world.deps, "web")
    assert container.state.status is Status.RUNNING
    world.steps.failing = {}
    await pause(world.deps, "web")
    world.steps.failing = {"resume": Unavailable("no")}
    with pytest.raises(Unavailable):
        await unpause(world.deps, "web")
    assert container.state.status is Status.PAUSED
    assert world.actions() == ["create", "start", "pause"]


async def test_a_pause_that_waited_for_a_removal_leaves_no_trace(world: LifeWorld) -> None:
    empty = world.held()
    await world.run("web", image="data")
    reached, go_on = world.steps.hold("discard volume")
    removing = asyncio.create_task(remove(world.deps, "web", force=True, volumes=True))
    await reached.wait()
    pausing = asyncio.create_task(pause(world.deps, "web"))
    await asyncio.sleep(0)
    go_on.set()
    await removing
    with pytest.raises(Conflict, match="is not running"):
        await pausing
    assert world.held() == empty
