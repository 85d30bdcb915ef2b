"""Volumes are mounted while their containers run: from before the process until after its end, whatever happens."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import LifeWorld, until
from wherry.containers.life.recover import recover
from wherry.containers.life.start import start
from wherry.containers.making.volumes import users_of
from wherry.containers.record import MountPoint
from wherry.errors import Unavailable
from wherry.runtime.shim_client import Exit
from wherry.spec.engine import HostConfig

VOLUMES = HostConfig(binds=["data:/v", "data:/again", "logs:/l", "/tmp:/host"])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


def users(world: LifeWorld) -> dict[str, list[str]]:
    return {name: list(world.volumes.users_now(name)) for name in ("data", "logs")}


async def test_volumes_have_their_user_from_before_the_process_until_after_its_end(world: LifeWorld) -> None:
    container = await world.create("web", host=VOLUMES)
    assert users(world) == {"data": [], "logs": []}
    reached, go_on = world.steps.hold("create process")
    go_on.set()
    await start(world.deps, "web")
    assert reached.is_set()
    assert users(world) == {"data": [container.id], "logs": [container.id]}
    assert [point.source for point in container.mounts if point.name] == [
        str(world.volumes.path(name)) for name in ("data", "logs", "data")
    ]
    world.shims.last.end(0)
    await until(lambda: not container.running)
    await world.idle()
    assert users(world) == {"data": [], "logs": []}


@pytest.mark.parametrize("step", ["create process", "start", "write containers"])
async def test_a_start_that_fails_leaves_no_volume_mounted(world: LifeWorld, step: str) -> None:
    await world.create("web", host=VOLUMES)
    world.steps.failing[step] = Unavailable(f"{step} cannot be done")
    with pytest.raises(Unavailable):
        await start(world.deps, "web")
    assert users(world) == {"data": [], "logs": []}
    world.steps.failing.clear()
    await start(world.deps, "web")


async def test_two_containers_share_a_volume_until_the_second_has_ended(world: LifeWorld) -> None:
    one = await world.run("one", host=VOLUMES)
    first = world.shims.last
    two = await world.run("two", host=VOLUMES)
    assert users(world)["data"] == sorted([one.id, two.id])
    first.end(0)
    await until(lambda: not one.running)
    await world.idle()
    assert users(world)["data"] == [two.id]


async def test_the_next_daemon_takes_over_what_running_containers_use(world: LifeWorld) -> None:
    container = await world.run("web", host=VOLUMES)
    await world.run("gone", host=HostConfig(binds=["logs:/l"]))
    world.shims.directories[world.shims.last.id] = Exit(code=0, at=1, oom_killed=False, error="")
    await world.background.close()
    world.open()
    await recover(world.deps)
    await world.idle()
    assert users(world) == {"data": [container.id], "logs": [container.id]}


async def test_users_are_told_once_per_volume(world: LifeWorld) -> None:
    container = await world.create("web", host=VOLUMES)
    container.mounts += (MountPoint(type="bind", source="/tmp", destination="/b", name=""),)
    assert users_of([container]) == {"data": [container.id], "logs": [container.id]}
