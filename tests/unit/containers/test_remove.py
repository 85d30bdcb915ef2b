"""rm: everything that is the container's own goes, once; a removal that fails can be tried again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import REMOVES_ITSELF, LifeWorld, cancelled_at, restart, until
from wherry.containers.life.pause import pause
from wherry.containers.life.remove import remove, remove_locked
from wherry.containers.life.start import start
from wherry.containers.live import PendingAttach
from wherry.containers.record import Status
from wherry.errors import Conflict, NotFound, Unavailable
from wherry.spec.engine import HostConfig

STEPS = ["write containers", "remove snapshot", "discard volume", "write volumes", "write containers"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def test_a_removed_container_leaves_nothing(world: LifeWorld) -> None:
    before = world.held()
    await world.create("web", image="data")
    world.steps.clear()
    await remove(world.deps, "web", volumes=True)
    assert world.held() == before
    assert world.steps.taken == STEPS
    assert world.actions() == ["create", "destroy"]


@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_a_removal_that_failed_at_any_step_can_be_tried_again(world: LifeWorld, step: int) -> None:
    before = world.held()
    container = await world.create("web", image="data")
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable, match=STEPS[step]):
        await remove(world.deps, "web", volumes=True)
    assert container.state.status in (Status.DEAD, Status.CREATED)
    assert world.stored(container) == container
    assert world.store.resolve("web") is container
    assert "destroy" not in world.actions()
    await remove(world.deps, "web", volumes=True)
    assert world.held() == before
    assert world.actions()[-1] == "destroy"


async def test_a_client_that_leaves_does_not_stop_a_removal(world: LifeWorld) -> None:
    before = world.held()
    for number in range(100):
        await world.create("web", image="data")
        if not await cancelled_at(number, remove(world.deps, "web", volumes=True)):
            break
        if number:
            assert world.held() == before, f"cancelled at wait {number}"
        elif world.held() != before:
            await remove(world.deps, "web", volumes=True)
    assert number >= 1


async def test_cancellation_of_the_work_itself_at_any_wait_can_be_tried_again(world: LifeWorld) -> None:
    """As when the daemon ends while an auto-remove container goes: the next one finishes it."""
    before = world.held()
    for number in range(100):
        container = await world.create("web", image="data")
        finished = not await cancelled_at(number, remove_locked(world.deps, container, volumes=True))
        stored = world.stored(container)
        if stored is None:
            assert "web" not in world.state.rows("names")
        else:
            assert stored.state.status in (Status.REMOVING, Status.DEAD, Status.CREATED)
            await remove(world.deps, "web", volumes=True)
        world.live_table.forget(container)
        assert world.held() == before, f"cancelled at wait {number}"
        if finished:
            break
    assert number >= len(STEPS)


async def test_of_two_removals_at_once_one_finds_nothing(world: LifeWorld) -> None:
    before = world.held()
    await world.create("web", image="data")
    results = await asyncio.gather(*(remove(world.deps, "web", volumes=True) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in results] == [type(None), NotFound]
    assert world.held() == before
    assert world.actions() == ["create", "destroy"]


async def test_two_forced_removals_of_a_running_container_at_once(world: LifeWorld) -> None:
    before = world.held()
    await world.run("web")
    results = await asyncio.gather(*(remove(world.deps, "web", force=True) for _ in range(2)), return_exceptions=True)
    assert [each for each in results if each is not None and not isinstance(each, NotFound)] == []
    await world.idle()
    assert world.held() == before
    assert world.actions().count("destroy") == 1
    assert world.actions().count("die") == 1


async def test_the_name_is_freed_once_and_not_taken_from_its_next_owner(world: LifeWorld) -> None:
    await world.create("web")
    first = asyncio.create_task(remove(world.deps, "web"))
    second = asyncio.create_task(remove(world.deps, "web"))
    await first
    new = await world.create("web")
    with pytest.raises(NotFound):
        await second
    assert world.store.resolve("web") is new
    assert world.state.rows("names") == {"web": new.id.encode()}


async def test_the_name_is_held_until_everything_is_gone(world: LifeWorld) -> None:
    await world.create("web", image="data")
    reached, go_on = world.steps.hold("discard volume")
    removing = asyncio.create_task(remove(world.deps, "web", volumes=True))
    await reached.wait()
    with pytest.raises(Conflict, match='"/web" is already in use'):
        await world.create("web")
    go_on.set()
    await removing
    await world.create("web")


async def test_what_runs_is_removed_only_by_force(world: LifeWorld) -> None:
    container = await world.run("web")
    with pytest.raises(Conflict, match='cannot remove container "/web": container is running: stop the container'):
        await remove(world.deps, "web")
    await pause(world.deps, "web")
    with pytest.raises(Conflict, match="container is paused: unpause and then stop"):
        await remove(world.deps, "web")
    await remove(world.deps, "web", force=True)
    assert world.store.get(container.id) is None
    assert world.shims.last.signals == [9]
    await world.idle()
    assert world.shims.directories == {}


async def test_force_while_a_restart_policy_waits(world: LifeWorld) -> None:
    empty = world.held()
    container = await world.run("web", host=restart("always"))
    world.live(container).backoff = 30.0
    world.shims.last.end(1)
    await until(lambda: container.state.status is Status.RESTARTING)
    with pytest.raises(Conflict, match="container is restarting"):
        await remove(world.deps, "web")
    await remove(world.deps, "web", force=True)
    await world.idle()
    assert world.held() == empty
    assert len(world.shims.made) == 1


async def test_force_while_a_restart_policy_is_starting_it(world: LifeWorld) -> None:
    empty = world.held()
    await world.run("web", host=restart("always"))
    reached, go_on = world.steps.hold("start")
    world.shims.last.end(1)
    await reached.wait()
    removing = asyncio.create_task(remove(world.deps, "web", force=True))
    await asyncio.sleep(0)
    go_on.set()
    await removing
    await world.idle()
    assert world.held() == empty
    assert world.shims.last.signals == [9]


async def test_force_wins_over_a_start_that_comes_between(world: LifeWorld) -> None:
    empty = world.held()
    container = await world.create("web")
    async with world.deps.locks(container.id):
        starting = asyncio.create_task(start(world.deps, "web"))
        await asyncio.sleep(0)
        removing = asyncio.create_task(remove(world.deps, "web", force=True))
        await asyncio.sleep(0)
    await asyncio.gather(starting, removing)
    await world.idle()
    assert world.held() == empty


async def test_without_force_a_start_that_comes_between_wins(world: LifeWorld) -> None:
    container = await world.create("web")
    async with world.deps.locks(container.id):
        starting = asyncio.create_task(start(world.deps, "web"))
        await asyncio.sleep(0)
        removing = asyncio.create_task(remove(world.deps, "web"))
        await asyncio.sleep(0)
    await starting
    with pytest.raises(Conflict, match="container is running"):
        await removing
    assert container.running


async def test_force_on_an_auto_remove_container_is_content_that_it_went_by_itself(world: LifeWorld) -> None:
    empty = world.held()
    await world.run("web", host=REMOVES_ITSELF)
    await remove(world.deps, "web", force=True)
    assert world.held() == empty
    assert world.actions().count("destroy") == 1


async def test_clients_that_waited_for_a_start_are_let_go(world: LifeWorld) -> None:
    container = await world.create("web")
    session = PendingAttach(stdin=False, stdout=True, stderr=True)
    world.live(container).pending.append(session)
    await remove(world.deps, "web")
    assert session.streams.result() is None


async def test_anonymous_volumes_go_only_with_the_flag_named_ones_never(world: LifeWorld) -> None:
    await world.create("keeps", image="data", host=HostConfig(binds=["mine:/m"]))
    await remove(world.deps, "keeps")
    kept = set(world.state.rows("volumes"))
    assert len(kept) == 2
    await world.create("takes", image="data", host=HostConfig(binds=["mine:/m"]))
    await remove(world.deps, "takes", volumes=True)
    assert set(world.state.rows("volumes")) == kept


async def test_a_volume_that_another_container_uses_stays(world: LifeWorld) -> None:
    one = await world.create("one", image="data")
    await world.create("two", host=HostConfig(volumes_from=["one"]))
    await remove(world.deps, "one", volumes=True)
    assert set(world.state.rows("volumes")) == {one.mounts[0].name}


async def test_links_that_are_none_and_unknown_names_are_refused(world: LifeWorld) -> None:
    await world.create("web")
    with pytest.raises(Conflict, match="Conflict, cannot remove the default link name of the container"):
        await remove(world.deps, "web", link=True)
    for name in ("web/db", "nosuch/db"):
        with pytest.raises(NotFound, match=f"No such container: {name}"):
            await remove(world.deps, name, link=True)
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await remove(world.deps, "nosuch", force=True)
