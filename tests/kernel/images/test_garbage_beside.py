"""Garbage is collected at every instant beside pulls, loads, commits, removals and runs: nothing needed goes."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from imagekit.making import make, tar
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.digest import ChainID, Digest, of
from wherry.errors import Conflict, NotFound, Unavailable
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.garbage import collect_all, pinned, release
from wherry.images.making.commit import commit
from wherry.images.making.convert import convert
from wherry.images.making.import_ import import_
from wherry.images.progress import quiet
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.check import check
from wherry.images.upkeep.remove import remove
from wherry.spec.engine import ContainerConfig
from wherry.storage.content import ContentStore

pytestmark = pytest.mark.kernel

SEED = int(os.environ.get("WHERRY_TEST_SEED", "0")) or random.randrange(1 << 30)
ROUNDS = 4  # of each verb

BASE = {"base": b"0" * 300_000}
MADE = [make([BASE, {f"own{number}": bytes([number]) * 200_000}]) for number in range(3)]


class Life:
    """What users do, again and again, on images that share layers."""

    def __init__(self, world: World, other: World, registry: FakeRegistry) -> None:
        self.world, self.other, self.host = world, other, registry.host
        self.random = random.Random(SEED)
        self.archive = b""
        self.number = 0

    async def prepare(self) -> None:
        await pull(self.other.deps, f"{self.host}/x:0", progress=quiet)
        self.archive = b"".join([chunk async for chunk in save(self.other.deps, [f"{self.host}/x:0"])])

    async def chunks(self, data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]
            await asyncio.sleep(0)

    def any(self) -> str:
        return f"{self.host}/x:{self.random.randrange(len(MADE))}"

    async def pulls(self) -> None:
        await pull(self.world.deps, self.any(), progress=quiet)

    async def loads(self) -> None:
        await load(self.world.deps, self.chunks(self.archive), progress=quiet)

    async def imports(self) -> None:
        await import_(self.world.deps, self.chunks(tar({"i": os.urandom(100_000)})), progress=quiet)

    async def converts(self) -> None:
        await convert(self.world.deps, self.any(), "converted:1", compression="zstd", progress=quiet)

    async def saves(self) -> None:
        async for _ in save(self.world.deps, [self.any()]):
            await asyncio.sleep(0)

    async def removes(self) -> None:
        names = [target.name for target in self.world.deps.store.targets()] or [self.any()]
        await remove(self.world.deps, self.random.choice(names), force=True, in_use={})

    async def runs(self) -> None:
        """A container is made, looked into, committed and removed."""
        deps = self.world.deps
        self.number += 1
        key = f"box{self.number}"
        async with pinned(deps, self.any()) as image:
            deps.snapshots.prepare(key, image.chain)
        try:
            assert deps.snapshots.parent_of_key(key) == image.chain
            for name, content in {**BASE}.items():
                assert files(self.world, image)[name] == content
            (deps.snapshots.upper(key) / "written").write_bytes(os.urandom(50_000))
            made = await commit(deps, key, image_id=image.id, config=ContainerConfig())
            assert "written" in files(self.world, made)
        finally:
            deps.snapshots.remove(key)
            await release(deps, image.chain)


async def repeat(verb: Callable[[], Awaitable[object]]) -> None:
    for _ in range(ROUNDS):
        try:
            await verb()
        except (NotFound, Conflict):
            await asyncio.sleep(0)  # another one removed it first


async def test_collecting_all_the_time_takes_nothing_that_is_needed(world: World, other: World, registry: FakeRegistry):
    print(f"WHERRY_TEST_SEED={SEED}")
    for number, made in enumerate(MADE):
        registry.add("x", str(number), made)
    life = Life(world, other, registry)
    await life.prepare()
    done = asyncio.Event()
    collected = 0

    async def collect() -> None:
        nonlocal collected
        while not done.is_set():
            await collect_all(world.deps)
            collected += 1
            await asyncio.sleep(0)

    async def look() -> None:
        while not done.is_set():
            found = await check(world.deps, quick=True, progress=quiet)
            assert found.problems == [], found.problems
            await asyncio.sleep(0.05)

    verbs = (life.pulls, life.pulls, life.loads, life.imports, life.converts, life.saves, life.removes, life.runs)
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(collect()), group.create_task(collect()), group.create_task(look())]
        await asyncio.gather(*(repeat(verb) for verb in verbs))
        done.set()
        await asyncio.wait(watching)
    assert collected > ROUNDS
    found = await check(world.deps, progress=quiet)
    assert found.problems == []
    for image in world.deps.store.all():
        await remove(world.deps, image.id, force=True, in_use={})
    for image in world.deps.store.all():  # parents of others were refused
        await remove(world.deps, image.id, force=True, in_use={})
    assert world.held() == NOTHING


@pytest.mark.parametrize("step", ["rename", "fsync", "fsync directory"])
async def test_a_blob_made_while_garbage_is_chosen_stays(world: World, step: str):
    """The collection runs in the very moment in which a blob that nobody names appears, or has just appeared."""
    loop = asyncio.get_running_loop()
    content = world.deps.content

    def collect(at: str) -> None:
        if at == step:
            asyncio.run_coroutine_threadsafe(collect_all(world.deps), loop).result()

    traced = ContentStore(world.root, trace=collect)
    async with world.deps.leases.hold("test") as lease:

        def make_blob() -> str:
            with traced.ingest_new("new") as ingest:
                ingest.write(b"new")
                lease.note(ingest.digest)
                return ingest.commit(None)

        digest = await asyncio.to_thread(make_blob)
        assert content.has(digest)  # type: ignore[arg-type]
    await collect_all(world.deps)
    assert world.held() == NOTHING


@pytest.mark.parametrize("garbage_before", [False, True])
async def test_a_blob_that_appears_between_choosing_and_removing_stays(world: World, garbage_before: bool):
    """Also when the same bytes were garbage a moment ago, and were chosen already."""
    content = world.deps.content
    if garbage_before:
        content.write(b"new")
    async with world.deps.leases.hold("test") as lease:

        def appear() -> tuple[set[Digest], set[ChainID]]:
            with content.ingest_new("new") as ingest:
                ingest.write(b"new")
                lease.note(ingest.digest)
                ingest.commit(None)
            return set(), set()

        world.deps.roots.append(appear)  # asked when what is leased is known already
        await collect_all(world.deps)
        assert content.has(of(b"new"))
        world.deps.roots.clear()
    await collect_all(world.deps)
    assert world.held() == NOTHING


async def test_what_an_image_lost_while_it_was_looked_at_goes_in_the_end(world: World, registry: FakeRegistry):
    registry.add("x", "1", MADE[0])
    name = f"{registry.host}/x:1"
    await pull(world.deps, name, progress=quiet)
    async with pinned(world.deps, name) as image:
        await remove(world.deps, name, in_use={})
        assert set(world.snapshots.chains()) == {layer.chain for layer in image.layers}
    assert world.held() == NOTHING


async def test_roots_of_others_are_kept(world: World, tmp_path: Path):
    kept, other = world.deps.content.write(b"kept"), world.deps.content.write(b"other")
    world.deps.roots.append(lambda: ({kept}, set()))
    removed = await collect_all(world.deps)
    assert removed.digests == [other]
    assert removed.bytes == 5
    found = await check(world.deps, progress=quiet)
    assert (found.problems, found.blobs) == ([], 1)
    world.deps.content.delete(kept)
    found = await check(world.deps, progress=quiet)
    assert [problem.kind.value for problem in found.problems] == ["missing-blob"]


async def test_a_verb_is_never_told_that_its_own_blob_was_removed(world: World, registry: FakeRegistry):
    """Many imports beside many collections: none has to be tried again."""
    done = False

    async def collect() -> None:
        while not done:
            await collect_all(world.deps)

    collecting = asyncio.ensure_future(collect())

    async def chunks() -> AsyncIterator[bytes]:
        yield tar({"i": os.urandom(100)})

    try:
        for _ in range(12):
            await import_(world.deps, chunks(), progress=quiet)
    except Unavailable as exc:
        raise AssertionError(exc.message) from exc
    finally:
        done = True
        await collecting
    assert len(world.deps.store.all()) == 12
