"""Filter expressions of a build history."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.records.filters import matcher
from wherry.builder.records.record import Record, Status
from wherry.errors import InvalidParameter

HOUR = 3600 * 10**9
NOW = time.time_ns()
RECORD = Record(
    ref="abc1",
    status=Status.COMPLETED,
    attributes={"vcs:source": "https://github.com/a/b"},
    created=NOW - 2 * HOUR,
    completed=NOW - HOUR,
)


@pytest.mark.parametrize(
    ("expressions", "found"),
    [
        ([], True),
        (["status=completed"], True),
        (["status==completed"], True),
        (["status!=completed"], False),
        (["ref~=^abc"], True),
        (["ref~=^b"], False),
        (['repository="https://github.com/a/b"'], True),
        (["ref=abc1,status=error"], False),
        (["ref=abc1, status=completed"], True),
        (["status=error", "ref=abc1"], True),
        (["startedAt<1h30m"], True),
        (["createdAt>3h"], True),
        (["createdAt>1h30m"], False),
        (["completedAt>2000-01-01T00:00:00Z"], True),
        (["duration>=1h"], True),
        (["duration<59m59.9s"], False),
        (["duration<2d"], True),
    ],
)
def test_an_expression_chooses(expressions, found):
    assert matcher(expressions)(RECORD) is found


def test_a_build_that_runs_has_no_duration_to_compare():
    assert not matcher(["duration<1h"])(Record(ref="x"))


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "want a field"),
        ("status", "want a field"),
        ("colour=red", "builds have no field 'colour'"),
        ("status<x", "for times"),
        ("duration=1h", "want <"),
        ("duration>soon", "neither a time nor a duration"),
        ("ref~=(", "invalid filter"),
        ("ref~=" + "a" * 2000, "2000 characters"),
    ],
)
def test_an_expression_that_makes_no_sense_is_refused(expression, said):
    with pytest.raises(InvalidParameter, match=said):
        matcher([expression])


@given(st.lists(st.text() | st.from_regex(r"(ref|duration|createdAt)(=|<|~=).{0,20}"), max_size=3))
def test_any_expression_is_either_used_or_refused(expressions):
    try:
        test = matcher(expressions)
    except InvalidParameter:
        return
    assert test(RECORD) in (True, False)
