"""Wildcards as Go's filepath.Match has them: `*`, `?`, `[a-z]`, `[^a-z]`, and `\\` before any of them.

Of one component of a path: none of them matches a slash.
"""

import re

from wherry.errors import InvalidParameter


def has_wildcards(path: str) -> bool:
    at = 0
    while at < len(path):
        if path[at] in "*?[":
            return True
        at += 2 if path[at] == "\\" else 1
    return False


def compile_component(pattern: str) -> re.Pattern[str]:
    """Raises InvalidParameter for what Go calls a syntax error.

    Each `*` takes as little as lets what follows it, up to the next `*`, match; never trying again is correct for
    wildcards, and keeps hostile ones from taking exponential time.
    """
    pieces: list[str] = [""]  # regular expressions between the asterisks
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            pieces.append("")
        elif char == "?":
            pieces[-1] += "[^/]"
        elif char == "[":
            text, at = _class(pattern, at)
            pieces[-1] += text
        else:
            if char == "\\":
                char, at = _escaped(pattern, at)
            pieces[-1] += re.escape(char)
    first, *rest = pieces
    text = first
    if rest:
        text += "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1] if piece)
        text += f"[^/]*{rest[-1]}"
    return re.compile(text + r"\Z", re.DOTALL)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class that begins behind the bracket at `at`, and where it ends."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while True:
        if pattern[at : at + 1] == "]" and ranges:
            break
        low, at = _class_char(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _class_char(pattern, at + 1)
        if low <= high:  # Go: an empty range matches nothing
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            ranges.append("")
    body = "".join(ranges)
    if negated:
        return f"[^/{body}]", at + 1
    return (f"(?!/)[{body}]" if body else "(?!)"), at + 1


def _class_char(pattern: str, at: int) -> tuple[str, int]:
    char = pattern[at : at + 1]
    if char in ("", "-", "]"):
        raise _bad(pattern)
    return _escaped(pattern, at + 1) if char == "\\" else (char, at + 1)


def _escaped(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern):
        raise _bad(pattern)
    return pattern[at], at + 1


def _bad(pattern: str) -> InvalidParameter:
    return InvalidParameter(f"wildcard {pattern[:200]!r}: syntax error in pattern")
