from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import World
from wherry.containers.content.commit import commit
from wherry.containers.record import Status
from wherry.errors import Conflict, InvalidParameter, NotFound


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def test_a_running_container_moves_again_when_the_commit_fails(world: World) -> None:
    await world.add("web", image="removed")
    with pytest.raises(NotFound, match="No such image"):
        await commit(world.deps, "web")
    assert world.shim.calls == ["pause", "resume"]


@pytest.mark.parametrize("status", [Status.PAUSED, Status.EXITED, Status.CREATED])
async def test_only_a_running_container_is_paused_and_only_on_request(world: World, status: Status) -> None:
    await world.add("still", image="removed", status=status)
    await world.add("web", image="removed")
    with pytest.raises(NotFound):
        await commit(world.deps, "still")
    with pytest.raises(NotFound):
        await commit(world.deps, "web", pause=False)
    assert world.shim.calls == []


async def test_bad_requests_are_refused_before_anything_is_done(world: World) -> None:
    await world.add("web")
    for arguments, words in (
        ({"repo": "Upper"}, "must be lowercase"),
        ({"repo": "x", "tag": "b@d"}, "invalid tag format"),
        ({"repo": "x@sha256:" + "0" * 64}, "digest"),
        ({"changes": ["FROM x"]}, "is not a valid change command"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            await commit(world.deps, "web", **arguments)  # type: ignore[arg-type]
    await world.add("going", status=Status.REMOVING)
    with pytest.raises(Conflict, match="being removed"):
        await commit(world.deps, "going")
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await commit(world.deps, "nosuch")
    assert world.shim.calls == []
