"""The filters of image lists and of `image prune`."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from wherry.errors import InvalidParameter
from wherry.filters import Filters
from wherry.images.deps import Deps
from wherry.images.views.rows import Row
from wherry.reference import Reference, parse
from wherry.spec.image import parse_time

LIST_FILTERS = ("before", "since", "label", "dangling", "reference", "until")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def selection(deps: Deps, filters: Filters) -> Callable[[Row], bool]:
    """Which rows of a list to show, by all filters but `reference`. Raises InvalidParameter, NotFound."""
    filters.check(LIST_FILTERS)
    before = _border(deps, filters, "before", min)
    since = _border(deps, filters, "since", max)
    until = parse_until(filters)
    dangling = filters.boolean("dangling", False) if "dangling" in filters else None

    def keep(row: Row) -> bool:
        created = row.image.created
        if before is not None and created >= before:
            return False
        if since is not None and created <= since:
            return False
        if until is not None and created > until:
            return False
        if dangling is not None and not (is_dangling(row) if dangling else row.names):
            return False
        return filters.labels(row.image.config.config.labels)

    return keep


def is_dangling(row: Row) -> bool:
    """Without a tag, as Docker has it: an image that only has digests left is dangling, too."""
    return not row.tags


def _border(deps: Deps, filters: Filters, key: str, choose: Callable[[Sequence[int]], int]) -> int | None:
    names = filters.get(key)
    return choose([deps.store.get(name).created for name in names]) if names else None


def matches_reference(filters: Filters, name: str) -> bool:
    patterns = filters.get("reference")
    return not patterns or any(matches(pattern, parse(name)) for pattern in patterns)


def matches(pattern: str, reference: Reference) -> bool:
    """Docker's `reference=` filter: a shell pattern over the familiar name, with or without the tag.

    `*` and `?` do not cross a slash.
    """
    return any(_match(pattern, text) for text in (reference.familiar, reference.familiar_name))


def _match(pattern: str, text: str) -> bool:
    patterns, parts = pattern.replace("[^", "[!").split("/"), text.split("/")  # Go negates a class with ^
    return len(patterns) == len(parts) and all(
        fnmatchcase(part, each) for part, each in zip(parts, patterns, strict=True)
    )


def parse_until(filters: Filters) -> int | None:
    """The `until` filter as ns since the epoch: a Unix time, a date, or a Go duration before now. InvalidParameter."""
    text = filters.one("until")
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or "0")
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        return time.time_ns() - sum(int(float(number) * _UNITS[unit]) for number, unit in _DURATION.findall(text))
    if (found := parse_time(text)) != 0:
        return found
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidParameter(f"invalid filter 'until=[{text}]': neither a time nor a duration") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 10**9
