"""Making files, directories and links, and removing: LLB's rules."""

import os

import pytest

from wherry.builder.files.apply import apply
from wherry.builder.graph import MakeDirectory, MakeFile, MakeSymlink, Owner, Remove
from wherry.errors import InvalidParameter, NotFound

EPOCH = 10**18
OLD = 1_580_000_000


@pytest.fixture
def do(target):
    def run(action, *, epoch=EPOCH):
        apply(target.fd, action, epoch_ns=epoch, name_lookup=target.fd)

    return run


# Files


def test_a_file_is_made(do, target):
    do(MakeFile(path="/f", data=b"data", mode=0o640))
    assert target.see() == {"f": "data"}
    assert (target.mode("f"), target.status("f").st_mtime_ns) == (0o640, EPOCH)


def test_a_file_takes_the_place_of_another_and_its_links_keep_theirs(do, target):
    target.fill({"f": "old"})
    os.link(target.path / "f", target.path / "other")
    do(MakeFile(path="f", data=b"new"))
    assert target.see() == {"f": "new", "other": "old"}
    assert target.mode("f") == 0o644


def test_a_file_is_made_where_a_link_leads(do, target):
    target.fill({"link": "-> ../../real/f", "real/": ""})
    do(MakeFile(path="/link", data=b"x"))
    assert target.see() == {"link": "-> ../../real/f", "real/f": "x"}


def test_a_fifo_is_replaced_and_not_written_to(do, target):
    os.mkfifo(target.path / "f")
    do(MakeFile(path="f", data=b"x"))
    assert target.see() == {"f": "x"}


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/no/f", NotFound, "open /no/f: no such file or directory"),
        ("/file/f", NotFound, "open /file/f: not a directory"),
        ("/d", InvalidParameter, "open /d: is a directory"),
        ("/", InvalidParameter, "open /: is a directory"),
        ("/.wh.f", InvalidParameter, "/.wh.f cannot be put into a layer: there such a name means a deletion"),
    ],
)
def test_a_file_that_cannot_be_made_says_why(do, target, path, kind, message):
    target.fill({"file": "", "d/": ""})
    with pytest.raises(kind) as caught:
        do(MakeFile(path=path, data=b""))
    assert caught.value.message == message


def test_a_large_file_is_written_whole(do, target):
    data = os.urandom(3_000_000)
    do(MakeFile(path="f", data=data))
    assert (target.path / "f").read_bytes() == data


# Directories


def test_a_directory_is_made_with_what_is_missing_above(do, target):
    target.fill({"exist/": ""})
    do(MakeDirectory(path="/exist/a/b", mode=0o711, parents=True))
    assert [target.mode(f"exist/{name}") for name in ("a", "a/b")] == [0o711, 0o711]
    assert {target.status(name).st_mtime_ns for name in ("exist/a", "exist/a/b")} == {EPOCH}
    assert target.status(".").st_mtime == OLD


def test_a_directory_that_is_there_stays_as_it_is(do, target):
    target.fill({"d/": ""})
    (target.path / "d").chmod(0o700)
    do(MakeDirectory(path="/d", mode=0o755, parents=True))
    do(MakeDirectory(path="/d", mode=0o755))
    assert (target.mode("d"), target.status("d").st_mtime) == (0o700, OLD)


def test_a_directory_behind_links_is_made_in_the_tree(do, target):
    target.fill({"link": "-> /data/../../store", "store/": ""})
    do(MakeDirectory(path="/link/x", parents=True))
    assert target.see() == {"link": "-> /data/../../store", "store/x/": ""}


def test_a_directory_without_parents_needs_the_one_above(do, target):
    with pytest.raises(NotFound, match=r"^open /a/b: no such file or directory$"):
        do(MakeDirectory(path="/a/b"))
    do(MakeDirectory(path="/a"))
    do(MakeDirectory(path="/a/b"))
    assert target.see() == {"a/b/": ""}


def test_a_file_in_the_way_of_a_directory_is_an_error(do, target):
    target.fill({"f": ""})
    for path in ("/f", "/f/x"):
        with pytest.raises(InvalidParameter, match=r"^mkdir /f: not a directory$"):
            do(MakeDirectory(path=path, parents=True))


def test_the_umask_of_the_daemon_does_not_matter(do, target):
    before = os.umask(0o077)
    try:
        do(MakeDirectory(path="/a/b", mode=0o777, parents=True))
        do(MakeFile(path="/a/f", data=b"", mode=0o666))
    finally:
        os.umask(before)
    assert [target.mode(name) for name in ("a", "a/b", "a/f")] == [0o777, 0o777, 0o666]


# Links


def test_a_link_is_made_whatever_it_leads_to(do, target):
    do(MakeSymlink(old="../any/where", new="/l"))
    assert target.see() == {"l": "-> ../any/where"}
    assert target.status("l").st_mtime_ns == EPOCH


def test_a_link_replaces_nothing(do, target):
    target.fill({"f": "f"})
    with pytest.raises(InvalidParameter, match=r"^symlink x /f: file exists$"):
        do(MakeSymlink(old="x", new="/f"))
    with pytest.raises(NotFound, match=r"^open /no/l: no such file or directory$"):
        do(MakeSymlink(old="x", new="/no/l"))


@pytest.mark.parametrize("old", ["", "a\0b"])
def test_a_link_needs_a_target(do, old):
    with pytest.raises(InvalidParameter, match="no target for a symbolic link"):
        do(MakeSymlink(old=old, new="/l"))


# Removing


@pytest.mark.parametrize(
    ("action", "left"),
    [
        (Remove(path="/a"), {"b/c", "b/d", "l"}),
        (Remove(path="b"), {"a", "l"}),
        (Remove(path="/l"), {"a", "b/c", "b/d"}),
        (Remove(path="/l/c"), {"a", "b/d", "l"}),
        (Remove(path="/b/*", wildcard=True), {"a", "b/", "l"}),
        (Remove(path="/[ab]", wildcard=True), {"l"}),
        (Remove(path="/x*", wildcard=True), {"a", "b/c", "b/d", "l"}),
        (Remove(path="/x", allow_missing=True), {"a", "b/c", "b/d", "l"}),
        (Remove(path="/x/y/z", allow_missing=True), {"a", "b/c", "b/d", "l"}),
    ],
)
def test_what_is_named_is_removed_and_a_link_itself(do, target, action, left):
    target.fill({"a": "", "b/c": "", "b/d": "", "l": "-> b"})
    do(action)
    assert set(target.see()) == left


def test_what_is_not_there_cannot_be_removed(do, target):
    for path in ("/x", "/*"):
        with pytest.raises(NotFound, match="no such file or directory"):
            do(Remove(path=path))


@pytest.mark.parametrize("path", ["/", "", ".", "/..", "x/.."])
def test_the_root_is_not_removed(do, path):
    with pytest.raises(InvalidParameter, match="rmPath: invalid empty path"):
        do(Remove(path=path, allow_missing=True))


def test_the_directory_something_was_removed_from_has_the_epochs_time(do, target):
    target.fill({"d/f": "", "d/g": ""})
    do(Remove(path="/d/f"))
    assert target.status("d").st_mtime_ns == EPOCH


# Owners and times of all of them


ACTIONS = [
    MakeFile(path="/x", data=b"", owner=Owner(user="nobody-here")),
    MakeDirectory(path="/x", owner=Owner(user="nobody-here")),
    MakeSymlink(old="y", new="/x", owner=Owner(user="nobody-here")),
]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_owner_nobody_knows_is_an_error_before_anything_is_made(do, target, action):
    with pytest.raises(InvalidParameter, match="no such user: nobody-here"):
        do(action)
    assert target.see() == {}


@pytest.mark.parametrize(
    "action",
    [
        MakeFile(path="/x", data=b"", timestamp=5),
        MakeDirectory(path="/x", timestamp=5),
        MakeSymlink(old="y", new="/x", timestamp=5),
    ],
)
def test_a_time_that_is_given_stands(do, target, action):
    do(action)
    assert target.status("x").st_mtime_ns == 5


def test_without_an_epoch_things_have_the_time_they_were_made_at(do, target):
    before = target.status(".").st_mtime_ns
    do(MakeFile(path="/x", data=b""), epoch=None)
    assert target.status("x").st_mtime_ns >= before


def test_the_machines_refusal_names_the_file(do, target, tmp_path):
    with pytest.raises(InvalidParameter, match="file name too long"):
        do(MakeFile(path="/" + "n" * 256, data=b""))
