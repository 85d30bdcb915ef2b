"""Several platforms of one index side by side, all of them at once, and what is no image."""

from collections.abc import Mapping

import pytest

from imagekit.making import Made, digest, encode, index, make
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.errors import NotFound, NotSupported
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.remove import remove
from wherry.spec import image as spec

pytestmark = pytest.mark.kernel

HERE = spec.host_platform().architecture
OTHER = "arm64" if HERE == "amd64" else "amd64"
PLATFORMS = {HERE: {"os": "linux", "architecture": HERE}, OTHER: {"os": "linux", "architecture": OTHER}}
IN_TOTO = "application/vnd.in-toto+json"


async def fetch(world: World, registry: FakeRegistry, name: str = "x:1", **kwargs: object):
    return await pull(world.deps, f"{registry.host}/{name}", progress=world.tell, **kwargs)


@pytest.fixture
def images(registry: FakeRegistry) -> Mapping[str, Made]:
    found = {name: make([{"same": b"0"}, {"a": name.encode()}], architecture=name) for name in PLATFORMS}
    for made in found.values():
        registry.add("x", made.digest, made)
    return found


def attestation(of: Made) -> Made:
    """As BuildKit makes them: an image manifest whose layers are statements."""
    statement = b'{"_type": "https://in-toto.io/Statement/v0.1"}'
    config = encode({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}})
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": IN_TOTO, "digest": digest(statement), "size": len(statement)}],
        }
    )
    blobs = {digest(config): config, digest(statement): statement}
    return Made(manifest, spec.OCI_MANIFEST, config, [statement], [], blobs)


@pytest.fixture
def top(registry: FakeRegistry, images: Mapping[str, Made]) -> bytes:
    """An index as buildx makes it: two platforms and their attestations."""
    entries: list[tuple[Made, Mapping[str, str] | None]] = []
    for name in (OTHER, HERE):
        entries.append((images[name], PLATFORMS[name]))
    extra = attestation(images[HERE])
    registry.add("x", extra.digest, extra)
    entries.append((extra, {"os": "unknown", "architecture": "unknown"}))
    raw, media_type = index(entries)
    registry.put("x", "1", raw, media_type)
    return raw


async def test_platforms_pulled_one_after_the_other_are_held_side_by_side(world: World, registry, images, top):
    for order in ((HERE, OTHER), (OTHER, HERE)):
        for name in order:
            image = await fetch(world, registry, platform=f"linux/{name}")
            assert image.id == images[name].id
            assert world.statuses[-1] == f"Status: Downloaded newer image for {registry.host}/x:1"
        target = world.deps.store.target(spec_reference(registry))
        assert target is not None
        assert target.descriptor.digest == digest(top)
        assert target.images == (images[HERE].id, images[OTHER].id)
        for name in PLATFORMS:
            held = world.deps.store.get(f"{registry.host}/x:1", platform=f"linux/{name}")
            assert files(world, held) == {"same": b"0", "a": name.encode()}
        await remove(world.deps, f"{registry.host}/x:1", in_use={}, force=True)
        assert world.held() == NOTHING


def spec_reference(registry: FakeRegistry):
    from wherry.reference import parse

    return parse(f"{registry.host}/x:1")


async def test_the_second_platform_fetches_only_what_is_its_own(world: World, registry, images, top):
    await fetch(world, registry, platform=f"linux/{HERE}")
    registry.log.clear()
    await fetch(world, registry, platform=f"linux/{OTHER}")
    other = images[OTHER]
    asked = {request.path.rpartition("/")[2] for request in registry.log if request.method == "GET"} - {""}
    assert asked == {other.digest, other.id, other.layer_digests[1]}


async def test_all_platforms_and_what_the_index_names_besides(world: World, registry, images, top):
    image = await fetch(world, registry, platform="all")
    assert image.id == images[HERE].id
    every = {digest(top)}
    for made in (*images.values(), attestation(images[HERE])):
        every |= {made.digest, *made.blobs}
    assert set(world.deps.content.walk()) == every
    assert {each.id for each in world.deps.store.platforms(f"{registry.host}/x:1")} == {
        made.id for made in images.values()
    }
    registry.log.clear()
    await fetch(world, registry, platform="all")
    assert world.statuses[-1] == f"Status: Image is up to date for {registry.host}/x:1"
    assert [request.method for request in registry.log if request.path != "/v2/"] == ["HEAD"]
    await remove(world.deps, f"{registry.host}/x:1", in_use={}, force=True)
    assert world.held() == NOTHING


async def test_all_platforms_after_one_bring_the_rest(world: World, registry, images, top):
    await fetch(world, registry)
    registry.log.clear()
    await fetch(world, registry, platform="all")
    assert registry.asked(images[HERE].layer_digests[1]) == []
    assert len(world.deps.store.platforms(f"{registry.host}/x:1")) == 2
    assert world.statuses[-1] == f"Status: Downloaded newer image for {registry.host}/x:1"


async def test_a_failure_among_all_platforms_leaves_the_name_where_it_was(world: World, registry, images, top):
    await fetch(world, registry)
    before = world.held()
    extra = attestation(images[HERE])
    registry.failures[f"/v2/x/blobs/{extra.layer_digests[0]}"] = [403]
    with pytest.raises(NotFound, match="pull access denied"):
        await fetch(world, registry, platform="all")
    assert world.held() == before


async def test_a_tag_that_moved_to_another_index_is_that_index_wholly(world: World, registry, images, top):
    await fetch(world, registry, platform="all")
    new = make([{"new": b"1"}], architecture=HERE)
    registry.add("x", new.digest, new)
    raw, media_type = index([(new, PLATFORMS[HERE])])
    registry.put("x", "1", raw, media_type)
    image = await fetch(world, registry)
    assert image.id == new.id
    assert [each.id for each in world.deps.store.platforms(f"{registry.host}/x:1")] == [new.id]


async def test_a_windows_image_within_all_platforms_is_brought_and_not_unpacked(world: World, registry, images):
    windows = make([{"w": b"1"}], os="windows")
    registry.add("x", windows.digest, windows)
    raw, media_type = index([(images[HERE], PLATFORMS[HERE]), (windows, {"os": "windows", "architecture": "amd64"})])
    registry.put("x", "1", raw, media_type)
    await fetch(world, registry, platform="all")
    assert len(world.deps.store.all()) == 1
    assert {windows.digest, *windows.blobs} <= set(world.deps.content.walk())


async def test_an_index_without_any_image_for_linux_is_refused(world: World, registry):
    windows = make([{"w": b"1"}], os="windows")
    registry.add("x", windows.digest, windows)
    raw, media_type = index([(windows, {"os": "windows", "architecture": "amd64"})])
    registry.put("x", "1", raw, media_type)
    with pytest.raises(NotFound, match="no image for linux in the manifest list entries: it has windows/amd64"):
        await fetch(world, registry, platform="all")
    assert world.held() == NOTHING


async def test_a_tag_with_a_digest_means_the_digest(world: World, registry):
    old, new = make([{"a": b"old"}]), make([{"a": b"new"}])
    registry.add("x", "1", old)
    registry.add("x", "1", new)
    image = await fetch(world, registry, f"x:1@{old.digest}")
    assert image.id == old.id
    assert image.repo_tags == ()
    assert image.repo_digests == (f"{registry.host}/x@{old.digest}",)


async def test_all_tags_pass_over_what_is_no_image(world: World, registry):
    registry.add("x", "image", make([{"a": b"1"}]))
    chart = make([{"a": b"1"}]).manifest.replace(spec.OCI_CONFIG.encode(), b"application/vnd.cncf.helm.config.v1+json")
    registry.put("x", "chart", chart, spec.OCI_MANIFEST)
    await pull(world.deps, f"{registry.host}/x", progress=world.tell, all_tags=True)
    assert {name for image in world.deps.store.all() for name in image.repo_tags} == {f"{registry.host}/x:image"}
    assert any(status.startswith(f"Skipping {registry.host}/x:chart: ") for status in world.statuses)


async def test_a_damaged_document_is_fetched_again(world: World, registry, images, top):
    await fetch(world, registry)
    content = world.deps.content
    for name in (digest(top), images[HERE].digest, images[HERE].id):
        path = content.path(name)
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    assert (await fetch(world, registry)).id == images[HERE].id
    assert content.read(digest(top), limit=1 << 20) == top  # type: ignore[arg-type]


# --- what is no image -------------------------------------------------------------------------------------------------


def manifest_of(config: str, layer: str = spec.OCI_LAYER_GZIP, **more: object) -> bytes:
    made = make([{"a": b"1"}])
    document = {
        "schemaVersion": 2,
        "mediaType": spec.OCI_MANIFEST,
        "config": {"mediaType": config, "digest": made.id, "size": len(made.config)},
        "layers": [{"mediaType": layer, "digest": made.layer_digests[0], "size": len(made.layers[0])}],
    }
    return encode({**document, **more})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (manifest_of("application/vnd.cncf.helm.config.v1+json"), "a Helm chart"),
        (manifest_of("application/vnd.docker.plugin.v1+json"), r"\(plugin\) when fetching: .* a plugin of Docker"),
        (manifest_of("application/vnd.wasm.config.v0+json", "application/wasm"), "a WebAssembly module"),
        (manifest_of(spec.OCI_CONFIG, "application/wasm"), "a WebAssembly module"),
        (manifest_of(spec.OCI_CONFIG, IN_TOTO), "an attestation"),
        (manifest_of(spec.OCI_CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json"), "made by cosign"),
        (
            manifest_of("application/vnd.oci.empty.v1+json", artifactType="application/vnd.acme.rocket"),
            "an artifact of type application/vnd.acme.rocket",
        ),
        (
            manifest_of("application/vnd.oci.empty.v1+json", artifactType="application/vnd.cncf.notary.signature"),
            "made by Notary",
        ),
        (manifest_of("application/vnd.acme.v1+json"), "an artifact of type application/vnd.acme.v1"),
        (manifest_of(spec.OCI_CONFIG, f"{spec.OCI_LAYER_GZIP}+encrypted"), "is encrypted"),
        (manifest_of(spec.OCI_CONFIG, "application/vnd.oci.image.layer.nydus.blob.v1"), "one of Nydus"),
        (manifest_of(spec.OCI_CONFIG, "application/x-unknown"), "unsupported media type 'application/x-unknown'"),
    ],
)
async def test_what_is_no_image_is_called_by_its_name(world: World, registry, document, words):
    registry.blobs.update(make([{"a": b"1"}]).blobs)
    registry.put("x", "1", document, spec.OCI_MANIFEST)
    with pytest.raises(NotSupported, match=words):
        await fetch(world, registry)
    assert world.held() == NOTHING
    assert registry.asked("/blobs/") == []


async def test_an_artifact_of_the_earlier_kind_is_called_so(world: World, registry):
    media_type = "application/vnd.oci.artifact.manifest.v1+json"
    registry.put("x", "1", encode({"mediaType": media_type, "artifactType": "x/y", "blobs": []}), media_type)
    with pytest.raises(NotSupported, match="not a container image but an artifact"):
        await fetch(world, registry)
