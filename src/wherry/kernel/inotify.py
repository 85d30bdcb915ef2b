"""inotify: told by the kernel that a file changed."""

import ctypes
import os
import struct
from typing import NamedTuple

from wherry.kernel.libc import check, libc

MODIFY = 0x00000002
MOVED_FROM = 0x00000040
MOVED_TO = 0x00000080
CREATE = 0x00000100
DELETE = 0x00000200
DELETE_SELF = 0x00000400
MOVE_SELF = 0x00000800
IGNORED = 0x00008000  # the watch is gone
OVERFLOW = 0x00004000

_EVENT = struct.Struct("iIII")
_READ = 64 << 10  # bytes


class Event(NamedTuple):
    watch: int
    mask: int
    name: bytes  # of the entry, for a watched directory


class Inotify:
    """One inotify instance; `fileno()` is readable when `read` has something. Not blocking."""

    def __init__(self) -> None:
        self._fd = check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str | os.PathLike[str], mask: int) -> int:
        """Watch `path`; raises FileNotFoundError and the like."""
        raw = os.fsencode(path)
        return check(libc.inotify_add_watch(self._fd, raw, ctypes.c_uint32(mask)), raw)

    def remove(self, watch: int) -> None:
        libc.inotify_rm_watch(self._fd, watch)  # EINVAL: it went with its file

    def read(self) -> list[Event]:
        """All events there are now, possibly none."""
        events: list[Event] = []
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return events
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            events.append(Event(watch, mask, data[offset : offset + length].rstrip(b"\0")))
            offset += length
        return events

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
