"""Whole volumes with the kernel: those with a limit, archives in and out, and a daemon that is killed meanwhile."""

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from wherry.aio import settle
from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.events import Events
from wherry.kernel import loop
from wherry.kernel.mount import mount_raw, umount
from wherry.state import State
from wherry.volumes import changes
from wherry.volumes.changes import Feed
from wherry.volumes.volumes import Volumes

pytestmark = pytest.mark.kernel

SOURCES = Path(__file__).resolve().parents[3] / "src"


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "volumes"
        self.state = State(path / "state.db")

    async def open(self) -> Volumes:
        volumes = Volumes(self.state, self.root, Events())
        await volumes.start()
        await volumes.recover({})
        return volumes

    def left(self) -> list[str]:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        mounted = [line.split()[4] for line in table if line.split()[4].startswith(f"{self.root}/")]
        return mounted + [name for name in os.listdir(self.root) if name.startswith(".")]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await (await world.open()).close()
    assert world.left() == []


@pytest.fixture
async def volumes(world: World) -> Volumes:
    return await world.open()


def feed(data: bytes) -> Feed:
    async def run(read: Callable[[BinaryIO], None]) -> None:
        await settle(read, io.BytesIO(data))

    return run


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


async def exported(volumes: Volumes, name: str) -> bytes:
    pieces: list[bytes] = []
    async with changes.exporting(volumes, name) as write:
        await settle(write, pieces.append)
    return b"".join(pieces)


# -- archives ----------------------------------------------------------------------------------------------------------


def fill(path: Path) -> None:
    (path / "sub").mkdir(mode=0o750)
    (path / "sub" / "file").write_bytes(b"content" * 1000)
    os.chown(path / "sub" / "file", 1000, 33)
    (path / "sub" / "file").chmod(0o4711)
    os.setxattr(path / "sub" / "file", "user.colour", b"blue")
    os.link(path / "sub" / "file", path / "again")
    (path / "link").symlink_to("sub/file")
    os.mkfifo(path / "fifo")
    with (path / "holes").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"island")
    (path / ("long-" * 40)).write_text("x")
    os.utime(path / "link", ns=(1, 1_234_567_890), follow_symlinks=False)
    path.chmod(0o1770)
    os.chown(path, 70, 70)


def told(path: Path) -> dict[str, object]:
    """All that must come through."""
    found: dict[str, object] = {}
    for each in (path, *sorted(path.rglob("*"))):
        info = each.lstat()
        kind = stat.S_IFMT(info.st_mode)
        content = hashlib.sha256(each.read_bytes()).hexdigest() if kind == stat.S_IFREG else ""
        xattrs = {name: os.getxattr(each, name) for name in os.listxattr(each)} if kind == stat.S_IFREG else {}
        target = os.readlink(each) if kind == stat.S_IFLNK else ""
        times = info.st_mtime_ns if kind != stat.S_IFDIR or each != path else 0
        links = info.st_nlink if kind != stat.S_IFDIR else 0
        found[str(each.relative_to(path))] = (
            info.st_mode, info.st_uid, info.st_gid, links, content, xattrs, target, times
        )  # fmt: skip
    return found


@pytest.mark.parametrize("size", ["", "32m"])
async def test_what_is_exported_and_imported_is_the_same(world: World, volumes: Volumes, size: str) -> None:
    options = {"size": size} if size else None
    await volumes.create("data", options=options)
    async with volumes.borrow("data") as path:
        fill(path)
        before = told(path)
    data = await exported(volumes, "data")
    assert len(data) < 1 << 20  # holes stay holes
    await changes.import_(volumes, "copy", feed(data), options=options, labels={"a": "b"})
    async with volumes.borrow("copy") as path:
        assert told(path) == before
        assert (path / "holes").stat().st_blocks * 512 < 1 << 20
    assert volumes.get("copy").labels == {"a": "b"}


async def test_other_readers_of_archives_understand_it(world: World, volumes: Volumes) -> None:
    await volumes.create("data")
    async with volumes.borrow("data") as path:
        fill(path)
        before = told(path)
    target = world.path / "by-tar"
    target.mkdir()
    data = await exported(volumes, "data")
    command = ["tar", "-xp", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(target)]
    done = await settle(lambda: subprocess.run(command, input=data, capture_output=True, timeout=60))
    assert (done.returncode, done.stderr) == (0, b"")
    assert told(target) == before
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        assert "./holes" in file.getnames()


@pytest.mark.parametrize(
    "hostile",
    [
        archive(named("../../../escaped")),
        archive(named("link", tarfile.SYMTYPE, "/"), named("link/escaped")),
        archive(named("link", tarfile.SYMTYPE, "../../../.."), named("link/escaped")),
        archive(named("hard", tarfile.LNKTYPE, "../../../state.db")),
        archive(named("link", tarfile.SYMTYPE, "/etc"), named("hard", tarfile.LNKTYPE, "link/passwd")),
        b"no archive at all" * 100,
        archive((named("cut"), b"x" * 2000))[:1024],
    ],
)
async def test_an_archive_that_leads_out_of_the_volume_reaches_nothing(
    world: World, volumes: Volumes, hostile: bytes
) -> None:
    before = sorted(os.listdir("/")), sorted(os.listdir(world.path))
    try:
        await changes.import_(volumes, "victim", feed(hostile))
    except InvalidParameter:
        assert not volumes.has("victim")
        assert os.listdir(world.root) == []
    else:
        async with volumes.borrow("victim") as path:
            assert not any(each.is_file() and each.stat().st_size for each in path.rglob("*") if not each.is_symlink())
    assert (sorted(os.listdir("/")), sorted(os.listdir(world.path))) == before


async def test_a_bomb_ends_at_the_volume_s_size(world: World, volumes: Volumes) -> None:
    bomb = archive((named("bomb"), bytes(64 << 20)))
    with pytest.raises(Failed, match="does not fit into the volume's size"):
        await changes.import_(volumes, "small", feed(bomb), options={"size": "8m"})
    assert not volumes.has("small")
    assert world.left() == []


async def test_nothing_is_imported_over_content_unless_asked(world: World, volumes: Volumes) -> None:
    await volumes.create("data", options={"size": "8m"})
    async with volumes.borrow("data") as path:
        (path / "old").write_text("old")
    data = archive((named("new"), b"new"))
    with pytest.raises(Conflict, match=r"volume is not empty: replace its content \(--replace\)"):
        await changes.import_(volumes, "data", feed(data))
    await volumes.mount("data", "c1")
    with pytest.raises(Conflict, match="is in use"):
        await changes.import_(volumes, "data", feed(data), replacing=True)
    await volumes.unmount("data", "c1")
    with pytest.raises(InvalidParameter):
        await changes.import_(volumes, "data", feed(b"broken" * 500), replacing=True)
    async with volumes.borrow("data") as path:
        assert os.listdir(path) == ["old"]
    await changes.import_(volumes, "data", feed(data), replacing=True)
    async with volumes.borrow("data") as path:
        assert os.listdir(path) == ["new"]


# -- volumes with a limit ----------------------------------------------------------------------------------------------


async def test_a_clone_and_a_snapshot_of_a_limited_volume_in_use(world: World, volumes: Volumes) -> None:
    await volumes.create("data", options={"size": "16m"})
    path = await volumes.mount("data", "c1")
    (path / "x").write_text("one")
    await changes.snapshot(volumes, "data", "s")
    await changes.clone(volumes, "data", "copy")
    (path / "x").write_text("two")  # the file system goes on
    await volumes.unmount("data", "c1")
    await changes.rollback(volumes, "data", "s")
    for name in ("data", "copy"):
        async with volumes.borrow(name) as path:
            assert (path / "x").read_text() == "one"
            assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize < 16 << 20
        image = world.root / name / "_image"
        if image.exists():
            check = ["fsck.ext4", "-fn", str(image)]
            done = await settle(lambda: subprocess.run(check, capture_output=True, timeout=60))  # noqa: B023
            assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("size", ["", "32m"])
async def test_copies_share_their_blocks_where_the_file_system_can(tmp_path: Path, size: str) -> None:
    disk, place = tmp_path / "disk", tmp_path / "btrfs"
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    place.mkdir()
    await settle(lambda: subprocess.run(["mkfs.btrfs", "-q", str(disk)], check=True, timeout=60))
    with loop.attached(str(disk)) as device:
        mount_raw(device, str(place), "btrfs", 0)
        try:
            volumes = await World(place).open()
            await volumes.create("data", options={"size": size} if size else None)
            async with volumes.borrow("data") as path:
                (path / "big").write_bytes(os.urandom(20 << 20))
                os.sync()
                before = os.statvfs(place).f_bfree
                await changes.clone(volumes, "data", "copy")
                await changes.snapshot(volumes, "data", "s")
            os.sync()
            assert (before - os.statvfs(place).f_bfree) * 4096 < 8 << 20
            await changes.rollback(volumes, "data", "s")
            async with volumes.borrow("data") as path, volumes.borrow("copy") as copied:
                assert (path / "big").read_bytes() == (copied / "big").read_bytes()
            del volumes
        finally:
            umount(place)


async def test_a_clone_of_what_is_in_memory_is_kept_on_disk(world: World, volumes: Volumes) -> None:
    await volumes.create("memory", options={"type": "tmpfs", "device": "tmpfs"})
    path = await volumes.mount("memory", "c1")
    (path / "x").write_text("kept")
    made = await changes.clone(volumes, "memory", "disk")
    await volumes.unmount("memory", "c1")
    assert made.options is None
    async with volumes.borrow("disk") as path:
        assert (path / "x").read_text() == "kept"


# -- a daemon that is killed -------------------------------------------------------------------------------------------

DAEMON = """
import asyncio, sys
from pathlib import Path
from wherry.events import Events
from wherry.kernel import loop
from wherry.kernel.mount import mount_raw, umount
from wherry.state import State
from wherry.volumes import changes
from wherry.volumes.volumes import Volumes

async def main():
    root, verb = Path(sys.argv[1]), sys.argv[2]
    volumes = Volumes(State(root / "state.db"), root / "volumes", Events())
    await volumes.start()
    data = (root / "data.tar").read_bytes()
    async def feed(read):
        with open(root / "data.tar", "rb", buffering=0) as file:
            await asyncio.to_thread(read, file)
    print("ready", flush=True)
    for number in range(100000):
        if verb == "clone":
            await changes.clone(volumes, "data", f"copy{number}")
        elif verb == "snapshot":
            await changes.snapshot(volumes, "data", f"s{number}")
        elif verb == "rollback":
            await changes.rollback(volumes, "data", "base")
        elif verb == "import":
            await changes.import_(volumes, f"copy{number}", feed)
        elif verb == "rename":
            await changes.rename(volumes, *(("data", "other") if number % 2 == 0 else ("other", "data")))
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("size", ["", "8m"])
@pytest.mark.parametrize("verb", ["clone", "snapshot", "rollback", "import", "rename"])
async def test_after_a_kill_there_are_whole_volumes_only(world: World, volumes: Volumes, verb: str, size: str) -> None:
    await volumes.create("data", options={"size": size} if size else None)
    async with volumes.borrow("data") as path:
        for number in range(30):
            (path / f"file{number}").write_bytes(os.urandom(2000))
        whole = told(path)
    await changes.snapshot(volumes, "data", "base")
    (world.path / "data.tar").write_bytes(await exported(volumes, "data"))
    world.state.close()
    for delay in (0.003, 0.02, 0.06):
        acknowledged = await settle(kill_after, world, verb, delay)
        world.state = State(world.path / "state.db")
        volumes = await world.open()
        assert world.left() == []
        names = set(os.listdir(world.root))
        rows = {str(each["Name"]) for each in volumes.list()["Volumes"]}  # type: ignore[attr-defined]
        assert names == rows
        for name in rows:
            async with volumes.borrow(name) as path:
                assert told(path) == whole, name
        kept = next(name for name in rows if name in ("data", "other"))
        for each in await changes.list_snapshots(volumes, kept):
            await changes.rollback(volumes, kept, each.name)
            async with volumes.borrow(kept) as path:
                assert told(path) == whole, each.name
        if verb in ("clone", "import"):
            assert len(rows) >= 1 + acknowledged
        elif verb == "snapshot":
            assert len(await changes.list_snapshots(volumes, "data")) >= 1 + acknowledged
        for name in rows - {kept}:
            await volumes.remove(name)
        for each in await changes.list_snapshots(volumes, kept):
            if each.name != "base":
                await changes.remove_snapshot(volumes, kept, each.name)
        if kept == "other":
            await changes.rename(volumes, "other", "data")
        world.state.close()
    world.state = State(world.path / "state.db")


def kill_after(world: World, verb: str, delay: float) -> int:
    """Let a process do it over and over, and kill it; how often it said that it was done."""
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(world.path), verb],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        return process.stdout.read().count(b"\n")
