"""Patterns of `.dockerignore` and of COPY's sources, by docker's rules (moby/patternmatcher); paths are relative.

    *.md  ?  [a-z]       within one name; a backslash escapes
    **                   any number of directories
    !README.md           puts back what an earlier one took; the last that matches decides
    docs                 a directory takes everything below it with it

The engine reads `.dockerignore` and sends its lines, cleaned; here they are only matched.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class PatternError(ValueError):
    """Not a pattern; the message names it."""


class Patterns:
    def __init__(self, lines: Sequence[str]) -> None:
        """PatternError for a malformed one."""
        self._patterns = [_compile(line.strip()) for line in lines if line.strip()]
        self._above: dict[str, tuple[bool, ...]] = {"": (False,) * len(self._patterns)}

    @property
    def puts_back(self) -> bool:
        return any(back for back, _ in self._patterns)

    def matches(self, path: str) -> bool:
        """Is `path` taken, itself or with a directory above it?"""
        parent = self._directory(path.rpartition("/")[0])
        taken = False
        for (back, matcher), above in zip(self._patterns, parent, strict=True):
            if back == taken and (above or matcher.match(path)):
                taken = not back
        return taken

    def _directory(self, path: str) -> tuple[bool, ...]:
        """Of each pattern: does it match the directory, or one above it?"""
        known = self._above.get(path)
        if known is None:
            above = self._directory(path.rpartition("/")[0])
            known = self._above[path] = tuple(
                found or matcher.match(path) is not None
                for found, (_, matcher) in zip(above, self._patterns, strict=True)
            )
        return known


def _compile(line: str) -> tuple[bool, re.Pattern[str]]:
    text = clean(line)
    back = text.startswith("!")
    if back and not (text := text[1:]):
        raise PatternError('illegal exclusion pattern: "!"')
    return back, re.compile(_regex(text) + r"\Z", re.DOTALL)


def clean(path: str) -> str:
    """Without `.`, doubled slashes and as many `..` as there are names before them."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", ".") and not (part == ".." and path.startswith("/")):
            parts.append(part)
    return ("/" if path.startswith("/") else "") + ("/".join(parts) or ("" if path.startswith("/") else "."))


def _regex(text: str) -> str:
    found = ""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if text.startswith("**", at - 1):
            at += 1
            at += text.startswith("/", at)
            found += ".*" if at >= len(text) or _is_suffix(text, at) else "(?:.*/)?"
        elif letter == "*":
            found += "[^/]*"
        elif letter == "?":
            found += "[^/]"
        elif letter == "[":
            part, at = _class(text, at)
            found += part
        elif letter == "\\":
            if at == len(text):
                raise PatternError(f"syntax error in pattern: {text}")
            found += re.escape(text[at])
            at += 1
        else:
            found += re.escape(letter)
    return found


def _is_suffix(text: str, at: int) -> bool:
    """`**foo` with nothing special in it: whatever ends so."""
    rest = text[at:]
    return at == 2 and text[:2] == "**" and not set(rest) & set("*?[") and "\\" not in rest


def _class(text: str, at: int) -> tuple[str, int]:
    """`[a-z]`, from behind its bracket, as a regular expression, and where it ends."""
    negated = text.startswith("^", at)
    at += negated
    ranges = ""
    first = True
    while first or not text.startswith("]", at):
        first = False
        low, at = _member(text, at)
        high = low
        if text.startswith("-", at):
            high, at = _member(text, at + 1)
        if low <= high:  # another range is empty
            ranges += f"{re.escape(low)}-{re.escape(high)}"
    if negated:
        return f"[^/{ranges}]", at + 1
    return (f"[{ranges}]" if ranges else "(?!)"), at + 1


def _member(text: str, at: int) -> tuple[str, int]:
    letter = text[at : at + 1]
    if letter in ("", "-", "]"):
        raise PatternError(f"syntax error in pattern: {text}")
    if letter != "\\":
        return letter, at + 1
    if at + 1 >= len(text):
        raise PatternError(f"syntax error in pattern: {text}")
    return text[at + 1], at + 2
