"""The image store: finding, naming, what survives a restart."""

import pytest

from imagekit.making import make
from imagekit.world import World
from wherry.digest import Digest
from wherry.errors import InvalidParameter, NotFound
from wherry.images.record import ImageID
from wherry.images.upkeep.tag import tag
from wherry.reference import parse
from wherry.state import Put

ONE = make([{"a": b"1"}])
TWO = make([{"a": b"2"}], architecture="arm64")


async def test_an_image_is_found_by_tag_id_and_prefix(world: World):
    image = await world.put(ONE, "x:1", f"x@{ONE.digest}")
    for name in ("x:1", "docker.io/library/x:1", ONE.id, ONE.id[7:], ONE.id[7:19], ONE.id[:19], f"x@{ONE.digest}"):
        assert world.deps.store.get(name) == image
    assert world.deps.store.get(f"x:other@{ONE.digest}") == image
    assert image.repo_tags == ("x:1",)
    assert image.repo_digests == (f"x@{ONE.digest}",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x", "No such image: x:latest"),
        ("x:2", "No such image: x:2"),
        ("abcdef", "No such image: abcdef:latest"),
        ("sha256:" + "0" * 64, "No such image: sha256:" + "0" * 64),
        ("0" * 64, "No such image: sha256:" + "0" * 64),
        ("localhost:5000/x", "No such image: localhost:5000/x:latest"),
    ],
)
async def test_a_missing_image_is_said_in_dockers_words(world: World, name, words):
    await world.put(ONE, "x:1")
    with pytest.raises(NotFound) as caught:
        world.deps.store.get(name)
    assert caught.value.message == words


@pytest.mark.parametrize("name", ["", "a b", "X", "x:", "../x"])
async def test_a_name_that_cannot_be_one_is_refused(world: World, name):
    with pytest.raises(InvalidParameter, match="invalid reference format"):
        world.deps.store.get(name)


async def test_a_prefix_of_two_ids_is_ambiguous_and_a_tag_wins_over_a_prefix(world: World):
    first = await world.put(ONE, "one")
    seen = {first.id[7]: first}
    number = 10  # other content than ONE
    while True:  # until two ids begin alike
        number += 1
        made = make([{"a": str(number).encode()}])
        image = await world.put(made, f"n{number}")
        if image.id[7] in seen:
            break
        seen[image.id[7]] = image
    letter = image.id[7]
    with pytest.raises(InvalidParameter, match=f"Multiple IDs found with provided prefix: {letter}"):
        world.deps.store.get(letter)
    await tag(world.deps, first.id, repository=letter)
    assert world.deps.store.get(letter).id == first.id


async def test_an_image_for_another_platform_counts_as_missing(world: World):
    await world.put(TWO, "x")
    assert world.deps.store.get("x", platform="linux/arm64").id == TWO.id
    with pytest.raises(NotFound, match=r"was found but does not provide the specified platform \(linux/amd64\)"):
        world.deps.store.get("x", platform="linux/amd64")


async def test_a_tag_moves_and_its_old_image_dangles(world: World):
    await world.put(ONE, "x", "y")
    await world.put(TWO, "x")
    assert world.deps.store.get("x").id == TWO.id
    assert world.deps.store.get(ONE.id).repo_tags == ("y:latest",)


async def test_tagging_checks_both_names_and_is_announced(world: World):
    image = await world.put(ONE, "x")
    tagged = await tag(world.deps, "x", repository="r/y", tag="2")
    assert tagged.repo_tags == ("r/y:2", "x:latest")
    assert tagged.last_tagged >= image.last_tagged
    assert world.events == [("tag", image.id)]
    assert world.all_events()[0].attributes["name"] == "r/y:2"
    with pytest.raises(NotFound, match="No such image: z:latest"):
        await tag(world.deps, "z", repository="y")
    with pytest.raises(InvalidParameter, match="must be lowercase"):
        await tag(world.deps, "x", repository="Y")
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        await tag(world.deps, "x", repository="y", tag="ä")


async def test_everything_is_there_again_after_a_restart(world: World):
    await world.put(ONE, "x:1", f"x@{ONE.digest}")
    await world.put(TWO, "y", parent=ONE.id)
    before = {image.id: image for image in world.deps.store.all()}
    world.open()
    assert {image.id: image for image in world.deps.store.all()} == before
    assert world.deps.store.complete


async def test_an_image_whose_config_is_damaged_is_left_out_and_the_others_are_there(world: World):
    await world.put(ONE, "x")
    await world.put(TWO, "y")
    path = world.root / "blobs" / "sha256" / ONE.id[7:]
    path.chmod(0o600)
    path.write_bytes(b"{}")
    world.open()
    store = world.deps.store
    assert [image.id for image in store.all()] == [TWO.id]
    assert store.complete
    assert [(image.id, image.names) for image in store.unusable.values()] == [(ONE.id, ("x:latest",))]
    assert "is damaged on disk" in store.unusable[ImageID(ONE.id)].why
    with pytest.raises(NotFound):
        store.get("x")
    assert not await store.revive(ImageID(ONE.id))
    path.write_bytes(ONE.config)
    assert await store.revive(ImageID(ONE.id))
    assert store.get("x").id == ONE.id
    assert not store.unusable


async def test_an_image_that_is_pulled_again_is_usable_again(world: World):
    await world.put(ONE, "x")
    world.deps.content.delete(Digest(ONE.id))
    world.open()
    assert list(world.deps.store.unusable) == [ONE.id]
    await world.put(ONE, "x")
    assert not world.deps.store.unusable
    assert world.deps.store.get("x").repo_tags == ("x:latest",)


async def test_an_unusable_image_is_forgotten_with_the_names_that_mean_nothing_else(world: World):
    await world.put(ONE, "x", "y")
    await world.put(TWO, "z")
    world.deps.content.delete(Digest(ONE.id))
    world.open()
    await world.deps.store.tag("z", parse("y:latest"))
    await world.deps.store.forget(ImageID(ONE.id))
    world.open()
    assert not world.deps.store.unusable
    assert sorted(target.name for target in world.deps.store.targets()) == ["y:latest", "z:latest"]


@pytest.mark.parametrize("raw", [b"no json", b'{"id": "sha256:1"}', b"[]"])  # no record, of no image
async def test_a_name_that_stands_for_nothing_is_lost_and_can_be_forgotten(world: World, raw: bytes):
    world.state.write(Put("tags", "x:latest", raw))
    world.open()
    assert list(world.deps.store.lost) == ["x:latest"]
    assert not world.deps.store.complete
    await world.deps.store.forget_name("x:latest")
    world.open()
    assert not world.deps.store.lost


async def test_the_same_config_by_another_manifest_is_one_image_that_keeps_both(world: World):
    plain = make([{"a": b"1"}], compression="plain")
    assert plain.id == ONE.id
    await world.put(ONE, "x")
    merged = await world.put(plain, "y")
    assert len(world.deps.store.all()) == 1
    assert [manifest.digest for manifest in merged.manifests] == [ONE.digest, plain.digest]
    assert {*ONE.blobs, *plain.blobs, ONE.digest, plain.digest} == merged.blobs


async def test_tagging_an_image_that_went_meanwhile_fails(world: World):
    image = await world.put(ONE, "x")
    await world.deps.store.remove(image.id, names=image.repo_tags, record=True)
    with pytest.raises(NotFound):
        await world.deps.store.tag(image.id, parse("y:1"))
    assert not world.state.rows("tags")
