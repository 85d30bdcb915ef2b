"""Push, seen from the registry it goes to: what is sent, in which order, and what is known afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial

import pytest

from imagekit.making import Made, compress, digest, encode, index, make, tar
from imagekit.push_registry import PushRegistry, serve
from imagekit.world import World
from wherry.digest import Digest
from wherry.distribution.config import RegistryConfig
from wherry.errors import Corrupt, InvalidParameter, NotFound, WherryError
from wherry.images.transfer import push as pushing
from wherry.images.upkeep.remove import remove
from wherry.reference import parse
from wherry.spec import image as spec

SHARED = {"shared": b"s" * 100_000}
ONE = make([SHARED, {"one": b"1"}])
OTHER = make([SHARED, {"other": b"2"}], architecture="s390x")
THIRD = make([{"third": b"3"}], architecture="riscv64")
PLATFORMS = [
    (made, {"os": "linux", "architecture": name})
    for made, name in ((ONE, "amd64"), (OTHER, "s390x"), (THIRD, "riscv64"))
]
INDEX = index(PLATFORMS)
BIG = make([{"big": bytes(range(256)) * 20_000}], compression="plain")


@pytest.fixture
async def registry() -> AsyncIterator[PushRegistry]:
    async with serve(PushRegistry()) as found:
        yield found


async def no_sleep(seconds: float) -> None:
    """A pause that is none."""


async def push(world: World, name: str, **options: str) -> None:
    await pushing.push(world.deps, name, progress=world.tell, sleep=no_sleep, **options)  # type: ignore[arg-type]


def sent(registry: PushRegistry, method: str) -> list[str]:
    """The ends of the paths that were asked for."""
    return [request.path.rpartition("/")[2] for request in registry.asked(method)]


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_blobs_come_first_then_manifests_and_an_index_last(world: World, registry: PushRegistry):
    name = f"{registry.host}/x"
    for made, _ in PLATFORMS:
        await world.put(made, name, index=INDEX)
    await push(world, name, tag="latest")
    methods = [request.method for request in registry.log if "/manifests/" in request.path or request.method == "PUT"]
    paths = [request.path for request in registry.log if request.method == "PUT"]
    manifests = [path for path in paths if "/manifests/" in path]
    assert paths[-4:] == manifests
    assert manifests == [f"/v2/x/manifests/{name}" for name in (ONE.digest, OTHER.digest, THIRD.digest, "latest")]
    assert methods[-1] == "PUT"
    assert registry.manifests["x", "latest"] == (INDEX[0], INDEX[1])
    assert registry.uploads == {}


async def test_a_layer_of_several_platforms_is_sent_and_shown_once(world: World, registry: PushRegistry):
    name = f"{registry.host}/x"
    for made, _ in PLATFORMS:
        await world.put(made, name, index=INDEX)
    await push(world, name, tag="latest")
    shared = ONE.layer_digests[0]
    assert sent(registry, "HEAD").count(shared) == 1
    shown = [message["status"] for message in world.messages if message.get("id") == ONE.diff_ids[0][7:19]]
    assert shown[0] == "Preparing"
    assert shown[-1] == "Pushed"
    assert shown.count("Preparing") == shown.count("Pushed") == 1


async def test_two_pushes_at_once_send_a_blob_once(world: World, registry: PushRegistry):
    for tag in ("1", "2", "3"):
        await world.put(BIG, f"{registry.host}/x:{tag}")
    await asyncio.gather(*(push(world, f"{registry.host}/x", tag=tag) for tag in ("1", "2", "3")))
    assert len(registry.asked("PATCH")) == 1
    assert {tag for _, tag in registry.manifests} >= {"1", "2", "3"}


async def test_no_more_blobs_than_set_are_sent_at_once(world: World, registry: PushRegistry):
    world.deps = replace(world.deps, uploads=asyncio.Semaphore(2))
    made = make([{f"file{number}": b"x"} for number in range(8)])
    await world.put(made, f"{registry.host}/x:1")
    most = 0

    async def watch() -> None:
        nonlocal most
        most = max(most, len(registry.uploads))

    registry.delay = watch
    await push(world, f"{registry.host}/x", tag="1")
    assert 1 <= most <= 2
    assert "Waiting" in world.statuses


async def test_what_other_names_of_the_registry_have_is_mounted(world: World, registry: PushRegistry):
    await world.put(ONE, f"{registry.host}/a:1")
    await push(world, f"{registry.host}/a", tag="1")
    await world.put(ONE, f"{registry.host}/b:1", f"other.test/c@{ONE.digest}")
    registry.log.clear()
    await push(world, f"{registry.host}/b", tag="1")
    assert {request.query["from"] for request in registry.asked("POST")} == {"a"}
    assert world.statuses.count("Mounted from a") == 2
    assert not registry.asked("PATCH")


async def test_only_a_digest_says_that_a_repository_has_a_blob(world: World, registry: PushRegistry):
    await world.put(ONE, f"{registry.host}/a:never-pushed", f"{registry.host}/b:1")
    await push(world, f"{registry.host}/b", tag="1")
    assert {request.query.get("from") for request in registry.asked("POST")} == {None}


@pytest.mark.parametrize("allowed", [False, True])
async def test_foreign_layers_go_along_only_where_that_is_allowed(world: World, registry: PushRegistry, allowed: bool):
    layer = compress(tar({"windows": b"w"}), "gzip")
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest(layer),
        "size": len(layer),
        "urls": ["https://elsewhere.test/layer"],
    }
    document = json.loads(ONE.manifest)
    document["layers"][0] = foreign
    made = Made(encode(document), ONE.media_type, ONE.config, [layer, ONE.layers[1]], ONE.diff_ids, dict(ONE.blobs))
    made.blobs[digest(layer)] = layer
    await world.put(made, f"{registry.host}/x:1")
    hosts = [registry.host] if allowed else []
    world.deps = replace(world.deps, registry=RegistryConfig(foreign=hosts))
    await push(world, f"{registry.host}/x", tag="1")
    assert (("x", digest(layer)) in registry.blobs) is allowed
    assert ("Skipped foreign layer" in world.statuses) is not allowed
    assert registry.manifests["x", "1"][0] == made.manifest


# --- indexes of which not all is held ---------------------------------------------------------------------------------


async def test_of_an_index_that_lacks_a_platform_one_image_goes_and_gets_the_name(world: World, registry: PushRegistry):
    name = f"{registry.host}/x"
    for made in (OTHER, ONE):
        await world.put(made, name, index=INDEX)
    await push(world, name, tag="latest")
    assert registry.manifests["x", "latest"][0] == ONE.manifest
    assert world.messages[-1]["aux"] == {
        "manifestPushedInsteadOfIndex": True,
        "originalIndex": spec.Descriptor(media_type=INDEX[1], digest=Digest(digest(INDEX[0])), size=len(INDEX[0])),
        "selectedManifest": spec.Descriptor(
            media_type=ONE.media_type, digest=Digest(ONE.digest), size=len(ONE.manifest)
        ),
    }
    assert world.deps.store.get(ONE.id).repo_digests == (f"{name}@{ONE.digest}",)
    assert world.deps.store.get(OTHER.id).repo_digests == ()
    target = world.deps.store.target(parse(name))
    assert target is not None
    assert target.descriptor.digest == digest(INDEX[0])  # the tag here stays what it was


async def test_platforms_the_repository_has_already_need_not_be_held(world: World, registry: PushRegistry):
    name = f"{registry.host}/x"
    registry.manifests["x", THIRD.digest] = THIRD.manifest, THIRD.media_type
    for made in (OTHER, ONE):
        await world.put(made, name, index=INDEX)
    await push(world, name, tag="latest")
    assert registry.manifests["x", "latest"] == (INDEX[0], INDEX[1])
    assert THIRD.digest not in sent(registry, "PUT")
    for made in (ONE, OTHER):
        assert world.deps.store.get(made.id).repo_digests == (f"{name}@{digest(INDEX[0])}",)


async def test_what_an_index_names_besides_images_goes_along(world: World, registry: PushRegistry):
    name = f"{registry.host}/x"
    statement = b'{"predicate": {}}'
    attestation = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(b"{}"), "size": 2},
            "layers": [
                {"mediaType": "application/vnd.in-toto+json", "digest": digest(statement), "size": len(statement)}
            ],
        }
    )
    document = json.loads(index(PLATFORMS[:1])[0])
    document["manifests"].append(
        {
            "mediaType": spec.OCI_MANIFEST,
            "digest": digest(attestation),
            "size": len(attestation),
            "annotations": {"vnd.docker.reference.digest": ONE.digest},
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
    )
    top = (encode(document), spec.OCI_INDEX)
    for data in (statement, b"{}", attestation):
        world.deps.content.write(data)
    await world.put(ONE, name, index=top)
    await push(world, name, tag="latest")
    assert registry.manifests["x", "latest"] == top
    assert registry.manifests["x", digest(attestation)][0] == attestation
    assert registry.blobs["x", digest(statement)] == statement
    held = world.deps.store.target(parse(f"{name}@{digest(top[0])}"))
    assert held is not None
    assert held.blobs >= {digest(attestation), digest(statement), digest(top[0])}  # the new name keeps them


# --- digests ----------------------------------------------------------------------------------------------------------


def ours(made: Made) -> Made:
    """With the manifest that Wherry writes for layers that came without one."""
    before = spec.decode_manifest(made.manifest)
    assert isinstance(before, spec.Manifest)
    return replace(made, manifest=spec.encode_manifest(before.config, before.layers).data)


async def test_plain_tars_without_a_manifest_of_their_own_are_gzipped(world: World, registry: PushRegistry):
    await world.put(ours(BIG), f"{registry.host}/x:1")
    await push(world, f"{registry.host}/x", tag="1")
    layers = json.loads(registry.manifests["x", "1"][0])["layers"]
    assert [layer["mediaType"] for layer in layers] == [spec.OCI_LAYER_GZIP]
    assert layers[0]["size"] < len(BIG.layers[0]) / 10
    assert world.statuses.count("Preparing") == 1


async def test_plain_tars_that_a_registry_knows_keep_their_digest(world: World, registry: PushRegistry):
    made = ours(BIG)
    await world.put(made, f"{registry.host}/x:1", f"elsewhere.test/x@{made.digest}")
    await push(world, f"{registry.host}/x", tag="1")
    assert registry.manifests["x", "1"][0] == made.manifest


async def test_plain_tars_stay_so_when_that_is_asked_for(world: World, registry: PushRegistry):
    made = ours(BIG)
    await world.put(made, f"{registry.host}/x:1")
    await push(world, f"{registry.host}/x", tag="1", compression="none")
    assert registry.manifests["x", "1"][0] == made.manifest


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (f"x@sha256:{'0' * 64}", {}, "cannot push a digest reference"),
        ("x", {"tag": f"sha256:{'0' * 64}"}, "cannot push a digest reference"),
        ("x", {"tag": "a b"}, "invalid tag format"),
        ("X", {}, "invalid reference format: repository name (library/X) must be lowercase"),
        ("x", {"compression": "lz4"}, "unknown compression 'lz4': want one of gzip, zstd, none"),
        ("x", {"platform": "a/b/c/d"}, '"a/b/c/d": invalid platform specifier'),
    ],
)
async def test_what_can_never_be_pushed_is_refused_before_anything_is_told(
    world: World, name: str, options: Mapping[str, str], words: str
):
    await world.put(ONE, "x:latest")
    with pytest.raises(InvalidParameter) as caught:
        await push(world, name, **options)
    assert caught.value.message.startswith(words)
    assert world.messages == []


async def test_a_repository_is_not_taken_for_another_that_begins_alike(world: World):
    await world.put(ONE, "localhost:5000/x:1", "xy:1")
    for name in ("localhost", "x"):
        with pytest.raises(NotFound) as caught:
            await push(world, name, tag="5000")
        assert caught.value.message == f"An image does not exist locally with the tag: {name}"


async def test_pauses_are_told_in_dockers_words(world: World, registry: PushRegistry):
    await world.put(BIG, f"{registry.host}/x:1")
    registry.failures["POST"] = [503, 503]  # of the layer and of the config
    await push(world, f"{registry.host}/x", tag="1", compression="none")
    assert any(status in world.statuses for status in ("Retrying in 1 second", "Retrying in 2 seconds"))
    assert world.statuses[-2].startswith("1: digest: ")


async def test_a_blob_that_is_gone_is_named_with_what_to_do(world: World, registry: PushRegistry):
    await world.put(ONE, f"{registry.host}/x:1")
    world.deps.content.delete(Digest(ONE.layer_digests[1]))
    with pytest.raises(NotFound) as caught:
        await push(world, f"{registry.host}/x", tag="1")
    assert caught.value.message == (
        f"cannot push {registry.host}/x:1: its blob {ONE.layer_digests[1]} is not here any more: pull or load the "
        "image again"
    )
    assert registry.uploads == {}
    assert ("x", "1") not in registry.manifests


async def test_a_truncated_blob_is_told_at_once_and_nothing_is_named(world: World, registry: PushRegistry):
    await world.put(BIG, f"{registry.host}/x:1")
    path = world.deps.content.path(Digest(BIG.layer_digests[0]))
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(Corrupt, match=r"is damaged on disk: it has 1000 of \d+ bytes"):
        await push(world, f"{registry.host}/x", tag="1", compression="none")
    assert registry.manifests == {}
    assert registry.uploads == {}


async def test_one_failing_blob_ends_the_others_and_nothing_stays_open(world: World, registry: PushRegistry):
    made = make([{f"file{number}": b"x" * 2_000_000} for number in range(4)], compression="plain")
    await world.put(made, f"{registry.host}/x:1")
    before = world.held()
    registry.failures["PATCH"] = [403]
    with pytest.raises(WherryError, match="requested access to the resource is denied"):
        await push(world, f"{registry.host}/x", tag="1", compression="none")
    assert registry.uploads == {}
    assert registry.manifests == {}
    assert world.held() == before


async def test_an_image_that_is_removed_during_its_push_stays_removed(world: World, registry: PushRegistry):
    await world.put(ONE, f"{registry.host}/x:1")
    asked: list[asyncio.Task[object]] = []

    async def rmi() -> None:
        if registry.log[-1].method == "POST" and not asked:
            work = partial(remove, world.deps, f"{registry.host}/x:1", force=False, prune=True, in_use={})
            asked.append(asyncio.ensure_future(work()))
            await asked[0]

    registry.delay = rmi
    await push(world, f"{registry.host}/x", tag="1")
    assert asked
    assert registry.manifests["x", "1"][0] == ONE.manifest  # it was held until it had arrived
    assert world.deps.store.all() == []
    assert world.held()["blobs"] == set()


async def test_a_push_is_told_to_the_world(world: World, registry: PushRegistry):
    await world.put(ONE, f"{registry.host}/x:1")
    await push(world, f"{registry.host}/x", tag="1")
    event = world.all_events()[-1]
    assert (event.action, event.actor) == ("push", f"{registry.host}/x:1")
    assert event.attributes["name"] == f"{registry.host}/x"
