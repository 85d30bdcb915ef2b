"""Push, against Debian's docker-registry and against our own server; what was pushed is read back and compared."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from imagekit.making import Made, digest, encode, index, make
from imagekit.registry import FakeRegistry
from imagekit.world import World
from wherry.aio import settle
from wherry.digest import Digest
from wherry.errors import InvalidParameter, NotFound, WherryError
from wherry.images.archives.load import load
from wherry.images.garbage import collect_all
from wherry.images.making.convert import convert
from wherry.images.transfer.pull import pull
from wherry.images.transfer.push import push
from wherry.images.upkeep.tag import tag
from wherry.registry.folder import FolderStore, open_folder
from wherry.registry.server import build_app
from wherry.spec import image as spec

BIG = {"big": bytes(range(256)) * 20_000}
ONE = make([{"a": b"1"}, BIG])
OTHER = make([{"a": b"1"}, {"c": b"3"}], architecture="s390x")
ZSTD = make([{"z": b"1"}], compression="zstd")
PLAIN = make([{"p": b"1"}], compression="plain")
DOCKER = make([{"d": b"1"}], form="docker")
INDEX = index([(ONE, {"os": "linux", "architecture": "amd64"}), (OTHER, {"os": "linux", "architecture": "s390x"})])


@dataclass
class Remote:
    host: str
    session: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, bytes]:
        accept = {"Accept": ", ".join(spec.ACCEPT)}
        async with self.session.get(f"http://{self.host}/v2/{path}", headers=accept) as answer:
            return answer.status, await answer.read()

    async def manifest(self, path: str) -> dict[str, object]:
        status, data = await self.get(path)
        assert status == 200, data
        found = json.loads(data)
        assert isinstance(found, dict)
        return found


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[tuple[str, FolderStore]]:
    store = await settle(open_folder, tmp_path / "registry")
    async with TestServer(build_app(store)) as server:
        yield f"127.0.0.1:{server.port}", store
    await store.close()


@pytest.fixture(params=["docker-registry", "ours"])
async def remote(
    request: pytest.FixtureRequest, ours: tuple[str, FolderStore], docker_registry: str
) -> AsyncIterator[Remote]:
    host = ours[0] if request.param == "ours" else docker_registry
    async with aiohttp.ClientSession() as session:
        yield Remote(host, session)


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own: docker-registry serves all tests."""
    return "r" + digest(request.node.name.encode())[7:19]


async def give(world: World, made: Made, name: str, top: tuple[bytes, str] | None = None) -> None:
    """Make it an image without a registry, its layers as they would be unpacked."""
    await world.put(made, name, index=top)


@pytest.mark.parametrize("made", [ONE, ZSTD, DOCKER], ids=["gzip", "zstd", "docker"])
async def test_what_is_pushed_is_what_is_held(world: World, remote: Remote, repository: str, made: Made):
    await give(world, made, f"{remote.host}/{repository}:1")
    await push(world.deps, f"{remote.host}/{repository}", tag="1", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/1") == (200, made.manifest)
    for name, data in made.blobs.items():
        assert await remote.get(f"{repository}/blobs/{name}") == (200, data)
    assert world.messages[0] == {"status": f"The push refers to repository [{remote.host}/{repository}]"}
    assert world.statuses[-2] == f"1: digest: {made.digest} size: {len(made.manifest)}"
    assert world.messages[-1]["aux"] == {"Tag": "1", "Digest": made.digest, "Size": len(made.manifest)}
    assert world.statuses.count("Pushed") == len(made.layers)
    assert world.deps.store.get(made.id).repo_digests == (f"{remote.host}/{repository}@{made.digest}",)


async def test_a_second_push_sends_nothing(world: World, remote: Remote, repository: str):
    await give(world, ONE, f"{remote.host}/{repository}:1")
    await push(world.deps, f"{remote.host}/{repository}", tag="1", progress=world.tell)
    world.messages.clear()
    await push(world.deps, f"{remote.host}/{repository}", tag="1", progress=world.tell)
    assert world.statuses.count("Layer already exists") == 2
    assert not {"Pushing", "Pushed"} & set(world.statuses)


async def test_layers_are_mounted_from_another_repository(world: World, remote: Remote, repository: str):
    await give(world, ONE, f"{remote.host}/{repository}/a:1")
    await push(world.deps, f"{remote.host}/{repository}/a", tag="1", progress=world.tell)
    await tag(world.deps, f"{remote.host}/{repository}/a:1", repository=f"{remote.host}/{repository}/b", tag="2")
    world.messages.clear()
    await push(world.deps, f"{remote.host}/{repository}/b", tag="2", progress=world.tell)
    assert world.statuses.count(f"Mounted from {repository}/a") == 2
    assert await remote.get(f"{repository}/b/manifests/2") == (200, ONE.manifest)


async def test_an_index_is_pushed_whole_and_pulled_again(world: World, other: World, remote: Remote, repository: str):
    name = f"{remote.host}/{repository}"
    for made in (ONE, OTHER):
        await give(world, made, name, INDEX)
    await push(world.deps, name, tag="latest", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/latest") == (200, INDEX[0])
    assert await remote.get(f"{repository}/manifests/{OTHER.digest}") == (200, OTHER.manifest)
    image = await pull(other.deps, name, tag="latest", platform="linux/s390x", progress=other.tell)
    assert image.id == OTHER.id
    assert {image.repo_digests for image in world.deps.store.all()} == {(f"{name}@{digest(INDEX[0])}",)}


async def test_of_an_index_that_is_not_held_whole_an_image_is_pushed(world: World, remote: Remote, repository: str):
    name = f"{remote.host}/{repository}"
    await give(world, OTHER, name, INDEX)
    await push(world.deps, name, tag="latest", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/latest") == (200, OTHER.manifest)
    note = world.messages[-1]["aux"]
    assert isinstance(note, dict)
    assert note["manifestPushedInsteadOfIndex"] is True


async def test_what_the_registry_has_of_an_index_need_not_be_held(world: World, remote: Remote, repository: str):
    name = f"{remote.host}/{repository}"
    await give(world, ONE, f"{name}:one")
    await push(world.deps, name, tag="one", progress=world.tell)
    await world.deps.store.remove(world.deps.store.get(ONE.id).id, names=[f"{name}:one"], record=True)
    await give(world, OTHER, name, INDEX)
    await push(world.deps, name, tag="latest", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/latest") == (200, INDEX[0])


async def test_one_platform_is_pushed_when_it_is_asked_for(world: World, remote: Remote, repository: str):
    name = f"{remote.host}/{repository}"
    for made in (ONE, OTHER):
        await give(world, made, name, INDEX)
    await push(world.deps, name, tag="latest", platform="linux/s390x", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/latest") == (200, OTHER.manifest)
    with pytest.raises(NotFound, match=r"does not provide the specified platform \(linux/riscv64\)"):
        await push(world.deps, name, tag="latest", platform="linux/riscv64", progress=world.tell)


async def test_all_tags_are_pushed_without_one(world: World, remote: Remote, repository: str):
    name = f"{remote.host}/{repository}"
    await give(world, ONE, f"{name}:1")
    await give(world, OTHER, f"{name}:2")
    await push(world.deps, name, progress=world.tell)
    assert sorted(json.loads((await remote.get(f"{repository}/tags/list"))[1])["tags"]) == ["1", "2"]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_layers_are_recompressed_on_the_way(world: World, remote: Remote, repository: str, compression: str):
    name = f"{remote.host}/{repository}"
    world_made = await loaded(world, ONE, f"{name}:1")
    await push(world.deps, name, tag="1", compression=compression, progress=world.tell)
    document = await remote.manifest(f"{repository}/manifests/1")
    wanted = {"gzip": spec.OCI_LAYER_GZIP, "zstd": spec.OCI_LAYER_ZSTD, "none": spec.OCI_LAYER}[compression]
    layers = document["layers"]
    assert isinstance(layers, list)
    assert {layer["mediaType"] for layer in layers} == {wanted}
    assert world.deps.store.get(world_made).id == world_made
    world.messages.clear()
    await push(world.deps, name, tag="1", compression=compression, progress=world.tell)
    assert not {"Converting", "Pushed"} & set(world.statuses)  # known from before


async def loaded(world: World, made: Made, name: str) -> str:
    """As `load` leaves it, with real layers."""
    archive = docker_archive(made, name)

    async def chunks() -> AsyncIterator[bytes]:
        yield archive

    return (await load(world.deps, chunks(), progress=world.tell))[0].id


def docker_archive(made: Made, name: str, *, plain: bool = False) -> bytes:
    import gzip
    import io
    import tarfile

    files = {"config.json": made.config}
    for number, layer in enumerate(made.layers):
        files[f"{number}/layer.tar"] = gzip.decompress(layer) if plain else layer
    layers = [f"{number}/layer.tar" for number in range(len(made.layers))]
    listed = [{"Config": "config.json", "RepoTags": [name], "Layers": layers}]
    files["manifest.json"] = json.dumps(listed).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


async def test_plain_layers_of_an_archive_are_gzipped_always_alike(
    world: World, other: World, remote: Remote, repository: str
):
    archive = docker_archive(ONE, f"{remote.host}/{repository}:1", plain=True)

    async def chunks() -> AsyncIterator[bytes]:
        yield archive

    digests = []
    for each in (world, other):
        await load(each.deps, chunks(), progress=each.tell)
        await push(each.deps, f"{remote.host}/{repository}", tag="1", progress=each.tell)
        aux = each.messages[-1]["aux"]
        assert isinstance(aux, dict)
        digests.append(aux["Digest"])
    assert digests[0] == digests[1]
    layers = (await remote.manifest(f"{repository}/manifests/1"))["layers"]
    assert isinstance(layers, list)
    assert {layer["mediaType"] for layer in layers} == {spec.OCI_LAYER_GZIP}


async def test_plain_layers_that_came_so_keep_their_digest(world: World, remote: Remote, repository: str):
    await give(world, PLAIN, f"{remote.host}/{repository}:1")
    await push(world.deps, f"{remote.host}/{repository}", tag="1", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/1") == (200, PLAIN.manifest)


async def test_an_image_is_converted_and_keeps_its_id(world: World):
    image_id = await loaded(world, ONE, "x:1")
    held = set(world.deps.content.walk())
    await convert(world.deps, "x:1", "x:zstd", compression="zstd", progress=world.tell)
    assert world.deps.store.get("x:zstd").id == image_id
    first, second = (world.deps.store.target(each).descriptor.digest for each in references("x:1", "x:zstd"))  # type: ignore[union-attr]
    assert first != second
    await convert(world.deps, "x:zstd", "x:back", compression="gzip", progress=world.tell)
    assert world.deps.store.target(references("x:back")[0]).descriptor.digest == first  # type: ignore[union-attr]
    assert held < set(world.deps.content.walk())


def references(*names: str) -> list[object]:
    from wherry.reference import parse

    return [parse(name) for name in names]


async def test_an_index_is_converted_child_by_child(world: World):
    for made in (ONE, OTHER):
        await give(world, made, "x", INDEX)
    await convert(world.deps, "x", "y", compression="zstd", progress=world.tell)
    assert {image.id for image in world.deps.store.platforms("y")} == {ONE.id, OTHER.id}
    target = world.deps.store.target(references("y")[0])  # type: ignore[arg-type]
    assert target is not None
    document = json.loads(world.deps.content.read(target.descriptor.digest, limit=1 << 20))
    known = {manifest.digest for image in world.deps.store.all() for manifest in image.manifests}
    assert {entry["digest"] for entry in document["manifests"]} <= known
    assert [entry["platform"]["architecture"] for entry in document["manifests"]] == ["amd64", "s390x"]


@pytest.mark.parametrize(
    ("name", "tag_", "error", "words"),
    [
        ("nothing", "1", NotFound, "An image does not exist locally with the tag: nothing"),
        ("x", "2", NotFound, "tag does not exist: x:2"),
        (f"x@sha256:{'0' * 64}", "", InvalidParameter, "cannot push a digest reference"),
    ],
)
async def test_what_cannot_be_pushed_is_said_in_dockers_words(
    world: World, name: str, tag_: str, error: type[WherryError], words: str
):
    await give(world, ONE, "x:1")
    with pytest.raises(error) as caught:
        await push(world.deps, name, tag=tag_, progress=world.tell)
    assert caught.value.message == words


@pytest.mark.parametrize("verb", ["push", "convert"])
async def test_cancelled_at_any_moment_nothing_is_left(world: World, ours: tuple[str, FolderStore], verb: str):
    host, _ = ours
    await loaded(world, ONE, f"{host}/x:1")
    for moment in range(0, 100, 7):
        if verb == "push":
            work = push(world.deps, f"{host}/x", tag="1", compression="zstd", progress=world.tell)
        else:
            work = convert(world.deps, f"{host}/x:1", "y:1", compression="none", progress=world.tell)  # type: ignore[assignment]
        task = asyncio.ensure_future(work)
        for _ in range(moment):
            await asyncio.sleep(0.0005)
        finished = task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        held = world.held()
        assert not held["ingests"] | held["leases"] | held["scratch"] | held["snapshots"]
        removed = await collect_all(world.deps)
        assert not [*removed.digests, *removed.chains]
        if finished:
            break
    assert moment > 0


async def nap(seconds: float) -> None:
    """A second's pause, shortened: as long as a registry may take to notice that a line broke."""
    await asyncio.sleep(seconds / 20)


@pytest.fixture
async def flaky(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Our registry with requests that break off: `flaky(method, byte)` for the next one."""
    store = await settle(open_folder, tmp_path / "registry")
    app = build_app(store)
    cuts: list[tuple[str, int]] = []
    seen: list[tuple[str, int]] = []

    @web.middleware
    async def cut(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        seen.append((request.method, request.content_length or 0))
        if cuts and cuts[0][0] == request.method:
            _, at = cuts.pop(0)
            received = 0
            upload = await store.upload("x", request.path.rpartition("/")[2])
            async for data in request.content.iter_chunked(4096):
                await upload.write(data)
                received += len(data)
                if received >= at:
                    break
            await upload.release()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await handler(request)  # type: ignore[misc, no-any-return]

    app.middlewares.append(cut)
    async with TestServer(app) as server:
        yield lambda *wanted: (cuts.extend(wanted), f"127.0.0.1:{server.port}", seen, store)
    await store.close()


async def test_an_upload_that_broke_off_goes_on_where_it_was(
    world: World, flaky: Callable[..., tuple[None, str, list[tuple[str, int]], FolderStore]]
):
    big = make([{"big": os.urandom(3 << 20)}])
    _, host, seen, store = flaky(("PATCH", 1 << 20), ("PATCH", 1 << 20))
    await give(world, big, f"{host}/x:1")
    await push(world.deps, f"{host}/x", tag="1", progress=world.tell, sleep=nap)
    patched = [length for method, length in seen if method == "PATCH"]
    assert len(patched) == 3
    assert patched[0] == len(big.layers[0])
    assert patched[2] < patched[1] < patched[0] - (1 << 19)
    assert (await store.manifest("x", await store.resolve("x", "1"))).data == big.manifest


async def test_an_index_with_attestations_keeps_every_digest_from_registry_to_registry(
    world: World, other: World, registry: FakeRegistry, remote: Remote, repository: str
):
    statement = b'{"predicate": {}}'
    attestation = Made(
        manifest=encode(
            {
                "schemaVersion": 2,
                "mediaType": spec.OCI_MANIFEST,
                "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(b"{}"), "size": 2},
                "layers": [
                    {"mediaType": "application/vnd.in-toto+json", "digest": digest(statement), "size": len(statement)}
                ],
            }
        ),
        media_type=spec.OCI_MANIFEST,
        config=b"{}",
        layers=[statement],
        diff_ids=[],
        blobs={digest(b"{}"): b"{}", digest(statement): statement},
    )
    platforms = [(ONE, "amd64"), (OTHER, "s390x"), (attestation, "unknown")]
    top = index([(made, {"os": "linux", "architecture": name}) for made, name in platforms])
    for made, _ in platforms:
        registry.add("x", made.digest, made)
    registry.put("x", "1", *top)
    await pull(world.deps, f"{registry.host}/x:1", platform="all", progress=world.tell)
    name = f"{remote.host}/{repository}"
    await tag(world.deps, f"{registry.host}/x:1", repository=name, tag="1")
    await push(world.deps, name, tag="1", progress=world.tell)
    assert await remote.get(f"{repository}/manifests/1") == (200, top[0])
    await pull(other.deps, f"{name}:1", platform="all", progress=other.tell)
    for made, _ in platforms:
        for wanted in (made.digest, *made.blobs):
            assert wanted in set(other.deps.content.walk())
    assert other.deps.content.read(Digest(digest(top[0])), limit=1 << 20) == top[0]
    assert {image.id for image in other.deps.store.platforms(f"{name}:1")} == {ONE.id, OTHER.id}


class CuttingProxy:
    """A line to `host` that breaks: of each new connection only so many bytes get through, while `cuts` lasts."""

    def __init__(self, host: str, cuts: list[int]) -> None:
        self.upstream = host.split(":")
        self.cuts = cuts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self.upstream)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(there, writer, None))
                await self._pipe(reader, back, self.cuts)
                back.transport.abort()
                writer.transport.abort()
        except* (ConnectionError, OSError):
            pass

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cuts: list[int] | None) -> None:
        passed = 0
        while data := await reader.read(1 << 16):
            if cuts and passed + len(data) > cuts[0]:
                writer.write(data[: cuts.pop(0) - passed])
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()
            passed += len(data)


@pytest.mark.parametrize("kind", ["docker-registry", "ours"])
async def test_through_a_line_that_breaks_the_image_arrives_whole(
    world: World, ours: tuple[str, FolderStore], docker_registry: str, repository: str, kind: str
):
    made = make([{"random": os.urandom(4 << 20)}, {"other": os.urandom(1 << 20)}])
    cuts = [50, 1_500_000, 1_000_000, 700, 2_500_000, 300_000]
    host = ours[0] if kind == "ours" else docker_registry
    proxy = CuttingProxy(host, cuts)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with server:
        name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/{repository}"
        await give(world, made, f"{name}:1")
        await push(world.deps, name, tag="1", progress=world.tell, sleep=nap)
    assert len(cuts) < 4
    async with aiohttp.ClientSession() as session:
        remote = Remote(host, session)
        assert await remote.get(f"{repository}/manifests/1") == (200, made.manifest)
        for blob, data in made.blobs.items():
            assert await remote.get(f"{repository}/blobs/{blob}") == (200, data)
