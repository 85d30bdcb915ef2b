"""Base images: resolved from registries, layouts and the engine's own store; layers brought when they are needed."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from imagekit.making import digest, index, make
from imagekit.registry import FakeRegistry
from imagekit.world import NOTHING, World, chain_of
from wherry.builder.client import NoClient
from wherry.builder.graph import ImageSource, ResolveMode
from wherry.builder.sources.images import Resolved, resolve
from wherry.builder.sources.providers import Providers, bring, bring_blobs
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import ChainID, DiffID, Digest
from wherry.errors import Corrupt, InvalidParameter, NotFound, NotSupported
from wherry.images.garbage import leased
from wherry.images.leases import Lease
from wherry.images.transfer.pull import pull
from wherry.spec.distribution import Auth
from wherry.spec.image import Platform

AMD64, ARM64 = Platform(os="linux", architecture="amd64"), Platform(os="linux", architecture="arm64")
TWO = [{"a": b"1", "etc/": None}, {"b": b"2"}]


class Stores(NoClient):
    """A client with content stores and a password."""

    def __init__(self, blobs: dict[str, bytes] | None = None, auth: Auth | None = None) -> None:
        self.blobs = blobs or {}
        self.auth = auth
        self.asked: list[str] = []

    async def credentials(self, host: str) -> Auth:
        self.asked.append(host)
        return self.auth or await super().credentials(host)

    async def read_blob(self, store: str, digest: Digest) -> AsyncIterator[bytes]:  # type: ignore[override]
        self.asked.append(f"{store} {digest}")
        if digest not in self.blobs:
            raise NotFound(f"{store} has no {digest}")
        data = self.blobs[digest]
        for start in range(0, len(data), 50):
            yield data[start : start + 50]


async def found(
    world: World,
    lease: Lease,
    reference: str,
    *,
    platform: Platform = AMD64,
    client: NoClient | None = None,
    providers: Providers | None = None,
    mode: ResolveMode = ResolveMode.DEFAULT,
    store: str = "",
) -> Resolved:
    source = ImageSource(reference=reference, mode=mode, store=store)
    return await resolve(world.deps, lease, source, platform, client or NoClient(), providers or Providers())


def content(world: World, chain: ChainID | None) -> dict[str, bytes]:
    assert chain is not None
    layers, below = [], chain
    while below is not None:
        layers.append(world.snapshots.layer(below))
        below = world.snapshots.parent(below)
    return {path.name: path.read_bytes() for layer in reversed(layers) for path in layer.iterdir() if path.is_file()}


async def test_resolving_brings_documents_and_no_layer(world: World, registry: FakeRegistry) -> None:
    made = make(TWO)
    registry.add("app", "latest", made)
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app")
        assert (one.manifest.digest, one.image_id, one.local) == (made.digest, made.id, False)
        assert one.reference == f"{registry.host}/app:latest"
        assert one.config.config.cmd == ["sh"]
        assert [layer.created_by for layer in one.tree.layers] == ["step 0", "step 1"]
        assert one.tree.chain == chain_of(made)
        assert set(world.deps.content.walk()) == {made.digest, made.id}
        assert not [request for request in registry.log for layer in made.layer_digests if layer in request.path]
    assert world.held() == NOTHING, "nothing of it stays after the build"


async def test_layers_are_brought_when_they_are_needed_and_once(world: World, registry: FakeRegistry) -> None:
    made = make(TWO)
    registry.add("app", "latest", made)
    providers = Providers()
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app", providers=providers)
        trees = await asyncio.gather(*(bring(world.deps, lease, one.tree, providers, world.tell) for _ in range(3)))
        assert content(world, trees[0].chain) == {"a": b"1", "b": b"2"}
        assert all(layer.size > 0 for layer in trees[0].layers)
        for layer in made.layer_digests:
            assert len(registry.asked(layer)) == 1, "three builds share one download"
        assert not world.partials()
        again = await bring(world.deps, lease, one.tree, Providers())
        assert again.chain == one.tree.chain
    assert world.held() == NOTHING


async def test_an_index_gives_the_image_of_the_platform(world: World, registry: FakeRegistry) -> None:
    amd, arm = make([{"a": b"amd"}]), make([{"a": b"arm"}], architecture="arm64")
    document, media_type = index(
        [(amd, {"os": "linux", "architecture": "amd64"}), (arm, {"os": "linux", "architecture": "arm64"})]
    )
    for each in (amd, arm):
        registry.add("app", each.digest, each)
    registry.put("app", "latest", document, media_type)
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app", platform=ARM64)
        assert (one.image_id, one.digest, one.manifest.digest) == (arm.id, digest(document), arm.digest)
        with pytest.raises(
            NotFound,
            match="not found: want linux/s390x; it has linux/amd64, linux/arm64",
        ):
            await found(world, lease, f"{registry.host}/app", platform=Platform(os="linux", architecture="s390x"))


async def test_an_image_for_another_machine_is_no_error(world: World, registry: FakeRegistry) -> None:
    registry.add("app", "latest", make(TWO, architecture="arm64"))
    async with leased(world.deps, "build") as lease:
        assert (await found(world, lease, f"{registry.host}/app")).config.architecture == "arm64"


@pytest.mark.parametrize(
    ("mode", "asked", "new"),
    [(ResolveMode.LOCAL, False, False), (ResolveMode.DEFAULT, True, True), (ResolveMode.PULL, True, True)],
)
async def test_the_mode_says_whether_a_held_image_is_enough(
    world: World, registry: FakeRegistry, mode: ResolveMode, asked: bool, new: bool
) -> None:
    old, other = make([{"a": b"old"}]), make([{"a": b"new"}])
    registry.add("app", "latest", old)
    await pull(world.deps, f"{registry.host}/app", progress=world.tell)
    registry.add("app", "latest", other)
    registry.log.clear()
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app", mode=mode)
    assert one.local is not new
    assert one.image_id == (other.id if new else old.id)
    assert bool(registry.log) is asked


async def test_what_a_registry_does_not_answer_is_taken_from_what_is_held_unless_pulled(
    world: World, registry: FakeRegistry
) -> None:
    made = make(TWO)
    registry.add("app", "latest", made)
    await pull(world.deps, f"{registry.host}/app", progress=world.tell)
    registry.manifests.clear()
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app")
        assert (one.local, one.image_id) == (True, made.id)
        tree = await bring(world.deps, lease, one.tree, Providers())
        assert content(world, tree.chain) == {"a": b"1", "b": b"2"}
        with pytest.raises(NotFound, match=r"repository .*app not found"):
            await found(world, lease, f"{registry.host}/app", mode=ResolveMode.PULL)


async def test_an_unchanged_tag_costs_one_head_request(world: World, registry: FakeRegistry) -> None:
    registry.add("app", "latest", make(TWO))
    await pull(world.deps, f"{registry.host}/app", progress=world.tell)
    registry.log.clear()
    async with leased(world.deps, "build") as lease:
        assert (await found(world, lease, f"{registry.host}/app", mode=ResolveMode.PULL)).local
    assert [request.method for request in registry.asked("/manifests/")] == ["HEAD"]


async def test_a_pinned_image_that_is_held_needs_no_registry(world: World, registry: FakeRegistry) -> None:
    made = make(TWO)
    registry.add("app", "latest", made)
    await pull(world.deps, f"{registry.host}/app", progress=world.tell)
    registry.log.clear()
    async with leased(world.deps, "build") as lease:
        pinned = f"{registry.host}/app@{made.digest}"
        assert (await found(world, lease, pinned, mode=ResolveMode.PULL)).image_id == made.id
        assert not registry.log
        elsewhere = f"{registry.host}/other@{made.digest}"
        assert (await found(world, lease, elsewhere)).image_id == made.id, "a digest means the same everywhere"
        assert not registry.log


@pytest.mark.parametrize("short", [True, False])
async def test_an_image_is_found_by_its_id(world: World, short: bool) -> None:
    made = make(TWO)
    await world.put(made, "x:1")
    name = made.id[7:31] if short else made.id
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"docker.io/library/{name}")
    assert (one.image_id, one.local) == (made.id, True)


async def test_credentials_of_the_client_open_a_registry(world: World, registry: FakeRegistry) -> None:
    registry.add("app", "latest", make(TWO))
    registry.auth = "token"
    registry.put("private/app", "latest", *registry.manifests["app", "latest"])
    client = Stores(auth=Auth(username="ann", password="secret"))
    async with leased(world.deps, "build") as lease:
        with pytest.raises(NotFound, match="pull access denied"):
            await found(world, lease, f"{registry.host}/private/app")
        providers = Providers()
        one = await found(world, lease, f"{registry.host}/private/app", client=client, providers=providers)
        await bring(world.deps, lease, one.tree, providers)
    assert set(client.asked) == {registry.host}


async def test_what_is_no_image_is_refused_in_words(world: World, registry: FakeRegistry) -> None:
    document = json.loads(make(TWO).manifest)
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    registry.put("chart", "latest", json.dumps(document).encode(), document["mediaType"])
    async with leased(world.deps, "build") as lease:
        with pytest.raises(NotSupported, match="Helm chart"):
            await found(world, lease, f"{registry.host}/chart")


async def test_a_layer_that_is_not_what_the_config_says_is_refused(world: World, registry: FakeRegistry) -> None:
    made = make([{"a": b"1"}], diff_ids=["sha256:" + "0" * 64])
    registry.add("app", "latest", made)
    providers = Providers()
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, f"{registry.host}/app", providers=providers)
        with pytest.raises(Corrupt, match="does not match the image's configuration"):
            await bring(world.deps, lease, one.tree, providers)
    assert world.held() == NOTHING


async def test_a_layer_nobody_has_is_said_so(world: World) -> None:
    lost = TreeLayer(chain=ChainID("sha256:" + "1" * 64), diff_id=DiffID("sha256:" + "1" * 64))
    async with leased(world.deps, "build") as lease:
        with pytest.raises(NotFound, match="nobody is known who has it"):
            await bring(world.deps, lease, Tree((lost,)), Providers())


async def test_an_oci_layout_of_the_client(world: World) -> None:
    made = make(TWO)
    client = Stores({**made.blobs, made.digest: made.manifest})
    providers = Providers()
    async with leased(world.deps, "build") as lease:
        reference = f"docker.io/library/base@{made.digest}"
        one = await found(world, lease, reference, client=client, providers=providers, store="mine")
        tree = await bring(world.deps, lease, one.tree, providers)
        assert content(world, tree.chain) == {"a": b"1", "b": b"2"}
        assert all(asked.startswith("oci:mine sha256:") for asked in client.asked)
        for blob in made.layer_digests:
            world.deps.content.delete(Digest(blob))
        blobs = [layer.blob for layer in one.tree.layers if layer.blob is not None]
        assert await bring_blobs(world.deps, lease, blobs, Providers()) == blobs
        assert await bring_blobs(world.deps, lease, blobs, providers) == []
        assert set(made.layer_digests) <= set(world.deps.content.walk())
        with pytest.raises(InvalidParameter, match="must have a digest"):
            await found(world, lease, "docker.io/library/base:1", client=client, store="mine")


async def test_a_layout_that_lies_is_refused(world: World) -> None:
    made = make(TWO)
    reference = f"docker.io/library/base@{made.digest}"
    async with leased(world.deps, "build") as lease:
        client = Stores({**made.blobs, made.digest: made.manifest + b" "})
        with pytest.raises(Corrupt, match="is damaged"):
            await found(world, lease, reference, client=client, store="mine")
        client = Stores({**made.blobs, made.digest: made.manifest, made.layer_digests[1]: b"x" * len(made.layers[1])})
        providers = Providers()
        one = await found(world, lease, reference, client=client, providers=providers, store="mine")
        with pytest.raises(Corrupt, match="wrong digest"):
            await bring(world.deps, lease, one.tree, providers)
        client.blobs[made.layer_digests[1]] = b"x" * 10_000
        with pytest.raises(Corrupt, match="is longer than"):
            await bring(world.deps, lease, one.tree, providers)
        client.blobs[made.digest] = b"x" * (5 << 20)
    assert world.held() == NOTHING


async def test_the_second_provider_is_asked_when_the_first_has_nothing(world: World) -> None:
    made = make(TWO)
    client = Stores({**made.blobs, made.digest: made.manifest})
    empty, providers = Stores(), Providers()
    reference = f"docker.io/library/base@{made.digest}"
    async with leased(world.deps, "build") as lease:
        one = await found(world, lease, reference, client=client, store="mine")
        from wherry.builder.sources.providers import ClientStore

        blobs = [layer.blob.digest for layer in one.tree.layers if layer.blob is not None]
        providers.add(blobs, ClientStore(empty, "oci:none"))
        with pytest.raises(NotFound, match="oci:none has no"):
            await bring(world.deps, lease, one.tree, providers)
        providers.add(blobs, ClientStore(client, "oci:mine"))
        tree = await bring(world.deps, lease, one.tree, providers)
    assert empty.asked
    assert tree.chain == chain_of(made)
