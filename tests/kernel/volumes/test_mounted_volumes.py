"""Volumes that are mounted while somebody uses them: bind, tmpfs, file systems on devices and in files, limits."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from wherry.errors import Failed
from wherry.events import Events
from wherry.kernel import loop
from wherry.kernel.mount import make_rprivate, make_rslave, unshare_mounts
from wherry.state import State
from wherry.volumes.mounting import Plan, plan
from wherry.volumes.record import Volume
from wherry.volumes.volumes import Volumes

pytestmark = pytest.mark.kernel

TMPFS = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000,mode=0700"}


def mounts(root: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{root}/")]


def loops(root: Path) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if str(root) in (text := backing.read_text()):
                found.append(text.strip())
    return found


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "volumes"
        self.state = State(path / "state.db")

    async def open(self) -> Volumes:
        volumes = Volumes(self.state, self.root, Events())
        await volumes.start()
        return volumes


def make_file_system(image: Path, fstype: str) -> None:
    with image.open("wb") as file:
        file.truncate({"ext4": 16, "xfs": 300, "btrfs": 120}[fstype] << 20)
    subprocess.run([f"mkfs.{fstype}", "-q", str(image)], check=True, timeout=60)


def check_file_system(image: Path) -> None:
    done = subprocess.run(["fsck.ext4", "-fn", str(image)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout.decode()


def fill_up(path: Path, limit: int) -> int:
    """Write until the disk is full; the bytes that went in."""
    written = 0
    with path.open("wb", 0) as file:
        while written < limit:
            try:
                written += file.write(bytes(1 << 20))
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    return written
                raise
    raise AssertionError(f"{written} bytes went in")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await (await world.open()).close()
    assert mounts(tmp_path) == []
    assert loops(tmp_path) == []


@pytest.fixture
async def volumes(world: World) -> Volumes:
    return await world.open()


async def test_all_users_share_one_tmpfs_which_goes_after_the_last(world: World, volumes: Volumes) -> None:
    await volumes.create("memory", options=TMPFS)
    assert mounts(world.root) == []
    path = await volumes.mount("memory", "one")
    (path / "x").write_text("shared")
    assert os.stat(path).st_uid == 1000
    assert await volumes.mount("memory", "two") == path
    await volumes.unmount("memory", "one")
    assert (path / "x").read_text() == "shared"
    await volumes.unmount("memory", "two")
    assert mounts(world.root) == []
    path = await volumes.mount("memory", "three")
    assert os.listdir(path) == []
    await volumes.unmount("memory", "three")


async def test_a_bind_volume_shows_a_directory_read_only_if_asked(world: World, volumes: Volumes) -> None:
    source = world.path / "source"
    source.mkdir()
    (source / "precious").write_text("x")
    await volumes.create("rw", options={"type": "none", "o": "bind", "device": str(source)})
    await volumes.create("ro", options={"type": "none", "o": "bind,ro", "device": str(source)})
    async with volumes.borrow("rw") as path:
        (path / "new").write_text("y")
    async with volumes.borrow("ro") as path:
        assert sorted(os.listdir(path)) == ["new", "precious"]
        with pytest.raises(OSError, match="Read-only"):
            (path / "more").write_text("y")
    await volumes.remove("rw")
    assert sorted(os.listdir(source)) == ["new", "precious"]


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
async def test_a_file_system_in_a_file_is_mounted_by_a_loop_device(world: World, volumes: Volumes, fstype: str) -> None:
    image = world.path / "disk"
    make_file_system(image, fstype)
    await volumes.create("disk", options={"type": fstype, "device": str(image), "o": "noatime"})
    async with volumes.borrow("disk") as path:
        (path / "x").write_text("kept")
        assert loops(world.path) == [str(image)]
    assert loops(world.path) == []
    async with volumes.borrow("disk") as path:
        assert (path / "x").read_text() == "kept"


async def test_a_device_is_mounted(world: World, volumes: Volumes) -> None:
    image = world.path / "disk"
    make_file_system(image, "ext4")
    with loop.attached(str(image)) as device:
        await volumes.create("disk", options={"type": "ext4", "device": device})
        async with volumes.borrow("disk") as path:
            assert "lost+found" in os.listdir(path)


async def test_a_file_keeps_one_loop_device_however_often_it_is_asked_for(world: World) -> None:
    image = world.path / "disk"
    image.write_bytes(bytes(1 << 20))
    with loop.attached(str(image)) as first, loop.attached(str(image)) as second:
        assert first == second


async def test_a_volume_with_a_size_is_full_at_that_size_and_empty_before(world: World, volumes: Volumes) -> None:
    await volumes.create("small", options={"size": "16m"})
    async with volumes.borrow("small") as path:
        assert os.listdir(path) == []
        assert 8 << 20 < fill_up(path / "big", 64 << 20) <= 16 << 20
    if volumes.get("small").image:
        check_file_system(world.root / "small" / "_image")
    assert await volumes.size("small") > 8 << 20


BROKEN = [
    ({"type": "nosuchfs", "device": "x"}, "mount x:{data}: no such device (this kernel has no file system nosuchfs)"),
    (
        {"type": "tmpfs", "device": "tmpfs", "o": "size=nonsense"},
        "mount tmpfs:{data}, data: size=nonsense: invalid argument",
    ),
    (
        {"type": "none", "o": "bind", "device": "/no/such"},
        "mount /no/such:{data}, flags: 0x1000: no such file or directory",
    ),
    ({"type": "none", "o": "bind", "device": "no/such"}, "the device of a bind volume is an absolute path"),
    ({"type": "ext4", "device": "/no/such"}, "mount /no/such:{data}: no such file or directory"),
    ({"type": "ext4", "device": "/bin/busybox"}, "/bin/busybox does not hold a file system ext4"),
    ({"type": "ext4", "device": "/dev/null"}, "neither a block device nor a file"),
]


@pytest.mark.parametrize(("options", "words"), BROKEN)
async def test_what_cannot_be_mounted_is_told_in_docker_s_words_and_leaves_nothing(
    world: World, volumes: Volumes, options: dict[str, str], words: str
) -> None:
    await volumes.create("broken", options=options)
    data = world.root / "broken" / "_data"
    with pytest.raises(Failed) as error:
        await volumes.mount("broken", "one")
    assert error.value.message.startswith(f"error while mounting volume '{data}': failed to mount local volume: mount ")
    assert words.format(data=data) in error.value.message
    assert volumes.users_now("broken") == []
    assert mounts(world.path) == []
    assert loops(world.path) == []
    await volumes.remove("broken")


def planned(resolved: str = "192.0.2.7", **options: str) -> Plan:
    volume = Volume(name="net", created=0, options=options)

    def resolve(name: str) -> str:
        if name == "nowhere.example":
            raise OSError("unknown")
        return resolved

    return plan(volume, Path("/none"), resolve=resolve)


def test_addresses_of_servers_are_resolved() -> None:
    found = planned(type="nfs", device=":/export", o="addr=files.example,nfsvers=4,ro")
    assert (found.device, found.data, found.flags) == (":/export", "addr=192.0.2.7,nfsvers=4", 1)
    assert planned(type="nfs", device=":/export", o="addr=192.0.2.1").data == "addr=192.0.2.1"
    assert planned(type="nfs", device="files.example:/export", o="soft").data == "soft,addr=192.0.2.7"
    assert planned(type="cifs", device="//files.example/share", o="username=x").device == "//192.0.2.7/share"
    assert planned(type="cifs", device="//x/share", o="addr=files.example").data == "addr=192.0.2.7"


def test_a_server_nobody_knows_is_named() -> None:
    with pytest.raises(Failed, match=r"passed in network volume address: lookup nowhere\.example: no such host"):
        planned(type="nfs", device=":/x", o="addr=nowhere.example")
    with pytest.raises(Failed, match=r"error resolving CIFS host name \(nowhere\.example\)"):
        planned(type="cifs", device="//nowhere.example/x", o="")


async def test_a_password_is_not_shown(volumes: Volumes) -> None:
    options = {"type": "cifs", "device": "//192.0.2.1/x", "o": "username=u,password=secret"}
    await volumes.create("windows", options=options)
    with pytest.raises(Failed) as error:
        await volumes.mount("windows", "one")
    assert "secret" not in error.value.message
    assert "password=********" in error.value.message


async def test_a_new_daemon_takes_over_what_is_used_and_unmounts_the_rest(world: World, volumes: Volumes) -> None:
    for name in ("used", "left"):
        await volumes.create(name, options=TMPFS)
        (await volumes.mount(name, "container") / "x").write_text(name)
    again = await world.open()  # the first one was killed
    assert len(mounts(world.root)) == 4
    await again.recover({"used": ["container"]})
    assert mounts(world.root) == [f"{world.root}/used", f"{world.root}/used/_data"]
    async with again.borrow("used") as path:
        assert (path / "x").read_text() == "used"
    await again.unmount("used", "container")
    assert mounts(world.root) == []


async def test_a_namespace_copied_meanwhile_does_not_keep_the_file_system(world: World, volumes: Volumes) -> None:
    """What a shim does: it copies the namespace and receives what happens afterwards."""
    await volumes.create("small", options={"size": "8m"})
    await volumes.mount("small", "one")
    with shim() as pid:
        inside = Path(f"/proc/{pid}/mountinfo").read_text()
        assert str(world.root / "small" / "_data") in inside
        await volumes.unmount("small", "one")
        assert str(world.root / "small" / "_data") not in Path(f"/proc/{pid}/mountinfo").read_text()
        assert loops(world.root) == []


@contextlib.contextmanager
def shim(*, private: bool = False) -> Iterator[int]:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare_mounts()
            make_rprivate("/") if private else make_rslave("/")
            os.write(tell, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def test_a_file_system_that_somebody_still_holds_is_mounted_again_by_the_same_device(
    world: World, volumes: Volumes
) -> None:
    await volumes.create("small", options={"size": "8m"})
    (await volumes.mount("small", "one") / "x").write_text("1")
    with shim(private=True) as pid:
        await volumes.unmount("small", "one")
        path = await volumes.mount("small", "two")
        (path / "x").write_text("2")
        assert Path(f"/proc/{pid}/root{path}/x").read_text() == "2"
        await volumes.unmount("small", "two")


async def test_many_users_at_once_leave_nothing(world: World, volumes: Volumes) -> None:
    await volumes.create("memory", options=TMPFS)

    async def use(number: int) -> None:
        for _ in range(5):
            path = await volumes.mount("memory", str(number))
            assert os.path.ismount(path)
            await asyncio.sleep(0)
            await volumes.unmount("memory", str(number))

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(use(number))
    assert mounts(world.root) == []


async def test_image_content_reaches_a_volume_with_a_limit_even_after_a_crash(world: World, volumes: Volumes) -> None:
    await volumes.create("small", options={"size": "8m"})
    own = world.root / "small"
    (own / "_ready" / "sub").mkdir(parents=True)
    (own / "_ready" / "sub" / "x").write_text("whole")
    async with volumes.borrow("small") as path:
        (path / "sub").mkdir()  # as far as it came
    again = await world.open()
    assert not (own / "_ready").exists()
    async with again.borrow("small") as path:
        assert (path / "sub" / "x").read_text() == "whole"
