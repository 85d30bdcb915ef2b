"""`--chmod`: a number in octal, or words as chmod(1) has them ("u=rwX,go=rX")."""

import re
import stat
from collections.abc import Callable

from wherry.errors import InvalidParameter

Change = Callable[[int], int]  # st_mode before -> permission bits after
_WORD = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)\Z")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFT = {"u": 6, "g": 3, "o": 0}
_SPECIAL = {"u": stat.S_ISUID, "g": stat.S_ISGID, "o": 0}


def parse_mode(text: str) -> Change | None:
    """None for "": as it was. Where nobody is named everybody is meant, whatever the umask."""
    if not text:
        return None
    if re.match(r"[0-9]+\Z", text, re.ASCII):
        if not re.match(r"0*[0-7]{1,4}\Z", text):
            raise InvalidParameter(
                f"invalid chmod parameter: '{text[:100]}'. it should be octal string and between 0 and 07777"
            )
        number = int(text, 8)
        return lambda _: number
    changes = [change for word in text.split(",") for change in _changes(word, text)]

    def apply(mode: int) -> int:
        for change in changes:
            mode = change(mode)
        return mode & 0o7777

    return apply


def _changes(word: str, text: str) -> list[Change]:
    found = _WORD.match(word)
    if found is None:
        raise InvalidParameter(
            f"invalid chmod parameter: '{text[:100]}': {word[:100]!r} is neither octal nor like u=rwX or go-w"
        )
    who = "ugo" if not found[1] or "a" in found[1] else found[1]
    sticky = not found[1] or "a" in found[1] or "o" in found[1]
    return [_change(who, sticky, sign, what) for sign, what in _ACTION.findall(found[2])]


def _change(who: str, sticky: bool, sign: str, what: str) -> Change:
    def apply(mode: int) -> int:
        bits = special = 0
        if what and what in _SHIFT:
            bits = mode >> _SHIFT[what] & 7
        else:
            bits = sum({"r": 4, "w": 2, "x": 1}.get(letter, 0) for letter in set(what) - {"X"})
            if "X" in what and (stat.S_ISDIR(mode) or mode & 0o111):
                bits |= 1
            if "s" in what:
                special = sum(_SPECIAL[each] for each in set(who))
            if "t" in what and sticky:
                special |= stat.S_ISVTX
        wanted = special | sum(bits << _SHIFT[each] for each in set(who))
        if sign == "+":
            return mode | wanted
        if sign == "-":
            return mode & ~wanted
        cleared = sum(7 << _SHIFT[each] | _SPECIAL[each] for each in set(who)) | (stat.S_ISVTX if sticky else 0)
        return mode & ~cleared | wanted

    return apply
