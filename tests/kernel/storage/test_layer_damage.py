"""Trees compared and mended: every way in which a file can be another than it should be."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.descriptors import descriptors
from wherry.errors import Failed
from wherry.kernel import mount
from wherry.kernel.mount import Mount
from wherry.storage.compare import differences, mend
from wherry.storage.tree import walk

pytestmark = pytest.mark.kernel

NS = 10**18


def make(root: Path) -> Path:
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/passwd").write_text("root")
    os.link(root / "etc/passwd", root / "etc/linked")
    (root / "tool").write_bytes(b"x" * 3_000_000)
    (root / "tool").chmod(0o4755)
    os.symlink("tool", root / "link")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "gone", stat.S_IFCHR, 0)
    os.setxattr(root / "etc", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "tool", "user.x", b"1")
    for path in (root / "etc/passwd", root / "tool", root / "link", root / "null", root / "etc", root):
        os.utime(path, ns=(NS, NS), follow_symlinks=False)
    return root


def rewrite(root: Path) -> None:
    """The same size and time, another last byte."""
    (root / "tool").write_bytes(b"x" * 2_999_999 + b"y")
    os.utime(root / "tool", ns=(NS, NS))


def put(name: str, act: Callable[[Path], object], *, gone: bool = True) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        if gone:
            (root / name).unlink()
        act(root / name)

    return harm


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.utime(path, ns=(NS, NS))


def relink(path: Path) -> None:
    os.symlink("root", path)
    os.utime(path, ns=(NS, NS), follow_symlinks=False)


HARM: list[tuple[Callable[[Path], object], list[str]]] = [
    (lambda root: (root / "tool").unlink(), ["'tool': missing"]),
    (lambda root: shutil.rmtree(root / "etc"), ["'etc': missing"]),
    (lambda root: (root / "etc/deep").rmdir(), ["'etc/deep': missing"]),
    (lambda root: (root / "etc/more").mkdir(), ["'etc/more': not part of the layer"]),
    (lambda root: os.truncate(root / "tool", 5), ["'tool': it has 5 bytes, not 3000000"]),
    (rewrite, ["'tool': its content was altered"]),
    (lambda root: (root / "tool").chmod(0o755), ["'tool': its mode is 0755, not 4755"]),
    (lambda root: (root / "etc").chmod(0o1777), ["'etc': its mode is 1777, not 0755"]),
    (lambda root: root.chmod(0o700), ["'/': its mode is 0700, not 0755"]),
    (lambda root: os.lchown(root / "link", 1, 2), ["'link': its owner is 1:2, not 0:0"]),
    (lambda root: os.utime(root / "etc/linked", ns=(1, 1)), ["'etc/linked': its time", "'etc/passwd': its time"]),
    (put("tool", os.mkfifo), ["'tool': something of another kind"]),
    (put("tool", Path.mkdir), ["'tool': something of another kind"]),
    (lambda root: (shutil.rmtree(root / "etc"), (root / "etc").touch()), ["'etc': something of another kind"]),
    (put("link", relink), ["'link': leads to 'root'"]),
    (put("null", device), ["'null': another device"]),
    (put("gone", Path.touch), ["'gone': something of another kind"]),
    (lambda root: os.removexattr(root / "etc", "trusted.overlay.opaque"), ["'etc': its extended attributes"]),
    (lambda root: os.setxattr(root / "etc/deep", "user.y", b""), ["'etc/deep': its extended attributes"]),
    (lambda root: os.setxattr(root / "tool", "user.x", b"2"), ["'tool': its extended attributes"]),
    (lambda root: os.utime(root / "gone", ns=(1, 1)), []),  # the time of a deletion means nothing
]


@pytest.mark.parametrize(("harm", "words"), HARM, ids=[str(number) for number in range(len(HARM))])
def test_damage_is_found_in_words_and_mended(tmp_path: Path, harm, words: list[str]):
    right, found = make(tmp_path / "right"), make(tmp_path / "found")
    harm(found)
    held = descriptors()
    told = [str(difference) for difference in differences(right, found)]
    assert len(told) == len(words)
    assert all(said.startswith(word) for said, word in zip(told, words, strict=True)), told
    for difference in differences(right, found):
        mend(right, found, difference.path)
    assert not descriptors() - held
    assert list(differences(make(tmp_path / "again"), found)) == []
    assert (found / "etc/passwd").samefile(found / "etc/linked")


def test_everything_at_once_is_mended(tmp_path: Path):
    right, found = make(tmp_path / "right"), make(tmp_path / "found")
    shutil.rmtree(found / "etc")
    (found / "etc").symlink_to("/")
    for name in ("tool", "link", "null", "gone"):
        (found / name).unlink()
        (found / name).mkdir()
        (found / name / "x").touch()
    for difference in differences(right, found):
        mend(right, found, difference.path)
    again = make(tmp_path / "again")
    assert list(differences(again, found)) == []
    assert found.stat().st_mtime_ns == NS


def test_contents_are_compared_only_if_asked(tmp_path: Path):
    right, found = make(tmp_path / "right"), make(tmp_path / "found")
    rewrite(found)
    assert list(differences(right, found, contents=False)) == []


def test_nothing_is_mended_through_a_link(tmp_path: Path):
    """What is in the way may lead anywhere; only the layer is touched."""
    right, found = make(tmp_path / "right"), make(tmp_path / "found")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "passwd").write_text("canary")
    shutil.rmtree(found / "etc")
    (found / "etc").symlink_to(outside)
    for difference in differences(right, found):
        mend(right, found, difference.path)
    assert (outside / "passwd").read_text() == "canary"
    assert sorted(os.listdir(outside)) == ["deep", "passwd"]


def test_what_cannot_be_mended_is_told_with_the_reason(tmp_path: Path, kit):
    right = make(tmp_path / "right")

    def work() -> None:
        target = tmp_path / "found"
        make(target)
        (target / "tool").unlink()
        mount.bind(os.fspath(target), os.fspath(target))
        mount.mount(Mount(type="bind", source=os.fspath(target), options=("bind", "ro")), target)
        assert [difference.path for difference in differences(right, target)] == [b"tool"]
        with pytest.raises(Failed, match=r"cannot mend 'tool': .*found"):
            mend(right, target, b"tool")

    kit.in_namespace(work)


def test_a_tree_of_many_files_is_compared_with_few_descriptors(tmp_path: Path):
    for root in ("right", "found"):
        for number in range(300):
            (tmp_path / root / f"d{number % 7}/e{number}").mkdir(parents=True)
    seen = set()
    (tmp_path / "found/d3/e3").rmdir()
    before = len(os.listdir("/proc/self/fd"))
    for difference in differences(tmp_path / "right", tmp_path / "found"):
        seen.add(difference.path)
        assert len(os.listdir("/proc/self/fd")) - before < 10
    assert seen == {b"d3/e3"}
    with os.scandir(tmp_path / "found/d3") as entries:
        assert len(list(entries)) > 1
    fd = os.open(tmp_path / "found", os.O_RDONLY)
    try:
        assert sum(len(listing.entries) for listing in walk(fd)) == 306
    finally:
        os.close(fd)
