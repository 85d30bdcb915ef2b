"""Words for what the disk refuses: what could not be done, where, why, and what to do about it."""

import errno
import os

from wherry.errors import Failed

_ROOM = "make room (`wherry system prune` and `wherry image prune` drop what nothing uses) and try again"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "its file system is read-only: the kernel's log (`dmesg`) says why",
    errno.EIO: "the disk reports an error: see the kernel's log (`dmesg`), then `wherry system check`",
}


def refused(what: str, exc: OSError, where: str | os.PathLike[str]) -> Failed:
    """`what` ("cannot store layer x") did not work for `exc`, in the directory or file `where`."""
    return advised(f"{what}: {exc.strerror}", exc.errno or 0, where)


def advised(text: str, number: int, where: str | os.PathLike[str]) -> Failed:
    """`text` says what did not work and why; `number` is the errno of it, 0 for none."""
    remedy = _REMEDIES.get(number)
    return Failed(f"{text} in {os.fspath(where)}" + (f": {remedy}" if remedy else ""))
