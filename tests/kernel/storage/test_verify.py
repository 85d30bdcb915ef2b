"""Layers verified against their blobs: "yes" is never said of a tree that extraction would not have made."""

import io
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.digest import ChainID, DiffID, of
from wherry.errors import InvalidParameter
from wherry.kernel import mount
from wherry.kernel.files import closing
from wherry.storage.archive import Entry, Kind, TarReader
from wherry.storage.archive_writer import TarWriter
from wherry.storage.compare import differences
from wherry.storage.diff import verify_layer
from wherry.storage.extract import Extractor, Whiteouts, mark_opaque
from wherry.storage.overlay import OverlaySnapshotter
from wherry.storage.tree import walk
from wherry.storage.verify import Verifier

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


def extract(data: bytes, tree: Path, below: Path | None) -> None:
    with closing(os.open(tree, DIRECTORY)) as root:
        if below is None:
            Extractor(root, whiteouts=Whiteouts.APPLY).extract(TarReader([data]))
            return
        with closing(os.open(below, DIRECTORY)) as under:
            extractor = Extractor(root, whiteouts=Whiteouts.OVERLAY, below=under)
            extractor.extract(TarReader([data]))
            mark_opaque(root, extractor.opaque)


def verify(data: bytes, tree: Path, below: Path | None) -> str:
    """As `verify_layer`, in this process."""
    kind = Whiteouts.APPLY if below is None else Whiteouts.OVERLAY
    with closing(os.open(tree, DIRECTORY)) as root, closing(os.open(below or tree, DIRECTORY)) as under:
        verifier = Verifier(root, whiteouts=kind, below=None if below is None else under, contents=True)
        doubt = verifier.verify(TarReader([data]))
        marked = {each.path for each in walk(root) if "trusted.overlay.opaque" in os.listxattr(each.fd)}
        return doubt or ("" if marked == verifier.opaque else "opaque")


parts = st.sampled_from(["a", "b", "c"])
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
directories = st.lists(parts, max_size=2).map(lambda p: "".join(f"{part}/" for part in p))
plain = st.tuples(st.sampled_from([Kind.FILE, Kind.DIRECTORY]), paths, st.sampled_from(["x", "yy"]))
links = st.tuples(st.just(Kind.SYMLINK), paths, st.sampled_from(["..", "a", "b/c", "/a"]))
hard = st.tuples(st.just(Kind.HARDLINK), paths, paths)
whiteout = st.tuples(directories, parts).map(lambda p: (Kind.FILE, f"{p[0]}.wh.{p[1]}", ""))
opaque = directories.map(lambda p: (Kind.FILE, f"{p}.wh..wh..opq", ""))
layers = st.lists(st.one_of(plain, plain, links, hard, whiteout, opaque), max_size=7)


def harm(tree: Path, how: str, number: int) -> None:
    """One damage somewhere in the tree."""
    found = sorted(path for path in tree.rglob("*"))
    victim = found[number % len(found)] if found else tree
    if how == "more" or victim == tree:
        place = victim if victim.is_dir() and not victim.is_symlink() else victim.parent
        (place / "more").touch()
    elif how == "remove":
        shutil.rmtree(victim) if stat.S_ISDIR(victim.lstat().st_mode) else victim.unlink()
    elif how == "owner":
        os.lchown(victim, 5, 5)
    elif how == "opaque" and stat.S_ISDIR(victim.lstat().st_mode):
        os.setxattr(victim, "trusted.overlay.opaque", b"y")
    elif stat.S_ISREG(victim.lstat().st_mode):
        status = victim.stat()
        victim.write_bytes(b"z" * status.st_size)
        os.utime(victim, ns=(status.st_mtime_ns, status.st_mtime_ns))


@settings(max_examples=200, deadline=None)
@given(
    base=st.none() | st.lists(plain, max_size=5),
    top=layers,
    how=st.sampled_from(["more", "remove", "owner", "opaque", "content"]),
    number=st.integers(0, 20),
)
def test_yes_is_said_only_of_what_extraction_would_have_made(base, top, how, number):
    with tempfile.TemporaryDirectory(prefix="wherry-test-") as scratch:
        right, harmed = Path(scratch, "right"), Path(scratch, "harmed")
        below = None if base is None else Path(scratch, "below")
        for path in (right, harmed, *([below] if below else [])):
            path.mkdir(0o755)
        data = pack(top)
        try:
            if below is not None and base is not None:
                extract(pack(base), below, None)
            extract(data, right, below)
            extract(data, harmed, below)
        except InvalidParameter:
            return
        if _is_plain(top):
            assert verify(data, right, below) == ""
        harm(harmed, how, number)
        if list(differences(right, harmed)):
            assert verify(data, harmed, below) != ""


def _is_plain(entries: list[tuple[Kind, str, str]]) -> bool:
    """Files and directories, each place once, nothing deleted."""
    files = [name for kind, name, _ in entries if kind is Kind.FILE and ".wh." not in name]
    folders = [name for kind, name, _ in entries if kind is Kind.DIRECTORY]
    places = [*files, *folders]
    inside = any(other.startswith(f"{name}/") for name in files for other in places)
    return len(places) == len(entries) == len(set(places)) and not inside


def test_a_layer_as_tools_make_them_is_confirmed_without_a_doubt(tmp_path, kit):
    snapshots = OverlaySnapshotter(tmp_path / "root")
    data = {
        "base": kit.tar(
            kit.Member("./", mode=0o755),
            kit.Member("etc/"),
            kit.Member("etc/passwd", b"root", mode=0o600, uid=3, gid=4, pax={"SCHILY.xattr.user.x": "y"}),
            kit.Member("bin/tool", os.urandom(200_000), mode=0o4755),
            kit.hard("bin/linked", "bin/tool"),
            kit.link("sh", "bin/tool"),
            kit.Member("null", type=b"3", devmajor=1, devminor=3),
            kit.Member("pipe", type=b"6"),
            kit.Member("d/old", b"old"),
        ),
        "top": kit.tar(
            kit.Member("etc/.wh.passwd", b""),
            kit.Member("d/"),
            kit.Member("d/.wh..wh..opq", b""),
            kit.Member("d/new", b"new"),
            kit.Member("bin/.wh.nothing", b""),
            kit.Member("bin/more", b"more"),
        ),
    }
    parent = None
    for name, layer in data.items():
        snapshots.prepare(name, parent)
        below = None if parent is None else mount.open_detached(snapshots.view(parent))
        tree = snapshots.upper(name)
        with closing(os.open(tree, DIRECTORY)) as root:
            kind = Whiteouts.APPLY if below is None else Whiteouts.OVERLAY
            extractor = Extractor(root, whiteouts=kind, below=below)
            extractor.extract(TarReader([layer]))
            mark_opaque(root, extractor.opaque)
        if below is not None:
            os.close(below)
        chain = ChainID(of(layer))
        snapshots.commit(name, chain)
        verified = verify_layer(snapshots, chain, io.BytesIO(layer))
        assert (verified.doubt, verified.diff_id) == ("", DiffID(of(layer)))
        parent = chain
    (snapshots.layer(ChainID(of(data["base"]))) / "bin/tool").chmod(0o755)
    verified = verify_layer(snapshots, ChainID(of(data["base"])), io.BytesIO(data["base"]))
    assert verified.doubt == "'bin/tool': has another mode"
    snapshots.close()


def test_nothing_can_be_written_while_a_layer_is_verified(tmp_path):
    """The process that reads the archive holds the tree read-only."""
    import json
    import subprocess
    import sys

    code = """
import json, os, sys
from wherry.storage.compression import Limits
from wherry.storage.confined import Order, confine
confine(Order(root=sys.argv[1], whiteouts=None, below=-1, limits=Limits(), parent=os.getppid(), verify=True))
try:
    os.mkdir("/new")
except OSError as exc:
    print(json.dumps(exc.strerror))
"""
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=env, check=True)
    assert json.loads(done.stdout) == "Read-only file system"
