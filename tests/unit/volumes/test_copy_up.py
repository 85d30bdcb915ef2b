import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherry.volumes.copy_up import copy_tree


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    with opened(source) as origin, opened(target) as copy:
        copy_tree(origin, copy)


def attributes(path: Path) -> tuple[int, int, int, int, int, int]:
    info = path.lstat()
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    return info.st_mode, info.st_uid, info.st_gid, size, info.st_mtime_ns, info.st_rdev


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    return {str(path.relative_to(root)): attributes(path) for path in [root, *root.rglob("*")]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "dir" / "deeper").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"content" * 1000)
    (root / "dir" / "empty").touch()
    (root / "link").symlink_to("dir/file")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo", 0o640)
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "tool").chmod(0o4755)
    (root / "dir").chmod(0o1777)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(10**18, 10**18 + number * 123_456_789), follow_symlinks=False)
    os.utime(root, ns=(10**18, 10**18 + 5))
    return root


def test_everything_is_copied_with_its_attributes(tmp_path: Path, source: Path) -> None:
    before = snapshot(source)
    copy(source, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == before
    assert (tmp_path / "copy" / "dir" / "file").read_bytes() == b"content" * 1000
    assert os.readlink(tmp_path / "copy" / "dangling") == "/nowhere"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_owners_and_set_id_bits_are_kept(tmp_path: Path, source: Path) -> None:
    os.chown(source / "tool", 1234, 5678)
    (source / "tool").chmod(0o6755)
    os.chown(source / "link", 42, 43, follow_symlinks=False)
    os.chown(source, 7, 8)
    before = snapshot(source)
    copy(source, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == before
    assert stat.S_IMODE((tmp_path / "copy" / "tool").stat().st_mode) == 0o6755


def test_hard_links_stay_one_file(tmp_path: Path, source: Path) -> None:
    os.link(source / "dir" / "file", source / "dir" / "deeper" / "same")
    copy(source, tmp_path / "copy")
    one, other = tmp_path / "copy" / "dir" / "file", tmp_path / "copy" / "dir" / "deeper" / "same"
    assert one.stat().st_ino == other.stat().st_ino
    assert one.stat().st_nlink == 2


def test_hard_linked_symlinks_stay_one(tmp_path: Path, source: Path) -> None:
    os.link(source / "dangling", source / "dir" / "again", follow_symlinks=False)
    copy(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "dangling").lstat().st_ino == (tmp_path / "copy" / "dir" / "again").lstat().st_ino


def test_xattrs_are_copied(tmp_path: Path, source: Path) -> None:
    try:
        os.setxattr(source / "dir" / "file", "user.colour", b"blue")
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            pytest.skip("the file system of tmp_path has no user xattrs")
        raise
    os.setxattr(source / "dir", "user.colour", b"green")
    copy(source, tmp_path / "copy")
    assert os.getxattr(tmp_path / "copy" / "dir" / "file", "user.colour") == b"blue"
    assert os.getxattr(tmp_path / "copy" / "dir", "user.colour") == b"green"


def test_holes_stay_holes(tmp_path: Path, source: Path) -> None:
    with open(source / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"island")
    copy(source, tmp_path / "copy")
    copied = tmp_path / "copy" / "sparse"
    assert copied.stat().st_size == 64 << 20
    assert copied.stat().st_blocks * 512 < 8 << 20
    with open(copied, "rb") as file:
        file.seek(32 << 20)
        assert file.read(6) == b"island"


def test_names_that_are_no_utf8_are_copied(tmp_path: Path, source: Path) -> None:
    name = os.fsencode(source) + b"/\xff\xfe name"
    with open(name, "wb") as file:
        file.write(b"x")
    copy(source, tmp_path / "copy")
    assert os.path.exists(os.fsencode(tmp_path / "copy") + b"/\xff\xfe name")


def test_a_deep_tree_needs_few_descriptors(tmp_path: Path) -> None:
    import resource

    deepest = tmp_path / "source"
    for _ in range(200):
        deepest = deepest / "d"
    deepest.mkdir(parents=True)
    (deepest / "file").write_text("bottom")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        copy(tmp_path / "source", tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (tmp_path / "copy" / deepest.relative_to(tmp_path / "source") / "file").read_text() == "bottom"
