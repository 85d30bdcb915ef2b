"""RFC 3339 and Go's times, without datetime, compared with datetime."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import clock


@given(st.datetimes(min_value=datetime(1, 1, 1), timezones=st.just(UTC)))
def test_every_moment_is_read_as_datetime_reads_it(moment: datetime) -> None:
    seconds, nano = clock.parse_rfc3339(moment.isoformat().replace("+00:00", "Z"))
    assert datetime.fromtimestamp(0, UTC).timestamp() == 0
    assert (seconds, nano // 1000) == divmod(round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 10**6)
                                             if moment.microsecond == 0 else
                                             ((moment - datetime(1970, 1, 1, tzinfo=UTC)).days * 86_400
                                              + (moment - datetime(1970, 1, 1, tzinfo=UTC)).seconds) * 10**6
                                             + moment.microsecond, 10**6)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2013-01-02T13:23:37Z", (1357133017, 0)),
        ("2013-01-02T13:23:37.5+01:00", (1357133017 - 3600, 500_000_000)),
        ("2013-01-02T13:23:37.123456789-00:30", (1357133017 + 1800, 123456789)),
        ("2013-01-02T13:23", (1357133017 - 37, 0)),
        ("2013-01-02", (1357084800, 0)),
        ("0001-01-01T00:00:00Z", (-62135596800, 0)),
    ],
)
def test_forms(text: str, expected: tuple[int, int]) -> None:
    assert clock.parse_rfc3339(text) == expected


@pytest.mark.parametrize("text", ["", "x", "2013", "2013-13-01", "2013-01-02T25:00", "2013-01-02T1:2:3:4", "a-b-c"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="as a time"):
        clock.parse_rfc3339(text)


def test_since_and_until_take_seconds_times_and_ages() -> None:
    assert clock.timestamp("1357133017") == "1357133017"
    assert clock.timestamp("1357133017.5") == "1357133017.5"
    assert clock.timestamp("2013-01-02T13:23:37.5Z") == "1357133017.500000000"
    assert clock.timestamp("42m", now=10_000) == str(10_000 - 42 * 60)
    for text in ("yesterday", "12:30", "1.x"):
        with pytest.raises(ValueError, match="failed to parse value as time or duration"):
            clock.timestamp(text)


def test_gos_printed_time() -> None:
    assert clock.go_time(1357133017, utc=True) == "2013-01-02 13:23:37 +0000 UTC"
    assert clock.go_time(1357133017, 500_000_000, utc=True) == "2013-01-02 13:23:37.5 +0000 UTC"
