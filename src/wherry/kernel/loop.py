"""Loop devices: a file as a block device (loop(4)). Blocking; every failure is an OSError."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from wherry.kernel.files import closing

_CONTROL = "/dev/loop-control"
_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
_TRIES = 32  # another process may take the free device before us


class _Info(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_ubyte * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    """struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


@contextmanager
def attached(path: str, *, read_only: bool = False) -> Iterator[str]:
    """The device whose content is the file `path`; mounted within this block it lives as long as the mount.

    A file that has a device already, as that of a mount which somebody still holds, keeps that one: two devices of one
    file would be two caches of one file system. FileNotFoundError when this machine has no loop devices.
    """
    with closing(os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)) as file:
        device, fd = _of(path) or _fresh(file, path, read_only=read_only)
        with closing(fd):
            yield device


def _of(path: str) -> tuple[str, int] | None:
    """The device that `path` has, held open so that it does not go; None."""
    real = os.path.realpath(path)
    for name in os.listdir("/sys/block"):
        with suppress(OSError):
            if name.startswith("loop") and _backing(name) == real:
                fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
                if _backing(name) == real:  # it did not go meanwhile
                    return f"/dev/{name}", fd
                os.close(fd)
    return None


def _backing(name: str) -> str:
    with open(f"/sys/block/{name}/loop/backing_file", errors="surrogateescape") as file:
        return file.read().rstrip("\n")


def _fresh(file: int, path: str, *, read_only: bool) -> tuple[str, int]:
    config = _Config(fd=file)
    config.info.flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    config.info.file_name = os.fsencode(path)[-63:]
    with closing(os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)) as control:
        for _ in range(_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _CONFIGURE, config)
                return device, fd
            except OSError as exc:
                os.close(fd)
                if exc.errno != errno.EBUSY:
                    raise
            except BaseException:
                os.close(fd)
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), _CONTROL)
