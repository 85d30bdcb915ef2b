"""Paths resolved within a tree, whatever its links say."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.builder.files.paths import below, means_directory, resolve, shown
from wherry.errors import InvalidParameter


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("a/f", "a/f"),
        ("/a/./f", "a/f"),
        ("link/f", "a/f"),
        ("absolute/f", "a/f"),
        ("up/f", "a/f"),
        ("a/back/a/f", "a/f"),
        ("link", "a"),
        ("file/x", "file/x"),
        ("missing/x/y", "missing/x/y"),
        ("dangling", "not/there"),
        ("dangling/x", "not/there/x"),
        ("", ""),
        ("..", ""),
        ("chain", "a/f"),
    ],
)
def test_links_lead_where_they_would_after_a_chroot(target, path, resolved):
    target.fill(
        {
            "a/f": "f",
            "a/back": "-> ..",
            "file": "x",
            "link": "-> a",
            "absolute": "-> /a",
            "up": "-> ../../../a",
            "dangling": "-> not/there",
            "chain": "-> chain2",
            "chain2": "-> link/f",
        }
    )
    assert os.fsdecode(resolve(target.fd, below(path))) == resolved


def test_the_last_name_may_stay_a_link(target):
    target.fill({"a/f": "-> g", "link": "-> a"})
    assert resolve(target.fd, b"link/f", follow=False) == b"a/f"
    assert resolve(target.fd, b"link", follow=False) == b"link"


def test_a_circle_ends_with_an_error(target):
    target.fill({"loop": "-> loop", "one": "-> two", "two": "-> one/x"})
    for path in (b"loop", b"one", b"loop/x"):
        with pytest.raises(InvalidParameter, match="too many symbolic links"):
            resolve(target.fd, path)


def test_names_no_file_can_have_are_refused(target):
    with pytest.raises(InvalidParameter, match="NUL"):
        below("a\0b")
    with pytest.raises(InvalidParameter, match="file name too long"):
        resolve(target.fd, b"x" * 300)


@pytest.mark.parametrize("path", ["", ".", "x/", "x/.", "/"])
def test_a_target_can_say_that_it_is_a_directory(path):
    assert means_directory(path)


def test_other_targets_leave_it_open():
    assert not any(means_directory(path) for path in ("x", "/x/y", "x/..", ".x"))


def test_names_are_shown_so_that_nobody_is_fooled():
    assert shown(b"etc/passwd") == "/etc/passwd"
    assert "\x1b" not in shown(b"\x1b[31m")
    assert shown(b"\xff") == "/\\xff"


LINK = st.tuples(st.sampled_from("abc"), st.text("abc/.", min_size=1, max_size=8))


@settings(max_examples=60, deadline=None)
@given(st.lists(LINK, max_size=3), st.text("abc/.", max_size=12))
def test_what_is_resolved_has_neither_links_nor_dots(tmp_path_factory, links, path):
    root = tmp_path_factory.mktemp("tree")
    for name, content in dict(links).items():
        (root / name).symlink_to(content)
    fd = os.open(root, os.O_RDONLY)
    try:
        found = resolve(fd, below(path))
    except InvalidParameter:
        return
    finally:
        os.close(fd)
    place = root
    for part in os.fsdecode(found).split("/"):
        assert part not in (".", "..")
        place = place / part
        assert place == root or not place.is_symlink()
