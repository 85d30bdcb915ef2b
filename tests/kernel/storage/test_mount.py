"""Mounts as data, made true in a mount namespace that ends with the test."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.descriptors import descriptors
from wherry.kernel import mount
from wherry.kernel.mount import Mount, Overlay, overlay_mount

pytestmark = pytest.mark.kernel


def fields(point: Path) -> list[str]:
    """The line of /proc/thread-self/mountinfo about `point`."""
    with open("/proc/thread-self/mountinfo") as lines:
        return next(line.split() for line in lines if line.split()[4] == str(point))


@pytest.fixture
def parts(tmp_path):
    """Lower directories with one file each, upper, work, and a place to mount at."""
    for name in ("one", "two", "th:ree", "fo\\ur", "upper", "work", "at"):
        (tmp_path / name).mkdir()
    for name in ("one", "two", "th:ree", "fo\\ur"):
        (tmp_path / name / f"of {name}").write_text(name)
        (tmp_path / name / "who").write_text(name)
    return tmp_path


@pytest.mark.parametrize("form", ["new", "classic"])
def test_an_overlay_shows_its_layers_top_first_and_writes_above(parts, kit, form):
    lowers = [str(parts / name) for name in ("th:ree", "fo\\ur", "two", "one")]
    upper, work, at = (str(parts / name) for name in ("upper", "work", "at"))

    def work_in_it():
        if form == "new":
            mount.mount(overlay_mount(lowers, upper, work, ("redirect_dir=off",)), at)
        else:
            mount.mount_overlay_classic(at, lowers, upper, work, ("redirect_dir=off",))
        assert (parts / "at" / "who").read_text() == "th:ree"
        assert len(os.listdir(at)) == 5
        (parts / "at" / "new").write_text("new")
        mount.umount(at)
        assert os.listdir(at) == []

    kit.in_namespace(work_in_it)
    assert (parts / "upper" / "new").read_text() == "new"


@pytest.mark.parametrize("make", [mount.open_detached, lambda mounts: mount.detached_by_thread(mounts[0], 0)])
def test_a_detached_overlay_is_seen_through_its_fd_only(parts, kit, make):
    before = Path("/proc/self/mountinfo").read_text()
    fd = make([overlay_mount([str(parts / "two"), str(parts / "one")])])
    try:
        assert kit.see(fd) == {"who": "two", "of one": "one", "of two": "two"}
        with pytest.raises(OSError, match="Read-only"):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        os.close(fd)


def test_device_nodes_of_a_detached_root_cannot_be_opened(parts):
    os.mknod(parts / "one" / "null", 0o20666, os.makedev(1, 3))
    fd = mount.open_detached([Mount(type="bind", source=str(parts / "one"), options=("bind",))])
    try:
        with pytest.raises(PermissionError):
            os.open("null", os.O_RDONLY, dir_fd=fd)
    finally:
        os.close(fd)


def test_a_detached_bind_can_be_read_only(parts):
    fd = mount.open_detached([Mount(type="bind", source=str(parts / "one"), options=("rbind", "ro"))])
    try:
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("x", dir_fd=fd)
    finally:
        os.close(fd)


def test_a_bind_takes_its_flags(parts, kit):
    def work():
        at = parts / "at"
        mount.mount(Mount(type="bind", source=str(parts / "one"), options=("bind", "ro", "nosuid", "rprivate")), at)
        assert {"ro", "nosuid"} <= set(fields(at)[5].split(","))
        with pytest.raises(OSError, match="Read-only"):
            (at / "x").touch()
        mount.umount(at)

    kit.in_namespace(work)


def test_a_tmpfs_takes_flags_and_data(parts, kit):
    def work():
        at = parts / "at"
        mount.mount(Mount(type="tmpfs", source="tmpfs", options=("noexec", "size=64k", "mode=0700")), at)
        assert "noexec" in fields(at)[5]
        assert os.statvfs(at).f_blocks * os.statvfs(at).f_frsize == 65536
        assert at.stat().st_mode & 0o777 == 0o700

    kit.in_namespace(work)


def test_slaves_receive_and_do_not_send(parts, kit):
    peer, at = parts / "two", parts / "at"
    (peer / "sub").mkdir()

    def work():
        mount.mount(Mount(type="bind", source=str(peer), options=("bind", "rshared")), peer)
        mount.mount(Mount(type="bind", source=str(peer), options=("bind",)), at)
        mount.make_rslave(str(at))
        mount.mount(Mount(type="tmpfs", source="tmpfs"), peer / "sub")
        assert os.path.ismount(at / "sub")
        mount.umount(peer / "sub")
        assert not os.path.ismount(at / "sub")
        mount.mount(Mount(type="tmpfs", source="tmpfs"), at / "sub")
        assert not os.path.ismount(peer / "sub")

    kit.in_namespace(work)


def test_130_layers_are_one_overlay(tmp_path, kit):
    """Their paths alone are more than the 4 KiB that mount(2) reads."""
    lowers = []
    for number in range(130):
        directory = tmp_path / f"{number:064}" / "diff"
        directory.mkdir(parents=True)
        (directory / "who").write_text(str(number))
        (directory / f"f{number}").touch()
        lowers.append(str(directory))
    (tmp_path / "at").mkdir()

    def work():
        for make in (mount.mount_overlay, mount.mount_overlay_classic):
            make(str(tmp_path / "at"), lowers, None, None)
            assert (tmp_path / "at" / "who").read_text() == "0"
            assert len(os.listdir(tmp_path / "at")) == 131
            mount.umount(tmp_path / "at")

    kit.in_namespace(work)


def test_more_layers_than_the_kernel_takes_are_refused_with_the_number(tmp_path):
    with pytest.raises(OSError, match="overlay of 501 layers: the kernel takes 500"):
        mount.open_detached([overlay_mount([str(tmp_path)] * 501)])


def test_a_failure_names_option_and_target(parts, kit):
    def work():
        with pytest.raises(FileNotFoundError, match=f"{parts}/gone"):
            mount.mount(overlay_mount([str(parts / "gone"), str(parts / "one")]), parts / "at")
        with pytest.raises(OSError, match=r"[Uu]nknown parameter.*bogus.*/at"):
            mount.mount(overlay_mount([str(parts / "two"), str(parts / "one")], options=("bogus=1",)), parts / "at")
        assert not os.path.ismount(parts / "at")

    kit.in_namespace(work)


def test_a_layer_whose_path_is_long_is_reached_by_fd(tmp_path, kit):
    directory = tmp_path
    for _ in range(5):
        directory = directory / ("d" * 100)
    directory.mkdir(parents=True)
    (directory / "f").write_text("deep")
    (tmp_path / "two").mkdir()
    assert kit.see_mounts([overlay_mount([str(directory), str(tmp_path / "two")])]) == {"f": "deep"}


def test_no_fd_is_left_open(parts):
    before = descriptors()
    for _ in range(3):
        os.close(mount.open_detached([overlay_mount([str(parts / "th:ree"), str(parts / "one")])]))
        with pytest.raises(OSError, match="gone"):
            mount.open_detached([overlay_mount([str(parts / "th:ree"), str(parts / "gone")])])
    assert not descriptors() - before


@given(st.lists(st.text(min_size=1).filter(lambda p: "\0" not in p), min_size=1))
def test_any_paths_survive_the_way_through_a_mount(paths):
    what = overlay_mount(paths, paths[0], paths[-1], ("ro",))
    assert Overlay.parse(what.options) == Overlay(lowers=tuple(paths), upper=paths[0], work=paths[-1], options=("ro",))


def test_later_options_win():
    parsed = mount.parse_options(("ro", "nosuid", "rw", "size=5m", "rslave", "rprivate"))
    assert parsed.flags == mount.MS_NOSUID
    assert parsed.propagation == mount.MS_PRIVATE | mount.MS_REC
    assert parsed.data == ("size=5m",)
