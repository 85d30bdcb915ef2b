"""Build cache from one machine to another: through our registry and Debian's, images, and directories of a client's."""

import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from imagekit.making import encode, index, make
from imagekit.registry import FakeRegistry, serve
from imagekit.world import World
from registrykit.servers import docker_registry, ours, running
from wherry.aio import Background
from wherry.builder.client import NoClient
from wherry.builder.deps import Deps, Settings
from wherry.builder.export.cache_export import Exported, export
from wherry.builder.export.cache_import import ImportedCache, load, restore_mounts
from wherry.builder.export.cache_manifest import INLINE, Checksum, Contents, Record, inline
from wherry.builder.log import BuildLog, StatusEvent, VertexEvent
from wherry.builder.options import CacheTransfer
from wherry.builder.run.caches import cache_directory
from wherry.builder.solve.seal import seal
from wherry.builder.sources.providers import Providers, bring
from wherry.builder.trees import SCRATCH, Tree, TreeLayer
from wherry.digest import DiffID, Digest, extend_chain, of
from wherry.errors import Failed, NotFound, WherryError
from wherry.images.leases import Lease
from wherry.kernel.mount import open_detached
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.storage.overlay import OverlaySnapshotter

HELM = "application/vnd.cncf.helm.config.v1+json"


@dataclass
class Files(NoClient):
    """A client with content stores."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    async def credentials(self, host: str) -> Auth:
        return ANONYMOUS

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        content = b"".join([piece async for piece in data])
        assert len(content) == size
        self.blobs[store, digest] = content

    async def read_blob(self, store: str, digest: Digest) -> AsyncIterator[bytes]:  # type: ignore[override]
        self.read.append(digest)
        try:
            yield self.blobs[store, digest]
        except KeyError:
            raise NotFound(f"{store} has no {digest}") from None


@dataclass
class Machine:
    world: World
    deps: Deps
    client: Files
    lease: Lease = field(init=False)
    log: BuildLog = field(default_factory=BuildLog)

    async def files(self, parent: Tree = SCRATCH, **contents: str) -> Tree:
        """A layer, as a step makes it."""
        snapshots = self.world.snapshots
        snapshots.prepare("step", parent.chain)
        fd = open_detached(snapshots.mounts("step"), attributes=0)
        try:
            for name, text in contents.items():
                Path(f"/proc/self/fd/{fd}/{name}").write_text(text)
        finally:
            os.close(fd)
        return await seal(self.deps, self.lease, "step", parent, epoch=0, created_by=f"RUN {' '.join(contents)}")

    def content(self, tree: Tree) -> dict[str, str]:
        assert tree.chain is not None
        fd = open_detached(self.world.snapshots.view(tree.chain))
        try:
            root = Path(f"/proc/self/fd/{fd}")
            return {path.name: path.read_text() for path in root.iterdir()}
        finally:
            os.close(fd)

    async def send(self, what: Exported, where: CacheTransfer, providers: Providers | None = None) -> dict[str, str]:
        providers = providers or Providers()
        return await export(
            self.deps, what, where, client=self.client, lease=self.lease, providers=providers, log=self.log
        )

    async def get(self, where: CacheTransfer, providers: Providers | None = None) -> ImportedCache:
        return await load(self.deps, where, client=self.client, providers=providers or Providers())


def machine(root: Path, client: Files) -> Machine:
    root.mkdir()
    world = World(root, OverlaySnapshotter(root))
    deps = Deps(
        state=world.state,
        events=world.deps.events,
        images=world.deps,
        networks=None,  # type: ignore[arg-type]  # nothing runs here
        shims=None,  # type: ignore[arg-type]
        background=Background(),
        settings=Settings(root=root / "build", exec_root=root / "exec", runtime=None),  # type: ignore[arg-type]
    )
    return Machine(world, deps, client)


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[tuple[Machine, Machine]]:
    """Two, with the same client."""
    client = Files()
    one, two = machine(tmp_path / "one", client), machine(tmp_path / "two", client)
    async with AsyncExitStack() as leases:
        for each in (one, two):
            each.lease = await leases.enter_async_context(each.world.deps.leases.hold("test"))
        yield one, two
    for each in (one, two):
        each.world.snapshots.close()


@pytest.fixture(scope="session", params=["ours", "debian"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("registry")
    server = ours(root) if request.param == "ours" else docker_registry(root)
    with running(server):
        yield server.address


def key(name: str) -> str:
    return of(name.encode())


async def two_stages(one: Machine) -> tuple[Exported, Tree, Tree]:
    """A stage that is copied from, and the result; their steps."""
    stage = await one.files(await one.files(source="s"), built="b")
    result = await one.files(await one.files(base="0"), app="1")
    records = [
        Record(key=key("stage 1"), outputs={0: stage.layers[:1]}, created=1),
        Record(key=key("stage 2"), outputs={0: stage.layers}, created=2),
        Record(key=key("result 1"), outputs={0: result.layers[:1]}, created=3),
        Record(key=key("result 2"), outputs={0: result.layers}, created=4, description="[2/2] COPY --from=stage"),
    ]
    assert stage.chain is not None
    checksums = [Checksum(key=key("copy of built"), chain=stage.chain, checksum="c")]
    return Exported(records=records, checksums=checksums, results=[result]), stage, result


@pytest.mark.parametrize("mode", ["min", "max"])
async def test_through_a_registry(machines: tuple[Machine, Machine], address: str, mode: str) -> None:
    one, two = machines
    what, stage, result = await two_stages(one)
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/cache:{mode}", "mode": mode})
    response = await one.send(what, where)
    providers = Providers()
    found = await two.get(where, providers)
    assert set(found.records) == {record.key for record in what.records}
    assert found.checksums[key("copy of built")].checksum == "c"
    assert not found.warnings
    record = found.records[key("result 2")]
    assert (record.kept, record.description, record.created) == (True, "[2/2] COPY --from=stage", 4)
    tree = await bring(two.world.deps, two.lease, Tree(record.outputs[0]), providers)
    assert tree.chain == result.chain
    assert two.content(tree) == {"base": "0", "app": "1"}
    of_stage = found.records[key("stage 2")]
    assert Tree(of_stage.outputs[0]).identity == stage.identity, "its name is known in any case"
    assert of_stage.kept is (mode == "max")
    if mode == "max":
        assert two.content(await bring(two.world.deps, two.lease, Tree(of_stage.outputs[0]), providers)) == {
            "source": "s",
            "built": "b",
        }
    else:
        with pytest.raises(NotFound, match="nobody is known who has it"):
            await bring(two.world.deps, two.lease, Tree(of_stage.outputs[0]), providers)
    assert json.loads(response["cache.manifest"])["mediaType"] == "application/vnd.oci.image.manifest.v1+json"


async def test_the_same_cache_has_the_same_digest_on_every_machine(
    machines: tuple[Machine, Machine], address: str
) -> None:
    digests = []
    for each in machines:
        what, _, _ = await two_stages(each)
        where = CacheTransfer(type="registry", attributes={"ref": f"{address}/same", "mode": "max"})
        digests.append(json.loads((await each.send(what, where))["cache.manifest"])["digest"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("compression", ["zstd", "uncompressed"])
async def test_in_another_compression(machines: tuple[Machine, Machine], address: str, compression: str) -> None:
    one, two = machines
    what, _, result = await two_stages(one)
    attributes = {"ref": f"{address}/{compression}", "compression": compression}
    where = CacheTransfer(type="registry", attributes=attributes)
    await one.send(what, where)
    providers = Providers()
    record = (await two.get(where, providers)).records[key("result 2")]
    suffix = "+zstd" if compression == "zstd" else ".tar"
    assert all(layer.blob is not None and layer.blob.media_type.endswith(suffix) for layer in record.outputs[0])
    assert (await bring(two.world.deps, two.lease, Tree(record.outputs[0]), providers)).chain == result.chain


async def test_with_dockers_media_types(machines: tuple[Machine, Machine], address: str) -> None:
    one, two = machines
    what, _, _ = await two_stages(one)
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/docker", "oci-mediatypes": "false"})
    response = await one.send(what, where)
    assert "vnd.docker.distribution.manifest.v2" in response["cache.manifest"]
    assert (await two.get(where)).records


async def test_through_a_directory_of_the_client(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    what, _, result = await two_stages(one)
    response = await one.send(what, CacheTransfer(type="local", attributes={"dest": "/c", "mode": "max"}))
    descriptor = json.loads(response["cache.manifest"])
    assert ("local:/c", descriptor["digest"]) in one.client.blobs
    providers = Providers()
    where = CacheTransfer(type="local", attributes={"src": "/c", "digest": descriptor["digest"]})
    found = await two.get(where, providers)
    assert len(two.client.read) == 2, "manifest and config"
    tree = await bring(two.world.deps, two.lease, Tree(found.records[key("result 2")].outputs[0]), providers)
    assert tree.chain == result.chain
    with pytest.raises(NotFound, match="has no"):
        await two.get(replace(where, attributes={**where.attributes, "digest": of(b"other")}))


async def test_what_is_shown(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    what, _, _ = await two_stages(one)
    await one.send(what, CacheTransfer(type="local", attributes={"dest": "/c"}))
    (vertex,) = [event for event in one.log.events if isinstance(event, VertexEvent) and event.completed]
    assert vertex.name == "exporting cache to client directory"
    shown = [event.id for event in one.log.events if isinstance(event, StatusEvent) and event.completed]
    assert shown[0] == "preparing build cache for export"
    assert [line.split(":")[0] for line in shown[1:]] == [
        "writing layer sha256",
        "writing layer sha256",
        "writing config sha256",
        "writing cache image manifest sha256",
    ]


async def test_an_imported_cache_is_exported_again_with_what_is_only_elsewhere(
    machines: tuple[Machine, Machine], address: str
) -> None:
    one, two = machines
    what, stage, _ = await two_stages(one)
    first = CacheTransfer(type="registry", attributes={"ref": f"{address}/first", "mode": "max"})
    await one.send(what, first)
    providers = Providers()
    found = await two.get(first, providers)
    imported = Exported(
        records=list(found.records.values()),
        checksums=list(found.checksums.values()),
        results=[Tree(found.records[key("result 2")].outputs[0])],
    )
    second = CacheTransfer(type="registry", attributes={"ref": f"{address}/second", "mode": "max"})
    await two.send(imported, second, providers)
    again = await one.get(second)
    assert all(record.kept for record in again.records.values())
    assert Tree(again.records[key("stage 2")].outputs[0]).chain == stage.chain


async def test_an_image_that_carries_its_cache(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    what, stage, _ = await two_stages(one)
    made = make([{"base": b"0"}, {"app": b"1"}])
    async with serve(FakeRegistry()) as registry:
        layers = _as_tree(made.diff_ids)
        records = [*what.records[:2], Record(key=key("result 2"), outputs={0: layers.layers}, created=4)]
        carried = inline(Contents(records=records, checksums=what.checksums), layers)
        config = {**json.loads(made.config), INLINE: base64.b64encode(carried).decode()}
        raw = encode(config)
        manifest = {**json.loads(made.manifest)}
        manifest["config"] = {**manifest["config"], "digest": of(raw), "size": len(raw)}
        registry.blobs.update(made.blobs)
        registry.blobs[of(raw)] = raw
        registry.put("app", "latest", encode(manifest), made.media_type)
        where = CacheTransfer(type="registry", attributes={"ref": f"{registry.host}/app"})
        providers = Providers()
        found = await two.get(where, providers)
        tree = await bring(two.world.deps, two.lease, Tree(found.records[key("result 2")].outputs[0]), providers)
        assert two.content(tree) == {"base": "0", "app": "1"}
        assert not found.records[key("stage 2")].kept
        assert Tree(found.records[key("stage 2")].outputs[0]).chain == stage.chain
        # the same in an index of platforms
        data = encode(manifest)
        entry = {"mediaType": made.media_type, "digest": of(data), "size": len(data)}
        platform = {"os": "linux", "architecture": "amd64"}
        unknown = {**entry, "digest": of(b"attestation"), "platform": {"os": "unknown", "architecture": "unknown"}}
        document, media_type = index([], form="oci")
        document = encode({**json.loads(document), "manifests": [{**entry, "platform": platform}, unknown]})
        registry.put("app", "multi", document, media_type)
        where = CacheTransfer(type="registry", attributes={"ref": f"{registry.host}/app:multi"})
        assert (await two.get(where)).records[key("result 2")].kept


def _as_tree(diff_ids: list[str]) -> Tree:
    layers: list[TreeLayer] = []
    for diff_id in map(DiffID, diff_ids):
        chain = extend_chain(layers[-1].chain if layers else None, diff_id)
        layers.append(TreeLayer(chain=chain, diff_id=diff_id))
    return Tree(tuple(layers))


async def test_what_is_no_cache_of_ours_is_a_warning(machines: tuple[Machine, Machine]) -> None:
    _, two = machines
    buildkit = "application/vnd.buildkit.cacheconfig.v0"
    image = make([{"a": b"1"}])
    config = {**json.loads(image.config), "moby.buildkit.cache.v0": "e30="}
    async with serve(FakeRegistry()) as registry:

        def manifest(kind: str, document: bytes) -> bytes:
            registry.blobs[of(document)] = document
            made = json.loads(image.manifest)
            made["config"] = {"mediaType": kind, "digest": of(document), "size": len(document)}
            return encode(made)

        plain = json.loads(image.manifest)["config"]["mediaType"]
        registry.blobs.update(image.blobs)
        listed = {"schemaVersion": 2, "manifests": [{"mediaType": buildkit, "digest": of(b"x"), "size": 1}]}
        for name, document, media_type, words in (
            ("manifest", manifest(buildkit, b"{}"), image.media_type, "holds a cache of BuildKit"),
            ("index", encode(listed), "application/vnd.oci.image.index.v1+json", "holds a cache of BuildKit"),
            ("inline", manifest(plain, encode(config)), image.media_type, "holds a cache of BuildKit"),
            ("none", image.manifest, image.media_type, "holds no build cache"),
            (
                "chart",
                manifest("application/vnd.cncf.helm.config.v1+json", b"{}"),
                image.media_type,
                "is no build cache",
            ),
        ):
            registry.put("x", name, document, media_type)
            found = await two.get(CacheTransfer(type="registry", attributes={"ref": f"{registry.host}/x:{name}"}))
            assert not found.records
            assert len(found.warnings) == 1
            assert words in found.warnings[0]


async def test_a_cache_that_is_not_there_is_said_in_the_registrys_words(
    machines: tuple[Machine, Machine], address: str
) -> None:
    _, two = machines
    with pytest.raises(NotFound, match="nosuch"):
        await two.get(CacheTransfer(type="registry", attributes={"ref": f"{address}/nosuch"}))


async def test_a_failure_can_be_passed_over(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    what, _, _ = await two_stages(one)
    attributes = {"ref": "127.0.0.1:9/cache"}
    with pytest.raises(Failed, match="connection refused"):
        await one.send(what, CacheTransfer(type="registry", attributes=attributes))
    where = CacheTransfer(type="registry", attributes={**attributes, "ignore-error": "true"})
    assert await one.send(what, where) == {}
    failed = [event.error for event in one.log.events if isinstance(event, VertexEvent) and event.completed]
    assert "connection refused" in failed[0]
    assert failed[1] == ""
    last = next(event for event in reversed(one.log.events) if isinstance(event, StatusEvent))
    assert last.id.startswith("not exported: ")
    assert last.id.endswith("connection refused")


async def test_inline_has_nothing_to_send(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    what, _, _ = await two_stages(one)
    assert await one.send(what, CacheTransfer(type="inline")) == {}


def fill(one: Machine, name: str, **contents: str) -> Path:
    files = cache_directory(one.deps.settings.root, name) / "0" / "files"
    files.mkdir(parents=True)
    (files.parent.parent / "id").write_text(name)
    files.chmod(0o1777)
    os.chown(files, 5, 6)
    for path, text in contents.items():
        (files / path).write_text(text)
    return files


async def test_cache_mounts_go_along_and_fill_those_that_are_not_there(
    machines: tuple[Machine, Machine], address: str
) -> None:
    one, two = machines
    what, _, _ = await two_stages(one)
    fill(one, "/root/.cache/pip", wheel="w")
    fill(one, "apt", deb="theirs")
    fill(one, "other", x="not of this build")
    fill(two, "apt", deb="ours")
    what = replace(what, mounts=["/root/.cache/pip", "apt", "pruned meanwhile"])
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/mounts", "cache-mounts": "true"})
    await one.send(what, where)
    providers = Providers()
    found = await two.get(where, providers)
    assert set(found.mounts) == {"/root/.cache/pip", "apt"}
    assert await restore_mounts(two.deps, two.lease, found, providers) == ["/root/.cache/pip"]
    base = cache_directory(two.deps.settings.root, "/root/.cache/pip")
    assert (base / "0/files/wheel").read_text() == "w"
    assert (base / "id").read_text() == "/root/.cache/pip"
    status = (base / "0/files").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o1777, 5, 6)
    assert not (base / "0/making").exists()
    apt = cache_directory(two.deps.settings.root, "apt")
    assert (apt / "0/files/deb").read_text() == "ours"
    assert await restore_mounts(two.deps, two.lease, found, providers) == []


async def test_without_being_asked_cache_mounts_stay(machines: tuple[Machine, Machine], address: str) -> None:
    one, two = machines
    what, _, _ = await two_stages(one)
    fill(one, "apt", deb="d")
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/no-mounts"})
    await one.send(replace(what, mounts=["apt"]), where)
    assert not (await two.get(where)).mounts


async def test_a_cache_mount_that_cannot_be_restored_is_begun_empty(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    what, _, _ = await two_stages(one)
    fill(one, "apt", deb="d")
    where = CacheTransfer(type="local", attributes={"dest": "/c", "cache-mounts": "true"})
    response = await one.send(replace(what, mounts=["apt"]), where)
    digest = json.loads(response["cache.manifest"])["digest"]
    providers = Providers()
    found = await two.get(CacheTransfer(type="local", attributes={"src": "/c", "digest": digest}), providers)
    del two.client.blobs["local:/c", found.mounts["apt"].digest]
    assert await restore_mounts(two.deps, two.lease, found, providers, only={"apt"}) == []
    assert found.warnings[0].startswith("cache mount apt is not restored: local:/c has no")
    assert await restore_mounts(two.deps, two.lease, found, providers, only={"other"}) == []


async def test_a_result_that_was_changed_on_disk_is_not_exported(
    machines: tuple[Machine, Machine], require: Callable[..., None]
) -> None:
    one, _ = machines
    what, _, result = await two_stages(one)
    assert result.chain is not None
    (one.world.snapshots.layer(result.chain) / "app").write_text("changed")
    with pytest.raises(WherryError, match="was changed on disk"):
        await one.send(what, CacheTransfer(type="local", attributes={"dest": "/c"}))
