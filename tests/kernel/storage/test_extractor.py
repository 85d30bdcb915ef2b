"""The extractor in this process: random layers, and what `docker cp` asks of it."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.descriptors import descriptors
from wherry.digest import ChainID, of
from wherry.errors import InvalidParameter
from wherry.kernel import mount
from wherry.kernel.files import closing
from wherry.storage import diff
from wherry.storage.archive import Entry, Kind, TarReader
from wherry.storage.archive_writer import TarWriter
from wherry.storage.extract import Extractor, Whiteouts, mark_opaque
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter
from wherry.storage.tree import remove_tree

pytestmark = pytest.mark.kernel

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def pack(entries: list[tuple[Kind, str, str]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for kind, name, text in entries:
        entry = Entry(os.fsencode(name), kind)
        entry.mode, entry.mtime = 0o755, 10**18
        if kind is Kind.FILE:
            entry.size = len(text)
        else:
            entry.link = os.fsencode(text)
        writer.add(entry, (text.encode(),))
    writer.finish()
    return out.getvalue()


def extract(data: bytes, target: Path, **options: object) -> Extractor:
    with closing(os.open(target, DIRECTORY)) as root:
        extractor = Extractor(root, **options)  # type: ignore[arg-type]
        extractor.extract(TarReader([data]))
    return extractor


# Layers

parts = st.sampled_from(["a", "b", "c"])
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
directories = st.lists(parts, max_size=2).map(lambda p: "".join(f"{part}/" for part in p))
plain = st.tuples(st.sampled_from([Kind.FILE, Kind.DIRECTORY]), paths, st.sampled_from(["x", "yy"]))
whiteout = st.tuples(directories, parts).map(lambda p: (Kind.FILE, f"{p[0]}.wh.{p[1]}", ""))
opaque = directories.map(lambda p: (Kind.FILE, f"{p}.wh..wh..opq", ""))


def put(snapshots, key: str, parent: ChainID | None, data: bytes) -> None:
    snapshots.prepare(key, parent)
    upper = snapshots.upper(key)
    if parent is None:
        extract(data, upper)
    elif snapshots.whiteouts is Whiteouts.APPLY:
        extract(data, upper, whiteouts=Whiteouts.APPLY)
    else:
        with closing(mount.open_detached(snapshots.view(parent))) as below, closing(os.open(upper, DIRECTORY)) as root:
            mark_opaque(root, extract(data, upper, whiteouts=Whiteouts.OVERLAY, below=below).opaque)


def whole(entries: list[tuple[Kind, str, str]]) -> list[tuple[Kind, str, str]]:
    """With the directory of each deletion described before it, as every tool that makes layers does."""
    found = []
    for entry in entries:
        directory, _, base = entry[1].rpartition("/")
        if base.startswith(".wh.") and directory:
            found.append((Kind.DIRECTORY, directory, ""))
        found.append(entry)
    return found


@settings(max_examples=120, deadline=None)
@given(base=st.lists(plain, max_size=8), top=st.lists(st.one_of(plain, whiteout, opaque), max_size=8))
def test_both_drivers_make_the_same_tree_of_any_layers(base, top, kit):
    """The kernel's overlay is one reading of a layer, carrying its deletions out is another: they must agree."""
    chain = ChainID(of(b"base"))
    trees, layers = [], []
    for driver in (OverlaySnapshotter, NativeSnapshotter):
        root = Path(tempfile.mkdtemp(prefix="wherry-test-"))
        snapshots = driver(root)
        outcome: object
        try:
            put(snapshots, "low", None, pack(base))
            snapshots.commit("low", chain)
            put(snapshots, "top", chain, pack(whole(top)))
            outcome = kit.see_mounts(snapshots.peek("top"))
            # and what is read back as a layer is that layer, to whoever applies it
            again = io.BytesIO()
            diff.write_diff(snapshots, "top", again)
            put(snapshots, "again", chain, again.getvalue())
            layers.append(kit.see_mounts(snapshots.peek("again")))
        except InvalidParameter as exc:
            outcome = exc.message
            layers.append(outcome)
        finally:
            snapshots.close()
            shutil.rmtree(root)
        trees.append(outcome)
    assert trees[0] == trees[1]
    assert layers == trees


links = st.tuples(
    st.just(Kind.SYMLINK), paths, st.sampled_from(["..", "../..", "/", "a", "b/c", "../../outside", "/a/b", "."])
)
hard = st.tuples(st.just(Kind.HARDLINK), paths, st.one_of(paths, st.just("../outside"), st.just("/a")))
climbing = st.tuples(st.just(Kind.FILE), paths.map(lambda p: f"../{p}"), st.just("evil"))


@settings(max_examples=300, deadline=None)
@given(
    entries=st.lists(st.one_of(plain, links, hard, whiteout, opaque, climbing), max_size=10),
    whiteouts=st.sampled_from([None, Whiteouts.OVERLAY, Whiteouts.APPLY]),
)
def test_no_layer_touches_anything_outside_its_root(entries, whiteouts):
    with tempfile.TemporaryDirectory(prefix="wherry-test-") as name:
        around = Path(name)
        root = around / "x" / "root"
        root.mkdir(parents=True)
        (around / "outside").write_text("canary")
        (around / "x" / "a").mkdir()
        (around / "x" / "b").write_text("canary")
        held = descriptors()
        with contextlib.suppress(InvalidParameter):
            extract(pack(entries), root, whiteouts=whiteouts)
        assert not descriptors() - held
        assert sorted(os.listdir(around)) == ["outside", "x"]
        assert sorted(os.listdir(around / "x")) == ["a", "b", "root"]
        assert os.listdir(around / "x" / "a") == []
        assert (around / "outside").read_text() == (around / "x" / "b").read_text() == "canary"
        assert (around / "outside").stat().st_nlink == 1
        remove_tree(root)


# docker cp


def test_outside_of_layers_whiteout_names_are_names(tmp_path):
    extract(pack([(Kind.FILE, ".wh.x", "a"), (Kind.FILE, ".wh..wh..opq", "b")]), tmp_path)
    assert (tmp_path / ".wh.x").read_text() == "a"
    assert (tmp_path / ".wh..wh..opq").read_text() == "b"


def test_the_owner_can_be_given(tmp_path):
    members = [(Kind.FILE, "f", "x"), (Kind.DIRECTORY, "d", ""), (Kind.SYMLINK, "l", "f")]
    extract(pack(members), tmp_path, owner=(7, 8))
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in tmp_path.iterdir()} == {(7, 8)}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((Kind.FILE, "d", "x"), "cannot overwrite directory with non-directory: 'd'"),
        ((Kind.DIRECTORY, "f", ""), "cannot overwrite non-directory with directory: 'f/'"),
        ((Kind.DIRECTORY, "l", ""), "cannot overwrite non-directory with directory: 'l/'"),
    ],
)
def test_kinds_can_be_protected(tmp_path, entry, words):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to("d")
    with pytest.raises(InvalidParameter, match=words):
        extract(pack([entry]), tmp_path, replace_kinds=False)
    assert sorted(os.listdir(tmp_path)) == ["d", "f", "l"]


def test_files_and_directories_replace_their_like_even_when_kinds_are_protected(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kept").touch()
    (tmp_path / "f").write_text("old")
    extract(pack([(Kind.FILE, "f", "new"), (Kind.DIRECTORY, "d", "")]), tmp_path, replace_kinds=False)
    assert (tmp_path / "f").read_text() == "new"
    assert (tmp_path / "d" / "kept").exists()


def test_attributes_of_links_and_nodes_are_set(tmp_path):
    out = io.BytesIO()
    writer = TarWriter(out)
    entry = Entry(b"d/l", Kind.SYMLINK)
    entry.link, entry.xattrs = b"x", {b"trusted.note": b"on a link"}
    writer.add(entry)
    writer.finish()
    extract(out.getvalue(), tmp_path)
    assert os.getxattr(tmp_path / "d/l", "trusted.note", follow_symlinks=False) == b"on a link"
