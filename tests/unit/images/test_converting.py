"""Convert: another manifest of the same images; whole or not at all."""

import asyncio
import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import zstandard

from imagekit.making import Made, digest, encode, index, make
from imagekit.world import World
from wherry.digest import Digest
from wherry.errors import Corrupt, Failed, InvalidParameter, NotFound, Unavailable, WherryError
from wherry.images.deps import Deps
from wherry.images.making import convert as converting
from wherry.images.store import ImageStore
from wherry.reference import parse
from wherry.spec import image as spec
from wherry.state import Change, State
from wherry.storage.content import ContentStore

LAYERS = [{"a": b"a" * 300_000}, {"b": bytes(range(256)) * 5000}]
GZIP = make(LAYERS)
PLAIN = make(LAYERS, compression="plain")
OTHER = make([{"c": b"c"}], architecture="s390x")
INDEX = index([(GZIP, {"os": "linux", "architecture": "amd64"}), (OTHER, {"os": "linux", "architecture": "s390x"})])
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "none": bytes,
}


async def convert(world: World, name: str, to: str, compression: str, format: str = "") -> None:
    await converting.convert(world.deps, name, to, compression=compression, format=format, progress=world.tell)


def top(world: World, name: str) -> spec.Descriptor:
    target = world.deps.store.target(parse(name))
    assert target is not None
    return target.descriptor


def document(world: World, name: str) -> dict[str, object]:
    found = json.loads(world.deps.content.read(top(world, name).digest, limit=1 << 20))
    assert isinstance(found, dict)
    return found


def layers(world: World, name: str) -> list[dict[str, object]]:
    found = document(world, name)["layers"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("made", [GZIP, PLAIN], ids=["from gzip", "from plain"])
async def test_the_layers_are_the_same_compressed_another_way(world: World, made: Made, compression: str):
    await world.put(made, "x")
    await convert(world, "x", "y", compression)
    assert world.deps.store.get("y").id == made.id
    for layer, diff_id in zip(layers(world, "y"), made.diff_ids, strict=True):
        data = world.deps.content.read(Digest(str(layer["digest"])), limit=1 << 24)
        assert digest(UNPACK[compression](data)) == diff_id
        assert layer["size"] == len(data)
    assert world.deps.store.get("x").repo_tags == ("x:latest", "y:latest")
    assert top(world, "x").digest == made.digest


@pytest.mark.parametrize(
    ("form", "compression", "wanted"),
    [
        ("oci", "gzip", (spec.OCI_MANIFEST, spec.OCI_CONFIG, spec.OCI_LAYER_GZIP)),
        ("docker", "gzip", (spec.DOCKER_MANIFEST, spec.DOCKER_CONFIG, spec.DOCKER_LAYER_GZIP)),
        ("docker", "zstd", (spec.DOCKER_MANIFEST, spec.DOCKER_CONFIG, spec.DOCKER_LAYER_ZSTD)),
        ("oci", "none", (spec.OCI_MANIFEST, spec.OCI_CONFIG, spec.OCI_LAYER)),
    ],
)
async def test_media_types_are_those_asked_for(world: World, form: str, compression: str, wanted: Sequence[str]):
    await world.put(GZIP, "x")
    await convert(world, "x", "y", compression, form)
    found = document(world, "y")
    config = found["config"]
    assert isinstance(config, dict)
    assert (found["mediaType"], config["mediaType"], layers(world, "y")[0]["mediaType"]) == tuple(wanted)
    assert config["digest"] == GZIP.id
    assert top(world, "y").media_type == wanted[0]


async def test_what_is_as_wanted_already_is_only_named(world: World):
    await world.put(GZIP, "x")
    blobs = set(world.deps.content.walk())
    await convert(world, "x", "y", "gzip")
    assert top(world, "y").digest == GZIP.digest
    assert set(world.deps.content.walk()) == blobs
    assert "Converting" not in world.statuses


async def test_another_format_alone_keeps_the_layers_and_what_is_said_of_them(world: World):
    said = json.loads(GZIP.manifest)
    said["layers"][0]["annotations"] = {"containerd.io/snapshot/stargz/toc.digest": "sha256:" + "1" * 64}
    said["annotations"] = {"kept": "yes"}
    said["unknown"] = {"field": [1, 2]}
    made = replace(GZIP, manifest=encode(said))
    await world.put(made, "x")
    await convert(world, "x", "y", "gzip", "docker")
    found = document(world, "y")
    assert [layer["digest"] for layer in layers(world, "y")] == GZIP.layer_digests
    assert layers(world, "y")[0]["annotations"] == said["layers"][0]["annotations"]
    assert (found["annotations"], found["unknown"]) == (said["annotations"], said["unknown"])


async def test_nothing_is_compressed_twice_and_the_result_is_always_the_same(world: World):
    await world.put(GZIP, "x")
    await convert(world, "x", "y", "zstd")
    first = top(world, "y").digest
    world.messages.clear()
    await convert(world, "x", "z", "zstd")
    assert top(world, "z").digest == first
    assert "Converting" not in world.statuses


async def test_a_layer_that_is_there_several_times_is_compressed_once(world: World):
    twice = make([{"a": b"a" * 9999}, {"a": b"a" * 9999}])
    await world.put(twice, "x")
    await convert(world, "x", "y", "zstd")
    first, second = layers(world, "y")
    assert first == second
    assert sum(message["progressDetail"]["current"] == len(twice.layers[0]) for message in world.messages[:-1]) == 1  # type: ignore[index]


async def test_a_manifest_that_is_damaged_is_told(world: World):
    await world.put(GZIP, "x")
    await convert(world, "x", "y", "zstd")
    path = world.deps.content.path(top(world, "y").digest)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pytest.raises(Corrupt, match=f"blob {top(world, 'y').digest} is damaged on disk"):
        await convert(world, "x", "z", "zstd")
    assert world.deps.store.target(parse("z")) is None


async def test_an_index_is_converted_with_its_platforms_and_attestations(world: World):
    statement, config = b'{"predicate": {}}', b"{}"
    attestation = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": digest(statement), "size": 17}],
        }
    )
    said = json.loads(INDEX[0])
    said["manifests"][0]["data"] = "embedded"
    said["manifests"].append(
        {
            "mediaType": spec.OCI_MANIFEST,
            "digest": digest(attestation),
            "size": len(attestation),
            "annotations": {"vnd.docker.reference.digest": GZIP.digest, "vnd.docker.reference.type": "attestation"},
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
    )
    said["manifests"].append({"mediaType": spec.OCI_MANIFEST, "digest": "sha256:" + "4" * 64, "size": 4})  # not held
    for data in (statement, config, attestation):
        world.deps.content.write(data)
    for made in (OTHER, GZIP):
        await world.put(made, "x", index=(encode(said), spec.OCI_INDEX))
    await convert(world, "x", "y", "zstd")
    entries = document(world, "y")["manifests"]
    assert isinstance(entries, list)
    assert [entry.get("platform", {}).get("architecture") for entry in entries] == ["amd64", "s390x", "unknown"]
    assert entries[0]["digest"] != GZIP.digest
    assert "data" not in entries[0]
    assert entries[2]["digest"] == digest(attestation)
    assert entries[2]["annotations"] == {
        "vnd.docker.reference.digest": entries[0]["digest"],
        "vnd.docker.reference.type": "attestation",
    }
    assert [image.id for image in world.deps.store.platforms("y")] == [
        image.id for image in world.deps.store.platforms("x")
    ]
    target = world.deps.store.target(parse("y"))
    assert target is not None
    assert target.blobs >= {digest(statement), digest(config), digest(attestation)}


async def test_foreign_layers_stay_as_they_are(world: World):
    said = json.loads(GZIP.manifest)
    said["layers"][0] |= {"mediaType": spec.OCI_LAYER_FOREIGN + "+gzip", "urls": ["https://elsewhere.test/l"]}
    await world.put(replace(GZIP, manifest=encode(said)), "x")
    await convert(world, "x", "y", "zstd")
    assert layers(world, "y")[0] == said["layers"][0]
    assert layers(world, "y")[1]["mediaType"] == spec.OCI_LAYER_ZSTD


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "to", "compression", "format", "error"),
    [
        ("nothing", "y", "gzip", "", NotFound),
        ("x", "y", "lz4", "", InvalidParameter),
        ("x", "y", "gzip", "rpm", InvalidParameter),
        ("x", "Y", "gzip", "", InvalidParameter),
        ("x", f"y@sha256:{'1' * 64}", "gzip", "", InvalidParameter),
    ],
)
async def test_what_cannot_be_done_is_said_before_anything_is(
    world: World, name: str, to: str, compression: str, format: str, error: type[WherryError]
):
    await world.put(GZIP, "x")
    before = world.held()
    with pytest.raises(error):
        await convert(world, name, to, compression, format)
    assert world.held() == before
    assert world.messages == []


async def test_a_damaged_layer_is_not_made_into_another(world: World):
    await world.put(PLAIN, "x")
    path = world.deps.content.path(Digest(PLAIN.layer_digests[1]))
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    before = world.held()
    with pytest.raises(Corrupt, match=r"is damaged on disk: its content is sha256:.*pull it again"):
        await convert(world, "x", "y", "gzip")
    assert world.held() == before


class Stops:
    """Lets so many steps of the disk go by, and stops the next one."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, step: str) -> None:
        if self.left == 0:
            raise Failed(f"stopped at {step}")
        self.left -= 1


class StopsState(State):
    stops: Stops | None = None

    def write(self, *changes: Change) -> None:
        if self.stops is not None and any(getattr(change, "table", "") in ("images", "tags") for change in changes):
            self.stops("state")
        super().write(*changes)


def stopping(world: World, stops: Stops, state: StopsState) -> Deps:
    content = ContentStore(world.root, trace=stops)
    return replace(world.deps, content=content, state=state, store=ImageStore(state, content))


async def test_failing_at_any_step_leaves_nothing(world: World):
    for made in (GZIP, OTHER):
        await world.put(made, "x", index=INDEX)
    world.state.close()
    state = StopsState(world.root / "state.db")
    world.state = state
    world.open()
    before = world.held()
    steps = 0
    while True:
        stops = state.stops = Stops(steps)
        world.deps = stopping(world, stops, state)
        with contextlib.suppress(Failed):
            await convert(world, "x", "y", "zstd")
            break
        state.stops = None
        assert world.held() == before, f"step {steps}"
        assert world.deps.store.target(parse("y")) is None
        steps += 1
    assert steps > 20
    assert len(world.deps.store.platforms("y")) == 2


async def test_cancelled_at_any_moment_it_leaves_nothing(world: World):
    big = make([{"big": hashlib.sha256(b"x").digest() * 200_000}], compression="plain")
    await world.put(big, "x")
    before = world.held()
    for turns in (1, 2, 3, 5, 8, 13, 21):
        task = asyncio.create_task(convert(world, "x", "y", "zstd"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.held() == before


async def test_an_image_removed_in_the_moment_before_is_not_there(world: World):
    image = await world.put(GZIP, "x")

    async with world.deps.leases.guard:
        task = asyncio.create_task(convert(world, "x", "y", "zstd"))
        while not world.held()["leases"]:  # noqa: ASYNC110 - a row is no event
            await asyncio.sleep(0)
        await world.deps.store.remove(image.id, names=["x:latest"], record=True)
    with pytest.raises((NotFound, Unavailable), match="No such image: x"):
        await task
    assert world.deps.store.all() == []
