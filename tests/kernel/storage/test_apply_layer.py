"""Layers extracted in the confined process: faithful, contained, bounded, stoppable."""

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
import zlib
from pathlib import Path

import pytest
import zstandard

from wherry.errors import Failed, InvalidParameter, NotSupported, Unavailable, WherryError
from wherry.kernel import mount
from wherry.kernel.mount import Mount
from wherry.storage.compression import Limits
from wherry.storage.diff import Abort, apply_layer, write_tree
from wherry.storage.tree import remove_tree

pytestmark = pytest.mark.kernel

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    yield path
    remove_tree(path)  # whatever happened, it can be removed
    assert not path.exists()


@pytest.fixture
def tree(tmp_path):
    """One of everything."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "empty dir").mkdir()
    (root / "usr/bin/tool").write_bytes(os.urandom(3_000_000))
    (root / "usr/bin/small").write_text("x")
    (root / "usr/bin/none").touch()
    os.link(root / "usr/bin/tool", root / "usr/bin/zz-hard")
    os.symlink("tool", root / "usr/bin/soft")
    os.symlink("/nowhere/" + "x" * 200, root / "dangling")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "loop", 0o60660, os.makedev(7, 300))
    (root / ("n" * 200)).write_text("long")
    (root / "ünï\udcff").write_text("odd name")
    with open(root / "sparse", "wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    os.chown(root / "usr/bin/small", 1000, 3_000_000_000)
    os.chmod(root / "usr/bin/small", 0o6755)
    os.chmod(root / "empty dir", 0o1777)
    os.chown(root / "dangling", 5, 6, follow_symlinks=False)
    os.setxattr(root / "usr/bin/tool", "security.capability", CAPABILITY)
    os.setxattr(root / "usr/bin/small", "user.note", b"a\0b")
    os.setxattr(root / "empty dir", "user.note", b"dir")
    for at, path in enumerate([*root.rglob("*"), root]):
        os.utime(path, ns=(0, (1_400_000_000 + at) * 10**9 + 123_456_789), follow_symlinks=False)
    return root


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("squeeze", ["plain", "gzip", "zstd"])
def test_what_gnu_tar_packed_arrives_as_it_was(tree, target, tmp_path, form, squeeze):
    archive = tmp_path / "a.tar"
    options = ["--xattrs", "--xattrs-include=*"] if form == "pax" else []
    command = ["tar", f"--format={form}", "--sparse", *options, "--sort=name", "-C", tree, "-cf", archive, "."]
    subprocess.run(command, check=True)
    data = archive.read_bytes()
    stored = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}[squeeze](data)

    applied = apply_layer(io.BytesIO(stored), snapshot=target)
    assert applied.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert applied.tar_size == len(data)
    assert applied.warnings == ()
    found = subprocess.run(["tar", "--compare", *options, "-f", archive, "-C", target], capture_output=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    assert (target / "usr/bin/tool").samefile(target / "usr/bin/zz-hard")
    assert (target / "sparse").stat().st_blocks < 1000
    assert stat.S_IMODE((target / "usr/bin/small").stat().st_mode) == 0o6755
    if form == "pax":
        for path in tree.rglob("*"):
            assert (target / path.relative_to(tree)).lstat().st_mtime_ns == path.lstat().st_mtime_ns
        assert len(os.getxattr(target / "usr/bin/tool", "security.capability")) == 20
        assert os.getxattr(target / "empty dir", "user.note") == b"dir"


def test_what_we_pack_gnu_tar_compares_equal(tree, tmp_path):
    archive = tmp_path / "a.tar"
    with open(archive, "wb") as file:
        written = write_tree(tree, file, include_root=True)
    assert written.size == archive.stat().st_size
    assert written.diff_id == f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    options = ["--xattrs", "--xattrs-include=*"]
    found = subprocess.run(["tar", "--compare", *options, "-f", archive, "-C", tree], capture_output=True)
    # Times are packed in whole seconds; everything else must agree.
    differences = [line for line in found.stdout.decode().splitlines() if "Mod time" not in line]
    assert (differences, found.stderr) == ([], b"")


def test_python_reads_what_we_pack(tree, tmp_path):
    out = io.BytesIO()
    write_tree(tree, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        names = {member.name for member in archive}
    expected = {os.fspath(path.relative_to(tree)) for path in tree.rglob("*")}
    assert names == expected


def test_our_extraction_of_our_archive_is_the_tree_again(tree, target):
    first, second = io.BytesIO(), io.BytesIO()
    written = write_tree(tree, first, include_root=True)
    first.seek(0)
    assert apply_layer(first, snapshot=target).diff_id == written.diff_id
    assert write_tree(target, second, include_root=True) == written
    assert first.getvalue() == second.getvalue()


def test_the_size_of_a_layer_is_that_of_its_files(target, kit):
    data = kit.tar(kit.Member("a", b"12345"), kit.Member("b", b"678"), kit.hard("c", "a"), kit.link("d", "a"))
    applied = apply_layer(io.BytesIO(gzip.compress(data + bytes(5000))), snapshot=target)
    assert (applied.size, applied.entries, applied.tar_size) == (9, 4, len(data) + 5000)  # a link has its length
    assert applied.diff_id == f"sha256:{hashlib.sha256(data + bytes(5000)).hexdigest()}"


def test_an_fd_a_file_and_a_pipe_are_read_alike(target, tmp_path, kit):
    data = kit.tar(kit.Member("a", b"1" * 300_000))
    path = tmp_path / "blob"
    path.write_bytes(data)
    ids = set()
    with open(path, "rb", buffering=0) as file:
        ids.add(apply_layer(file, snapshot=target).diff_id)
    fd = os.open(path, os.O_RDONLY)
    ids.add(apply_layer(fd, snapshot=target).diff_id)
    os.close(fd)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        ids.add(apply_layer(cat.stdout, snapshot=target).diff_id)
    assert len(ids) == 1


def test_later_entries_replace_earlier_ones(target, kit):
    apply_layer(
        io.BytesIO(
            kit.tar(
                kit.Member("f", b"old"),
                kit.hard("kept", "f"),
                kit.Member("f", b"new"),
                kit.Member("d/"),
                kit.Member("d/x", b"x"),
                kit.Member("d", b"file now"),
                kit.link("s", "kept"),
                kit.Member("s/"),
                kit.Member("s/y", b"y"),
                kit.Member("e/"),
                kit.Member("e/z", b"z"),
                kit.Member("e/", mode=0o700),
            )
        ),
        snapshot=target,
    )
    seen = kit.see(target)
    assert seen == {
        "f": "new",
        "kept": "old",
        "d": "file now",
        "s": "dir",
        "s/y": "y",
        "e": "dir",
        "e/z": "z",
    }
    assert stat.S_IMODE((target / "e").stat().st_mode) == 0o700


def test_a_directory_replaced_by_a_link_is_left_for_what_follows(target, kit):
    """The second `d/b` must not land in the directory that was removed."""
    apply_layer(
        io.BytesIO(
            kit.tar(
                kit.Member("d/a", b"a"),
                kit.Member("other/"),
                kit.link("d", "other"),
                kit.Member("d/b", b"b"),
            )
        ),
        snapshot=target,
    )
    assert kit.see(target) == {"d": "-> other", "other": "dir", "other/b": "b"}


def test_links_inside_the_root_are_followed_as_the_container_would(target, kit):
    members = (kit.Member("usr/lib/"), kit.link("lib", "/usr/lib"), kit.Member("lib/x", b"x"), kit.hard("y", "lib/x"))
    apply_layer(io.BytesIO(kit.tar(*members)), snapshot=target)
    assert (target / "usr/lib/x").read_text() == "x"
    assert (target / "y").samefile(target / "usr/lib/x")


HOSTILE = {
    "dot dot": (lambda k: [k.Member("../escaped", b"x")], r"'\.\./escaped'.*leads out of the archive's root"),
    "dot dot behind a directory": (lambda k: [k.Member("a/../../escaped", b"x")], "leads out"),
    "dot dot directory": (lambda k: [k.Member("../", type=b"5")], "leads out"),
    "hard link out": (lambda k: [k.hard("x", "../outside")], r"'x': hard link to '\.\./outside', which is not in this"),
    "hard link to absolute": (lambda k: [k.hard("x", "/etc/passwd")], "'x': hard link to '/etc/passwd'"),
    "hard link to absent": (lambda k: [k.hard("x", "absent")], "hard link to 'absent', which is not in this"),
    "hard link through a link out": (lambda k: [k.link("l", "/etc"), k.hard("x", "l/passwd")], "hard link to"),
    "hard link to a directory": (lambda k: [k.Member("d/"), k.hard("x", "d")], "to the directory 'd'"),
    "parent is a file": (lambda k: [k.Member("f", b""), k.Member("f/x", b"")], "lies in 'f', which is no directory"),
    "parent is a link to nowhere": (
        lambda k: [k.link("l", "/outside/nowhere"), k.Member("l/x", b"")],
        "lies in 'l', which is a symbolic link to nowhere",
    ),
    "parent is a link to itself": (lambda k: [k.link("l", "l"), k.Member("l/x", b"")], "entry 'l/x': Too many levels"),
    "smuggled opaque": (
        lambda k: [k.Member("d/", pax={"SCHILY.xattr.trusted.overlay.opaque": "y"})],
        "'d.*': attribute 'trusted.overlay.opaque' is reserved",
    ),
    "smuggled redirect": (
        lambda k: [k.Member("f", b"", pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})],
        "'f': attribute 'trusted.overlay.redirect' is reserved",
    ),
    "smuggled metacopy on a link": (
        lambda k: [k.Member("l", type=b"2", linkname="x", pax={"SCHILY.xattr.trusted.overlay.metacopy": ""})],
        "reserved",
    ),
    "smuggled for user xattrs": (
        lambda k: [k.Member("f", b"", pax={"SCHILY.xattr.user.overlay.opaque": "y"})],
        "'user.overlay.opaque' is reserved",
    ),
    "whiteout of nothing": (lambda k: [k.Member("d/.wh.", b"")], r"'d/\.wh\.': a whiteout of nothing"),
    "whiteout of dot": (lambda k: [k.Member(".wh..", b"")], "whiteout of nothing"),
    "whiteout of dot dot": (lambda k: [k.Member("d/.wh...", b"")], "whiteout of nothing"),
    "name too long": (lambda k: [k.Member("n" * 256, b"")], "'n+'… .256 bytes.: File name too long"),
    "path too long": (lambda k: [k.Member("d/" * 2100 + "x", b"")], "longer than 4095"),
    "root is a file": (lambda k: [k.Member("./.", b"x")], "the root can only be a directory"),
    "root is a link": (lambda k: [k.link("/", "/etc")], "the root can only be a directory"),
    "empty xattr name": (
        lambda k: [k.Member("f", b"", pax={"SCHILY.xattr.": "y"})],
        "no name of an extended attribute",
    ),
    "unknown xattr namespace": (lambda k: [k.Member("f", b"", pax={"SCHILY.xattr.evil.x": "y"})], None),
    "overlay device as whiteout": (lambda k: [k.Member("f", type=b"3", devmajor=0, devminor=0)], None),
    "absolute name": (lambda k: [k.Member("/etc/passwd", b"mine")], None),
    "link out, then through it": (lambda k: [k.link("l", "/"), k.Member("l/etc/passwd", b"mine")], None),
    "link up, then through it": (lambda k: [k.link("l", "../../../.."), k.Member("l/etc/passwd", b"mine")], None),
    "link out, then replaced": (lambda k: [k.link("etc", "/etc"), k.Member("etc/"), k.Member("etc/passwd", b"")], None),
    "link out as last component": (lambda k: [k.link("f", "/etc/passwd"), k.Member("f", b"mine")], None),
    "device nodes": (lambda k: [k.Member("sda", type=b"4", devmajor=8), k.Member("mem", type=b"3", devmajor=1)], None),
    "setuid root": (lambda k: [k.Member("su", b"", mode=0o6777)], None),
    "names that are no UTF-8": (lambda k: [k.Member("\udcff\udcfe", b"")], None),
    "whiteout of the root's content": (lambda k: [k.Member(".wh..wh..opq", b"")], None),
    "whiteout through a link out": (
        lambda k: [k.link("l", "/etc"), k.Member("etc/", None), k.Member("l/.wh.x", b"")],
        None,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_layer_is_refused_or_contained(case, target, tmp_path, kit):
    members, refusal = HOSTILE[case]
    (tmp_path / "outside").write_text("canary")
    (tmp_path / "escaped-not").mkdir()
    host = Path("/etc/passwd").stat()
    before = sorted(os.listdir(tmp_path))
    blob = io.BytesIO(kit.tar(*members(kit)))
    if refusal is None:
        apply_layer(blob, snapshot=target)
    else:
        with pytest.raises(InvalidParameter, match=refusal):
            apply_layer(blob, snapshot=target)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "outside").read_text() == "canary"
    assert Path("/etc/passwd").stat()[:9] == host[:9]
    assert stat.S_ISDIR(target.lstat().st_mode)


def test_entries_of_an_escape_land_inside(target, kit):
    members = (kit.link("l", "../../../.."), kit.Member("l/etc/passwd", b"mine"), kit.Member("/abs", b"abs"))
    apply_layer(io.BytesIO(kit.tar(*members)), snapshot=target)
    assert kit.see(target) == {"l": "-> ../../../..", "etc": "dir", "etc/passwd": "mine", "abs": "abs"}


def test_attributes_this_machine_has_no_use_for_are_reported(target, kit):
    members = (kit.Member("f", b"", pax={"SCHILY.xattr.security.ima": "label"}), kit.Member("g", b"g"))
    applied = apply_layer(io.BytesIO(kit.tar(*members)), snapshot=target)
    assert "attribute 'security.ima' not set" in applied.warnings[0]
    assert (target / "g").read_text() == "g"


def bomb(kind: str, size: int) -> bytes:
    """A tar of one file of `size` zero bytes."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    coder = (
        zlib.compressobj(9, zlib.DEFLATED, 31) if kind == "gzip" else zstandard.ZstdCompressor(level=1).compressobj()
    )
    block = bytes(1 << 20)
    parts = [coder.compress(info.tobuf(tarfile.GNU_FORMAT))]
    parts += [coder.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, coder.compress(bytes(1024)), coder.flush()])


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_compression_bomb_is_stopped_early(kind, target):
    limits = Limits(ratio_floor=16 << 20)
    with pytest.raises(InvalidParameter, match=r"looks like a compression bomb: \d+ bytes became more than \d+"):
        apply_layer(io.BytesIO(bomb(kind, 256 << 20)), snapshot=target, limits=limits)
    assert (target / "zeros").stat().st_size <= 32 << 20


def test_a_layer_too_large_is_refused(target, kit):
    with pytest.raises(InvalidParameter, match="archive too large: more than 1000000 bytes"):
        apply_layer(
            io.BytesIO(kit.tar(kit.Member("f", bytes(2_000_000)))), snapshot=target, limits=Limits(max_bytes=10**6)
        )


def test_too_many_entries_are_refused(target, kit):
    data = kit.tar(*[kit.Member(f"f{number}", b"") for number in range(5000)])
    with pytest.raises(InvalidParameter, match="more than"):
        apply_layer(io.BytesIO(data), snapshot=target, limits=Limits(max_entries=100))
    assert len(os.listdir(target)) < 5000


def test_directories_only_implied_count_as_entries(target, kit):
    data = kit.tar(*[kit.Member(f"{number}/" + "d/" * 1000 + "f", b"") for number in range(3)])
    with pytest.raises(InvalidParameter, match="more than 1500 entries"):
        apply_layer(io.BytesIO(data), snapshot=target, limits=Limits(max_entries=1500))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_layer_is_refused(kept, target, kit):
    data = gzip.compress(kit.tar(*[kit.Member(f"f{n}", os.urandom(50_000)) for n in range(20)]))
    with pytest.raises(InvalidParameter, match="layer: truncated: the gzip data ends in the middle"):
        apply_layer(io.BytesIO(data[: int(len(data) * kept)]), snapshot=target)


def test_what_is_no_archive_is_refused(target):
    with pytest.raises(InvalidParameter, match="no tar archive"):
        apply_layer(io.BytesIO(b"<html>" * 1000), snapshot=target)


def test_a_media_type_that_is_no_layer_is_refused(target):
    with pytest.raises(NotSupported, match="encrypted"):
        apply_layer(io.BytesIO(b""), snapshot=target, media_type="application/vnd.oci.image.layer.v1.tar+encrypted")


def test_an_empty_blob_is_an_empty_layer(target):
    applied = apply_layer(io.BytesIO(b""), snapshot=target)
    assert (applied.entries, applied.diff_id) == (0, f"sha256:{hashlib.sha256().hexdigest()}")


def test_an_abort_stops_an_extraction_that_waits_for_its_input(target):
    read_end, write_end = os.pipe()
    os.write(write_end, gzip.compress(b"")[:5])
    with Abort() as abort:
        threading.Timer(0.2, abort.set).start()
        with pytest.raises(Unavailable, match="stopped"):
            apply_layer(read_end, snapshot=target, abort=abort)
    os.close(read_end)
    os.close(write_end)


def test_an_extraction_is_bounded_in_time(target):
    read_end, write_end = os.pipe()
    with pytest.raises(Unavailable, match="takes too long"):
        apply_layer(read_end, snapshot=target, timeout=0.2)
    os.close(read_end)
    os.close(write_end)


def test_an_extraction_that_makes_no_progress_is_stopped(target):
    read_end, write_end = os.pipe()
    with pytest.raises(Unavailable, match=r"made no progress for 0.2 seconds and was stopped"):
        apply_layer(read_end, snapshot=target, stall=0.2)
    os.close(read_end)
    os.close(write_end)


def test_a_blob_that_fails_to_be_read_says_so(target, kit):
    data = kit.tar(kit.Member("f", bytes(1_000_000)))

    class Torn(io.RawIOBase):
        def __init__(self) -> None:
            self.sent = False

        def read(self, size: int = -1) -> bytes:
            if self.sent:
                raise OSError(5, "Input/output error")
            self.sent = True
            return data[:500_000]

    with pytest.raises(Failed, match="Input/output error"):
        apply_layer(Torn(), snapshot=target)


def test_progress_ends_at_the_size_of_the_blob(target, tmp_path, kit):
    path = tmp_path / "blob"
    path.write_bytes(gzip.compress(kit.tar(*[kit.Member(f"f{n}", os.urandom(100_000)) for n in range(50)]), 1))
    seen: list[int] = []
    with open(path, "rb", buffering=0) as file:
        apply_layer(file, snapshot=target, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size


def test_a_full_disk_is_reported_and_leaves_a_removable_rest(tmp_path, kit):
    point = tmp_path / "small"
    point.mkdir()
    data = kit.tar(kit.Member("first", b"x"), kit.Member("big", os.urandom(4 << 20)))

    def work() -> None:
        mount.mount(Mount(type="tmpfs", source="tmpfs", options=("size=2m",)), point)
        (point / "upper").mkdir()
        with pytest.raises(Failed, match="entry 'big': No space left on device"):
            apply_layer(io.BytesIO(data), snapshot=point / "upper", limits=Limits(reserve=0))
        remove_tree(point / "upper")
        assert os.listdir(point) == []
        mount.umount(point)

    kit.in_namespace(work)


def test_some_space_stays_free(tmp_path, kit):
    point = tmp_path / "small"
    point.mkdir()
    data = kit.tar(kit.Member("big", os.urandom(63 << 20)), kit.Member("more", os.urandom(1 << 20)))

    def work() -> None:
        mount.mount(Mount(type="tmpfs", source="tmpfs", options=("size=66m",)), point)
        (point / "upper").mkdir()
        with pytest.raises(Failed, match=r"no space left on device: .* stay free"):
            apply_layer(io.BytesIO(data), snapshot=point / "upper", limits=Limits(reserve=3 << 20))

    kit.in_namespace(work)


def test_nothing_is_left_behind_by_success_or_failure(target, kit):
    def held() -> tuple[set[str], int, str, set[str]]:
        tasks = Path("/proc/self/task").iterdir()
        children = {pid for task in tasks for pid in (task / "children").read_text().split()}
        mounts = Path("/proc/self/mountinfo").read_text()
        return set(os.listdir("/proc/self/fd")), threading.active_count(), mounts, children

    before = held()
    apply_layer(io.BytesIO(kit.tar(kit.Member("f", b"x"))), snapshot=target)
    for bad in (b"x" * 600, gzip.compress(b"x" * 600)[:20]):
        with pytest.raises(WherryError):
            apply_layer(io.BytesIO(bad), snapshot=target)
    assert held() == before


CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 27, 31))
PRISONER = """
import json, os, socket, sys, threading
from wherry.kernel.libc import check, libc
from wherry.storage.compression import Limits
from wherry.storage.confined import Order, _permitted, confine
order = Order(root=sys.argv[1], whiteouts=None, below=-1, limits=Limits(), parent=os.getppid())
root = confine(order)
def attempt(what):
    try:
        what()
    except OSError as exc:
        return exc.strerror
    except MemoryError:
        return "MemoryError"
    return "done"
def thread(what):
    found = []
    worker = threading.Thread(target=lambda: found.append(what()))
    worker.start()
    worker.join()
    return found[0]
os.mknod("disk", 0o60666, os.makedev(8, 0))
print(json.dumps({
    "root": sorted(os.listdir("/")),
    "cwd": os.getcwd(),
    "up": sorted(os.listdir("/..")),
    "capabilities": _permitted(),
    "open a device": attempt(lambda: os.open("disk", os.O_RDONLY)),
    "signal the parent": attempt(lambda: os.kill(order.parent, 0)),
    "become root": attempt(lambda: os.setuid(0)),
    "chroot": attempt(lambda: os.chroot("/")),
    "reach the network": attempt(lambda: socket.socket().connect(("127.0.0.1", 1))),
    "run a program": attempt(lambda: os.execv("/disk", ["disk"])),
    "fork": attempt(os.fork),
    "make a namespace": attempt(lambda: check(libc.unshare(0x10000000))),
    "mount": attempt(lambda: check(libc.mount(b"/", b"/", None, 4096, None))),
    "be seen by a debugger": attempt(lambda: check(libc.ptrace(0, 0, 0, 0))),
    "use the other calls of the processor": attempt(lambda: check(libc.syscall(0x40000000 + 39))),
    "leave": sorted(os.listdir("/../..")) if os.chdir("..") is None else [],
    "capabilities of a thread": thread(_permitted),
    "a socket of a thread": thread(lambda: attempt(socket.socket)),
    "too much memory": attempt(lambda: bytearray(1100 << 20)),
    "uid": os.getuid(),
    "owner of a new file": (os.mknod("new"), os.stat("new").st_uid)[1],
    "open many files": attempt(lambda: [os.open("/", os.O_RDONLY) for _ in range(1100)]),
}))
"""


def test_the_confined_process_sees_and_may_nothing_else(target):
    (target / "canary").touch()
    done = subprocess.run(
        [sys.executable, "-c", PRISONER, target], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen == {
        "root": ["canary", "disk"],
        "cwd": "/",
        "up": ["canary", "disk"],
        "capabilities": CAPABILITIES,
        "capabilities of a thread": CAPABILITIES,
        "open a device": "Permission denied",
        "signal the parent": "Operation not permitted",
        "become root": "Operation not permitted",
        "chroot": "Operation not permitted",
        "reach the network": "Operation not permitted",
        "a socket of a thread": "Operation not permitted",
        "run a program": "Operation not permitted",
        "fork": "Operation not permitted",
        "make a namespace": "Operation not permitted",
        "mount": "Operation not permitted",
        "be seen by a debugger": "Operation not permitted",
        "use the other calls of the processor": "Operation not permitted",
        "open many files": "Too many open files",
        "leave": ["canary", "disk"],
        "too much memory": "MemoryError",
        "uid": 65534,
        "owner of a new file": 0,
    }


def test_a_child_that_dies_is_explained(target):
    read_end, write_end = os.pipe()
    before = children()
    failed: list[Failed] = []

    def apply() -> None:
        try:
            apply_layer(read_end, snapshot=target)
        except Failed as exc:
            failed.append(exc)

    thread = threading.Thread(target=apply)
    thread.start()
    while not (found := children() - before):
        thread.join(0.01)
    os.kill(found.pop(), 9)
    thread.join()
    os.close(read_end)
    os.close(write_end)
    assert "was killed by signal 9 (out of memory?): it said nothing" in str(failed[0])


def children() -> set[int]:
    return {
        int(child)
        for task in os.listdir("/proc/self/task")
        for child in Path(f"/proc/self/task/{task}/children").read_text().split()
    }
