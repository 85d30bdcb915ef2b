"""The content of a copy as one digest: what changes it and what must not."""

import hashlib
import os

import pytest

from wherry.builder.files import checksum as module
from wherry.builder.files.checksum import ChecksumIndex, Source, checksum
from wherry.builder.files.select import select
from wherry.builder.graph import Copy

FILES = {"d/a": "a", "d/b": "b", "d/sub/c": "c", "d/link": "-> a", "e/": ""}


@pytest.fixture
def digest(place):
    place.source.fill(FILES)
    return lambda source="d", **options: place.checksum(source, **options).digest


def _write(root, name, content):
    (root / name).write_text(content)


CHANGES = {
    "content": lambda root: _write(root, "d/a", "A"),
    "a new file": lambda root: _write(root, "d/sub/new", ""),
    "a new directory": lambda root: (root / "d/new").mkdir(),
    "a name": lambda root: (root / "d/a").rename(root / "d/aa"),
    "a place": lambda root: (root / "d/b").rename(root / "d/sub/b"),
    "a mode": lambda root: (root / "d/a").chmod(0o755),
    "the mode of a directory": lambda root: (root / "d/sub").chmod(0o700),
    "a link": lambda root: ((root / "d/link").unlink(), (root / "d/link").symlink_to("b")),
    "a kind": lambda root: ((root / "d/link").unlink(), _write(root, "d/link", "a")),
    "a fifo": lambda root: os.mkfifo(root / "d/fifo"),
    "an attribute": lambda root: os.setxattr(root / "d/a", "user.x", b"1"),
    "an attribute of a directory": lambda root: os.setxattr(root / "d/sub", "user.x", b"1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_copy_brings_along_changes_it(place, digest, change):
    before = digest()
    CHANGES[change](place.source.path)
    assert digest() != before


def test_two_names_of_one_file_are_not_two_files(place, digest):
    _write(place.source.path, "d/b", "a")
    before = digest()
    (place.source.path / "d/b").unlink()
    os.link(place.source.path / "d/a", place.source.path / "d/b")
    assert digest() != before


def test_times_do_not_change_it(place, digest):
    before = digest()
    place.source.age(1)
    assert digest() == before


def test_what_is_not_taken_does_not_change_it(place, digest):
    before = digest(), digest(exclude=("sub",)), digest("d/a")
    _write(place.source.path, "e/other", "x")
    _write(place.source.path, "d/sub/c", "changed")
    assert digest() != before[0]
    assert (digest(exclude=("sub",)), digest("d/a")) == before[1:]


def test_a_directory_that_lends_its_contents_does_not_count_itself(place, digest):
    before = digest(), digest(contents=False)
    (place.source.path / "d").chmod(0o700)
    assert digest() == before[0]
    assert digest(contents=False) != before[1]


def test_the_name_of_what_is_chosen_counts_only_when_a_wildcard_found_it(place):
    place.source.fill({"one": "x", "two": "x", "p/one": "x"})
    digest = lambda source: place.checksum(source).digest  # noqa: E731
    assert digest("one") == digest("two") == digest("p/one")
    assert digest("on?") != digest("tw?")
    assert digest("on?") == digest("p/on?")


def test_the_content_behind_a_link_counts_where_it_is_followed(place):
    place.source.fill({"one": "x", "link": "-> one"})
    before = place.checksum("link").digest
    assert before == place.checksum("one").digest
    assert place.checksum("link", follow_symlink=False).digest != before


def test_files_are_told_one_by_one(place, digest):
    before = place.checksum("d").files
    assert list(before) == ["d/a", "d/b", "d/link", "d/sub/", "d/sub/c"]
    _write(place.source.path, "d/sub/c", "changed")
    after = place.checksum("d").files
    assert {name for name in after if after[name] != before[name]} == {"d/sub/c"}


def test_no_more_files_are_told_than_are_kept(place, digest, monkeypatch):
    whole = digest()
    monkeypatch.setattr(module, "FILES_MAX", 2)
    found = place.checksum("d")
    assert (len(found.files), found.digest) == (2, whole)


def test_what_is_known_already_is_not_read(place, digest):
    expected = digest()
    content = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}
    for name in ("d/a", "d/b", "d/sub/c"):
        os.truncate(place.source.path / name, 0)
    action = Copy(source="d", target="/", contents=True)
    given = ChecksumIndex().of(Source(root=place.source.fd, checksums=content))
    assert checksum(place.source.fd, action, select(place.source.fd, action), given).digest == expected
    given = ChecksumIndex().of(Source(root=place.source.fd, checksums={k: f"sha256:{v}" for k, v in content.items()}))
    assert checksum(place.source.fd, action, select(place.source.fd, action), given).digest == expected


class CountingIndex(ChecksumIndex):
    def __init__(self):
        super().__init__()
        self.kept = 0

    def keep(self, version, digest):
        self.kept += 1
        super().keep(version, digest)


def test_a_file_is_read_again_only_when_it_changed(place, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED", -(1 << 62))  # as if all that had happened long ago
    place.source.fill(FILES)
    known = CountingIndex()
    before = place.checksum("d", known=known)
    assert known.kept == 3
    assert place.checksum("d", known=known) == before
    assert known.kept == 3
    (place.source.path / "d/a").write_text("A")
    os.utime(place.source.path / "d/a", (1, 1))
    assert place.checksum("d", known=known).digest != before.digest
    assert known.kept == 4


def test_a_file_that_changed_a_moment_ago_is_not_remembered(place, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED", 1 << 62)
    place.source.fill(FILES)
    known = CountingIndex()
    place.checksum("d", known=known)
    assert known.kept == 0


def test_the_index_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(module, "_INDEXED_MAX", 2)
    index = ChecksumIndex()
    for number in range(3):
        index.keep((number,), str(number))
    assert [index.get((number,)) for number in range(3)] == [None, "1", "2"]


def test_names_that_are_no_utf8_are_told_as_text(place):
    place.source.fill({f"d/{os.fsdecode(bytes([0xFF]))}": "x"})
    assert list(place.checksum("d").files) == ["d/\\xff"]
