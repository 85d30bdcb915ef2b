"""The store check: every kind of damage is found, told, and mended where it can be."""

import asyncio
import dataclasses
import gzip
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.descriptors import descriptors
from imagekit.making import make
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.digest import Digest
from wherry.errors import Corrupt
from wherry.images.garbage import collect_all, pinned
from wherry.images.making.commit import commit
from wherry.images.progress import quiet
from wherry.images.record import Image, Layer
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.check import Report, check
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.kernel.mount import open_detached
from wherry.spec.engine import ContainerConfig
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel

LAYERS: list[dict[str, bytes | None]] = [
    {"etc": None, "etc/passwd": b"root", "usr/bin/tool": b"x" * 300_000, "old": b"old", "d/e/f": b"deep"},
    {".wh.old": b"", "etc/hosts": b"127.0.0.1", "d/.wh..wh..opq": b"", "d/g": b"new"},
]
MADE = make(LAYERS)


@pytest.fixture(params=[OverlaySnapshotter, NativeSnapshotter], ids=["overlay", "native"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "world"
    root.mkdir()
    made = World(root, request.param(root))
    yield made
    made.snapshots.close()


overlay = pytest.mark.parametrize("world", [OverlaySnapshotter], ids=["overlay"], indirect=True)


@pytest.fixture
async def image(world: World, registry: FakeRegistry) -> Image:
    registry.add("x", "1", MADE)
    return await pull(world.deps, f"{registry.host}/x:1", progress=quiet)


async def look(world: World, **options: object) -> list[tuple[str, str, bool]]:
    found = await report(world, **options)
    return [(problem.kind.value, problem.object, problem.repaired) for problem in found.problems]


async def report(world: World, **options: object) -> Report:
    held = descriptors()
    found = await check(world.deps, progress=world.tell, snapshots=lambda: {"box"}, **options)  # type: ignore[arg-type]
    world.snapshots.close()  # what was deleted is deleted
    assert not descriptors() - held
    for problem in found.problems:
        assert problem.detail
        assert bool(problem.remedy) != problem.repaired
    return found


def blob(world: World, digest: str) -> Path:
    path = world.deps.content.path(Digest(digest))
    path.chmod(0o600)
    return path


def layer(image: Image, number: int = 0) -> Layer:
    return image.layers[number]


def tree(world: World, image: Image, number: int = 0) -> Path:
    return world.snapshots.layer(layer(image, number).chain)


async def test_a_store_as_it_should_be_has_no_problems(world: World, image: Image):
    before = world.held()
    for options in ({}, {"quick": True}, {"repair": True}):
        found = await report(world, **options)
        assert found.problems == []
        assert (found.images, found.layers, found.blobs) == (1, 2, 4)
        assert found.bytes == sum(map(len, (MADE.manifest, MADE.config, *MADE.layers)))
    assert world.held() == before
    assert {str(message["status"]) for message in world.messages} == {"Checking blobs", "Checking layers"}


# Blobs


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("harm", "which", "kind"),
    [
        (Path.unlink, "config", "missing-blob"),
        (cut, "manifest", "truncated-blob"),
        (cut, "config", "altered-blob"),  # nobody recorded how long it was
        (flip, "layer", "altered-blob"),
        (grow, "layer", "altered-blob"),
    ],
)
@overlay
async def test_a_damaged_blob_is_found_and_fetched_again(world: World, image: Image, harm, which: str, kind: str):
    digest = {"layer": MADE.layer_digests[1], "config": MADE.id, "manifest": MADE.digest}[which]
    harm(blob(world, digest))
    assert await look(world) == [(kind, digest, False)]
    assert await look(world, repair=True) == [(kind, digest, False)]  # no registry may be asked
    assert await look(world) == [("missing-blob", digest, False)]  # the damaged bytes stand in nobody's way

    async def fetch(reference: str, platform: str) -> None:
        await pull(world.deps, reference, platform=platform, progress=quiet)

    assert await look(world, repair=True, fetch=fetch) == [("missing-blob", digest, True)]
    assert await look(world) == []


@overlay
async def test_quick_looks_at_sizes_only(world: World, image: Image):
    flip(blob(world, MADE.layer_digests[0]))
    assert await look(world, quick=True) == []
    cut(blob(world, MADE.layer_digests[0]))
    assert await look(world, quick=True) == [("truncated-blob", MADE.layer_digests[0], False)]


@overlay
async def test_a_layer_made_here_gives_its_blob_again(world: World, image: Image):
    world.snapshots.prepare("box", image.chain)
    fd = open_detached(world.snapshots.mounts("box"), attributes=0)
    try:
        root = Path(f"/proc/self/fd/{fd}")
        (root / "new").write_bytes(os.urandom(2_000_000))
        os.utime(root / "new", ns=(10**18 + 5, 10**18 + 5))
        (root / "etc/passwd").unlink()
        shutil.rmtree(root / "d")
        (root / "d").mkdir(0o700)
    finally:
        os.close(fd)
    made = await commit(world.deps, "box", image_id=image.id, config=ContainerConfig())
    digest = layer(made, 2).digest
    before = blob(world, digest).read_bytes()
    flip(blob(world, digest))
    assert await look(world, repair=True) == [("altered-blob", digest, True)]
    assert blob(world, digest).read_bytes() == before
    assert await look(world) == []


@overlay
async def test_a_blob_is_not_made_of_a_layer_that_is_damaged_too(world: World, image: Image):
    world.snapshots.prepare("box", image.chain)
    (world.snapshots.upper("box") / "new").write_text("new")
    made = await commit(world.deps, "box", image_id=image.id, config=ContainerConfig())
    flip(blob(world, layer(made, 2).digest))
    (tree(world, made, 2) / "new").write_text("other")
    assert await look(world, repair=True) == [("altered-blob", layer(made, 2).digest, False)]
    assert world.held()["ingests"] == set()


# Layers


def rewrite(path: Path) -> None:
    """The same size and time, other bytes."""
    status = path.stat()
    path.write_bytes(b"y" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def test_a_damaged_layer_is_found_and_mended(world: World, image: Image):
    before, chain, root = files(world, image), layer(image).chain, tree(world, image)
    rewrite(root / "usr/bin/tool")
    (root / "etc/passwd").unlink()
    (root / "more").write_text("")
    shutil.rmtree(root / "d")
    assert await look(world, quick=True) == [("altered-layer", chain, False)] or world.snapshots.name == "native"
    found = (await report(world)).problems
    assert [(problem.kind.value, problem.object) for problem in found] == [("altered-layer", chain)]
    for words in (image.name, "'etc/passwd': missing", "'usr/bin/tool': its content was altered", "'d': missing"):
        assert words in found[0].detail
    assert await look(world, repair=True) == [("altered-layer", chain, True)]
    assert await look(world) == []
    assert files(world, image) == before
    assert world.held()["snapshots"] == set()


async def test_lost_deletions_are_found_and_mended(world: World, image: Image):
    before, root = files(world, image), tree(world, image, 1)
    if isinstance(world.snapshots, OverlaySnapshotter):
        (root / "old").unlink()
        os.removexattr(root / "d", "trusted.overlay.opaque")
    else:
        (root / "old").write_text("old")
        (root / "d/e").mkdir()
    assert files(world, image) != before
    assert await look(world, repair=True) == [("altered-layer", layer(image, 1).chain, True)]
    assert await look(world) == []
    assert files(world, image) == before


def remove_all(root: Path) -> None:
    shutil.rmtree(root.parent)


def remove_note(root: Path) -> None:
    (root.parent / "parent").unlink()


def wrong_note(root: Path) -> None:
    (root.parent / "parent").write_text("sha256:" + "7" * 64)


@pytest.mark.parametrize(
    ("harm", "number", "restart"),
    [(remove_all, 0, False), (shutil.rmtree, 1, True), (remove_note, 1, True), (wrong_note, 1, False)],
)
async def test_a_missing_layer_is_made_anew(world: World, image: Image, harm, number: int, restart: bool):
    before = files(world, image)
    harm(tree(world, image, number))
    if restart:
        world.snapshots = type(world.snapshots)(world.root)
        world.open()
    assert await look(world, quick=True) == [("missing-layer", layer(image, number).chain, False)]
    assert await look(world, repair=True, quick=True) == [("missing-layer", layer(image, number).chain, True)]
    assert await look(world) == []
    assert files(world, image) == before
    assert world.snapshots.parent(layer(image, 1).chain) == layer(image, 0).chain


async def test_running_containers_keep_their_files_while_a_layer_is_mended(world: World, image: Image):
    world.snapshots.prepare("box", image.chain)
    root = open_detached(world.snapshots.mounts("box"))
    try:
        held = os.open("usr/bin/tool", os.O_RDONLY, dir_fd=root)
        (tree(world, image) / "etc/passwd").write_text("not root")
        inode = (tree(world, image) / "usr/bin/tool").stat().st_ino
        assert await look(world, repair=True) == [("altered-layer", layer(image).chain, True)]
        assert (tree(world, image) / "usr/bin/tool").stat().st_ino == inode
        assert os.read(held, 10) == b"x" * 10
        os.close(held)
    finally:
        os.close(root)


async def test_nothing_runs_on_a_layer_that_is_missing(world: World, image: Image):
    chain = layer(image).chain
    world.snapshots.prepare("box", image.chain)
    remove_all(tree(world, image))
    with pytest.raises(Corrupt, match=f"layer {chain} of image {image.name} is missing on disk: run `wherry system"):
        async with pinned(world.deps, image.name):
            pass
    if isinstance(world.snapshots, OverlaySnapshotter):  # elsewhere a snapshot has all the files itself
        with pytest.raises(Corrupt, match=f"layer {chain} is missing on disk: run `wherry system check --repair`"):
            world.snapshots.mounts("box")


@overlay
async def test_a_layer_without_its_blob_is_told_and_left(world: World, image: Image):
    remove_all(tree(world, image, 1))
    blob(world, layer(image, 1).digest).unlink()
    assert await look(world, repair=True) == [
        ("missing-blob", layer(image, 1).digest, False),
        ("missing-layer", layer(image, 1).chain, False),
    ]
    await pull(world.deps, image.name, progress=quiet)
    assert await look(world) == []


async def test_a_pull_makes_a_layer_anew_that_lost_its_files(world: World, image: Image):
    before = files(world, image)
    shutil.rmtree(tree(world, image, 0))
    await pull(world.deps, image.name, progress=quiet)
    assert await look(world) == []
    assert files(world, image) == before


# Records


@overlay
async def test_an_image_without_its_config_is_named_and_fetched_again(world: World, image: Image):
    blob(world, image.id).unlink()
    world.open()
    await recover(world.deps)

    async def fetch(reference: str, platform: str) -> None:
        await pull(world.deps, reference, platform=platform or None, progress=quiet)

    assert await look(world) == [("unusable-image", image.name, False)]
    assert await look(world, repair=True) == [("unusable-image", image.name, False)]
    assert await look(world, repair=True, fetch=fetch) == [("unusable-image", image.name, True)]
    assert await look(world) == []
    assert world.deps.store.get(image.name).id == image.id


@overlay
async def test_an_image_nobody_else_has_is_removed_when_its_config_is_lost(world: World, image: Image):
    world.snapshots.prepare("box", image.chain)
    (world.snapshots.upper("box") / "new").write_text("new")
    made = await commit(world.deps, "box", image_id=image.id, config=ContainerConfig())
    world.snapshots.remove("box")
    blob(world, made.id).unlink()
    world.open()
    found = (await report(world, repair=True)).problems
    assert found[0].kind == "unusable-image"
    assert "no registry is known to have it, and it was removed" in found[0].detail
    assert {problem.kind for problem in found[1:]} == {"orphan-blob", "orphan-layer"}
    assert await look(world) == []
    assert [each.id for each in world.deps.store.all()] == [image.id]


# Leftovers


async def test_what_belongs_to_nobody_is_found_and_removed(world: World, image: Image):
    before = world.held()
    orphan = world.deps.content.write(b"orphan")
    world.deps.content.ingest_new("half a blob").close()
    (world.deps.work / "bootstrap-x").mkdir(parents=True)
    for key in ("layer-half", "nobody", "box"):
        world.snapshots.prepare(key, image.chain)
    world.snapshots.prepare("made", None)
    (world.snapshots.upper("made") / "new").write_text("new")
    chain = "sha256:" + "5" * 64
    world.snapshots.commit("made", chain)
    expected = {"orphan-blob": orphan, "orphan-layer": chain, "orphan-snapshot": "", "orphan-file": ""}
    for repair in (False, True):
        found = await look(world, repair=repair)
        assert {kind for kind, _, _ in found} == expected.keys()
        assert len(found) == 6
        assert all(repaired == repair for _, _, repaired in found)
        assert all(expected[kind] in ("", what) for kind, what, _ in found)
    assert await look(world) == []
    world.snapshots.remove("box")
    assert world.held() == before


@overlay
async def test_what_is_being_made_is_no_leftover(world: World, image: Image):
    async with world.deps.leases.hold("test") as lease:
        lease.note(world.deps.content.write(b"mine"))
        (world.deps.work / "scratch").mkdir(parents=True)
        world.snapshots.prepare("layer-mine", image.chain)
        with world.deps.content.ingest_new("mine too") as ingest:
            ingest.write(b"half")
            assert await look(world, repair=True) == []
            ingest.write(b"whole")
        assert (world.deps.work / "scratch").exists()
    world.snapshots.remove("layer-mine")


# Beside


@overlay
async def test_a_check_that_is_cancelled_leaves_nothing(world: World, image: Image):
    before = world.held()
    for moment in (0.0, 0.001, 0.03, 0.1, 0.2):
        task = asyncio.ensure_future(check(world.deps, progress=quiet))
        await asyncio.wait({task}, timeout=moment)
        task.cancel()
        await asyncio.wait({task})
        assert world.held() == before


@overlay
async def test_a_check_that_is_killed_leaves_what_the_next_start_sweeps(world: World, image: Image):
    before = world.held()
    world.snapshots.prepare("layer-check-killed", image.chain)
    world.open()
    await recover(world.deps)
    assert world.held() == before
    await collect_all(world.deps)
    assert world.held() == before


@overlay
async def test_an_image_removed_while_it_is_checked_is_no_problem(world: World, image: Image):
    task = asyncio.ensure_future(look(world))
    await asyncio.sleep(0)
    await remove(world.deps, image.name, in_use={})
    assert await task == []
    assert await look(world, repair=True) == []
    assert world.held() == NOTHING


@overlay
async def test_a_blob_of_another_layer_than_the_config_says_is_told(world: World, image: Image):
    """The digest of the blob is right, but it is not the layer the image has."""
    other = gzip.compress(b"\0" * 1024)
    digest = world.deps.content.write(other)
    layers = (dataclasses.replace(layer(image), digest=digest, size=len(other)), layer(image, 1))
    wrong = dataclasses.replace(image, layers=layers, blobs=image.blobs | {digest})
    await world.deps.store.remove(image.id, names=(), record=True)
    await world.deps.store.put(wrong)
    found = (await report(world)).problems
    assert [problem.kind.value for problem in found] == ["unchecked"]
    assert "the image's configuration says" in found[0].detail
