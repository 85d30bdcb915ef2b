"""Points in time as users type them: in `since`, `until` and the `until` filter."""

import re
from datetime import UTC, datetime

from wherry.errors import InvalidParameter

_SECOND = 10**9  # ns
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND}
_PART = r"(\d{1,12}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(rf"(?:{_PART})+\Z")
_TIMESTAMP = re.compile(r"(-?\d{1,18})(?:\.(\d{1,9})\d*)?\Z")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d)?)?)?)(?:[.](\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)?\Z")


def parse_time(text: str, *, now: int) -> int:
    """A point in time in ns since the epoch; raises InvalidParameter in Docker's words.

    Seconds with an optional fraction, a Go duration before `now`, or RFC 3339 with parts missing (then UTC, midnight).
    """
    if (match := _TIMESTAMP.match(text)) is not None:
        return int(match[1]) * _SECOND + _fraction(match[2])
    if _DURATION.match(text):
        return now - sum(int(float(number) * _UNITS[unit]) for number, unit in re.findall(_PART, text))
    match = _RFC3339.match(text)
    try:
        if match is None:
            raise ValueError(text)
        moment = datetime.fromisoformat(match[1] + (match[3] or ""))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp()) * _SECOND + _fraction(match[2])
    except (ValueError, OverflowError):
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from None


def _fraction(digits: str | None) -> int:
    """ns of the digits behind the point."""
    return int((digits or "").ljust(9, "0"))
