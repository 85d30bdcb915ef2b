"""A name that stands for several platforms of one index."""

from pathlib import Path

import pytest

from imagekit.making import digest, index, make
from imagekit.world import World
from wherry.digest import Digest
from wherry.errors import NotFound, Unavailable
from wherry.images.store import ImageStore
from wherry.images.upkeep.tag import tag
from wherry.reference import parse
from wherry.spec.image import Descriptor, host_platform
from wherry.state import Change, State

HOST = make([{"a": b"host"}], architecture=host_platform().architecture, variant=host_platform().variant)
OTHER = make([{"a": b"other"}], architecture="s390x")
THIRD = make([{"a": b"third"}], architecture="riscv64")
INDEX = index([(each, {"os": "linux", "architecture": "x"}) for each in (HOST, OTHER, THIRD)])
NEWER = index([(OTHER, {"os": "linux", "architecture": "s390x"})])


async def test_platforms_of_one_index_stand_side_by_side_and_the_hosts_is_meant(world: World):
    await world.put(HOST, "x", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    store = world.deps.store
    assert store.get("x").id == HOST.id
    assert store.get("x", platform="linux/s390x").id == OTHER.id
    assert [image.id for image in store.platforms("x")] == [HOST.id, OTHER.id]
    assert store.get(OTHER.id).repo_tags == ("x:latest",)
    with pytest.raises(NotFound, match=r"does not provide the specified platform \(linux/riscv64\)"):
        store.get("x", platform="linux/riscv64")


async def test_without_the_hosts_platform_the_one_brought_last_is_meant(world: World):
    await world.put(OTHER, "x", index=INDEX)
    await world.put(THIRD, "x", index=INDEX)
    assert world.deps.store.get("x").id == THIRD.id
    await world.put(HOST, "x", index=INDEX)
    assert world.deps.store.get("x").id == HOST.id


async def test_another_index_takes_the_name_away_from_all_platforms(world: World):
    await world.put(HOST, "x", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    await world.put(OTHER, "x", index=NEWER)
    assert [image.id for image in world.deps.store.platforms("x")] == [OTHER.id]
    assert world.deps.store.get(HOST.id).repo_tags == ()
    assert digest(INDEX[0]) not in world.deps.store.live()[0]


async def test_tagging_takes_all_platforms_along_but_by_id_only_one(world: World):
    await world.put(HOST, "x", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    await tag(world.deps, "x", repository="y")
    await tag(world.deps, OTHER.id, repository="z")
    store = world.deps.store
    assert [image.id for image in store.platforms("y")] == [HOST.id, OTHER.id]
    assert [image.id for image in store.platforms("z")] == [OTHER.id]
    y, z = store.target(parse("y")), store.target(parse("z"))
    assert y
    assert z
    assert (y.descriptor.digest, z.descriptor.digest) == (digest(INDEX[0]), OTHER.digest)


async def test_removing_one_platform_leaves_the_others_their_names(world: World):
    await world.put(HOST, "x", "y", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    await world.deps.store.remove(world.deps.store.get("x").id, names=["y:latest"], record=True)
    assert [image.id for image in world.deps.store.platforms("x")] == [OTHER.id]
    with pytest.raises(NotFound):
        world.deps.store.get("y")
    assert set(world.state.rows("tags")) == {"x:latest"}


async def test_removing_a_name_removes_it_for_all_platforms(world: World):
    host = await world.put(HOST, "x", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    await world.deps.store.remove(host.id, names=["x:latest"], record=False)
    assert {image.id: image.repo_tags for image in world.deps.store.all()} == {HOST.id: (), OTHER.id: ()}
    assert not world.state.rows("tags")


async def test_targets_survive_a_restart_and_keep_their_index_alive(world: World):
    await world.put(HOST, "x", f"x@{digest(INDEX[0])}", index=INDEX)
    await world.put(OTHER, "x", index=INDEX)
    before = world.deps.store.targets()
    world.open()
    key = lambda target: target.name  # noqa: E731
    assert sorted(world.deps.store.targets(), key=key) == sorted(before, key=key)
    assert digest(INDEX[0]) in world.deps.store.live()[0]


async def test_a_row_of_before_there_were_targets_is_read(world: World):
    from wherry.state import Put

    await world.put(HOST)
    world.state.write(Put("tags", "x:latest", b'{"id":"%s"}' % HOST.id.encode()))
    world.open()
    target = world.deps.store.target(parse("x"))
    assert target
    assert (target.images, target.descriptor.digest) == ((HOST.id,), HOST.digest)


async def test_ten_thousand_names_of_one_image_load_at_once(world: World):
    from wherry.state import Put

    await world.put(HOST)
    world.state.write(*(Put("tags", f"x:{n}", b'{"id":"%s"}' % HOST.id.encode()) for n in range(10_000)))
    world.open()
    assert len(world.deps.store.get("x:77").repo_tags) == 10_000


class FullDisk(State):
    """A database that counts what it is asked to write, and refuses it while `full`."""

    full = True
    writes = 0

    def write(self, *changes: Change) -> None:
        self.writes += 1
        if self.full:
            raise Unavailable("no space left on device")
        super().write(*changes)


async def test_several_images_of_an_index_are_put_in_one_transaction(world: World, tmp_path: Path):
    images = [await world.put(made, made.id[7:12]) for made in (OTHER, HOST)]
    descriptor = Descriptor(media_type=INDEX[1], digest=Digest(digest(INDEX[0])), size=len(INDEX[0]))
    name = parse("x").tagged()
    state = FullDisk(tmp_path / "other.db")
    store = ImageStore(state, world.deps.content)
    with pytest.raises(Unavailable):
        await store.put_all(images, references=[name], target=descriptor)
    assert state.writes == 1
    assert store.target(name) is None
    assert store.all() == []
    state.full = False
    put = await store.put_all(images, references=[name], target=descriptor)
    assert state.writes == 2
    assert [image.id for image in put] == [OTHER.id, HOST.id]
    for found in (store, ImageStore(state, world.deps.content)):
        assert [image.id for image in found.platforms("x")] == [HOST.id, OTHER.id]
        assert all("x:latest" in image.repo_tags for image in found.all())
    state.close()


async def test_an_index_whose_name_moved_on_is_no_litter(world: World):
    from wherry.images.garbage import collect, collect_all

    await world.put(HOST, "x", index=INDEX)
    await world.put(OTHER, "x", index=NEWER)
    assert world.deps.content.has(digest(INDEX[0]))  # type: ignore[arg-type]
    await collect(world.deps, digests=(), chains=())  # as every pull, load, tag and push ends
    assert not world.deps.content.has(digest(INDEX[0]))  # type: ignore[arg-type]
    assert world.deps.content.has(digest(NEWER[0]))  # type: ignore[arg-type]
    assert not (await collect_all(world.deps)).digests
