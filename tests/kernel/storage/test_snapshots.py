"""How a snapshotter behaves, whichever it is."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest

from wherry import digest
from wherry.digest import ChainID
from wherry.errors import Conflict, Corrupt, Failed, InvalidParameter, NotFound
from wherry.storage import diff
from wherry.storage.diff import Change
from wherry.storage.native import NativeSnapshotter

pytestmark = pytest.mark.kernel

ABSENT = ChainID(digest.of(b"absent"))


@pytest.fixture
def add(snapshots, kit):
    """Commit a layer made of members; its chain."""

    def add_layer(parent, *members):
        snapshots.prepare("extract", parent)
        applied = diff.apply_to(snapshots, "extract", io.BytesIO(kit.tar(*members)))
        chain = digest.extend_chain(parent, applied.diff_id)
        snapshots.commit("extract", chain)
        return chain

    return add_layer


@pytest.fixture
def base(add, kit):
    return add(
        None,
        kit.Member("bin/"),
        kit.Member("bin/sh", b"shell"),
        kit.Member("etc/"),
        kit.Member("etc/passwd", b"root"),
        kit.Member("var/lib/dpkg/status", b"ok"),
    )


BASE = {
    "bin": "dir",
    "bin/sh": "shell",
    "etc": "dir",
    "etc/passwd": "root",
    "var": "dir",
    "var/lib": "dir",
    "var/lib/dpkg": "dir",
    "var/lib/dpkg/status": "ok",
}


def test_a_snapshot_on_nothing_is_an_empty_writable_tree(snapshots, kit):
    snapshots.prepare("c", None)
    assert kit.see_mounts(snapshots.mounts("c")) == {}
    kit.within(snapshots.mounts("c"), lambda root: (root / "f").write_text("x"))
    assert kit.see_mounts(snapshots.mounts("c")) == {"f": "x"}
    assert kit.see_mounts(snapshots.view(None)) == {}


def test_a_layer_is_seen_by_view_and_by_snapshots_on_it(snapshots, base, kit):
    snapshots.prepare("c", base)
    for mounts in (snapshots.view(base), snapshots.mounts("c"), snapshots.peek("c"), snapshots.base("c")):
        assert kit.see_mounts(mounts) == BASE
    assert snapshots.has(base)
    assert list(snapshots.chains()) == [base]
    assert list(snapshots.keys()) == ["c"]
    assert snapshots.parent(base) is None
    assert snapshots.parent_of_key("c") == base


def test_what_a_container_writes_stays_its_own(snapshots, base, kit):
    snapshots.prepare("c", base)
    snapshots.prepare("d", base)

    def work(root: Path) -> None:
        (root / "etc/passwd").write_text("changed")
        (root / "bin/sh").unlink()
        (root / "new").write_text("new")

    kit.within(snapshots.mounts("c"), work)
    changed = {**BASE, "etc/passwd": "changed", "new": "new"}
    del changed["bin/sh"]
    assert kit.see_mounts(snapshots.mounts("c")) == changed
    assert kit.see_mounts(snapshots.peek("c")) == changed
    assert kit.see_mounts(snapshots.mounts("d")) == BASE
    assert kit.see_mounts(snapshots.view(base)) == BASE


def test_views_are_read_only(snapshots, base, kit):
    snapshots.prepare("c", base)
    for mounts in (snapshots.view(base), snapshots.view(None), snapshots.peek("c"), snapshots.base("c")):
        with pytest.raises(OSError, match="Read-only"):
            kit.within(mounts, lambda root: (root / "x").mkdir())


def test_a_key_is_prepared_once(snapshots):
    snapshots.prepare("c", None)
    with pytest.raises(Conflict, match="snapshot c exists"):
        snapshots.prepare("c", None)


@pytest.mark.parametrize("key", ["", "..", "a/b", ".hidden", "a\n", "x" * 200])
def test_keys_that_are_no_plain_names_are_refused(snapshots, key):
    with pytest.raises(InvalidParameter, match="invalid snapshot key"):
        snapshots.prepare(key, None)


def test_what_is_not_there_is_not_found(snapshots):
    for ask in (
        lambda: snapshots.prepare("c", ABSENT),
        lambda: snapshots.mounts("c"),
        lambda: snapshots.upper("c"),
        lambda: snapshots.view(ABSENT),
        lambda: snapshots.parent(ABSENT),
        lambda: snapshots.parent_of_key("c"),
        lambda: snapshots.usage("c"),
        lambda: snapshots.usage(ABSENT),
        lambda: snapshots.commit("c", ABSENT),
    ):
        with pytest.raises(NotFound):
            ask()
    assert not snapshots.has(ABSENT)
    assert list(snapshots.keys()) == []


def test_committing_a_layer_that_exists_drops_the_snapshot(snapshots, base, kit):
    snapshots.prepare("again", None)
    (snapshots.upper("again") / "other").write_text("x")
    snapshots.commit("again", base)
    assert list(snapshots.keys()) == []
    assert kit.see_mounts(snapshots.view(base)) == BASE


def test_committing_a_layer_on_another_parent_than_it_has_is_refused(snapshots, base):
    snapshots.prepare("c", base)
    with pytest.raises(Corrupt, match=f"stands on None, not on {base}"):
        snapshots.commit("c", base)


def test_many_threads_committing_one_layer_leave_one(snapshots, kit):
    failures = []

    def pull(number: int) -> None:
        try:
            key = f"k{number}"
            snapshots.prepare(key, None)
            (snapshots.upper(key) / "f").write_text("same")
            snapshots.commit(key, ABSENT)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(snapshots.chains()) == [ABSENT]
    assert list(snapshots.keys()) == []
    assert kit.see_mounts(snapshots.view(ABSENT)) == {"f": "same"}


def test_removal_is_at_once_for_the_caller_and_complete_in_the_end(snapshots, base, tmp_path):
    snapshots.prepare("c", base)
    snapshots.remove("c")
    snapshots.remove("c")
    assert list(snapshots.keys()) == []
    snapshots.prepare("c", base)  # the name is free again
    snapshots.remove("c")
    snapshots.remove_layer(base)
    snapshots.remove_layer(base)
    assert not snapshots.has(base)
    snapshots.close()
    for name in ("removed", "rw", "layers"):
        assert os.listdir(tmp_path / "root" / name) == []


def test_deletions_of_an_earlier_process_are_finished(snapshots, driver, tmp_path):
    left = tmp_path / "root" / "removed" / "x" / "deep"
    left.mkdir(parents=True)
    (left / "f").touch()
    half = tmp_path / "root" / "rw" / ".c-1234"
    half.mkdir()
    later = driver(tmp_path / "root")
    later.recover()
    later.close()
    assert os.listdir(tmp_path / "root" / "removed") == []
    assert list(later.keys()) == []
    assert not half.exists()


class Crash(BaseException):
    """Not an error that is cleaned up after: the end."""


def test_a_prepare_that_fails_leaves_nothing(driver, tmp_path):
    def fail(step: str) -> None:
        if step == "appear":
            raise OSError(28, "No space left on device")

    snapshots = driver(tmp_path, trace=fail)
    with pytest.raises(Failed, match="cannot prepare snapshot c: No space left on device"):
        snapshots.prepare("c", None)
    assert os.listdir(tmp_path / "rw") == []
    snapshots.close()


@pytest.mark.parametrize("at", ["make", "appear"])
def test_a_crash_at_any_step_of_prepare_leaves_nothing(driver, tmp_path, at):
    def stop(step: str) -> None:
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        driver(tmp_path, trace=stop).prepare("c", None)
    later = driver(tmp_path)
    later.recover()
    later.close()
    assert os.listdir(tmp_path / "rw") == []
    later.prepare("c", None)


@pytest.mark.parametrize("at", ["strip", "sync", "rename", "fsync directory"])
def test_a_crash_at_any_step_of_commit_leaves_the_layer_whole_or_the_work_to_be_done_again(driver, tmp_path, kit, at):
    def stop(step: str) -> None:
        if step == at:
            raise Crash

    broken = driver(tmp_path, trace=stop)
    broken.prepare("c", None)
    (broken.upper("c") / "f").write_text("x")
    with pytest.raises(Crash):
        broken.commit("c", ABSENT)

    later = driver(tmp_path)
    later.recover()
    assert later.has(ABSENT) == (at == "fsync directory")
    if not later.has(ABSENT):
        later.commit("c", ABSENT)
    assert kit.see_mounts(later.view(ABSENT)) == {"f": "x"}
    assert list(later.keys()) == []
    later.close()


def test_usage_counts_a_hard_linked_file_once(snapshots, kit):
    snapshots.prepare("c", None)

    def work(root: Path) -> None:
        (root / "d").mkdir()
        (root / "d/f").write_bytes(bytes(1000))
        os.link(root / "d/f", root / "d/g")
        os.symlink("12345", root / "s")

    kit.within(snapshots.mounts("c"), work)
    usage = snapshots.usage("c")
    assert usage.bytes == 1005
    assert usage.inodes == 4


def test_the_root_directory_of_an_image_is_kept_through_the_layers(snapshots, add, kit):
    low = add(None, kit.Member("./", mode=0o700, uid=7, gid=8, type=b"5"), kit.Member("f", b""))
    high = add(low, kit.Member("g", b""))
    snapshots.prepare("c", high, container=True)
    for mounts in (snapshots.view(high), snapshots.mounts("c")):
        kit.within(mounts, lambda root: _is(root.stat(), 0o700, 7, 8))


def _is(status: os.stat_result, mode: int, uid: int, gid: int) -> None:
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, uid, gid)


def test_a_stack_of_130_layers_is_mounted(snapshots, kit):
    if isinstance(snapshots, NativeSnapshotter):
        depth = 4  # every layer is a copy
    else:
        depth = 130
    chain = None
    for number in range(depth):
        snapshots.prepare("k", chain)
        (snapshots.upper("k") / f"f{number}").write_text("")
        (snapshots.upper("k") / "top").write_text(str(number))
        chain = digest.extend_chain(chain, digest.of(b"%d" % number))
        snapshots.commit("k", chain)
    snapshots.prepare("c", chain, container=False)
    found = kit.see_mounts(snapshots.mounts("c"))
    assert found["top"] == str(depth - 1)
    assert len(found) == depth + 1


# Deletions in layers


def test_a_whiteout_hides_a_file_and_a_directory(snapshots, base, add, kit):
    top = add(base, kit.Member("etc/.wh.passwd", b""), kit.Member("var/.wh.lib", b""))
    seen = kit.see_mounts(snapshots.view(top))
    assert seen == {"bin": "dir", "bin/sh": "shell", "etc": "dir", "var": "dir"}


def test_a_whiteout_of_what_is_not_there_changes_nothing(snapshots, base, add, kit):
    top = add(base, kit.Member("etc/.wh.absent", b""), kit.Member(".wh.nor-this", b""), kit.Member("no/.wh.x", b""))
    seen = kit.see_mounts(snapshots.view(top))
    seen.pop("no", None)  # whether its directory appears is up to the driver
    assert seen == BASE


def test_an_opaque_directory_hides_what_is_below_it(snapshots, base, add, kit):
    top = add(base, kit.Member("var/lib/.wh..wh..opq", b""), kit.Member("var/lib/new", b"n"))
    seen = kit.see_mounts(snapshots.view(top))
    assert seen == {**{k: v for k, v in BASE.items() if "dpkg" not in k}, "var/lib/new": "n"}


@pytest.mark.parametrize("order", ["whiteout first", "whiteout last", "directory implied"])
def test_a_directory_deleted_and_made_anew_in_one_layer_holds_the_new_only(snapshots, base, add, kit, order):
    members = [kit.Member("var/.wh.lib", b""), kit.Member("var/lib/"), kit.Member("var/lib/new", b"n")]
    if order == "whiteout last":
        members = members[1:] + members[:1]
    elif order == "directory implied":
        del members[1]
    top = add(base, *members)
    seen = kit.see_mounts(snapshots.view(top))
    assert seen == {**{k: v for k, v in BASE.items() if "dpkg" not in k}, "var/lib/new": "n"}


def test_a_whiteout_in_an_opaque_directory_is_not_seen_itself(snapshots, base, add, kit):
    members = (kit.Member("etc/.wh.passwd", b""), kit.Member("etc/.wh..wh..opq", b""), kit.Member("etc/x", b"x"))
    top = add(base, *members)
    assert [path for path in kit.see_mounts(snapshots.view(top)) if "etc/" in path] == ["etc/x"]


def test_an_opaque_root_hides_everything_below(snapshots, base, add, kit):
    top = add(base, kit.Member("etc/x", b"x"), kit.Member(".wh..wh..opq", b""))
    assert kit.see_mounts(snapshots.view(top)) == {"etc": "dir", "etc/x": "x"}


def test_a_directory_after_a_file_of_one_layer_shows_nothing_from_below(snapshots, base, add, kit):
    top = add(base, kit.Member("etc", b"a file for a moment"), kit.Member("etc/"), kit.Member("etc/x", b"x"))
    assert [path for path in kit.see_mounts(snapshots.view(top)) if "etc/" in path] == ["etc/x"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_does_not_touch_a_file_of_its_own_layer(snapshots, base, add, kit, order):
    top = add(base, *[kit.Member("etc/.wh.passwd", b""), kit.Member("etc/passwd", b"new")][::order])
    assert kit.see_mounts(snapshots.view(top)) == {**BASE, "etc/passwd": "new"}


@pytest.mark.parametrize("order", [1, -1])
def test_an_opaque_mark_does_not_touch_files_of_its_own_layer(snapshots, base, add, kit, order):
    members = [kit.Member("etc/.wh..wh..opq", b""), kit.Member("etc/new/a", b"a")]
    top = add(base, *members[::order])
    seen = kit.see_mounts(snapshots.view(top))
    assert {k: v for k, v in seen.items() if k.startswith("etc")} == {"etc": "dir", "etc/new": "dir", "etc/new/a": "a"}


def test_a_directory_takes_the_place_of_a_file_and_the_reverse(snapshots, base, add, kit):
    top = add(base, kit.Member("etc/passwd/"), kit.Member("etc/passwd/x", b"x"), kit.Member("bin", b"no directory"))
    seen = kit.see_mounts(snapshots.view(top))
    assert seen["etc/passwd"] == "dir"
    assert seen["etc/passwd/x"] == "x"
    assert seen["bin"] == "no directory"
    assert "bin/sh" not in seen


def test_what_a_layer_implies_takes_its_attributes_from_below(snapshots, add, kit):
    low = add(None, kit.Member("home/", mode=0o711, uid=5, gid=6), kit.Member("home/u/", mode=0o2750, uid=9, gid=9))
    top = add(low, kit.Member("home/u/f", b"x"))

    def look(root: Path) -> None:
        _is((root / "home").stat(), 0o711, 5, 6)
        _is((root / "home/u").stat(), 0o2750, 9, 9)

    kit.within(snapshots.view(top), look)


def test_aufs_leftovers_are_ignored(snapshots, base, add, kit):
    top = add(base, kit.Member(".wh..wh.aufs", b""), kit.Member(".wh..wh.orph", b""))
    assert kit.see_mounts(snapshots.view(top)) == BASE


# From a snapshot to a layer


def rework(root: Path) -> None:
    """Everything a container can do to its files."""
    (root / "etc/passwd").write_text("more")
    (root / "bin/sh").unlink()
    (root / "new").mkdir()
    (root / "new/file").write_text("n")
    os.link(root / "new/file", root / "new/hard")
    os.symlink("/new/file", root / "new/soft")
    os.mkfifo(root / "new/pipe")
    os.mknod(root / "new/null", 0o20666, os.makedev(1, 3))
    (root / "new/suid").write_text("s")
    os.chown(root / "new/suid", 12, 34)
    os.chmod(root / "new/suid", 0o4755)
    os.setxattr(root / "new/suid", "user.note", b"kept")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(root / "new/file", "security.capability", capability)
    (root / "var/lib/dpkg/status").unlink()
    (root / "var/lib/dpkg").rmdir()
    (root / "var/lib/dpkg").mkdir()
    (root / "var/lib/dpkg/lock").write_text("")
    os.chmod(root / "etc", 0o700)
    os.utime(root / "etc/passwd", ns=(0, 1_500_000_000 * 10**9))


def test_a_diff_applied_again_gives_the_same_tree(snapshots, base, kit):
    snapshots.prepare("c", base)
    kit.within(snapshots.mounts("c"), rework)
    layer = io.BytesIO()
    written = diff.write_diff(snapshots, "c", layer)
    again = io.BytesIO()
    assert diff.write_diff(snapshots, "c", again) == written
    assert layer.getvalue() == again.getvalue()
    assert written.size == len(layer.getvalue())

    snapshots.prepare("d", base)
    layer.seek(0)
    applied = diff.apply_to(snapshots, "d", layer)
    assert applied.diff_id == written.diff_id
    assert applied.warnings == ()
    assert kit.see_mounts(snapshots.mounts("d")) == kit.see_mounts(snapshots.mounts("c"))

    def look(root: Path) -> None:
        _is((root / "new/suid").stat(), 0o4755, 12, 34)
        assert os.getxattr(root / "new/suid", "user.note") == b"kept"
        assert len(os.getxattr(root / "new/file", "security.capability")) == 20
        assert (root / "new/file").samefile(root / "new/hard")
        assert (root / "etc/passwd").stat().st_mtime == 1_500_000_000
        _is((root / "etc").stat(), 0o700, 0, 0)

    kit.within(snapshots.mounts("d"), look)


def test_changes_are_listed_as_docker_lists_them(snapshots, base, kit):
    snapshots.prepare("c", base, container=True)
    kit.within(snapshots.mounts("c"), rework)
    added = [f"/new/{name}" for name in ("file", "hard", "null", "pipe", "soft", "suid")]
    assert diff.changes(snapshots, "c") == sorted(
        [
            (Change.MODIFIED, "/bin"),
            (Change.DELETED, "/bin/sh"),
            (Change.MODIFIED, "/etc"),
            (Change.MODIFIED, "/etc/passwd"),
            (Change.ADDED, "/new"),
            *((Change.ADDED, path) for path in added),
            (Change.MODIFIED, "/var"),
            (Change.MODIFIED, "/var/lib"),
            (Change.MODIFIED, "/var/lib/dpkg"),
            (Change.ADDED, "/var/lib/dpkg/lock"),
            (Change.DELETED, "/var/lib/dpkg/status"),
        ],
        key=lambda change: change[1],
    )


def _anew(root: Path, name: str, content: str) -> None:
    """rm -rf, mkdir, echo >"""
    for path in (root / "var/lib/dpkg").iterdir():
        path.unlink()
    (root / "var/lib/dpkg").rmdir()
    (root / "var/lib/dpkg").mkdir()
    (root / "var/lib/dpkg" / name).write_text(content)


def _gone_and_back(root: Path) -> None:
    (root / "etc/x").touch()
    (root / "etc/x").unlink()


def _file_for_directory(root: Path) -> None:
    (root / "bin/sh").unlink()
    (root / "bin").rmdir()
    (root / "bin").write_text("file")


# The answers are dockerd's.
AS_DOCKERD = {
    "nothing that lasts": (_gone_and_back, ""),
    "a directory's mode": (lambda root: os.chmod(root / "var", 0o700), "C /var"),
    "a file's mode": (lambda root: os.chmod(root / "bin/sh", 0o600), "C /bin, C /bin/sh"),
    "a file for a directory": (_file_for_directory, "C /bin"),
    "a directory made anew": (
        lambda root: _anew(root, "new", "n"),
        "C /var, C /var/lib, C /var/lib/dpkg, A /var/lib/dpkg/new, D /var/lib/dpkg/status",
    ),
    "a directory made anew with the same names": (
        lambda root: _anew(root, "status", "ok"),
        "C /var, C /var/lib, C /var/lib/dpkg, C /var/lib/dpkg/status",
    ),
}


@pytest.mark.parametrize("case", AS_DOCKERD)
def test_changes_are_those_dockerd_lists(snapshots, base, kit, case):
    work, expected = AS_DOCKERD[case]
    snapshots.prepare("c", base, container=True)
    kit.within(snapshots.mounts("c"), work)
    assert ", ".join(f"{'CAD'[change]} {path}" for change, path in diff.changes(snapshots, "c")) == expected


def test_a_container_that_did_nothing_has_changed_nothing(snapshots, base, kit):
    snapshots.prepare("c", base, container=True)
    seen = kit.see_mounts(snapshots.mounts("c"))
    for path in ("etc/hosts", "etc/resolv.conf", ".dockerenv", "dev/console", "proc", "sys", "dev/pts"):
        assert path in seen
    assert seen["etc/mtab"] == "-> /proc/mounts"
    assert diff.changes(snapshots, "c") == []
    out = io.BytesIO()
    assert diff.write_diff(snapshots, "c", out).entries == 0
    assert out.getvalue() == bytes(1024)


def test_placeholders_respect_what_an_image_has_in_their_place(snapshots, add, kit):
    hosts = kit.Member("etc/hosts", b"mine", mode=0o600)
    chain = add(None, hosts, kit.link("proc", "/elsewhere"), kit.link("dev", "/etc"), kit.Member("sys", b"a file"))
    snapshots.prepare("c", chain, container=True)
    seen = kit.see_mounts(snapshots.mounts("c"))
    assert seen["etc/hosts"] == "mine"
    assert (seen["proc"], seen["dev"], seen["sys"]) == ("-> /elsewhere", "-> /etc", "a file")
    assert diff.changes(snapshots, "c") == []


def test_a_file_named_like_a_whiteout_is_refused_in_a_layer(snapshots, base, kit):
    snapshots.prepare("c", base)
    kit.within(snapshots.mounts("c"), lambda root: (root / "etc/.wh.passwd").touch())
    with pytest.raises(InvalidParameter, match=r"etc/\.wh\.passwd.*means a deletion"):
        diff.write_diff(snapshots, "c", io.BytesIO())


def test_a_container_may_nest_directories_as_deep_as_it_likes(snapshots, tmp_path):
    """Deeper than Python recurses and than a path is long: it is refused in a layer, and removed."""
    snapshots.prepare("c", None)
    fd = os.open(snapshots.upper("c"), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("dd", dir_fd=fd)
        inner = os.open("dd", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.mknod("leaf", dir_fd=fd)
    os.close(fd)
    with pytest.raises(InvalidParameter, match="path too long to be stored"):
        diff.write_diff(snapshots, "c", io.BytesIO())
    snapshots.remove("c")
    snapshots.close()
    assert os.listdir(tmp_path / "root" / "removed") == []
