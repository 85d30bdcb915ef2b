"""Any copy of any tree: it is done or refused in words, and touches nothing but its target."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.builder.files.apply import apply
from wherry.builder.files.checksum import ChecksumIndex, Source, checksum
from wherry.builder.files.select import select
from wherry.builder.graph import Action, Copy, MakeDirectory, MakeFile, MakeSymlink, Remove
from wherry.errors import WherryError

NAMES = st.sampled_from(["a", "b", "c", "*", "[a", ".wh.a", "\udcff", "ü", "x" * 255])
PATHS = st.lists(st.one_of(NAMES, st.sampled_from(["..", ".", ""])), max_size=4).map("/".join)
WILD = st.one_of(PATHS, st.lists(st.sampled_from(["*", "?", "[ab]", "a", "**", "[", "\\"]), max_size=3).map("/".join))
LINKS = st.one_of(PATHS, PATHS.map(lambda path: "/" + path), st.just("../" * 30 + "outside"))
CONTENT = st.one_of(st.none(), st.binary(max_size=4), LINKS)  # a directory, a file, a link
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), CONTENT, max_size=6)
PATTERNS = st.lists(st.one_of(WILD, WILD.map(lambda text: "!" + text)), max_size=2).map(tuple)
COPIES = st.builds(
    Copy,
    source=WILD,
    target=PATHS,
    follow_symlink=st.booleans(),
    contents=st.booleans(),
    unpack=st.booleans(),
    make_target=st.booleans(),
    wildcard=st.booleans(),
    empty_wildcard=st.booleans(),
    parents=st.booleans(),
    include=PATTERNS,
    exclude=PATTERNS,
    replace=st.booleans(),
    mode=st.sampled_from(["", "700", "u=rwX", "x"]),
)
OTHERS = st.one_of(
    st.builds(MakeFile, path=PATHS, data=st.binary(max_size=3)),
    st.builds(MakeDirectory, path=PATHS, parents=st.booleans()),
    st.builds(MakeSymlink, old=LINKS, new=PATHS),
    st.builds(Remove, path=WILD, allow_missing=st.booleans(), wildcard=st.booleans()),
)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wherry-hostile-"))
    yield path
    shutil.rmtree(path)


def _make(root: Path, tree: dict[str, bytes | str | None]) -> int:
    root.mkdir()
    for name, content in tree.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            elif content:
                path.symlink_to(content)
        except (OSError, ValueError):
            continue  # what the example cannot have
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY)


def _listing(root: Path) -> list[tuple[str, int, int]]:
    found = []
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files, "."):
            status = os.lstat(os.path.join(directory, name))
            found.append((os.path.join(directory, name), status.st_ino, status.st_ctime_ns))
    return sorted(found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(TREES, TREES, st.one_of(COPIES, COPIES, OTHERS))
def test_an_action_is_done_or_refused_and_stays_in_its_target(base, sources, targets, action: Action):
    place = Path(tempfile.mkdtemp(dir=base))
    (place / "outside").mkdir()
    (place / "outside/file").write_text("x")
    source, target = _make(place / "source", sources), _make(place / "target", targets)
    before = _listing(place / "outside"), _listing(place / "source"), sorted(os.listdir(place))
    try:
        selection = None
        if isinstance(action, Copy):
            selection = select(source, action)
            known = ChecksumIndex().of(Source(root=source))
            assert checksum(source, action, selection, known) == checksum(source, action, selection, known)
        apply(target, action, source, selection, epoch_ns=10**18, name_lookup=None)
    except WherryError:
        pass  # in words
    finally:
        os.close(source)
        os.close(target)
    assert (_listing(place / "outside"), _listing(place / "source"), sorted(os.listdir(place))) == before
    shutil.rmtree(place)
