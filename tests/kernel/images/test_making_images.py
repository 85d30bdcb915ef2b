"""Import, commit, bootstrap: images made on this machine."""

import asyncio
import bz2
import gzip
import json
import lzma
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from imagekit.making import digest, make, tar
from imagekit.registry import FakeRegistry
from imagekit.trees import files, opened
from imagekit.world import NOTHING, World
from wherry.errors import InvalidParameter, NotFound, WherryError
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.making.bootstrap import _run_apart, bootstrap
from wherry.images.making.commit import commit
from wherry.images.making.import_ import import_
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.remove import remove
from wherry.images.views.inspect import history, inspect
from wherry.reference import parse
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import host_platform

pytestmark = pytest.mark.kernel

TREE = {"bin": None, "bin/sh": b"#!", "etc": None, "etc/x": b"1"}


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 10_007):
        yield data[start : start + 10_007]


# --- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pack", "kept"),
    [
        (bytes, True),
        (lambda data: gzip.compress(data, mtime=0), True),
        (zstandard.ZstdCompressor().compress, True),
        (bz2.compress, False),
        (lzma.compress, False),
    ],
    ids=["plain", "gzip", "zstd", "bzip2", "xz"],
)
async def test_a_tree_becomes_an_image_kept_as_it_came_where_registries_take_that(world: World, pack, kept):
    data = pack(tar(TREE))
    image = await import_(
        world.deps, chunks(data), repository="made/x", tag="1", changes=["CMD sh", "ENV A=1"], progress=world.tell
    )
    assert files(world, image) == TREE
    assert image.repo_tags == ("made/x:1",)
    assert (image.layers[0].digest == digest(data)) is kept
    assert image.diff_ids == (digest(tar(TREE)),)
    assert image.config.config == ContainerConfig(cmd=["/bin/sh", "-c", "sh"], env=["A=1"])
    assert world.messages == [{"status": image.id}]
    assert world.events == [("import", image.id)]
    assert inspect(world.deps, "made/x:1")["Comment"] == "Imported from -"
    assert image.config.platform == host_platform()


async def test_message_and_platform_are_taken_and_a_name_is_not_needed(world: World):
    image = await import_(
        world.deps, chunks(tar(TREE)), message="from a friend", platform="linux/arm64", progress=world.tell
    )
    assert image.repo_tags == ()
    assert image.config.architecture == "arm64"
    assert image.config.history[0].comment == "from a friend"


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        (b"", {}, "the archive is empty"),
        (b"no tar" * 1000, {}, "layer"),
        (tar({"../x": b"1"}), {}, "'../x'"),
        (gzip.compress(tar(TREE))[:50], {}, "truncated"),
        (lzma.compress(tar(TREE))[:80], {}, "truncated"),
        (tar(TREE), {"repository": "X"}, "must be lowercase"),
        (tar(TREE), {"repository": "x@sha256:" + "0" * 64}, "cannot import digest reference"),
        (tar(TREE), {"changes": ["RUN x"]}, "run is not a valid change command"),
        (tar(TREE), {"platform": "a/b/c/d"}, "invalid platform"),
        (tar(TREE), {"platform": "windows/amd64"}, "operating system windows is not supported"),
        (b"", {"source": "ftp://host/x.tar"}, "unsupported protocol scheme"),
    ],
)
async def test_a_bad_import_is_refused_and_leaves_nothing(world: World, data, arguments, words):
    with pytest.raises(WherryError) as caught:
        await import_(world.deps, chunks(data), progress=world.tell, **arguments)
    assert words in caught.value.message
    assert world.held() == NOTHING
    assert world.messages == []


# --- commit -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def base(world: World, registry: FakeRegistry):
    made = make([{"a": b"1", "d": None, "d/old": b"2", "gone": b"3"}], form="docker")
    registry.add("x", "1", made)
    return await pull(world.deps, f"{registry.host}/x:1", progress=lambda _: None)


def change(world: World, key: str) -> None:
    """What a container would leave in its writable layer."""
    upper = world.snapshots.upper(key)
    (upper / "new").write_text("made by the container")
    os.mknod(upper / "gone", 0o20000, 0)
    (upper / "d").mkdir()
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")
    (upper / "d/fresh").write_text("f")


async def test_a_containers_changes_become_a_layer(world: World, other: World, base):
    world.snapshots.prepare("c1", base.chain)
    change(world, "c1")
    image = await commit(
        world.deps,
        "c1",
        image_id=base.id,
        config=ContainerConfig(hostname="c1", env=["A=1"], cmd=["sh"]),
        changes=["LABEL made=here"],
        comment="why",
        author="ann",
        created_by=["sh", "-c", "true"],
        reference=parse("mine:1"),
    )
    seen = {"a": b"1", "d": None, "d/fresh": b"f", "new": b"made by the container"}
    assert files(world, image) == seen
    assert image.layers[0] == base.layers[0]
    assert image.parent == base.id
    assert image.config.config == ContainerConfig(env=["A=1"], cmd=["sh"], labels={"made": "here"})
    assert image.config.author == "ann"
    (step, below) = history(world.deps, "mine:1")
    assert (step["CreatedBy"], step["Comment"], step["Size"]) == ("sh -c true", "why", len("made by the container") + 1)
    assert (below["Id"], below["Tags"]) == (base.id, list(base.repo_tags))
    (loaded,) = await load(other.deps, save(world.deps, ["mine:1"]), progress=other.tell)
    assert files(other, loaded) == seen
    assert world.events[-2:] == [("tag", image.id), ("save", image.id)]


async def test_a_container_that_changed_nothing_adds_no_layer(world: World, base):
    world.snapshots.prepare("c1", base.chain)
    image = await commit(world.deps, "c1", image_id=base.id, config=ContainerConfig(cmd=["x"]))
    assert image.layers == base.layers
    assert image.config.history[-1].empty_layer
    assert set(world.snapshots.chains()) == {base.chain}


async def test_commit_twice_makes_two_images_on_one_layer(world: World, base):
    world.snapshots.prepare("c1", base.chain)
    change(world, "c1")
    first, second = [
        await commit(world.deps, "c1", image_id=base.id, config=ContainerConfig(cmd=[word])) for word in ("a", "b")
    ]
    assert first.id != second.id
    assert first.layers == second.layers


async def test_a_bad_change_or_a_lost_image_leaves_everything_as_it_was(world: World, base):
    world.snapshots.prepare("c1", base.chain)
    before = world.held()
    with pytest.raises(InvalidParameter, match="not a valid change"):
        await commit(world.deps, "c1", image_id=base.id, config=ContainerConfig(), changes=["ADD x y"])
    with pytest.raises(NotFound, match="No such image"):
        await commit(world.deps, "c1", image_id="sha256:" + "0" * 64, config=ContainerConfig())
    assert world.held() == before


async def test_a_file_that_would_read_as_a_deletion_is_refused(world: World, base):
    world.snapshots.prepare("c1", base.chain)
    (world.snapshots.upper("c1") / ".wh.a").write_text("x")
    before = world.held()
    with pytest.raises(InvalidParameter, match=r"\.wh\.a"):
        await commit(world.deps, "c1", image_id=base.id, config=ContainerConfig())
    assert world.held() == before


async def test_the_parent_of_a_committed_image_cannot_be_deleted_before_it(world: World, base):
    world.snapshots.prepare("c1", base.chain)
    change(world, "c1")
    image = await commit(world.deps, "c1", image_id=base.id, config=ContainerConfig())
    world.snapshots.remove("c1")
    with pytest.raises(WherryError, match="image has dependent child images"):
        await remove(world.deps, base.id, force=True, in_use={})
    await remove(world.deps, base.name, in_use={}) if len(base.repo_tags) > 1 else None
    await remove(world.deps, image.id, in_use={})
    await remove(world.deps, base.id, in_use={})
    assert world.held() == NOTHING


# --- bootstrap --------------------------------------------------------------------------------------------------------


async def test_busybox_is_made_from_the_machines_package(world: World, require):
    require("busybox")
    image = await bootstrap(world.deps, "busybox", progress=world.tell)
    assert image.repo_tags == ("busybox:latest",)
    assert image.config.config.cmd == ["sh"]
    with opened(world, image) as root:
        assert os.readlink("bin/ls", dir_fd=root) == "/bin/busybox"
        assert os.stat("bin/busybox", dir_fd=root).st_mode & 0o777 == 0o755
        assert os.stat("tmp", dir_fd=root).st_mode & 0o7777 == 0o1777
        assert os.stat("root", dir_fd=root).st_mode & 0o7777 == 0o700
        assert os.stat(".", dir_fd=root).st_mode & 0o7777 == 0o755
        passwd = os.open("etc/passwd", os.O_RDONLY, dir_fd=root)
        assert os.read(passwd, 31) == b"root:x:0:0:root:/root:/bin/sh\nd"
        os.close(passwd)
    assert world.held()["scratch"] == set()
    again = await bootstrap(world.deps, "busybox", progress=world.tell)
    assert again.diff_ids == image.diff_ids


async def test_a_base_image_without_a_recipe_is_refused(world: World):
    with pytest.raises(InvalidParameter, match="no recipe for a base image 'arch': there are busybox and debian"):
        await bootstrap(world.deps, "arch", progress=world.tell)
    assert world.held() == NOTHING


async def test_a_tool_that_fails_is_reported_with_its_last_words():
    told: list[str] = []
    with pytest.raises(WherryError, match="sh failed with status 3:\nsome words\nand more"):
        await _run_apart(["sh", "-c", "echo some words; echo and more >&2; exit 3"], told.append)
    assert told == ["some words", "and more"]


async def test_what_a_tool_mounts_is_not_seen_outside_and_ends_with_it(tmp_path: Path):
    (tmp_path / "m").mkdir()
    command = f"mount -t tmpfs none {tmp_path}/m && touch {tmp_path}/m/inside && echo mounted"
    told: list[str] = []
    await _run_apart(["sh", "-c", command], told.append)
    assert told == ["mounted"]
    assert list((tmp_path / "m").iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


async def test_a_cancelled_tool_ends_with_all_its_children():
    """A child in the background holds the write end of a pipe: its end is the end of the file."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    started = asyncio.Event()
    command = f"sleep 1000 >&/proc/{os.getpid()}/fd/{writer} & echo on; wait"
    task = asyncio.create_task(_run_apart(["bash", "-c", command], lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b""
    os.close(reader)


async def test_an_image_made_here_is_described_like_any_other(world: World, require):
    require("busybox")
    await bootstrap(world.deps, "busybox", progress=world.tell)
    document = inspect(world.deps, "busybox")
    json.dumps(document)
    assert document["Config"]["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
