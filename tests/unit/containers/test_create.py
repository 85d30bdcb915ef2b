"""create: all or nothing, whatever fails and whenever the client leaves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import LifeWorld, cancelled_at
from wherry.containers.life.remove import remove
from wherry.containers.life.start import start
from wherry.containers.record import Status
from wherry.errors import Conflict, InvalidParameter, NotFound, Unavailable
from wherry.images.upkeep.remove import remove as remove_image
from wherry.spec.engine import HostConfig, RestartPolicy

STEPS = [
    "write names",
    "prepare",
    "ensure volume",
    "write volumes",
    "fill volume",
    "write containers",
]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


async def test_a_new_container_has_all_that_start_needs(world: LifeWorld) -> None:
    container = await world.create("web", image="data", cmd=["sleep", "9"])
    assert (container.name, container.path, container.args) == ("web", "sleep", ["9"])
    assert (container.state.status, container.complete) == (Status.CREATED, True)
    assert container.config.hostname == container.id[:12]
    assert world.snapshots.rw[container.id] == world.images.deps.store.get("data").chain
    (point,) = container.mounts
    assert (point.destination, point.anonymous) == ("/data", True)
    assert Path(point.source).is_dir()
    assert world.deps.settings.directory(container).is_dir()
    assert world.stored(container) == container
    assert world.actions() == ["create"]
    assert world.networks.connected == set()


async def test_the_first_record_is_incomplete_and_names_the_volumes_to_be_made(world: LifeWorld) -> None:
    reached, go_on = world.steps.hold("ensure volume")
    creating = asyncio.create_task(world.create("web", image="data"))
    await reached.wait()
    (half,) = world.store.all()
    written = world.stored(half)
    assert written is not None
    assert not written.complete
    assert [point.name for point in written.mounts] == [half.mounts[0].name]
    with pytest.raises(NotFound):
        world.store.resolve("web")
    with pytest.raises(Conflict, match='"/web" is already in use'):
        await world.create("web")
    go_on.set()
    await creating


async def test_create_takes_these_steps(world: LifeWorld) -> None:
    await world.create("web", image="data")
    assert world.steps.taken == STEPS


@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_failure_at_any_step_leaves_nothing(world: LifeWorld, step: int) -> None:
    before = world.held()
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable, match=STEPS[step]):
        await world.create("web", image="data")
    assert world.held() == before
    assert world.actions() == []
    await world.create("web", image="data")  # the name is free


async def test_cancellation_at_any_wait_leaves_nothing_or_the_whole(world: LifeWorld) -> None:
    before, cancelled = world.held(), 0
    for number in range(100):
        if not await cancelled_at(number, world.create("web", image="data")):
            break
        if "create" in world.actions():
            break  # only the waits after the commit are left
        assert world.held() == before, f"cancelled at wait {number}"
        cancelled += 1
    assert cancelled >= len(STEPS)


async def test_two_cancellations_do_not_stop_the_clean_up(world: LifeWorld) -> None:
    before = world.held()
    filling, _ = world.steps.hold("fill volume")
    discarding, go_on = world.steps.hold("discard volume")
    creating = asyncio.create_task(world.create("web", image="data"))
    await filling.wait()
    creating.cancel()
    await discarding.wait()
    creating.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert world.held() == before


async def test_what_is_being_undone_is_not_to_be_found(world: LifeWorld) -> None:
    """The commit was made, the client left: nobody may start what is being taken away."""
    discarding, go_on = world.steps.hold("discard volume")
    world.steps.fail_at = STEPS.index("fill volume") + 1
    creating = asyncio.create_task(world.create("web", image="data"))
    await discarding.wait()
    with pytest.raises(NotFound):
        await start(world.deps, "web")
    go_on.set()
    with pytest.raises(Unavailable):
        await creating


async def test_a_clean_up_that_fails_hides_not_the_first_error(
    world: LifeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.steps.failing = {"fill volume": InvalidParameter("first"), "discard volume": Unavailable("second")}
    with pytest.raises(InvalidParameter, match="first"):
        await world.create("web", image="data")
    assert "so did its clean-up" in caplog.text


async def test_of_two_with_one_name_one_wins_and_the_other_changes_nothing(world: LifeWorld) -> None:
    results = await asyncio.gather(world.create("web"), world.create("web"), return_exceptions=True)
    winners = [each for each in results if not isinstance(each, BaseException)]
    (loser,) = [each for each in results if isinstance(each, BaseException)]
    assert isinstance(loser, Conflict)
    assert [container.id for container in world.store] == [winners[0].id]
    assert world.state.rows("names") == {"web": winners[0].id.encode()}
    assert list(world.snapshots.rw) == [winners[0].id]


async def test_without_a_name_one_is_drawn_that_nobody_has(world: LifeWorld) -> None:
    names = {(await world.create()).name for _ in range(20)}
    assert len(names) == 20


async def test_an_anonymous_volume_goes_with_a_create_that_failed_a_named_one_stays(world: LifeWorld) -> None:
    await world.volumes.ensure("mine")
    world.steps.failing = {"fill volume": Unavailable("no")}
    with pytest.raises(Unavailable):
        await world.create("web", image="data", host=HostConfig(binds=["mine:/m"]))
    assert set(world.state.rows("volumes")) == {"mine"}


async def test_a_volume_cannot_be_removed_while_its_container_is_being_created(world: LifeWorld) -> None:
    await world.volumes.ensure("mine")
    reached, go_on = world.steps.hold("fill volume")
    creating = asyncio.create_task(world.create("web", host=HostConfig(binds=["mine:/m"])))
    await reached.wait()
    with pytest.raises(Conflict, match="volume is in use"):
        await world.volumes.remove("mine")
    go_on.set()
    await creating


async def test_the_layers_stay_when_the_image_is_removed_during_create(world: LifeWorld) -> None:
    reached, go_on = world.steps.hold("fill volume")
    creating = asyncio.create_task(world.create("web", image="data"))
    await reached.wait()
    chain = world.images.deps.store.get("data").chain
    await remove_image(world.images.deps, "data", force=True, in_use={})
    go_on.set()
    await creating
    assert chain is not None
    assert world.snapshots.has(chain)
    await remove(world.deps, "web")
    assert not world.snapshots.has(chain)  # its image was the container's alone


@pytest.mark.parametrize(
    ("host", "error", "words"),
    [
        (HostConfig(network_mode="container:"), InvalidParameter, "invalid container format container:<name|id>"),
        (HostConfig(links=["nosuch:db"]), InvalidParameter, "could not get container for nosuch: No such container"),
        (HostConfig(network_mode="container:nosuch"), InvalidParameter, "No such container: nosuch"),
        (HostConfig(pid_mode="container:nosuch"), InvalidParameter, "No such container: nosuch"),
        (HostConfig(ipc_mode="container:nosuch"), InvalidParameter, "No such container: nosuch"),
        (HostConfig(volumes_from=["nosuch"]), InvalidParameter, "No such container: nosuch"),
        (HostConfig(pid_mode="odd"), InvalidParameter, "invalid PID mode: odd"),
        (HostConfig(ipc_mode="odd"), InvalidParameter, "invalid IPC mode: odd"),
        (HostConfig(runtime="odd"), InvalidParameter, "unknown or invalid runtime name: odd"),
        (HostConfig(dns=["odd"]), InvalidParameter, "odd"),
        (HostConfig(extra_hosts=["odd"]), InvalidParameter, "odd"),
        (HostConfig(cap_add=["ODD"]), InvalidParameter, "invalid CapAdd"),
        (HostConfig(cap_drop=["ODD"]), InvalidParameter, "invalid CapDrop"),
        (HostConfig(init=True), InvalidParameter, "no init program found"),
        (HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")), InvalidParameter, "AutoRemove"),
    ],
)
async def test_what_can_never_start_is_refused_and_leaves_nothing(
    world: LifeWorld, host: HostConfig, error: type[Exception], words: str
) -> None:
    before = world.held()
    with pytest.raises(error, match=words):
        await world.create("web", host=host)
    assert world.held() == before
    assert world.steps.taken == []


async def test_a_missing_image_and_no_image_are_refused(world: LifeWorld) -> None:
    with pytest.raises(NotFound, match="No such image: nosuch"):
        await world.create("web", image="nosuch")
    with pytest.raises(InvalidParameter, match="no image specified"):
        await world.create("web", image="")
    with pytest.raises(InvalidParameter, match="Invalid container name"):
        await world.create("no/slash")


async def test_a_name_may_begin_with_a_slash(world: LifeWorld) -> None:
    assert (await world.create("/web")).name == "web"


async def test_ports_of_a_shared_network_are_the_other_s_business(world: LifeWorld) -> None:
    await world.create("other")
    host = HostConfig(network_mode="container:other", publish_all_ports=True)
    with pytest.raises(InvalidParameter, match="port publishing and the container type network mode"):
        await world.create("web", host=host)
