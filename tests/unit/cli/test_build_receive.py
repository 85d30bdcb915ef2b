"""Results of a build, written where the user wants them and nowhere else."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from wherry.cli.build_layouts import LayoutError, add_to_index, blob_path, digest_of
from wherry.cli.build_receive import BlobSink, FileSink, TreeSink, Unacceptable, pairs

REGULAR, DIRECTORY, LINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO


def test_a_file_stands_there_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.tar"
    sink = FileSink(str(target))
    sink.write(b"one")
    assert not target.exists()
    sink.write(b"two")
    sink.finish()
    assert target.read_bytes() == b"onetwo"
    assert os.listdir(target.parent) == ["out.tar"]


def test_of_a_file_that_is_given_up_nothing_stays_and_what_was_there_does(tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    target.write_text("before")
    sink = FileSink(str(target))
    sink.write(b"half")
    sink.abandon()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["out.tar"]


def test_a_tree_has_its_modes_times_and_links(tmp_path: Path) -> None:
    root = tmp_path / "out"
    sink = TreeSink(str(root))
    sink.entry(DIRECTORY | 0o555, 0, 5_000_000_000, 0, "d", "")
    sink.entry(REGULAR | 0o4755, 3, 7_000_000_000, 0, "d/f", "")
    sink.write(b"abc")
    sink.entry(REGULAR | 0o4755, 3, 7_000_000_000, 0, "hard", "d/f")
    sink.entry(LINK | 0o777, 0, 9_000_000_000, 0, "soft", "d/f")
    sink.entry(FIFO | 0o600, 0, 1, 0, "pipe", "")
    sink.entry(stat.S_IFCHR | 0o666, 0, 1, 259, "null", "")
    sink.finish()
    assert (root / "d/f").read_bytes() == b"abc"
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o4755
    assert (root / "d/f").stat().st_mtime == 7
    assert (root / "d").stat().st_mtime == 5
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o555
    assert (root / "hard").stat().st_ino == (root / "d/f").stat().st_ino
    assert os.readlink(root / "soft") == "d/f"
    assert (root / "soft").lstat().st_mtime == 9
    assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
    assert not (root / "null").exists(), "devices mean nothing here"


def test_what_is_there_already_stays_unless_it_has_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "same").write_text("old")
    (tmp_path / "same-link").symlink_to("/etc/passwd")
    sink = TreeSink(str(tmp_path))
    for name in ("same", "same-link"):
        sink.entry(REGULAR | 0o644, 3, 0, 0, name, "")
        sink.write(b"new")
    sink.finish()
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "same").read_text() == "new"
    assert not (tmp_path / "same-link").is_symlink()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", ".", "link/x", "file/x"])
def test_nothing_is_written_outside(tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").write_text("")
    sink = TreeSink(str(root))
    with pytest.raises(Unacceptable):
        sink.entry(REGULAR | 0o644, 0, 0, 0, path, "")
    assert not os.listdir(outside)


def test_a_hard_link_leads_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    sink = TreeSink(str(tmp_path / "out"))
    with pytest.raises(Unacceptable):
        sink.entry(REGULAR | 0o644, 0, 0, 0, "x", "../secret")


def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(Unacceptable, match="there is a directory of that name"):
        TreeSink(str(tmp_path)).entry(REGULAR | 0o644, 0, 0, 0, "d", "")


def test_several_platforms_have_a_directory_each(tmp_path: Path) -> None:
    sink = TreeSink(str(tmp_path), "linux_arm64")
    sink.entry(REGULAR | 0o644, 0, 0, 0, "x", "")
    sink.finish()
    assert (tmp_path / "linux_arm64/x").exists()
    for prefix in ("..", "a/b", ".hidden"):
        with pytest.raises(Unacceptable):
            TreeSink(str(tmp_path), prefix)


def test_names_need_not_be_text() -> None:
    assert pairs(b"a\xff\0\0b\0link\0", 2) == [("a\udcff", ""), ("b", "link")]
    with pytest.raises(Unacceptable):
        pairs(b"a\0", 1)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_blob_is_only_kept_when_it_is_what_it_is_called(tmp_path: Path) -> None:
    good = BlobSink(str(tmp_path), digest(b"data"), 4)
    good.write(b"data")
    good.finish()
    assert (tmp_path / "blobs/sha256" / digest(b"data")[7:]).read_bytes() == b"data"
    for said, size in ((b"other", 4), (b"data!", 5)):
        bad = BlobSink(str(tmp_path), digest(said), size)
        bad.write(b"data")
        with pytest.raises(Unacceptable, match="came broken"):
            bad.finish()
    assert len(os.listdir(tmp_path / "blobs/sha256")) == 1


def test_an_index_names_one_thing_by_one_tag(tmp_path: Path) -> None:
    layout = str(tmp_path / "layout")
    first = {"mediaType": "m", "digest": digest(b"1"), "size": 1, "annotations": {"kept": "yes"}}
    second = {"mediaType": "m", "digest": digest(b"2"), "size": 1}
    add_to_index(layout, first, "latest")
    assert digest_of(layout, "anything") == digest(b"1"), "there is only one"
    add_to_index(layout, second, "other")
    assert (digest_of(layout, "latest"), digest_of(layout, "other")) == (digest(b"1"), digest(b"2"))
    add_to_index(layout, second, "latest")
    assert digest_of(layout, "latest") == digest(b"2")
    with pytest.raises(LayoutError, match="holds nothing named nope"):
        digest_of(layout, "nope")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"manifests":[{"digest":"sha256:../x"}]}', b'{"manifests":[1]}']
)
def test_a_broken_layout_says_what_is_wrong(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(LayoutError):
        digest_of(str(tmp_path), "latest")


@pytest.mark.parametrize("text", ["sha256:../../x", "x", "md5:aa", "sha256:"])
def test_a_blob_is_nowhere_but_among_the_blobs(text: str) -> None:
    with pytest.raises(LayoutError):
        blob_path("/layout", text)
