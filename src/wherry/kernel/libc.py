"""The C library, and how its failures become OSError. Every other file of `kernel/` calls through here."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str | bytes = "") -> int:
    """Return `result`, or raise the OSError of errno when it is negative. `what` names the object."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(what) if what else None)
    return result
