"""Save and load of several platforms: indexes stay what they are."""

import json
from collections.abc import Mapping

import pytest

from imagekit.archives import (
    Platforms,
    archive_of,
    blob_path,
    blobs_of,
    entry,
    layout,
    members,
    platforms,
    read_in,
)
from imagekit.making import digest, encode, index, make, tar
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.errors import InvalidParameter, NotFound
from wherry.images.archives.save import save
from wherry.images.record import Target
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.remove import remove
from wherry.images.upkeep.tag import tag
from wherry.reference import parse

pytestmark = pytest.mark.kernel

BOTH = platforms()
ALL = {digest(blob) for blob in BOTH.blobs}


def target(world: World, name: str = "x:1") -> Target:
    found = world.deps.store.target(parse(name))
    assert found is not None
    return found


def names_of(data: bytes) -> set[str]:
    return {name for name in members(data) if name.startswith("blobs/sha256/") and len(name) > 20}


async def test_all_platforms_of_an_index_are_loaded_side_by_side(world: World):
    images = await read_in(world, tar(BOTH.files()))
    assert [image.id for image in images] == [BOTH.amd64.id, BOTH.arm64.id], "what runs here comes first"
    assert target(world).descriptor.digest == BOTH.digest
    assert target(world).images == (BOTH.amd64.id, BOTH.arm64.id)
    assert set(world.deps.content.walk()) == ALL, "the attestations are kept, too"
    assert files(world, world.deps.store.get("x:1")) == {"a": b"amd64", "b": b"2"}
    assert files(world, world.deps.store.get("x:1", platform="linux/arm64")) == {"a": b"arm64", "b": b"2"}
    assert world.statuses[-1] == "Loaded image: x:1\n"
    await remove(world.deps, "x:1", in_use={})
    assert world.held() == NOTHING


async def test_an_index_is_saved_and_loaded_with_every_byte(world: World, other: World):
    await read_in(world, tar(BOTH.files()))
    data = await archive_of(world, "x:1")
    found = members(data)
    (only,) = json.loads(found["index.json"])["manifests"]
    assert (only["digest"], only["mediaType"]) == (BOTH.digest, BOTH.media_type)
    assert only["annotations"]["io.containerd.image.name"] == "docker.io/library/x:1"
    assert names_of(data) == {blob_path(blob) for blob in BOTH.blobs}
    assert all(found[blob_path(blob)] == blob for blob in BOTH.blobs)
    (listed,) = json.loads(found["manifest.json"])
    assert listed["Config"] == blob_path(BOTH.amd64.config), "older engines get what runs here"
    assert listed["Layers"] == [blob_path(layer) for layer in BOTH.amd64.layers]
    await read_in(other, data)
    assert other.held() | {"leases": set()} == world.held() | {"leases": set()}
    assert target(other) == target(world)
    assert await archive_of(other, "x:1") == data


async def test_what_was_pulled_with_all_platforms_goes_on_whole(world: World, other: World, registry: FakeRegistry):
    for made in (BOTH.amd64, BOTH.arm64, *BOTH.attestations):
        registry.add("x", made.digest, made)
        registry.blobs.update({digest(blob): blob for blob in (made.config, *made.layers)})
    registry.put("x", "1", BOTH.raw, BOTH.media_type)
    name = f"{registry.host}/x:1"
    await pull(world.deps, name, platform="all", progress=world.tell)
    await read_in(other, await archive_of(world, name))
    assert target(other, name) == target(world, name)
    assert set(other.deps.content.walk()) == ALL


async def test_of_an_index_what_is_held_is_saved_and_another_platform_may_join_later(
    world: World, other: World, registry: FakeRegistry
):
    for made in (BOTH.amd64, BOTH.arm64):
        registry.add("x", made.digest, made)
    registry.put("x", "1", BOTH.raw, BOTH.media_type)
    name = f"{registry.host}/x:1"
    await pull(world.deps, name, progress=world.tell)
    data = await archive_of(world, name)
    assert names_of(data) == {blob_path(blob) for blob in (BOTH.raw, *blobs_of(BOTH.amd64))}
    (image,) = await read_in(other, data)
    assert image.id == BOTH.amd64.id
    assert target(other, name).descriptor.digest == BOTH.digest
    await read_in(other, tar(BOTH.files(name)), platforms=["linux/arm64"])
    assert target(other, name).images == (BOTH.amd64.id, BOTH.arm64.id)


@pytest.mark.parametrize("wanted", ["amd64", "arm64"])
async def test_one_platform_is_saved_as_its_manifest(world: World, other: World, wanted):
    await read_in(world, tar(BOTH.files()))
    made = getattr(BOTH, wanted)
    data = await archive_of(world, "x:1", platforms=[f"linux/{wanted}"])
    (only,) = json.loads(members(data)["index.json"])["manifests"]
    assert only["digest"] == made.digest
    assert only["platform"]["architecture"] == wanted
    assert names_of(data) == {blob_path(blob) for blob in blobs_of(made)}
    (image,) = await read_in(other, data)
    assert image.id == made.id
    assert target(other).descriptor.digest == made.digest


async def test_some_platforms_are_saved_with_their_index_and_their_attestations(world: World, other: World):
    three = add_platform(BOTH, make([{"a": b"s390x"}], architecture="s390x"), "s390x")
    await read_in(world, tar(three.files()))
    data = await archive_of(world, "x:1", platforms=["linux/arm64", "linux/s390x"])
    (only,) = json.loads(members(data)["index.json"])["manifests"]
    assert only["digest"] == three.digest
    saved = names_of(data)
    assert blob_path(BOTH.amd64.manifest) not in saved
    assert blob_path(BOTH.attestations[0].manifest) not in saved
    assert blob_path(BOTH.attestations[1].manifest) in saved
    images = await read_in(other, data)
    assert {image.config.architecture for image in images} == {"arm64", "s390x"}
    assert target(other).descriptor.digest == three.digest


def add_platform(found: Platforms, made: object, architecture: str) -> Platforms:
    document = json.loads(found.raw)
    platform = {"os": "linux", "architecture": architecture}
    document["manifests"].append(entry(made.manifest, made.media_type, platform=platform))  # type: ignore[attr-defined]
    return Platforms(found.amd64, found.arm64, [*found.attestations, made], encode(document), found.media_type)  # type: ignore[list-item]


async def test_a_platform_that_is_not_there_is_refused_with_those_that_are(world: World):
    await read_in(world, tar(BOTH.files()))
    with pytest.raises(NotFound, match=r"no suitable export target found for platform linux/s390x: .* linux/amd64"):
        save(world.deps, ["x:1"], platforms=["linux/amd64", "linux/s390x"])
    with pytest.raises(NotFound, match=r"no image for linux/s390x in the archive: it has linux/amd64, linux/arm64"):
        await read_in(world, tar(BOTH.files()), platforms=["linux/arm64", "linux/s390x"])


@pytest.mark.parametrize(
    ("wanted", "held"), [(["linux/arm64"], ["arm64"]), (["linux/arm64", "linux/amd64"], ["amd64", "arm64"])]
)
async def test_only_the_platforms_that_are_wanted_are_loaded(world: World, wanted, held):
    images = await read_in(world, tar(BOTH.files()), platforms=wanted)
    assert [image.config.architecture for image in images] == held
    assert len(set(world.snapshots.chains())) == 2 * len(held)
    kept = {
        digest(made.manifest)
        for made, about in zip(BOTH.attestations, ("amd64", "arm64"), strict=True)
        if about in held
    }
    there = set(world.deps.content.walk())
    assert {digest(made.manifest) for made in BOTH.attestations} & there == kept


async def test_indexes_within_indexes_are_walked_and_kept(world: World, other: World):
    inner = entry(BOTH.raw, BOTH.media_type)
    riscv = make([{"a": b"riscv"}], architecture="riscv64")
    last = entry(riscv.manifest, riscv.media_type, platform={"os": "linux", "architecture": "riscv64"})
    outer = encode({"schemaVersion": 2, "mediaType": BOTH.media_type, "manifests": [inner, inner, last]})
    found = layout([entry(outer, BOTH.media_type, "docker.io/library/x:1")], outer, *BOTH.blobs, *blobs_of(riscv))
    await read_in(world, tar(found))
    assert target(world).descriptor.digest == digest(outer)
    assert len(target(world).images) == 3
    data = await archive_of(world, "x:1")
    assert names_of(data) == {name for name in found if name.startswith("blobs")}
    await read_in(other, data)
    assert target(other) == target(world)


async def test_indexes_are_not_followed_without_end(world: World):
    raw, media_type = BOTH.raw, BOTH.media_type
    documents = [raw]
    for _ in range(6):
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry(documents[-1], media_type)] * 4}
        documents.append(encode(document))
    with pytest.raises(InvalidParameter, match="nested too deeply"):
        await read_in(world, tar(layout([entry(documents[-1], media_type, "x:1")], *documents, *BOTH.blobs)))
    assert world.held() == NOTHING


async def test_platforms_without_an_index_share_a_name_by_what_runs_here(world: World):
    entries = [entry(made.manifest, made.media_type, "docker.io/library/x:1") for made in (BOTH.amd64, BOTH.arm64)]
    await read_in(world, tar(layout(entries, *BOTH.blobs)))
    assert world.deps.store.get("x:1").id == BOTH.amd64.id
    assert world.deps.store.get(BOTH.arm64.id).repo_tags == ()
    assert world.statuses[-2:] == ["Loaded image: x:1\n", f"Loaded image ID: {BOTH.arm64.id}\n"]


async def test_a_name_given_twice_is_the_laters(world: World):
    one, two = make([{"a": b"1"}]), make([{"a": b"2"}])
    entries = [entry(made.manifest, made.media_type, "docker.io/library/x:1") for made in (one, two)]
    await read_in(world, tar(layout(entries, *blobs_of(one, two))))
    assert world.deps.store.get("x:1").id == two.id


async def test_an_index_without_a_name_gives_its_images(world: World):
    await read_in(world, tar(BOTH.files("")))
    assert world.statuses[-2:] == [f"Loaded image ID: {made.id}\n" for made in (BOTH.amd64, BOTH.arm64)]
    assert not world.deps.store.targets()


async def test_one_manifest_under_several_names_is_one_image(world: World):
    one = make([{"a": b"1"}])
    entries = [entry(one.manifest, one.media_type, f"docker.io/library/x:{tag}") for tag in "12"]
    (image,) = await read_in(world, tar(layout(entries, *blobs_of(one))))
    assert image.repo_tags == ("x:1", "x:2")


async def test_of_an_index_only_what_is_whole_is_loaded(world: World):
    lost = blob_path(BOTH.arm64.layers[0])
    found = {name: content for name, content in BOTH.files().items() if name != lost}
    (image,) = await read_in(world, tar(found))
    assert image.id == BOTH.amd64.id
    with pytest.raises(NotFound, match="no image for linux/arm64 in the archive"):
        await read_in(world, tar(found), platforms=["linux/arm64"])


async def test_of_an_index_nothing_of_which_is_there_the_cause_is_told(world: World):
    found = layout([entry(BOTH.raw, BOTH.media_type)], BOTH.raw)
    with pytest.raises(InvalidParameter, match=f"the manifest {BOTH.arm64.digest} is missing"):
        await read_in(world, tar(found))


async def test_images_of_other_systems_within_an_index_are_passed_over(world: World):
    windows = make([{"w": b"1"}], os="windows")
    raw, media_type = index(
        [(windows, {"os": "windows", "architecture": "amd64"}), (BOTH.amd64, {"os": "linux", "architecture": "amd64"})]
    )
    found = layout([entry(raw, media_type, "x:1")], raw, *blobs_of(windows, BOTH.amd64))
    (image,) = await read_in(world, tar(found))
    assert image.id == BOTH.amd64.id


# --- the same images, the same bytes ----------------------------------------------------------------------------------


async def test_an_archive_depends_on_nothing_but_its_images(world: World, other: World):
    one = make([{"a": b"1"}])
    parts = [tar(BOTH.files()), tar(layout([entry(one.manifest, one.media_type, "y:1")], *blobs_of(one)))]
    for each, order in ((world, parts), (other, parts[::-1])):
        for data in order:
            await read_in(each, data)
        await tag(each.deps, "y:1", repository="z", tag="2")
    first = await archive_of(world, "x:1", "y", "z:2", one.id)
    assert await archive_of(other, one.id, "z", "y:1", "x") == first
    assert len(json.loads(members(first)["manifest.json"])) == 2


async def test_documents_come_first_and_layers_base_first(world: World):
    await read_in(world, tar(BOTH.files()))
    names = list(members(await archive_of(world, "x:1")))
    at: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    assert names[:4] == ["oci-layout", "index.json", "manifest.json", "repositories"]
    index, manifest, config, base, top = (at[blob_path(blob)] for blob in (BOTH.raw, *blobs_of(BOTH.arm64)))
    assert index < manifest < config < base < top
    assert at[blob_path(BOTH.attestations[1].manifest)] < base
