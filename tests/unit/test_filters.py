"""Filters: what is read, and Docker's rules of matching."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.filters import NONE, Filters, parse


@pytest.mark.parametrize("raw", [None, "", "{}", "null"])
def test_nothing_asked_is_no_filter(raw: str | None):
    assert not parse(raw)
    assert parse(raw).exact("name", "anything")


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ('{"name":{"a":true,"b":true}}', ("a", "b")),
        ('{"name":["a","b","a"]}', ("a", "b")),
        ('{"name":{"a":true,"b":false}}', ("a",)),
        ('{"name":[]}', ()),
    ],
)
def test_both_shapes_are_read(raw: str, values: tuple[str, ...]):
    assert parse(raw).get("name") == values


@pytest.mark.parametrize(
    "raw", ["x", "[]", '{"a":1}', '{"a":"b"}', '{"a":{"b":1}}', '{"a":[1]}', '{"a":[', "[" * 100_000, "\ud800"]
)
def test_other_shapes_are_refused_in_dockers_words(raw: str):
    with pytest.raises(InvalidParameter) as caught:
        parse(raw)
    assert caught.value.message == "invalid filter"


def test_an_unknown_key_is_named():
    with pytest.raises(InvalidParameter) as caught:
        parse('{"shoe":["1"]}').check(["name"])
    assert caught.value.message == "invalid filter 'shoe'"


@pytest.mark.parametrize(("values", "truth"), [(["1"], True), (["true"], True), (["0"], False), (["false"], False)])
def test_booleans(values: list[str], truth: bool):
    found = Filters({"dangling": tuple(values)})
    assert found.boolean("dangling", default=not truth) is truth
    assert NONE.boolean("dangling", default=truth) is truth


@pytest.mark.parametrize("values", [(), ("yes",), ("true", "false"), ("True",)])
def test_a_boolean_that_is_neither_is_refused(values: tuple[str, ...]):
    with pytest.raises(InvalidParameter, match="invalid filter 'dangling="):
        Filters({"dangling": values}).boolean("dangling", default=True)


def test_several_values_where_one_is_meant_are_refused():
    assert Filters({"until": ("1",)}).one("until") == "1"
    assert NONE.one("until") is None
    with pytest.raises(InvalidParameter, match=r"invalid filter 'until=\[1 2\]'"):
        Filters({"until": ("1", "2")}).one("until")


@pytest.mark.parametrize(
    ("value", "subject", "matches"),
    [
        ("web", "web", True),
        ("web", "my-web-1", True),
        ("^web$", "my-web-1", False),
        ("^/web$", "/web", True),
        ("w.b", "wob", True),
        ("web", "db", False),
        ("[", "a[b", False),
        ("[", "[", True),
        ("a" * 2000, "a" * 2001, False),  # longer than we compile
    ],
)
def test_names_match_as_regular_expressions(value: str, subject: str, matches: bool):
    assert Filters({"name": (value,)}).pattern("name", subject) is matches


def test_any_of_several_subjects_may_match_any_value():
    found = Filters({"name": ("x", "^/web$")})
    assert found.pattern("name", "web", "/web")
    assert not found.pattern("name", "web")


def test_ids_match_by_their_beginning():
    found = Filters({"id": ("abc", "def")})
    assert found.prefix("id", "abcdef")
    assert found.prefix("id", "def")
    assert not found.prefix("id", "ab")
    assert not found.prefix("id", "xabc")


@pytest.mark.parametrize(
    ("wanted", "labels", "matches"),
    [
        (("a",), {"a": "1"}, True),
        (("a=1",), {"a": "1"}, True),
        (("a=2",), {"a": "1"}, False),
        (("a=",), {"a": ""}, True),
        (("a=",), {"a": "1"}, False),
        (("a=b=c",), {"a": "b=c"}, True),
        (("a", "b"), {"a": "1"}, False),
        (("a", "b"), {"a": "1", "b": ""}, True),
        (("a",), None, False),
        ((), {}, True),
    ],
)
def test_labels_must_all_hold(wanted: tuple[str, ...], labels: dict[str, str] | None, matches: bool):
    assert Filters({"label": wanted}).labels(labels) is matches


def test_negative_labels_exclude():
    found = Filters({"label!": ("keep",)})
    assert found.without_labels({"other": "1"})
    assert found.without_labels(None)
    assert not found.without_labels({"keep": "1"})
    assert NONE.without_labels({"keep": "1"})


@given(st.dictionaries(st.text(), st.lists(st.text())))
def test_both_shapes_mean_the_same(document: dict[str, list[str]]):
    as_sets = {key: dict.fromkeys(values, True) for key, values in document.items()}
    assert parse(json.dumps(document)).fields == parse(json.dumps(as_sets)).fields
