"""Filters: the `filters` parameter of list, prune and events requests.

Two shapes on the wire, both read: `{"label": {"a=b": true}}` (the docker CLI) and `{"label": ["a=b"]}` (docker-py and
others). Values of one key are alternatives, keys are joined by "and"; labels alone must all hold. Words of errors are
Docker's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from wherry.errors import InvalidParameter

LONGEST_PATTERN = 1024  # characters of a regular expression we are ready to compile

_TRUE = frozenset({"1", "true"})
_FALSE = frozenset({"0", "false"})


@dataclass(frozen=True, slots=True)
class Filters:
    """Key -> values, in the order given. Falsy when nothing was asked for."""

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fields)

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def get(self, key: str) -> tuple[str, ...]:
        """Values of `key`; empty when it was not given."""
        return self.fields.get(key, ())

    def check(self, accepted: Iterable[str]) -> None:
        """Raise InvalidParameter for the first key that is not accepted."""
        known = frozenset(accepted)
        for key in self.fields:
            if key not in known:
                raise InvalidParameter(f"invalid filter '{key}'")

    def invalid(self, key: str) -> InvalidParameter:
        """The error for a key whose values make no sense."""
        return InvalidParameter(f"invalid filter '{key}=[{' '.join(self.get(key))}]'")

    def boolean(self, key: str, default: bool) -> bool:
        """`key` as a truth value; raises InvalidParameter when it is neither or both."""
        if key not in self.fields:
            return default
        values = frozenset(self.fields[key])
        true, false = bool(values & _TRUE), bool(values & _FALSE)
        if true == false:
            raise self.invalid(key)
        return true

    def one(self, key: str) -> str | None:
        """The single value of `key`, None when absent; raises InvalidParameter for several."""
        values = self.get(key)
        if len(values) > 1:
            raise self.invalid(key)
        return values[0] if values else None

    def exact(self, key: str, *subjects: str) -> bool:
        """No such filter, or one of the subjects is among its values."""
        values = self.get(key)
        return not values or any(subject in values for subject in subjects)

    def prefix(self, key: str, subject: str) -> bool:
        """No such filter, or the subject begins with one of its values (ids, `exec_start: sh`)."""
        values = self.get(key)
        return not values or subject.startswith(values)

    def pattern(self, key: str, *subjects: str) -> bool:
        """No such filter, or a subject equals a value or holds a match of it as a regular expression.

        As in Docker a value that is no regular expression only ever matches literally.
        """
        values = self.get(key)
        if not values:
            return True
        return any(value in subjects or _search(value, subjects) for value in values)

    def labels(self, subject: Mapping[str, str] | None, key: str = "label") -> bool:
        """Every `k` is there and every `k=v` has that value."""
        return all(_has_label(subject or {}, value) for value in self.get(key))

    def without_labels(self, subject: Mapping[str, str] | None, key: str = "label!") -> bool:
        """The negative label filter of prune: True unless there is such a filter and all of it holds."""
        return not self.get(key) or not self.labels(subject, key)


NONE = Filters()


def parse(raw: str | None) -> Filters:
    """Read the request parameter; None and "" mean no filter. Raises InvalidParameter."""
    if not raw:
        return NONE
    try:
        document = msgspec.json.decode(raw, type=dict[str, dict[str, bool] | list[str]] | None)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise InvalidParameter("invalid filter") from None
    found: dict[str, tuple[str, ...]] = {}
    for key, values in (document or {}).items():
        chosen = values if isinstance(values, list) else [value for value, wanted in values.items() if wanted]
        found[key] = tuple(dict.fromkeys(chosen))
    return Filters(found)


def _has_label(subject: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    found = subject.get(name)
    return found is not None and (not equals or found == value)


def _search(pattern: str, subjects: Iterable[str]) -> bool:
    if len(pattern) > LONGEST_PATTERN:
        return False
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return any(expression.search(subject) for subject in subjects)
