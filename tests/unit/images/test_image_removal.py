"""Removing and pruning: docker's rules, its words, and that nothing needed goes."""

import pytest

from imagekit.making import make
from imagekit.world import NOTHING, World, chain_of
from wherry.errors import Conflict, NotFound
from wherry.filters import Filters
from wherry.images.garbage import collect_all, pinned, release
from wherry.images.upkeep.prune import prune
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import ContainerUse, remove
from wherry.state import Put

BASE = {"base": b"0"}
ONE = make([BASE, {"a": b"1"}])
TWO = make([BASE, {"a": b"2"}], config={"Labels": {"keep": "yes", "x": "1"}})
TWO_BASE = TWO.diff_ids[0]
SHORT = ONE.id[7:19]
CONTAINER = "c" * 64
DIGEST = f"x@{ONE.digest}"


def uses(made=ONE, *, running=False):
    return {made.id: [ContainerUse(id=CONTAINER, running=running)]}


async def test_the_last_tag_takes_the_image_its_digests_and_its_layers_along(world: World):
    await world.put(ONE, "x", DIGEST)
    layers = list(world.snapshots.chains())
    assert await remove(world.deps, "x", in_use={}) == [
        {"Untagged": "x:latest"},
        {"Untagged": DIGEST},
        {"Deleted": ONE.id},
        {"Deleted": layers[1]},
        {"Deleted": layers[0]},
    ]
    assert world.held() == NOTHING
    assert world.events == [("untag", ONE.id), ("delete", ONE.id)]


async def test_one_of_several_tags_is_only_untagged(world: World):
    await world.put(ONE, "x:1", "x:2", DIGEST)
    assert await remove(world.deps, "x:1", in_use=uses(running=True)) == [{"Untagged": "x:1"}]
    assert world.deps.store.get("x:2").repo_digests == (DIGEST,)


async def test_a_repositorys_digests_go_with_its_last_tag(world: World):
    await world.put(ONE, "x", DIGEST, "y")
    assert await remove(world.deps, "x", in_use={}) == [{"Untagged": "x:latest"}, {"Untagged": DIGEST}]
    assert world.deps.store.get("y").repo_digests == ()


async def test_a_digest_reference_is_removed_alone(world: World):
    await world.put(ONE, "x", DIGEST)
    assert await remove(world.deps, DIGEST, in_use={}) == [{"Untagged": DIGEST}]
    assert world.deps.store.get("x").id == ONE.id


async def test_shared_layers_stay_as_long_as_somebody_needs_them(world: World):
    await world.put(ONE, "one")
    await world.put(TWO, "two")
    removed = await remove(world.deps, "one", in_use={})
    assert removed[-1] == {"Deleted": chain_of(ONE)}
    assert len([record for record in removed if "Deleted" in record]) == 2
    await remove(world.deps, "two", in_use={})
    assert world.held() == NOTHING


@pytest.mark.parametrize(
    ("names", "name", "force", "running", "words"),
    [
        (
            ["x"],
            "x",
            False,
            False,
            f'conflict: unable to remove repository reference "x" (must force) - container {"c" * 12} is using its '
            f"referenced image {SHORT}",
        ),
        (
            ["x"],
            SHORT,
            False,
            False,
            f"conflict: unable to delete {SHORT} (must be forced) - image is being used by stopped container "
            + "c" * 12,
        ),
        (
            ["x"],
            SHORT,
            True,
            True,
            f"conflict: unable to delete {SHORT} (cannot be forced) - image is being used by running container "
            + "c" * 12,
        ),
        (
            ["x", "y"],
            SHORT,
            False,
            None,
            f"conflict: unable to delete {SHORT} (must be forced) - image is referenced in multiple repositories",
        ),
    ],
)
async def test_a_conflict_is_said_in_dockers_words_and_changes_nothing(
    world: World, names, name, force, running, words
):
    await world.put(ONE, *names)
    before = world.held()
    in_use = {} if running is None else uses(running=running)
    with pytest.raises(Conflict) as caught:
        await remove(world.deps, name, force=force, in_use=in_use)
    assert caught.value.message == words
    assert world.held() == before


async def test_a_parent_of_other_images_is_not_deleted(world: World):
    await world.put(ONE, "x")
    await world.put(TWO, "y", parent=ONE.id)
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image has dependent child images"):
        await remove(world.deps, ONE.id, force=True, in_use={})


async def test_untagged_parents_go_with_the_child_unless_told_otherwise(world: World):
    for keep in (True, False):
        await world.put(ONE)
        await world.put(TWO, "y", parent=ONE.id)
        await remove(world.deps, "y", prune=not keep, in_use={})
        assert (world.deps.store.find(ONE.id) is not None) == keep


async def test_forced_removal_by_id_takes_all_names(world: World):
    await world.put(ONE, "x", "y:2", DIGEST)
    removed = await remove(world.deps, SHORT, force=True, in_use=uses())
    assert [record["Untagged"] for record in removed if "Untagged" in record] == ["x:latest", DIGEST, "y:2"]
    assert world.held() == NOTHING


async def test_the_layers_under_a_container_outlive_their_image(world: World):
    await world.put(ONE, "x")
    world.snapshots.prepare(CONTAINER, chain_of(ONE))
    removed = await remove(world.deps, "x", force=True, in_use=uses())
    assert removed[-1] == {"Deleted": ONE.id}
    assert len(list(world.snapshots.chains())) == 2
    world.snapshots.remove(CONTAINER)
    await collect_all(world.deps)
    assert world.held() == NOTHING


async def test_with_the_last_container_the_layers_of_a_removed_image_go(world: World):
    await world.put(ONE, "x")
    await world.put(TWO, "y")
    world.snapshots.prepare(CONTAINER, chain_of(ONE))
    await release(world.deps, chain_of(ONE))
    assert len(list(world.snapshots.chains())) == 3
    await remove(world.deps, "x", force=True, in_use=uses())
    world.snapshots.remove(CONTAINER)
    await release(world.deps, chain_of(ONE))
    assert set(world.snapshots.chains()) == {TWO_BASE, chain_of(TWO)}
    await release(world.deps, None)


async def test_a_missing_image_is_not_found(world: World):
    with pytest.raises(NotFound, match="No such image: x:latest"):
        await remove(world.deps, "x", in_use={})


async def test_a_pinned_image_keeps_its_layers_although_it_is_removed(world: World):
    await world.put(ONE, "x")
    async with pinned(world.deps, "x") as image:
        await remove(world.deps, "x", in_use={})
        assert world.snapshots.has(image.chain)
        world.snapshots.prepare(CONTAINER, image.chain)
    await collect_all(world.deps)
    assert len(list(world.snapshots.chains())) == 2
    with pytest.raises(NotFound):
        async with pinned(world.deps, "x"):
            pass


# --- prune ------------------------------------------------------------------------------------------------------------


async def test_pruning_takes_dangling_images_no_container_uses(world: World):
    three = make([{"c": b"3"}])
    await world.put(ONE)
    await world.put(TWO, "tagged")
    await world.put(three)
    answer = await prune(world.deps, Filters(), in_use=uses(three))
    assert answer["ImagesDeleted"][0] == {"Deleted": ONE.id}
    assert answer["SpaceReclaimed"] == 100
    assert {image.id for image in world.deps.store.all()} == {TWO.id, three.id}


async def test_pruning_all_takes_tagged_images_too(world: World):
    await world.put(ONE, "x")
    await world.put(TWO, "y")
    answer = await prune(world.deps, Filters({"dangling": ("false",)}), in_use={})
    assert {"Untagged": "x:latest"} in answer["ImagesDeleted"]
    assert world.held() == NOTHING


async def test_pruning_nothing_says_null(world: World):
    assert await prune(world.deps, Filters(), in_use={}) == {"ImagesDeleted": None, "SpaceReclaimed": 0}


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"label": ("keep",)}, {ONE.id}),
        ({"label": ("keep=no",)}, {ONE.id, TWO.id}),
        ({"label!": ("keep",)}, {TWO.id}),
        ({"until": ("2024-05-06T07:08:10Z",)}, set()),
        ({"until": ("2024-05-06T07:08:08Z",)}, {ONE.id, TWO.id}),
        ({"until": ("1h",)}, set()),
        ({"until": ("500000h",)}, {ONE.id, TWO.id}),
    ],
)
async def test_pruning_is_narrowed_by_labels_and_time(world: World, fields, left):
    await world.put(ONE)
    await world.put(TWO)
    await prune(world.deps, Filters(fields), in_use={})
    assert {image.id for image in world.deps.store.all()} == left


# --- recovery ---------------------------------------------------------------------------------------------------------


async def test_recovery_drops_what_a_dead_daemon_was_doing_and_nothing_else(world: World):
    await world.put(ONE, "x")
    before = world.held()
    async with world.deps.leases.hold("pull"):
        orphan = world.deps.content.write(b"half a pull")
        world.snapshots.prepare("x", None)
        world.snapshots.commit("x", "sha256:" + "1" * 64)
        world.snapshots.prepare("layer-half", None)
        world.deps.work.mkdir()
        (world.deps.work / "scratch").mkdir()
        with world.deps.content.ingest("half a layer") as ingest:
            ingest.write(b"x")
        world.open()  # the daemon died here
        await recover(world.deps)
    assert world.held() == before
    assert not world.deps.content.has(orphan)


async def test_recovery_keeps_what_an_image_has_that_cannot_be_used(world: World):
    await world.put(ONE, "x")
    orphan = world.deps.content.write(b"orphan")
    path = world.root / "blobs" / "sha256" / ONE.id[7:]
    path.chmod(0o600)
    path.write_bytes(b"{}")
    world.open()
    await recover(world.deps)
    assert not world.deps.content.has(orphan)
    assert world.held()["blobs"] == {ONE.digest, *ONE.blobs}
    assert len(list(world.snapshots.chains())) == 2


async def test_recovery_sweeps_nothing_while_a_record_cannot_be_read(world: World):
    await world.put(ONE, "x")
    orphan = world.deps.content.write(b"orphan")
    world.state.write(Put("images", ONE.id, b"{"))
    world.open()
    await recover(world.deps)
    assert world.deps.content.has(orphan)
    assert len(list(world.snapshots.chains())) == 2
