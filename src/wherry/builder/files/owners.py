"""`--chown`: names become numbers by the passwd and group files of a tree."""

import os
import stat
from collections.abc import Iterator

from wherry.builder.files.paths import below, resolve
from wherry.builder.graph import Owner
from wherry.errors import InvalidParameter
from wherry.kernel.files import closing

_ID_MAX = (1 << 32) - 2
_FILE_MAX = 4 << 20  # bytes of passwd and group that are read
_WORDS = "unable to convert uid/gid chown string to host mapping"


def look_up(owner: Owner | None, tree: int | None) -> tuple[int, int] | None:
    """uid and gid; None stays None. `tree` is where names are looked up, None where there is no such tree.

    Raises InvalidParameter for a name that is not there: files of nobody would silently be root's.
    """
    if owner is None:
        return None
    uid = _number(owner.user) if owner.user else 0
    gid = uid
    if uid is None:
        uid, gid = _user(owner.user, tree)
    if owner.group:
        gid = _number(owner.group)
        if gid is None:
            gid = _group(owner.group, tree)
    assert gid is not None
    return uid, gid


def _user(name: str, tree: int | None) -> tuple[int, int]:
    for fields in _lines(tree, "/etc/passwd", name):
        if len(fields) >= 4 and fields[0] == name:
            uid, gid = _number(fields[2]), _number(fields[3])
            if uid is not None and gid is not None:
                return uid, gid
    raise InvalidParameter(f"{_WORDS}: can't find uid for user {name}: no such user: {name}")


def _group(name: str, tree: int | None) -> int:
    for fields in _lines(tree, "/etc/group", name):
        if len(fields) >= 3 and fields[0] == name and (gid := _number(fields[2])) is not None:
            return gid
    raise InvalidParameter(f"{_WORDS}: can't find gid for group {name}: no such group: {name}")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 20 or int(text) > _ID_MAX:
        raise InvalidParameter(f"{_WORDS}: {text[:30]} is out of range: ids go from 0 to {_ID_MAX}")
    return int(text)


def _lines(tree: int | None, path: str, name: str) -> Iterator[list[str]]:
    if tree is None:
        raise InvalidParameter(
            f"invalid user index: -1: {name} is a name, and there is no {path} to look it up in (an empty tree, or"
            " --link): use a number"
        )
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(resolve(tree, below(path)), flags, dir_fd=tree)
    except OSError:
        return
    with closing(fd):
        text = os.pread(fd, _FILE_MAX, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        yield line.strip().split(":")
