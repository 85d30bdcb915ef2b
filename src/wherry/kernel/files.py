"""System calls on files that Python's `os` lacks: openat2, renameat2, syncfs, fallocate, FICLONE.

Stdlib only, no policy. Blocking. Every failure is an `OSError` that names the path where there is one.
"""

import ctypes
import enum
import errno
import fcntl
import os

from wherry.kernel.libc import check, libc

AT_FDCWD = -100
_SYS_OPENAT2 = 437  # the same number on every architecture
_RENAME_NOREPLACE = 1
_FICLONE = 0x40049409
_FALLOC_FL_KEEP_SIZE = 1
_AGAIN_LIMIT = 64  # openat2 says EAGAIN when a rename crossed its walk


class Resolve(enum.IntFlag):
    """How openat2 walks (openat2(2))."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08  # leaving the root is an error
    IN_ROOT = 0x10  # the directory is the root, as after chroot


IN_ROOT = int(Resolve.IN_ROOT | Resolve.NO_MAGICLINKS)
BENEATH_NO_SYMLINKS = int(Resolve.BENEATH | Resolve.NO_SYMLINKS)


class closing:  # noqa: N801 - reads like contextlib.closing
    """`with closing(os.open(…)) as fd:`"""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = IN_ROOT) -> int:
    """Open `path` below `dir_fd`, by default as if `dir_fd` were the root of the file system; O_CLOEXEC always."""
    how = _How(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for _ in range(_AGAIN_LIMIT):
        fd = int(libc.syscall(_SYS_OPENAT2, dir_fd, name, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return check(fd, path)


def rename_noreplace(source: str, target: str) -> None:
    """Rename; FileExistsError when `target` exists, even as an empty directory."""
    _renameat2(AT_FDCWD, source, AT_FDCWD, target, _RENAME_NOREPLACE)


def _renameat2(source_fd: int, source: str, target_fd: int, target: str, flags: int) -> None:
    check(libc.renameat2(source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags), target)


def syncfs(fd: int) -> None:
    """Write back everything dirty of the file system `fd` is on."""
    check(libc.syncfs(fd))


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make the entries of a directory durable (a rename into it, an unlink from it)."""
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def clone_file(source_fd: int, target_fd: int) -> bool:
    """Share the blocks of `source_fd` with the empty `target_fd`; False where the file system cannot (FICLONE)."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


def copy_data(source_fd: int, target_fd: int, size: int) -> None:
    """Copy `size` bytes to the empty `target_fd` with its holes kept: clone, else in-kernel copy, else read and write.

    A source that became shorter meanwhile leaves a hole at the end: the target always has `size` bytes.
    """
    if size == 0 or clone_file(source_fd, target_fd):
        return
    os.ftruncate(target_fd, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source_fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(source_fd, start, os.SEEK_HOLE), size)
        if start >= end or not _copy_range(source_fd, target_fd, start, end):
            return
        offset = end


def _copy_range(source_fd: int, target_fd: int, start: int, end: int) -> bool:
    """False when the source ended before `end`."""
    while start < end:
        try:
            done = os.copy_file_range(source_fd, target_fd, end - start, start, start)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            done = os.pwrite(target_fd, os.pread(source_fd, min(end - start, 1 << 20), start), start)
        if done == 0:
            return False
        start += done
    return True


def reserve(fd: int, offset: int, size: int) -> None:
    """Allocate blocks for this part of a file, also beyond its end, which stays where it is (fallocate(2))."""
    check(libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size)))
