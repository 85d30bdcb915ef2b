"""Pulls that broke off are gone on with: after a failure, a cancellation, a crash; and what is wrong is not kept."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from imagekit.children import pulling
from imagekit.making import Made, make
from imagekit.registry import FakeRegistry, serve
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.distribution.config import HostConfig, RegistryConfig
from wherry.distribution.endpoint import PATIENCE
from wherry.errors import Corrupt, Failed
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.storage.content import PARTIAL_LIFE, ContentStore, download_ref
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel

CONTENT = {"first": os.urandom(2_000_000), "second": os.urandom(3_000_000)}


@pytest.fixture
def made(registry: FakeRegistry) -> Made:
    """Two layers that do not get smaller by compressing."""
    found = make([{name: content} for name, content in CONTENT.items()])
    registry.add("x", "1", found)
    return found


async def fetch(world: World, registry: FakeRegistry):
    return await pull(world.deps, f"{registry.host}/x:1", progress=world.tell)


def size(made: Made, number: int) -> int:
    return len(made.layers[number])


def break_second(registry: FakeRegistry, made: Made, at: int) -> None:
    """The second layer ends after `at` bytes, and then the registry wants to be left alone for longer than we wait."""
    name = made.layer_digests[1]
    registry.cuts[name] = [at]
    registry.error_headers = {"Retry-After": str(PATIENCE + 1)}

    async def then_busy(asked: str) -> None:
        if asked == name:
            registry.failures[f"/v2/x/blobs/{name}"] = [429]

    registry.before_blob = then_busy


def heal(registry: FakeRegistry) -> None:
    registry.before_blob = None
    registry.cuts.clear()
    registry.failures.clear()
    registry.log.clear()


async def whole(world: World, registry: FakeRegistry) -> None:
    """A pull that succeeds leaves the image, and nothing to be gone on with."""
    image = await fetch(world, registry)
    assert files(world, image) == CONTENT
    assert world.partials() == {}


async def test_a_pull_after_one_that_failed_asks_only_for_what_is_missing(world: World, registry, made):
    break_second(registry, made, 1_000_000)
    with pytest.raises(Failed):
        await fetch(world, registry)
    assert world.held() == NOTHING
    first, second = made.layer_digests
    assert world.partials() == {first: size(made, 0), second: 1_000_000}
    heal(registry)
    await whole(world, registry)
    assert registry.asked(first) == []
    assert [request.range for request in registry.asked(second)] == ["bytes=1000000-"]


async def test_a_pull_after_a_restart_goes_on_too(world: World, registry, made):
    break_second(registry, made, 1_000_000)
    with pytest.raises(Failed):
        await fetch(world, registry)
    heal(registry)
    world.open()
    await recover(world.deps)
    assert world.held() == NOTHING
    await whole(world, registry)
    assert [request.range for request in registry.asked("/blobs/sha256") if request.range] == ["bytes=1000000-"]
    assert registry.asked(made.layer_digests[0]) == []


async def test_a_cancelled_pull_is_gone_on_with(world: World, registry, made):
    reached = asyncio.Event()
    name = made.layer_digests[1]
    registry.cuts[name] = [1_000_000]

    async def stop(asked: str) -> None:
        if asked == name and len(registry.asked(name)) == 2:
            reached.set()
            await asyncio.Event().wait()

    registry.before_blob = stop
    task = asyncio.create_task(fetch(world, registry))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.held() == NOTHING
    heal(registry)
    await whole(world, registry)
    assert [request.range for request in registry.asked(name)] == ["bytes=1000000-"]


@pytest.mark.parametrize("damage", ["other bytes", "too long"])
async def test_what_was_damaged_meanwhile_is_downloaded_anew(world: World, registry, made, damage):
    name = made.layer_digests[1]
    with world.deps.content.ingest(download_ref(name)) as ingest:
        ingest.write(bytes(1_000_000 if damage == "other bytes" else size(made, 1) + 1))
    if damage == "too long":
        registry.ranges = False
    await whole(world, registry)


async def test_a_partial_of_a_layer_is_not_believed_twice(world: World, registry):
    """The registry itself sends wrong bytes: after one more try from the beginning that is told."""
    made = make([{"a": os.urandom(100_000)}])
    registry.add("x", "1", made)
    name = made.layer_digests[0]
    registry.blobs[name] = bytes(size(made, 0))
    with world.deps.content.ingest(download_ref(name)) as ingest:
        ingest.write(b"0" * 1000)
    with pytest.raises(Corrupt, match="wrong digest"):
        await fetch(world, registry)
    assert [request.range for request in registry.asked(name)] == ["bytes=1000-", None]
    assert world.partials() == {}
    assert world.held() == NOTHING


async def test_a_mirror_that_sends_wrong_bytes_is_passed_over(world: World, registry, made, tmp_path: Path):
    name = made.layer_digests[1]
    async with serve(FakeRegistry()) as mirror:
        mirror.manifests = registry.manifests
        mirror.blobs = {**registry.blobs, name: bytes(size(made, 1))}
        world.registry = RegistryConfig(hosts={registry.host: HostConfig(mirrors=[mirror.base])})
        world.open()
        await whole(world, registry)
        assert len(mirror.asked(name)) == 1
        assert len(registry.asked(name)) == 1


async def test_a_mirror_that_dies_half_way_is_gone_on_from_at_upstream(world: World, registry, made):
    name = made.layer_digests[1]
    async with serve(FakeRegistry()) as mirror:
        mirror.manifests, mirror.blobs = registry.manifests, registry.blobs
        mirror.cuts[name] = [1_000_000, 0]
        world.registry = RegistryConfig(hosts={registry.host: HostConfig(mirrors=[mirror.base])})
        world.open()
        await whole(world, registry)
    assert [request.range for request in registry.asked(name)] == ["bytes=1000000-"]


async def test_a_full_disk_drops_what_was_downloaded_to_make_room(world: World, registry, made):
    with world.deps.content.ingest(download_ref("sha256:" + "0" * 64)) as older:  # type: ignore[arg-type]
        older.write(b"of another pull")

    def full(step: str) -> None:
        if step == "fsync":
            raise Failed("cannot store layer: No space left on device")

    deps = replace(world.deps, content=ContentStore(world.root, trace=full))
    with pytest.raises(Failed, match="No space left on device"):
        await pull(deps, f"{registry.host}/x:1", progress=world.tell)
    assert world.held() == NOTHING
    assert world.partials() == {}
    await whole(world, registry)


async def test_old_partials_go_at_the_next_start(world: World, registry, made):
    break_second(registry, made, 1_000_000)
    with pytest.raises(Failed):
        await fetch(world, registry)
    for path in (world.root / "ingest").iterdir():
        os.utime(path, (0, path.stat().st_mtime - PARTIAL_LIFE - 1))
    world.open()
    await recover(world.deps)
    assert world.partials() == {}


async def test_a_pull_killed_when_all_was_recorded_costs_no_room_after_the_image_is_removed(
    world: World, registry, made
):
    """The last step, forgetting the downloads, was not made."""
    await fetch(world, registry)
    for name in made.layer_digests:
        os.link(world.deps.content.path(name), world.root / "ingest" / f"partial-{name[7:]}")
    world.open()
    await recover(world.deps)
    await whole(world, registry)
    await remove(world.deps, f"{registry.host}/x:1", in_use={})
    assert world.held() == NOTHING
    assert world.partials() == {}


async def test_no_byte_is_fetched_twice_across_kills(tmp_path: Path, registry: FakeRegistry, made: Made):
    """The connection breaks every 400 kB, and when the layer is asked for again the process is killed."""
    name = made.layer_digests[1]
    root = tmp_path / "world"
    root.mkdir()
    registry.cuts[name] = [400_000] * 3
    held: list[str] = []  # ranges that were asked for and not answered
    asked_again = asyncio.Event()

    async def hold(asked: str) -> None:
        wanted = registry.asked(asked)[-1].range
        if asked == name and wanted and wanted not in held:
            held.append(wanted)
            asked_again.set()
            await asyncio.Event().wait()

    registry.before_blob = hold
    for _ in range(3):
        child = await pulling(root, f"{registry.host}/x:1")
        await asked_again.wait()
        asked_again.clear()
        child.kill()
        await child.wait()
        world = World(root, OverlaySnapshotter(root))
        await recover(world.deps)
        assert world.held() == NOTHING
        world.snapshots.close()
        world.state.close()
    child = await pulling(root, f"{registry.host}/x:1")
    assert await child.wait() == 0
    ranges = [f"bytes={400_000 * number}-" for number in (1, 2, 3)]
    assert held == ranges
    assert [request.range for request in registry.asked(name)] == [
        None,
        *(each for each in ranges for _ in ("held", "answered")),
    ]
    assert len(registry.asked(made.layer_digests[0])) == 1
    world = World(root, OverlaySnapshotter(root))
    assert files(world, world.deps.store.get(f"{registry.host}/x:1")) == CONTENT
    world.snapshots.close()
    world.state.close()
