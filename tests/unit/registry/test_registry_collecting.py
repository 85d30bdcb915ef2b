"""Garbage collection beside pushes, pulls, mounts and deletions: nothing somebody can name is ever missing."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from imagekit.making import Made, digest, make
from imagekit.pushing import Pusher
from wherry.aio import settle
from wherry.registry.folder import FolderStore, open_folder
from wherry.registry.server import build_app
from wherry.registry.upkeep.collect import collect, preview
from wherry.spec.image import Manifest, decode_manifest

GRACE = 12.0  # seconds, of which one goes by with every blob pushed: pushes do lose blobs to it, and must notice
REPOSITORIES = ("a", "b", "team/c")
TAGS = ("t0", "t1", "t2")
WORKERS = 4
STEPS = 60  # of each worker

# layers are shared among images, so that what one loses another still needs
LAYERS = [{f"file{number}": bytes([number]) * 5000} for number in range(6)]
IMAGES = [make([LAYERS[a], LAYERS[b]]) for a in range(6) for b in range(6) if a < b]


@dataclass
class Clock:
    seconds: int = 1_000_000

    def __call__(self) -> int:
        return self.seconds * 10**9


@dataclass
class Load:
    """Clients that do what clients do, at random."""

    push: Pusher
    random: random.Random
    clock: Clock
    done: dict[str, int] = field(default_factory=dict)
    again: int = 0  # pushes that lost something

    async def step(self) -> None:
        what = self.random.choices(("push", "pull", "untag", "delete", "mount"), (5, 5, 1, 1, 1))[0]
        repository = self.random.choice(REPOSITORIES)
        await getattr(self, f"_{what}")(repository, self.random.choice(TAGS), self.random.choice(IMAGES))
        self.done[what] = self.done.get(what, 0) + 1

    async def _push(self, repository: str, tag: str, made: Made) -> None:
        """As often as blobs that were taken meanwhile make it necessary."""
        for attempt in range(100):
            self.again += attempt > 0
            for name, data in made.blobs.items():
                async with self.push.session.head(f"{self.push.base}/v2/{repository}/blobs/{name}") as answer:
                    there = answer.status == 200
                if not there:
                    assert await self.push.blob(repository, data) == 201
                self.clock.seconds += 1
            status, text = await self.push.manifest(repository, tag, made.manifest, made.media_type)
            if status == 201:
                return
            assert (status, "MANIFEST_BLOB_UNKNOWN" in text) == (404, True), text
        raise AssertionError("a push never succeeds")

    async def _mount(self, repository: str, tag: str, made: Made) -> None:
        name = digest(made.layers[0])
        url = f"{self.push.base}/v2/{repository}/blobs/uploads/?mount={name}&from={self.random.choice(REPOSITORIES)}"
        async with self.push.session.post(url) as answer:
            assert answer.status in (201, 202)
            where = answer.headers["Location"]
        if answer.status == 202:  # it is an upload instead, which nobody wants
            assert await self.push.delete(where.removeprefix("/v2/")) == 204

    async def _pull(self, repository: str, tag: str, _: Made) -> None:
        """Whoever has the manifest of a tag that nobody took away has all it needs."""
        status, raw = await self.push.get(f"{repository}/manifests/{tag}")
        if status == 404:
            return
        document = decode_manifest(raw, "")
        assert isinstance(document, Manifest)
        for each in (document.config, *document.layers):
            if not await self._pull_blob(repository, each.digest, digest(raw)):
                return

    async def _pull_blob(self, repository: str, name: str, manifest: str) -> bool:
        """False when the manifest is gone, too; somebody may have pushed it again meanwhile, with all it needs."""
        for _ in range(20):
            status, data = await self.push.get(f"{repository}/blobs/{name}")
            if status == 200:
                assert digest(data) == name
                return True
            status, _data = await self.push.get(f"{repository}/manifests/{manifest}")
            if status == 404:
                return False
        raise AssertionError(f"{name} is missing, and its manifest is not")

    async def _untag(self, repository: str, tag: str, _: Made) -> None:
        assert await self.push.delete(f"{repository}/manifests/{tag}") in (202, 404)

    async def _delete(self, repository: str, tag: str, made: Made) -> None:
        assert await self.push.delete(f"{repository}/manifests/{made.digest}") in (202, 404)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[FolderStore]:
    made = await settle(lambda: open_folder(tmp_path / "registry", clock=clock))
    yield made
    await made.close()


async def test_collecting_beside_random_clients_never_takes_what_is_needed(store: FolderStore, clock: Clock) -> None:
    stop = asyncio.Event()
    rounds = 0

    async def collect_for_ever() -> None:
        nonlocal rounds
        while not stop.is_set():
            await collect(store, delete_untagged=True, grace=GRACE)
            rounds += 1

    async with TestServer(build_app(store)) as server, aiohttp.ClientSession() as session:
        push = Pusher(session, str(server.make_url("")).rstrip("/"))
        loads = [Load(push, random.Random(seed), clock) for seed in range(WORKERS)]

        async def work(load: Load) -> None:
            for _ in range(STEPS):
                await load.step()

        async with asyncio.TaskGroup() as group:
            collecting = group.create_task(collect_for_ever())
            await asyncio.gather(*(work(load) for load in loads))
            stop.set()
            await collecting

        assert rounds > 10
        assert sum(load.again for load in loads) > 0, "nothing was ever collected under somebody's hands"
        assert all(min(load.done[what] for what in ("push", "pull", "mount")) > 0 for load in loads)
        await check_complete(store, push)
        clock.seconds += 1
        await collect(store, delete_untagged=True, grace=0)
        await check_complete(store, push)
    assert set(store.content.walk()) == store.catalog.live()
    assert needed(store) == store.catalog.live(), "something nobody needs is left"
    assert not store.open_uploads


async def check_complete(store: FolderStore, push: Pusher) -> None:
    for name, repository in list(store.catalog):
        for tag in list(repository.tags):
            status, raw = await push.get(f"{name}/manifests/{tag}")
            assert status == 200
            document = decode_manifest(raw, "")
            assert isinstance(document, Manifest)
            for each in (document.config, *document.layers):
                status, data = await push.get(f"{name}/blobs/{each.digest}")
                assert (status, digest(data)) == (200, each.digest), f"{name}:{tag} lacks {each.digest}"


def needed(store: FolderStore) -> set[str]:
    found: set[str] = set()
    for _, repository in store.catalog:
        for tag in repository.tags.values():
            found |= {tag.digest, *repository.manifests[tag.digest].blobs}
    return found


async def test_what_a_dry_run_tells_is_what_happens(store: FolderStore, clock: Clock) -> None:
    async with TestServer(build_app(store)) as server, aiohttp.ClientSession() as session:
        push = Pusher(session, str(server.make_url("")).rstrip("/"))
        for number, made in enumerate(IMAGES[:6]):
            await push.image(REPOSITORIES[number % 3], made, tag="t0")  # every other push takes the tag away
        assert await push.blob("a", b"nobody names this") == 201
        clock.seconds += 1
        before = set(store.content.walk())
        told = preview(store, delete_untagged=True, grace=0)
        assert set(store.content.walk()) == before
        found = await collect(store, delete_untagged=True, grace=0)
        assert told == found
        assert (found.manifests, found.files > 0) == (3, True)
        assert len(before) - len(set(store.content.walk())) == found.files
        await check_complete(store, push)


async def test_young_blobs_wait_for_their_manifest(store: FolderStore) -> None:
    async with TestServer(build_app(store)) as server, aiohttp.ClientSession() as session:
        push = Pusher(session, str(server.make_url("")).rstrip("/"))
        (made,) = IMAGES[:1]
        for blob in made.blobs.values():
            await push.blob("a", blob)
        assert (await collect(store, delete_untagged=True)).files == 0
        assert (await push.manifest("a", "t", made.manifest, made.media_type))[0] == 201
