"""Archives that lack what the store has, and layers unpacked before an archive ends."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from imagekit.archives import archive_of, blob_path, blobs_of, chunks, docker_archive, entry, layout, members, read_in
from imagekit.making import Made, digest, encode, make, tar
from imagekit.trees import files
from imagekit.world import NOTHING, World, chain_of
from wherry.errors import InvalidParameter, NotFound
from wherry.images.archives.load import load
from wherry.images.upkeep.remove import remove

pytestmark = pytest.mark.kernel

BASE = {"a": b"1", "d": None}
ONE = make([BASE, {"b": b"2"}])
NEXT = make([BASE, {"b": b"2"}, {"c": b"3"}], config={"Cmd": ["next"]})
TREE = {"a": b"1", "b": b"2", "c": b"3", "d": None}


def whole(made: Made, name: str = "docker.io/library/next:1") -> dict[str, bytes]:
    return layout([entry(made.manifest, made.media_type, name)], *blobs_of(made))


def lacking(found: dict[str, bytes], *blobs: bytes) -> bytes:
    paths = {blob_path(blob) for blob in blobs}
    return tar({name: content for name, content in found.items() if name not in paths})


def with_layers(made: Made, compression: str) -> Made:
    return make([BASE, {"b": b"2"}, {"c": b"3"}], compression=compression, config={"Cmd": ["next"]})


# --- layers the store has ---------------------------------------------------------------------------------------------


async def test_blobs_that_are_here_may_be_missing(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    (image,) = await read_in(world, lacking(whole(NEXT), *ONE.layers))
    assert image.manifest.digest == NEXT.digest
    assert files(world, image) == TREE
    assert world.statuses[-1] == "Loaded image: next:1\n"
    assert not any("xists" in status for status in world.statuses), "nothing odd is told"
    await remove(world.deps, "one:1", in_use={})
    assert files(world, world.deps.store.get("next:1")) == TREE
    assert members(await archive_of(world, "next:1"))[blob_path(ONE.layers[0])] == ONE.layers[0]


async def test_an_image_that_is_here_needs_its_manifest_only(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    (image,) = await read_in(world, lacking(whole(ONE, "other:1"), *ONE.layers, ONE.config))
    assert image.repo_tags == ("one:1", "other:1")


async def test_layers_that_are_here_as_other_bytes_may_be_missing(world: World):
    """The archive has zstd layers, the store the same trees as gzip: a manifest of the store's own blobs is made."""
    zstd = with_layers(NEXT, "zstd")
    await read_in(world, tar(whole(ONE, "one:1")))
    (image,) = await read_in(world, lacking(whole(zstd), *zstd.layers[:2]))
    assert image.id == zstd.id
    assert [layer.digest for layer in image.layers] == [*ONE.layer_digests, zstd.layer_digests[2]]
    assert files(world, image) == TREE
    assert len(members(await archive_of(world, "next:1"))) > 0


async def test_a_docker_archive_may_lack_all_its_layers(world: World):
    await read_in(world, tar(whole(NEXT, "next:0")))
    found = docker_archive(NEXT, "next:1")
    (image,) = await read_in(world, tar({name: data for name, data in found.items() if "layer.tar" not in name}))
    assert image.repo_tags == ("next:0", "next:1")
    assert [layer.digest for layer in image.layers] == NEXT.layer_digests


async def test_a_docker_archive_of_layers_that_are_here_costs_no_second_copy(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    (image,) = await read_in(world, tar(docker_archive(NEXT, "next:1")))
    assert [layer.digest for layer in image.layers] == [*ONE.layer_digests, NEXT.diff_ids[2]]
    made = {image.manifest.digest}
    assert set(world.deps.content.walk()) == {ONE.digest, *ONE.blobs, NEXT.id, NEXT.diff_ids[2], *made}


async def test_what_is_nowhere_is_named(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    before = world.held()
    with pytest.raises(InvalidParameter, match=f"the layer {NEXT.layer_digests[2]} is missing, and not in the store"):
        await read_in(world, lacking(whole(NEXT), *NEXT.layers))
    found = docker_archive(NEXT, "next:1")
    with pytest.raises(InvalidParameter, match=f"the layer '{2:064x}/layer.tar' is missing, and not in the store"):
        await read_in(world, tar({name: data for name, data in found.items() if f"{2:064x}" not in name}))
    assert world.held() == before


async def test_blobs_of_an_image_removed_meanwhile_are_not_there(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    await remove(world.deps, "one:1", in_use={})
    with pytest.raises(InvalidParameter, match="is missing"):
        await read_in(world, lacking(whole(NEXT), *ONE.layers))
    assert world.held() == NOTHING


async def test_an_image_whose_blob_is_gone_is_not_saved_by_halves(world: World):
    await read_in(world, tar(whole(ONE, "one:1")))
    world.deps.content.delete(ONE.layer_digests[1])  # type: ignore[arg-type]
    with pytest.raises(NotFound, match=f"image one:1 cannot be saved: its blob {ONE.layer_digests[1]} is missing"):
        await archive_of(world, "one:1")


# --- which document counts --------------------------------------------------------------------------------------------


async def test_manifest_json_adds_names_and_images_to_index_json(world: World):
    found = whole(ONE, "docker.io/library/one:1")
    other = docker_archive(NEXT, "next:1")
    listed = json.loads(other["manifest.json"])
    listed.append({"Config": blob_path(ONE.config), "RepoTags": ["one:1", "one:2"], "Layers": []})
    images = await read_in(world, tar({**found, **other, "manifest.json": encode(listed)}))
    assert {tag for image in images for tag in image.repo_tags} == {"one:1", "one:2", "next:1"}
    assert world.deps.store.get("one:2").manifest.digest == ONE.digest


async def test_an_index_json_that_leads_nowhere_is_passed_over_when_there_is_a_manifest_json(world: World):
    found = {**layout([entry(ONE.manifest, ONE.media_type, "x:1")]), **docker_archive(ONE, "one:1")}
    (image,) = await read_in(world, tar(found))
    assert image.repo_tags == ("one:1",)


# --- unpacked while it is read ----------------------------------------------------------------------------------------


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")


@pytest.mark.parametrize("form", ["layout", "docker-archive"])
async def test_layers_are_unpacked_while_the_rest_still_comes(world: World, form):
    """The sender waits, before it sends the last bytes, for the layers it has sent."""
    found = whole(NEXT) if form == "layout" else docker_archive(NEXT, "next:1")
    found = {name: found[name] for name in sorted(found, key=lambda name: name == "manifest.json")}
    data = tar(found)

    async def sending() -> AsyncIterator[bytes]:
        async for chunk in chunks(data[:-512]):
            yield chunk
        await until(lambda: world.snapshots.has(chain_of(NEXT)))
        assert not world.deps.store.all(), "an image is there when all of the archive is"
        yield data[-512:]

    (image,) = await load(world.deps, sending(), progress=world.tell)
    assert files(world, image) == TREE
    assert len([message for message in world.messages if message.get("status") == "Loading layer"]) == 3


async def test_what_was_unpacked_for_nothing_is_removed(world: World):
    """A config nobody names, with layers that are there: unpacked on the way, gone in the end."""
    found = {**whole(ONE, "one:1"), **{blob_path(blob): blob for blob in blobs_of(NEXT)}}
    await read_in(world, tar(found))
    assert set(world.snapshots.chains()) == set(world.deps.store.live()[1])
    assert set(world.deps.content.walk()) == {ONE.digest, *ONE.blobs}


async def test_a_wrong_layer_met_on_the_way_is_told_in_the_end(world: World):
    lying = make([BASE, {"b": b"2"}], diff_ids=[digest(tar(BASE)), digest(b"other")])
    with pytest.raises(Exception, match=f"the configuration says {digest(b'other')}"):
        await read_in(world, tar(whole(lying)))
    assert world.held() == NOTHING
