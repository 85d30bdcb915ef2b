"""File actions on overlay and on plain directories: the layers they make."""

import os
import stat
import tarfile
import time

import pytest

from harness.descriptors import descriptors
from wherry.builder.files.apply import apply
from wherry.builder.files.checksum import ChecksumIndex, Source, checksum
from wherry.builder.files.select import select
from wherry.builder.graph import Copy, MakeDirectory, MakeFile, MakeSymlink, Owner, Remove
from wherry.errors import InvalidParameter
from wherry.kernel import mount
from wherry.storage.archive import Kind

EPOCH = 1_600_000_000
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, as `setcap` writes it


@pytest.fixture
def base(build):
    """A tree of two layers, with users."""

    def first(root):
        for name in ("etc", "app", "app/sub", "usr", "usr/lib"):
            (root / name).mkdir()
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nweb:x:2000:\n")
        (root / "app/old").write_text("old")
        (root / "app/sub/keep").write_text("keep")
        (root / "lib").symlink_to("usr/lib")
        (root / "up").symlink_to("../../app")

    chain = build.run(None, first)
    return build.run(chain, lambda root: (root / "app/second").write_text("2"))


def names(build):
    return {name.rstrip("/") for name in build.layer}


def test_a_layer_holds_what_was_copied_and_nothing_else(build, base):
    (build.context / "f").write_text("new")
    build.step(base, Copy(source="f", target="/app/sub/"))
    assert names(build) == {"app", "app/sub", "app/sub/f"}
    assert build.content["app/sub/f"] == b"new"


def test_all_times_in_a_layer_are_the_epochs_or_older(build, base):
    (build.context / "d/e").mkdir(parents=True)
    (build.context / "d/e/f").write_text("x")
    os.utime(build.context / "d/e/f", (5, 5))
    build.step(base, Copy(source="d", target="/app/new/", contents=True))
    assert {entry.mtime for name, entry in build.layer.items() if name != "app/new/e/f"} == {EPOCH * 10**9}
    assert build.layer["app/new/e/f"].mtime == 5 * 10**9


def test_the_same_step_makes_the_same_layer_at_any_time(build, base):
    (build.context / "d/e").mkdir(parents=True)
    (build.context / "d/e/f").write_text("x")
    actions = (
        Copy(source="d", target="/app/new/", contents=True, owner=Owner(user="app", group="web")),
        MakeDirectory(path="/made/deep", parents=True),
        MakeFile(path="/made/file", data=b"x"),
        MakeSymlink(old="file", new="/made/link"),
        Remove(path="/app/old"),
    )
    first = build.step(base, *actions)
    for name in ("d/e/f", "d/e", "d"):
        os.utime(build.context / name)
    assert build.step(base, *actions) == first
    assert names(build) >= {"app/new/e/f", "made/deep", "made/file", "made/link", "app/.wh.old"}


def test_owners_are_looked_up_in_the_tree_written_to(build, base):
    (build.context / "d").mkdir()
    (build.context / "d/f").write_text("x")
    os.chown(build.context / "d/f", 77, 88)
    build.step(base, Copy(source="d", target="/made/w", contents=True, owner=Owner(user="app", group="web")))
    assert {(entry.uid, entry.gid) for entry in build.layer.values()} == {(1000, 2000)}
    build.step(base, Copy(source="d/f", target="/x/", owner=Owner(user="app")))
    assert {(entry.uid, entry.gid) for entry in build.layer.values()} == {(1000, 1001)}
    build.step(base, Copy(source="d/f", target="/x/"))
    assert {name.rstrip("/"): (entry.uid, entry.gid) for name, entry in build.layer.items()} == {
        "x": (0, 0),
        "x/f": (77, 88),
    }


def test_setuid_bits_and_capabilities_survive_a_change_of_owner(build, base):
    (build.context / "tool").write_text("x")
    (build.context / "tool").chmod(0o6755)
    os.setxattr(build.context / "tool", "security.capability", CAPABILITY)
    build.step(base, Copy(source="tool", target="/tool", owner=Owner(user="app")))
    entry = build.layer["tool"]
    assert (entry.uid, oct(entry.mode), entry.xattrs) == (1000, "0o6755", {b"security.capability": CAPABILITY})
    build.step(base, Copy(source="tool", target="/tool", mode="4700"))
    assert oct(build.layer["tool"].mode) == "0o4700"


def test_devices_of_a_tree_are_copied_but_none_that_would_be_a_deletion(build, base):
    def make(root):
        (root / "dev").mkdir()
        os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "dev/disk", stat.S_IFBLK | 0o660, os.makedev(8, 1))
        os.chown(root / "dev/disk", 0, 6)
        (root / "dev/null").chmod(0o666)
        (root / "dev/disk").chmod(0o660)

    built = build.run(base, make)
    build.step(base, Copy(source="/dev", target="/copied/", contents=True), source=built)
    null, disk = build.layer["copied/null"], build.layer["copied/disk"]
    assert (null.kind, null.major, null.minor, oct(null.mode)) == (Kind.CHAR, 1, 3, "0o666")
    assert (disk.kind, disk.major, disk.minor, oct(disk.mode), disk.gid) == (Kind.BLOCK, 8, 1, "0o660", 6)
    os.mknod(build.context / "zero", stat.S_IFCHR | 0o666, 0)
    with pytest.raises(InvalidParameter, match="device 0:0"):
        build.step(base, Copy(source="zero", target="/x"))


def test_files_of_lower_layers_are_replaced_and_directories_merged(build, base):
    (build.context / "app/sub").mkdir(parents=True)
    (build.context / "app/old").write_text("replaced")
    (build.context / "app/sub/more").write_text("more")
    (build.context / "app/sub").chmod(0o700)
    chain = build.step(base, Copy(source="app", target="/app", contents=True))
    assert names(build) == {"app", "app/old", "app/sub", "app/sub/more"}
    with build.open(chain) as root:
        assert sorted(os.listdir(f"/proc/self/fd/{root}/app")) == ["old", "second", "sub"]
        assert sorted(os.listdir(f"/proc/self/fd/{root}/app/sub")) == ["keep", "more"]
        assert stat.S_IMODE(os.stat("app/sub", dir_fd=root).st_mode) == 0o700


def test_what_stands_in_the_way_is_replaced_in_the_layer_too(build, base):
    (build.context / "app").write_text("a file now")
    chain = build.step(base, Copy(source="app", target="/app", replace=True), Remove(path="/lib"))
    assert ".wh.lib" in build.layer
    assert "app/app" in build.layer  # a file goes into the directory that is there
    (build.context / "t/app").mkdir(parents=True)
    (build.context / "t/lib").mkdir()
    (build.context / "t/lib/x").write_text("x")
    chain = build.step(base, Copy(source="t", target="/", contents=True, replace=True))
    with build.open(chain) as root:
        assert stat.S_ISDIR(os.stat("lib", dir_fd=root, follow_symlinks=False).st_mode)
        assert os.listdir(f"/proc/self/fd/{root}/lib") == ["x"]
        assert os.listdir(f"/proc/self/fd/{root}/usr/lib") == []


def test_a_target_behind_links_that_lead_up_is_found(build, base):
    (build.context / "f").write_text("x")
    build.step(base, Copy(source="f", target="/up/deep/f"), Copy(source="f", target="/lib/g"))
    assert names(build) == {"app", "app/deep", "app/deep/f", "usr", "usr/lib", "usr/lib/g"}


def test_an_archive_is_unpacked_through_links_that_lead_up(build, base):
    """The root of a mount that is attached nowhere: `..` in it would be a race to the kernel (openat2, EAGAIN)."""
    chain = build.run(base, lambda root: (root / "app/lib").symlink_to("../usr/../usr/lib"))
    with tarfile.open(build.context / "a.tar", "w") as archive:
        for name in ("app/lib/f", "up/g", "new/h"):
            archive.addfile(tarfile.TarInfo(name))
    build.snapshots.prepare("step", chain)
    action = Copy(source="a.tar", target="/", unpack=True)
    root = mount.open_detached(build.snapshots.mounts("step"))
    try:
        with build.open(build.context) as source:
            apply(root, action, source, select(source, action), epoch_ns=EPOCH * 10**9, name_lookup=root)
        found = [
            os.stat(name, dir_fd=root).st_mtime for name in ("usr/lib/f", "app/g", "new/h", "new", "app", "usr/lib")
        ]
    finally:
        os.close(root)
    assert found == [0, 0, 0, EPOCH, EPOCH, EPOCH]


def test_removing_makes_deletions_of_what_is_below_and_nothing_of_what_is_not(build, base):
    build.step(
        base,
        Remove(path="/app/*", wildcard=True),
        MakeFile(path="/app/made", data=b""),
        Remove(path="/app/made"),
        Remove(path="/nothing", allow_missing=True),
    )
    assert names(build) == {"app", "app/.wh.old", "app/.wh.second", "app/.wh.sub"}


def test_names_of_one_file_in_a_tree_are_one_in_the_layer(build, base):
    def make(root):
        (root / "d/e").mkdir(parents=True)
        (root / "d/one").write_text("x" * 1000)
        os.link(root / "d/one", root / "d/e/two")

    built = build.run(base, make)
    build.step(base, Copy(source="d", target="/c", contents=True), source=built)
    assert sorted(entry.kind.name for name, entry in build.layer.items() if name in ("c/one", "c/e/two")) == [
        "FILE",
        "HARDLINK",
    ]


def test_a_tree_can_be_copied_whole(build, base):
    chain = build.step(None, Copy(source="/", target="/", contents=True), source=base)
    assert names(build) >= {"app/sub/keep", "app/second", "etc/passwd", "lib", "up"}
    with build.open(chain) as root:
        assert os.readlink("up", dir_fd=root) == "../../app"


def test_files_of_a_tree_are_not_read_again_with_another_layer_on_it(overlay, monkeypatch):
    """However it is mounted: what overlay calls their devices changes each time."""
    build = overlay
    monkeypatch.setattr("wherry.builder.files.checksum._SETTLED", -(1 << 62))

    def make(root):
        (root / "d").mkdir()
        for number in range(5):
            (root / f"d/f{number}").write_text(f"content {number}")

    class Counting(ChecksumIndex):
        kept = 0

        def keep(self, version, digest):
            self.kept += 1
            super().keep(version, digest)

    index = Counting()
    action = Copy(source="d", target="/", contents=True)

    def look(chain):
        with build.open(chain) as root:
            return checksum(root, action, select(root, action), index.of(Source(root=root, identity=chain))).digest

    lower = build.run(None, make)
    upper = build.run(lower, lambda root: (root / "d/f5").write_text("another"))
    before = look(lower)
    assert index.kept == 5
    assert look(lower) == before
    assert look(upper) != before
    assert index.kept == 6


def test_after_a_program_everything_it_wrote_has_the_epochs_time_and_deletions_stay(build, base):
    def work(root):
        (root / "app/new").write_text("new")
        (root / "app/old").unlink()
        (root / "app/sub/keep").unlink()
        (root / "app/sub").rmdir()
        (root / "app/sub").mkdir()
        (root / "app/sub/other").symlink_to("x")
        (root / "etc/group").chmod(0o600)

    build.run(base, work, epoch=EPOCH + 5)
    made = {name.rstrip("/"): entry for name, entry in build.layer.items()}
    assert {name for name in made if ".wh." in name} in (
        {"app/.wh.old", "app/sub/.wh..wh..opq"},
        {"app/.wh.old", "app/sub/.wh.keep"},
    )
    times = {name: entry.mtime // 10**9 for name, entry in made.items() if ".wh." not in name}
    assert times == {
        "app": EPOCH + 5,
        "app/new": EPOCH + 5,
        "app/sub": EPOCH + 5,
        "app/sub/other": EPOCH + 5,
        "etc": EPOCH,  # only what is in it was changed
        "etc/group": EPOCH,
    }


def test_an_epoch_before_the_base_leaves_the_base_as_it_is(build, base):
    build.run(base, lambda root: (root / "app/sub/new").write_text("x"), epoch=7)
    found = {name.rstrip("/"): entry.mtime // 10**9 for name, entry in build.layer.items()}
    assert found == {"app": EPOCH, "app/sub": 7, "app/sub/new": 7}


def test_running_twice_makes_one_layer(build, base):
    def work(root):
        (root / "cache").mkdir()
        (root / "cache/f").write_text("x")
        (root / "app/old").write_text("written")

    first = build.run(base, work)
    time.sleep(0.02)  # another time for the clock of files
    assert build.run(base, work) == first


def test_layers_do_not_depend_on_how_snapshots_are_kept(overlay, native, tmp_path):
    (tmp_path / "f").write_text("x")

    def work(root):
        (root / "app/old").unlink()
        (root / "app/new").write_text("new")
        (root / "app").chmod(0o711)
        (root / "deep/er").rmdir()

    actions = (
        MakeDirectory(path="/app", parents=True),
        MakeDirectory(path="/deep/er", parents=True),
        MakeFile(path="/app/old", data=b"x"),
        Copy(source="f", target="/app/"),
    )
    layers = []

    def keep(build, chain):
        layers.append({name: (e.kind, e.mode, e.uid, e.gid, e.mtime, e.size) for name, e in build.layer.items()})
        return chain

    for build in (overlay, native):
        chain = keep(build, build.step(None, *actions, epoch=EPOCH + 100))
        chain = keep(build, build.run(chain, work))
        keep(build, build.step(chain, Remove(path="/app/new"), Copy(source="f", target="/deep/f", mode="600")))
    assert layers[:3] == layers[3:]


def test_steps_leave_no_descriptor(build, base):
    (build.context / "f").write_text("x")
    build.step(base, Copy(source="f", target="/x/"))
    build.snapshots.close()
    before = descriptors()
    build.step(base, Copy(source="f", target="/y/"), MakeDirectory(path="/z", owner=Owner(user="app")))
    with pytest.raises(InvalidParameter):
        build.step(base, Copy(source="f", target="/etc/passwd/"))
    build.snapshots.close()  # what was given up is deleted by a thread
    assert descriptors() == before
