"""Go's filepath.Match, one component at a time."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.files.wildcards import compile_component, has_wildcards
from wherry.errors import InvalidParameter


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*/", "ab", False),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("a[abc]c", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[a-ζ]*", "α", True),
        ("*[a-ζ]", "A", False),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-]", "-", True),
        ("[!a]", "!", True),
        ("*", "", True),
        ("**", "abc", True),
        ("[z-a]", "b", False),
        ("[z-a]x*", "bx", False),
        (".*", ".hidden", True),
        ("*", ".hidden", True),
        ("a\nb*", "a\nbc", True),
        ("*.txt", "x.txt\n", False),
    ],
)
def test_a_component_matches_as_in_go(pattern, name, matches):
    assert bool(compile_component(pattern).match(name)) is matches


@pytest.mark.parametrize("pattern", ["[", "[^", "[a", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "a\\", "[^]"])
def test_what_go_calls_a_syntax_error_is_one(pattern):
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        compile_component(pattern)


def test_a_backslash_takes_the_meaning_from_a_wildcard():
    assert [has_wildcards(each) for each in ("a", "a*", "a\\*", "a\\\\*", "[", "?", "\\")] == [
        False,
        True,
        False,
        True,
        True,
        True,
        False,
    ]


def test_many_asterisks_take_no_exponential_time():
    matcher = compile_component("*a" * 120 + "b")
    began = time.process_time()
    assert not matcher.match("a" * 255)
    assert time.process_time() - began < 5  # seconds; tried out one by one it would not end


def _go_match(pattern: str, name: str) -> bool:
    """The definition, by recursion."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(_go_match(pattern[1:], name[at:]) for at in range(len(name) + 1))
    return bool(name) and (pattern[0] in ("?", name[0])) and _go_match(pattern[1:], name[1:])


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_asterisks_match_by_definition(pattern, name):
    assert bool(compile_component(pattern).match(name)) is _go_match(pattern, name)


@given(st.text(max_size=30), st.text(max_size=20))
def test_any_pattern_is_compiled_or_refused(pattern, name):
    with contextlib.suppress(InvalidParameter):
        compile_component(pattern).match(name)
