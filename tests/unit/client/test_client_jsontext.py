"""JSON on the C scanner alone must agree with the json module, and re-indent without changing a value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.client import jsontext

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_reads_back_the_same(value: object) -> None:
    assert json.loads(jsontext.dumps(value)) == value
    assert json.loads(jsontext.dumps(value, html=True)) == value
    assert jsontext.loads(json.dumps(value)) == value


@given(VALUES)
def test_indenting_is_what_the_json_module_does(value: object) -> None:
    compact = json.dumps(value, ensure_ascii=False)
    assert jsontext.indent(compact) == json.dumps(value, indent=4, ensure_ascii=False)


def test_indenting_keeps_escapes_order_and_numbers_as_written() -> None:
    raw = r'{"b":"\u003c\\","a":1.50,"e":{},"l":[ ]}'
    assert jsontext.indent(raw) == '{\n    "b": "\\u003c\\\\",\n    "a": 1.50,\n    "e": {},\n    "l": []\n}'


@pytest.mark.parametrize("text", ["", "{", "nope", '{"a":1} x', "[1,]", '"open', "\x00"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(jsontext.JSONError):
        jsontext.loads(text)


def test_markup_is_escaped_only_for_html() -> None:
    assert jsontext.dumps("<a&b>") == '"<a&b>"'
    assert jsontext.dumps("<a&b>", html=True) == '"\\u003ca\\u0026b\\u003e"'
    assert jsontext.dumps({"b": 1, "a": 2}, sort=True) == '{"a":2,"b":1}'


def test_values_in_a_row_are_scanned_one_by_one() -> None:
    text = ' {"a":1} [2] '
    first, at = jsontext.scan(text)
    second, at = jsontext.scan(text, at)
    assert (first, second, text[at:]) == ({"a": 1}, [2], " ")
