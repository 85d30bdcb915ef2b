"""Why a step ran, from what it was made before and now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.records.reasons import FIRST, GONE, UNCACHED, reasons

OLD = "sha256:" + "a" * 64
NEW = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (None, {"command": "make"}, [FIRST]),
        ({"command": "make"}, {"command": "make", "no-cache": "1"}, [UNCACHED]),
        (None, {"command": "make", "no-cache": "1"}, [UNCACHED]),
        ({"command": "make"}, {"command": "make"}, [GONE]),
        ({"command": "make"}, {"command": "make -j"}, ["the command changed"]),
        ({"file requirements.txt": "1"}, {"file requirements.txt": "2"}, ["`requirements.txt` changed"]),
        ({}, {"file x": "1"}, ["`x` was added"]),
        ({"file x": "1"}, {}, ["`x` was removed"]),
        (
            {"file a": "1", "file b": "1", "file c": "1", "file d": "1"},
            {"file a": "2", "file b": "2", "file c": "2", "file d": "1"},
            ["3 files changed: a, b, c"],
        ),
        ({}, {f"file {n}": "1" for n in range(8)}, ["8 files were added: 0, 1, 2, 3, 4 and 3 more"]),
        ({"ARG VERSION": "1.2"}, {"ARG VERSION": "1.3"}, ["ARG VERSION 1.2→1.3"]),
        ({"ARG VERSION": "1.2"}, {"ARG VERSION": ""}, ['ARG VERSION 1.2→""']),
        ({"ENV A": "1"}, {"ENV B": "1"}, ["ENV A was removed", "ENV B was added"]),
        ({"base": OLD}, {"base": NEW}, ["base image digest moved: sha256:aaaaaaaaaaaa…→sha256:bbbbbbbbbbbb…"]),
        ({"base": OLD}, {}, ["it begins from another base"]),
        ({"parent step 2": "x"}, {"parent step 2": "y"}, ["step 2 before it changed"]),
        ({"parent": "x"}, {"parent": "y"}, ["the step before it changed"]),
        ({"parent": "x", "parent 1": "x"}, {"parent": "y", "parent 1": "z"}, ["the step before it changed"]),
        ({"mount /src": "x"}, {"mount /src": "y"}, ["mount /src changed"]),
        ({"user": "a"}, {"user": "b"}, ["user a→b"]),
        ({"shell": "/bin/sh -c"}, {"shell": "/bin/bash -c"}, ["shell /bin/sh -c→/bin/bash -c"]),
        ({"command": "a", "shell": "x"}, {"command": "b", "shell": "y"}, ["the command changed"]),
    ],
)
def test_the_sentence_says_what_is_different(before, now, said):
    assert reasons(before, now) == said


def test_a_step_that_was_moved_and_resulted_in_the_same_is_no_reason():
    assert reasons({"parent step 2": "x"}, {"parent step 3": "x"}) == [GONE]


def test_what_explains_most_comes_first():
    before = {"parent step 1": "x", "file a": "1", "ARG V": "1", "command": "c", "base": OLD}
    now = {"parent step 1": "y", "file a": "2", "ARG V": "2", "command": "d", "base": NEW}
    said = reasons(before, now)
    assert [sentence.split()[0] for sentence in said] == ["base", "the", "ARG", "`a`", "step"]


def test_a_long_value_is_clipped():
    (said,) = reasons({"ARG A": "x" * 1000}, {"ARG A": "y" * 1000})
    assert len(said) < 100


def test_a_file_name_cannot_move_the_cursor():
    assert reasons({}, {"file \x1b[2Jx\udcff": "1"}) == ["`\\x1b[2Jx\\udcff` was added"]


INGREDIENTS = st.dictionaries(
    st.sampled_from(
        ["command", "base", "parent", "parent step 1", "no-cache", "ARG A", "ENV B", "file x", "mount /", ""]
    )
    | st.text(),
    st.text(),
)


@given(INGREDIENTS, INGREDIENTS)
def test_there_is_always_a_reason_in_one_line(before, now):
    said = reasons(before, now)
    assert said
    assert all(sentence.isprintable() for sentence in said)
