"""Removing and pruning images of which several platforms are held, and what goes on while images are removed."""

import asyncio

import pytest

from imagekit.making import digest, index, make
from imagekit.world import NOTHING, World, chain_of
from wherry.errors import Conflict, Failed, NotFound
from wherry.filters import Filters
from wherry.images.garbage import pinned
from wherry.images.record import Image
from wherry.images.upkeep.prune import prune
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import ContainerUse, remove
from wherry.images.upkeep.tag import tag
from wherry.reference import parse
from wherry.spec.image import host_platform, parse_platform
from wherry.state import Change, State

MACHINE = host_platform()
BASE = {"base": b"0"}
HOST = make([BASE, {"a": b"host"}], architecture=MACHINE.architecture, variant=MACHINE.variant)
OTHER = make([BASE, {"a": b"other"}], architecture="s390x")
THIRD = make([{"a": b"third"}], architecture="riscv64")
INDEX = index([(each, {"os": "linux", "architecture": "x"}) for each in (HOST, OTHER, THIRD)])
DIGEST = f"x@{digest(INDEX[0])}"
S390X, RISCV = parse_platform("linux/s390x"), parse_platform("linux/riscv64")
CONTAINER = "c" * 64


def uses(made, *, running=False):
    return {made.id: [ContainerUse(id=CONTAINER, running=running)]}


@pytest.fixture
async def several(world: World) -> World:
    """`x` with three platforms."""
    for made in (HOST, OTHER, THIRD):
        await world.put(made, "x", DIGEST, index=INDEX)
    return world


def ids(world: World) -> set[str]:
    return {image.id for image in world.deps.store.all()}


async def test_a_name_takes_all_its_platforms_along_with_their_index(several: World):
    records = await remove(several.deps, "x", in_use={})
    assert records[:2] == [{"Untagged": "x:latest"}, {"Untagged": DIGEST}]
    assert [record for record in records if record.get("Deleted") in {HOST.id, OTHER.id, THIRD.id}] == [
        {"Deleted": HOST.id},
        {"Deleted": THIRD.id},
        {"Deleted": OTHER.id},
    ]
    assert several.events == [("untag", HOST.id), *(("delete", made.id) for made in (HOST, THIRD, OTHER))]
    assert several.held() == NOTHING


async def test_a_layer_of_several_platforms_is_told_of_once_after_the_last_of_them(several: World):
    records = await remove(several.deps, "x", in_use={})
    base = {"Deleted": chain_of(make([BASE]))}
    assert records.count(base) == 1
    assert records.index(base) > records.index({"Deleted": OTHER.id})


async def test_the_id_of_a_row_takes_the_whole_row(several: World):
    await remove(several.deps, HOST.id, in_use={})
    assert several.held() == NOTHING


async def test_the_id_of_a_further_platform_takes_only_that(several: World):
    records = await remove(several.deps, OTHER.id, in_use={})
    assert {"Untagged": "x:latest"} not in records
    assert ids(several) == {HOST.id, THIRD.id}
    assert several.deps.store.get("x").id == HOST.id
    assert digest(INDEX[0]) in several.deps.store.live()[0]


async def test_a_platform_with_another_name_outlives_the_row(several: World):
    await tag(several.deps, OTHER.id, repository="kept")
    await remove(several.deps, "x", in_use={})
    assert ids(several) == {OTHER.id}
    assert several.deps.store.get("kept").id == OTHER.id
    await remove(several.deps, "kept", in_use={})
    assert several.held() == NOTHING


async def test_removing_another_name_of_a_further_platform_leaves_the_row_alone(several: World):
    await tag(several.deps, OTHER.id, repository="kept")
    assert await remove(several.deps, "kept", in_use={}) == [{"Untagged": "kept:latest"}]
    assert [image.id for image in several.deps.store.platforms("x")] == [HOST.id, THIRD.id, OTHER.id]


@pytest.mark.parametrize("name", ["x", HOST.id])
async def test_a_container_of_a_further_platform_keeps_the_row(several: World, name: str):
    before = several.held()
    with pytest.raises(Conflict, match=f"container {CONTAINER[:12]}"):
        await remove(several.deps, name, in_use=uses(OTHER))
    assert several.held() == before


async def test_by_force_a_running_platform_stays_without_a_name(several: World):
    records = await remove(several.deps, "x", force=True, in_use=uses(OTHER, running=True))
    assert {"Deleted": OTHER.id} not in records
    assert ids(several) == {OTHER.id}
    assert several.deps.store.get(OTHER.id).repo_tags == ()


# --- platforms= -------------------------------------------------------------------------------------------------------


async def test_chosen_platforms_are_removed_and_the_name_goes_on(several: World):
    records = await remove(several.deps, "x", platforms=[S390X], in_use={})
    assert records == [{"Deleted": OTHER.id}, {"Deleted": chain_of(OTHER)}]
    assert [image.id for image in several.deps.store.platforms("x")] == [HOST.id, THIRD.id]


async def test_without_the_hosts_platform_the_name_means_another(several: World):
    await remove(several.deps, "x", platforms=[MACHINE, RISCV], in_use={})
    assert several.deps.store.get("x").id == OTHER.id


async def test_with_its_last_platform_a_name_goes(several: World):
    records = await remove(several.deps, "x", platforms=[MACHINE, S390X, RISCV], in_use={})
    assert [record["Untagged"] for record in records if "Untagged" in record] == ["x:latest", DIGEST]
    assert several.held() == NOTHING


async def test_a_platform_that_is_not_held_is_not_found_and_nothing_is_touched(several: World):
    before = several.held()
    with pytest.raises(NotFound, match=r"x was found but does not provide the specified platform \(linux/arm/v7\)"):
        await remove(several.deps, "x", platforms=[S390X, parse_platform("linux/arm/v7")], in_use={})
    assert several.held() == before


@pytest.mark.parametrize(
    ("in_use", "force", "words"),
    [
        (uses(OTHER), False, r"\(must be forced\) - image is being used by stopped container cccccccccccc"),
        (uses(OTHER, running=True), True, r"\(cannot be forced\) - image is being used by running container"),
    ],
)
async def test_a_platform_in_use_is_refused(several: World, in_use, force, words):
    before = several.held()
    with pytest.raises(Conflict, match=words):
        await remove(several.deps, "x", platforms=[MACHINE, S390X], force=force, in_use=in_use)
    assert several.held() == before
    await remove(several.deps, "x", platforms=[RISCV], in_use=in_use)


async def test_a_platform_that_another_image_name_stands_for_needs_force(several: World):
    await tag(several.deps, "x", repository="same")  # the same index: it goes from there, too
    await tag(several.deps, OTHER.id, repository="own")
    with pytest.raises(Conflict, match=r"\(must be forced\) - image is referenced in multiple repositories"):
        await remove(several.deps, "x", platforms=[S390X], in_use={})
    records = await remove(several.deps, "x", platforms=[S390X], force=True, in_use={})
    assert records[:2] == [{"Untagged": "own:latest"}, {"Deleted": OTHER.id}]
    assert [image.id for image in several.deps.store.platforms("same")] == [HOST.id, THIRD.id]


async def test_an_image_of_one_platform_goes_with_it(world: World):
    await world.put(OTHER, "y")
    with pytest.raises(NotFound, match=r"held are: linux/s390x"):
        await remove(world.deps, "y", platforms=[RISCV], in_use={})
    await remove(world.deps, "y", platforms=[S390X], in_use={})
    assert world.held() == NOTHING


# --- prune ------------------------------------------------------------------------------------------------------------


async def test_a_row_is_pruned_whole_or_not_at_all(several: World):
    everything = Filters({"dangling": ("false",)})
    assert (await prune(several.deps, everything, in_use=uses(OTHER)))["ImagesDeleted"] is None
    assert ids(several) == {HOST.id, OTHER.id, THIRD.id}
    answer = await prune(several.deps, everything, in_use={})
    assert answer["SpaceReclaimed"] == 400  # four layers; the base counts once
    assert several.held() == NOTHING


async def test_a_further_platform_is_not_dangling(several: World):
    assert (await prune(several.deps, Filters(), in_use={}))["ImagesDeleted"] is None


async def test_an_index_nothing_names_any_more_goes_when_its_name_is_given_away(several: World):
    await several.put(THIRD, "y")
    await remove(several.deps, DIGEST, in_use={})
    await tag(several.deps, "y", repository="x")
    assert not several.deps.content.has(digest(INDEX[0]))


# --- at the same time -------------------------------------------------------------------------------------------------


async def test_of_two_removals_at_once_one_finds_nothing(several: World):
    answers = await asyncio.gather(*(remove(several.deps, "x", in_use={}) for _ in range(2)), return_exceptions=True)
    assert [type(answer) for answer in answers] in ([list, NotFound], [NotFound, list])
    assert several.held() == NOTHING


async def test_two_names_of_an_image_removed_at_once_take_it_away_once(world: World):
    await world.put(HOST, "x", "y")
    first, second = await asyncio.gather(*(remove(world.deps, name, in_use={}) for name in "xy"))
    assert first == [{"Untagged": "x:latest"}]
    assert second[:2] == [{"Untagged": "y:latest"}, {"Deleted": HOST.id}]
    assert world.held() == NOTHING


async def test_a_name_given_during_the_removal_keeps_the_image(world: World):
    """For every moment of the removal: in the end the new name has the image, or was told that there is none."""
    for turns in range(40):
        image = await world.put(HOST, "x")
        removal = asyncio.create_task(remove(world.deps, "x", in_use={}))
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            await tag(world.deps, image.id, repository="new")
            named = True
        except NotFound:
            named = False
        await removal
        assert (world.deps.store.tagged(parse("new")) is not None) == named
        if named:
            assert all(world.deps.content.has(blob) for blob in world.deps.store.get("new").blobs)
            await remove(world.deps, "new", in_use={})
        assert world.held() == NOTHING


async def test_an_image_put_during_its_removal_is_whole_afterwards(world: World):
    """As a pull does at its end: with a lease on what it brings, the image is put while somebody removes it."""
    for turns in range(40):
        image: Image = await world.put(HOST, "x")
        removal = asyncio.create_task(remove(world.deps, "x", in_use={}))
        with world.deps.leases.pin() as lease:
            await lease.protect(digests=image.blobs, chains=[layer.chain for layer in image.layers])
            for _ in range(turns):
                await asyncio.sleep(0)
            here = all(world.deps.content.has(blob) for blob in image.blobs)
            if here:
                await world.deps.store.put(image, references=[parse("pulled").tagged()])
            await removal
        if here:
            found = world.deps.store.get("pulled")
            assert all(world.deps.content.has(blob) for blob in found.blobs)
            assert all(world.snapshots.has(layer.chain) for layer in found.layers)
            await remove(world.deps, "pulled", in_use={})
        assert world.held() == NOTHING


async def test_a_container_that_comes_while_the_removal_waits_is_seen(world: World):
    await world.put(HOST, "x")
    in_use: dict[str, list[ContainerUse]] = {}
    async with world.deps.locks(("images", "removal")):
        removal = asyncio.create_task(remove(world.deps, "x", in_use=in_use))
        await asyncio.sleep(0)
        in_use |= uses(HOST)
    with pytest.raises(Conflict):
        await removal


async def test_removing_beside_somebody_who_has_pinned_it_keeps_the_layers(several: World):
    async with pinned(several.deps, "x", platform="linux/s390x") as image:
        await remove(several.deps, "x", in_use={})
        assert several.snapshots.has(image.chain)
        assert several.snapshots.has(several.snapshots.parent(image.chain))


class FailingState(State):
    """A disk that refuses one write."""

    writes_left = 1 << 30

    def write(self, *changes: Change) -> None:
        self.writes_left -= 1
        if self.writes_left == 0:
            raise Failed("no space left on device")
        super().write(*changes)


@pytest.mark.parametrize("step", range(1, 8))
async def test_a_removal_that_fails_at_any_step_leaves_whole_images_and_can_be_done_again(world: World, step: int):
    state = world.state = FailingState(None)
    world.open()
    parent = make([{"p": b"1"}])
    await world.put(parent)
    await world.put(HOST, "x", DIGEST, parent=parent.id, index=INDEX)
    await world.put(OTHER, "x", DIGEST, index=INDEX)
    state.writes_left = step
    failed = False
    try:
        await remove(world.deps, "x", in_use={})
    except Failed:
        failed = True
    assert failed == (step <= 5)  # lease, names, and each of three images; then the lease's end, which only logs
    state.writes_left = 1 << 30
    live_blobs, live_chains = world.deps.store.live()
    assert set(world.deps.content.walk()) == live_blobs
    assert set(world.snapshots.chains()) == live_chains
    world.open()
    await recover(world.deps)
    await prune(world.deps, Filters({"dangling": ("false",)}), in_use={})
    assert world.held() == NOTHING
