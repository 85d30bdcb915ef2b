"""Which snapshotter is chosen on which file system, and whether copies share blocks where they can."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.errors import Failed
from wherry.kernel import mount
from wherry.kernel.mount import Mount
from wherry.storage.choose import choose, shares_blocks
from wherry.storage.native import NativeSnapshotter, copy_tree
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel

FIEMAP = 0xC020660B  # ioctl
SHARED = 0x2000  # FIEMAP_EXTENT_SHARED
SYNC = 1  # FIEMAP_FLAG_SYNC


def on(kit, point: Path, mounting: Callable[[], object], work: Callable[[Path], None]) -> None:
    """`work` in a mount namespace with a file system at `point`, which goes with it."""
    point.mkdir()

    def inside() -> None:
        mounting()
        try:
            work(point)
        finally:
            mount.umount(point)

    kit.in_namespace(inside)


def image_of(tmp_path: Path, size: int, *command: str) -> Path:
    file = tmp_path / "disk"
    with open(file, "wb") as disk:
        disk.truncate(size)
    subprocess.run([*command, str(file)], check=True, capture_output=True)
    return file


def loop(file: Path, point: Path) -> Callable[[], object]:
    """Its loop device goes with the mount."""
    return lambda: subprocess.run(["mount", "-o", "loop", str(file), str(point)], check=True)


def shared_bytes(path: Path) -> int:
    """Bytes of a file that stand in blocks it shares with another one."""
    with open(path, "rb") as file:
        answer = bytearray(struct.pack("=QQIIII", 0, (1 << 64) - 1, SYNC, 0, 32, 0) + bytes(32 * 56))
        fcntl.ioctl(file, FIEMAP, answer)
    (count,) = struct.unpack_from("=I", answer, 20)
    found = 0
    for number in range(count):
        _, _, length, _, _, flags = struct.unpack_from("=QQQQQI", answer, 32 + number * 56)
        found += length if flags & SHARED else 0
    return found


def said(choice) -> dict[str, str]:
    return dict(choice.status)


def test_overlay_is_chosen_where_it_works_and_says_so(tmp_path):
    choice = choose(tmp_path, "")
    assert isinstance(choice.snapshotter, OverlaySnapshotter)
    assert said(choice)["Native Overlay Diff"] == "true"
    assert said(choice)["Reason"] == "overlay works here"
    assert said(choose(tmp_path, "overlay2"))["Reason"] == "configured as storage-driver"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".probe")]


def test_native_can_be_asked_for(tmp_path):
    choice = choose(tmp_path, "native")
    assert isinstance(choice.snapshotter, NativeSnapshotter)
    assert said(choice)["Reason"] == "configured as storage-driver"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".probe")]


def test_on_an_overlay_layers_are_copies_and_the_reason_is_told(tmp_path, kit):
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    point = tmp_path / "point"

    def mounting() -> None:
        lowers = [os.fspath(tmp_path / "lower")]
        mount.mount(mount.overlay_mount(lowers, os.fspath(tmp_path / "upper"), os.fspath(tmp_path / "work")), point)

    def work(root: Path) -> None:
        choice = choose(root, "")
        assert isinstance(choice.snapshotter, NativeSnapshotter)
        assert said(choice)["Backing Filesystem"] == "overlayfs"
        assert said(choice)["Reason"].startswith("overlay does not work here: ")
        with pytest.raises(Failed, match=r"storage-driver overlay2: overlay does not work on .* \(overlayfs\): "):
            choose(root, "overlay2")
        assert not [name for name in os.listdir(root) if name.startswith(".probe")]

    on(kit, point, mounting, work)


def test_a_tmpfs_has_overlay_and_no_shared_blocks(tmp_path, kit):
    point = tmp_path / "point"

    def work(root: Path) -> None:
        assert said(choose(root, ""))["Backing Filesystem"] == "tmpfs"
        assert not shares_blocks(root)
        assert said(choose(root, "native"))["Copies Share Blocks"] == "false"

    on(kit, point, lambda: mount.mount(Mount(type="tmpfs", source="tmpfs", options=("size=8m",)), point), work)


def test_a_data_root_that_cannot_be_written_is_told(tmp_path, kit):
    point = tmp_path / "point"

    def work(root: Path) -> None:
        with pytest.raises(Failed, match=r"Read-only file system"):
            choose(root, "native")

    options = ("size=8m", "ro")
    on(kit, point, lambda: mount.mount(Mount(type="tmpfs", source="tmpfs", options=options), point), work)


SYSTEMS = {
    "xfs": ("mkfs.xfs", 320 << 20, ("-q", "-m", "reflink=1")),
    "btrfs": ("mkfs.btrfs", 128 << 20, ("-q",)),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_copies_share_blocks_where_the_file_system_can(tmp_path, kit, require, system):
    program, size, options = SYSTEMS[system]
    require(program)
    file = image_of(tmp_path, size, program, *options)
    point = tmp_path / "point"

    def work(root: Path) -> None:
        choice = choose(root, "native")
        assert said(choice)["Backing Filesystem"] == system
        assert said(choice)["Copies Share Blocks"] == "true"
        free = os.statvfs(root)
        source, target = root / "source", root / "target"
        source.mkdir()
        target.mkdir()
        (source / "big").write_bytes(os.urandom(8 << 20))
        copy_tree(source, target)
        assert (target / "big").read_bytes() == (source / "big").read_bytes()
        assert shared_bytes(target / "big") == 8 << 20
        with open(target / "big", "r+b") as changed:
            changed.write(b"changed")
        assert (source / "big").read_bytes()[:7] != b"changed"
        assert free.f_bavail - os.statvfs(root).f_bavail < (14 << 20) // free.f_frsize
        choice.snapshotter.close()

    on(kit, point, loop(file, point), work)


def test_without_reflinks_copies_are_copies(tmp_path, kit, require):
    require("mkfs.xfs")
    file = image_of(tmp_path, 320 << 20, "mkfs.xfs", "-q", "-m", "reflink=0")
    point = tmp_path / "point"

    def work(root: Path) -> None:
        choice = choose(root, "native")
        assert said(choice)["Copies Share Blocks"] == "false"
        source, target = root / "source", root / "target"
        source.mkdir()
        target.mkdir()
        with open(source / "holes", "wb") as sparse:
            sparse.seek(64 << 20)
            sparse.write(b"end")
        copy_tree(source, target)
        assert (target / "holes").stat().st_blocks * 512 < 1 << 20
        assert (target / "holes").read_bytes()[-3:] == b"end"
        assert shared_bytes(target / "holes") == 0
        choice.snapshotter.close()

    on(kit, point, loop(file, point), work)


def test_directories_tell_what_is_in_them(tmp_path):
    """As overlay needs it: this is what is asked of a file system before it is used."""
    from wherry.storage import choose as module

    assert module._types(tmp_path) == {4}
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert module._types(tmp_path) == {1, 4, 8, 10}
