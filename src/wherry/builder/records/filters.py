"""Which records a history shows: BuildKit's filter expressions. Pure.

status=error                       a field and a value; `==` is the same, `!=` the opposite, `~=` a regular expression
startedAt>2026-01-02T03:04:05Z     times: <, <=, >, >=; a duration in place of a time means that long ago
duration>5m
ref=abc,status!=running            a comma joins what must all be true; several expressions are alternatives
"""

import operator
import re
import time
from collections.abc import Callable, Sequence

from wherry.builder.records.record import Record
from wherry.errors import InvalidParameter
from wherry.filters import LONGEST_PATTERN
from wherry.spec.image import parse_time

Test = Callable[[Record], bool]

_TERM = re.compile(r"\s*([A-Za-z]+)\s*(==|=|!=|~=|<=|>=|<|>)\s*(.*?)\s*\Z", re.DOTALL)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_UNITS["d"] = 24 * _UNITS["h"]
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

_TEXTS: dict[str, Callable[[Record], str]] = {
    "ref": lambda record: record.ref,
    "status": lambda record: record.status,
    "repository": lambda record: record.attributes.get("vcs:source", ""),
}
_TIMES: dict[str, Callable[[Record], int]] = {
    "startedAt": lambda record: record.created,
    "createdAt": lambda record: record.created,
    "completedAt": lambda record: record.completed,
}


def matcher(expressions: Sequence[str]) -> Test:
    """True for the records that one of `expressions` wants; without any for all. Raises InvalidParameter."""
    alternatives = [[_term(term) for term in expression.split(",")] for expression in expressions]
    if not alternatives:
        return lambda record: True
    return lambda record: any(all(test(record) for test in tests) for tests in alternatives)


def _term(text: str) -> Test:
    match = _TERM.match(text)
    if match is None:
        raise InvalidParameter(f"invalid filter {text[:100]!r}: want a field, an operator and a value, as status=error")
    name, sign, value = match.groups()
    if name in _TEXTS:
        return _compared(_TEXTS[name], sign, value, text)
    if name in _TIMES:
        return _ordered(_TIMES[name], sign, _moment(value, text), text)
    if name == "duration":
        return _ordered(lambda record: record.duration, sign, _duration(value, text), text)
    known = ", ".join([*_TEXTS, *_TIMES, "duration"])
    raise InvalidParameter(f"invalid filter {text[:100]!r}: builds have no field {name!r}; want one of {known}")


def _compared(field: Callable[[Record], str], sign: str, value: str, text: str) -> Test:
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    if sign in ("=", "=="):
        return lambda record: field(record) == value
    if sign == "!=":
        return lambda record: field(record) != value
    if sign != "~=":
        raise InvalidParameter(f"invalid filter {text[:100]!r}: {sign} is for times and durations")
    if len(value) > LONGEST_PATTERN:
        raise InvalidParameter(f"invalid filter: a pattern of {len(value)} characters; {LONGEST_PATTERN} are accepted")
    try:
        pattern = re.compile(value)
    except (re.error, RecursionError, OverflowError) as exc:
        raise InvalidParameter(f"invalid filter {text[:100]!r}: {exc}") from exc
    return lambda record: pattern.search(field(record)) is not None


def _ordered(field: Callable[[Record], int], sign: str, value: int, text: str) -> Test:
    if sign not in _ORDER:
        raise InvalidParameter(f"invalid filter {text[:100]!r}: want <, <=, > or >=")
    compare = _ORDER[sign]
    return lambda record: bool(field(record)) and bool(compare(field(record), value))


def _moment(value: str, text: str) -> int:
    """ns since the epoch."""
    return parse_time(value) or time.time_ns() - _duration(value, text)


def _duration(value: str, text: str) -> int:
    """ns of `1h30m`, as Go writes durations; days besides."""
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise InvalidParameter(f"invalid filter {text[:100]!r}: {value[:50]!r} is neither a time nor a duration")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))
