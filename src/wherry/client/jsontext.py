"""JSON for the CLI, on the C scanner and encoder alone.

`import json` pulls in `re` and `enum`, which is half of what a whole `wherry ps` may cost; the C parts underneath
need neither. Numbers come back as int or float, objects as dict in the order of the text.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False  # not typing.TYPE_CHECKING: importing typing costs more than this whole module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None

WHITESPACE = " \t\n\r"


class JSONError(ValueError):
    """The text is not JSON."""


class _Context:
    """What the C scanner wants to know; the attributes are read once."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner clears it after every call


_scan: Callable[[str, int], tuple[Any, int]] = _json.make_scanner(_Context)  # type: ignore[arg-type]


def _skip(text: str, at: int) -> int:
    end = len(text)
    while at < end and text[at] in WHITESPACE:
        at += 1
    return at


def scan(text: str, at: int = 0) -> tuple[Any, int]:
    """One value starting at or after `at`, and where it ends; JSONError when there is none."""
    try:
        return _scan(text, _skip(text, at))
    except StopIteration as exc:
        raise JSONError(f"invalid JSON at character {exc.value}") from None
    except ValueError as exc:  # json.JSONDecodeError, which the C code imports for itself
        raise JSONError(str(exc)) from None


def loads(data: str | bytes) -> Any:
    """The one value in `data`; JSONError for anything else."""
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    value, end = scan(text)
    if _skip(text, end) != len(text):
        raise JSONError(f"extra data at character {end}")
    return value


def quote(text: str) -> str:
    """As Go encodes a string without HTML escapes: UTF-8 kept, controls escaped."""
    if "\u2028" in text or "\u2029" in text:
        quoted = _json.encode_basestring(text)
        return quoted.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return _json.encode_basestring(text)


def quote_html(text: str) -> str:
    """As Go's json.Marshal does by default, with `<`, `>` and `&` escaped."""
    return quote(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: float) -> str:
    """A JSON number in Go's shortest form."""
    if value - value != 0:
        raise ValueError(f"{value} is not a JSON number")
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    return repr(value)


def dumps(value: Any, *, html: bool = False, sort: bool = False) -> str:
    """Compact JSON. `html` escapes like Go's json.Marshal, `sort` orders objects by key as Go does with maps."""
    parts: list[str] = []
    _encode(value, parts.append, quote_html if html else quote, sort)
    return "".join(parts)


def _encode(value: Any, put: Callable[[str], None], text: Callable[[str], str], sort: bool) -> None:
    if isinstance(value, str):
        put(text(value))
    elif value is None:
        put("null")
    elif value is True:
        put("true")
    elif value is False:
        put("false")
    elif isinstance(value, int | float):
        put(number(value))
    elif isinstance(value, dict):
        opening = "{"
        items: Iterable[tuple[str, Any]] = sorted(value.items()) if sort else value.items()
        for key, item in items:
            put(f"{opening}{text(key)}:")
            _encode(item, put, text, sort)
            opening = ","
        put("{}" if opening == "{" else "}")
    elif isinstance(value, list | tuple):
        opening = "["
        for item in value:
            put(opening)
            _encode(item, put, text, sort)
            opening = ","
        put("[]" if opening == "[" else "]")
    else:
        raise TypeError(f"{type(value).__name__} is not a JSON value")


def indent(raw: str, step: str = "    ", *, prefix: str = "") -> str:
    """Re-indent JSON text as Go's json.Indent does, keeping order, numbers and escapes as they were written.

    `prefix` begins every line but the first.
    """
    out: list[str] = []
    depth, at, end = 0, 0, len(raw)
    newline = "\n" + prefix
    while at < end:
        char = raw[at]
        if char == '"':
            stop = _string_end(raw, at)
            out.append(raw[at:stop])
            at = stop
            continue
        at += 1
        if char in WHITESPACE:
            continue
        if char in "{[":
            following = _skip(raw, at)
            if raw[following : following + 1] == ("}" if char == "{" else "]"):
                out.append(raw[at - 1] + raw[following])
                at = following + 1
                continue
            depth += 1
            out.append(char + newline + step * depth)
        elif char in "}]":
            depth -= 1
            out.append(newline + step * depth + char)
        elif char == ",":
            out.append("," + newline + step * depth)
        elif char == ":":
            out.append(": ")
        else:
            out.append(char)
    return "".join(out)


def _string_end(raw: str, at: int) -> int:
    """Just past the string that opens at `at`."""
    stop = at + 1
    while True:
        stop = raw.find('"', stop)
        if stop < 0:
            raise JSONError("unterminated string")
        backslashes = 0
        while raw[stop - 1 - backslashes] == "\\":
            backslashes += 1
        stop += 1
        if backslashes % 2 == 0:
            return stop
