"""Project quotas (quotactl_fd(2)): a limit on what the files of one directory tree may occupy. Blocking."""

import ctypes
import errno
import fcntl

from wherry.kernel.libc import check, libc

_QUOTACTL_FD = 443  # the same number on every architecture; since kernel 5.14
_PROJECT = 2
_XSETQLIM, _XGETQSTATV = (ord("X") << 8) + 4, (ord("X") << 8) + 8
_VERSION, _STATV_VERSION = 1, 1
_PROJECT_ENFORCED = 1 << 5
_BLOCK_HARD = 1 << 3  # FS_DQ_BHARD
_GET_XATTR, _SET_XATTR = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.ESRCH, errno.EINVAL, errno.ENOTSUP, errno.ENOENT)


class _Fsxattr(ctypes.Structure):
    _fields_ = (
        ("xflags", ctypes.c_uint32),
        ("extsize", ctypes.c_uint32),
        ("nextents", ctypes.c_uint32),
        ("projid", ctypes.c_uint32),
        ("cowextsize", ctypes.c_uint32),
        ("pad", ctypes.c_ubyte * 8),
    )


class _Limit(ctypes.Structure):
    """struct fs_disk_quota; sizes are in units of 512 bytes."""

    _fields_ = (
        ("version", ctypes.c_int8),
        ("flags", ctypes.c_int8),
        ("fieldmask", ctypes.c_uint16),
        ("id", ctypes.c_uint32),
        ("block_hard", ctypes.c_uint64),
        ("rest", ctypes.c_ubyte * 96),
    )


class _Status(ctypes.Structure):
    """struct fs_quota_statv, as far as it is read here."""

    _fields_ = (
        ("version", ctypes.c_int8),
        ("pad", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("rest", ctypes.c_ubyte * 252),
    )


def enforces_projects(directory: int) -> bool:
    """Whether the file system of the open `directory` holds projects to their limits."""
    status = _Status(version=_STATV_VERSION)
    try:
        _control(directory, _XGETQSTATV, 0, status)
    except OSError as exc:
        if exc.errno in _UNSUPPORTED or exc.errno == errno.EPERM:
            return False
        raise
    return bool(status.flags & _PROJECT_ENFORCED)


def limit_project(directory: int, project: int, size: int) -> None:
    """At most `size` bytes for all files of `project` on the file system of `directory`; 0 is no limit."""
    limit = _Limit(version=_VERSION, flags=_PROJECT, fieldmask=_BLOCK_HARD, id=project, block_hard=(size + 511) // 512)
    _control(directory, _XSETQLIM, project, limit)


def set_project(directory: int, project: int) -> None:
    """Count the open, empty `directory` and all that will be made in it as `project`'s."""
    attributes = _Fsxattr()
    fcntl.ioctl(directory, _GET_XATTR, attributes)
    attributes.projid = project
    attributes.xflags |= _INHERIT
    fcntl.ioctl(directory, _SET_XATTR, attributes)


def _control(fd: int, command: int, identity: int, data: ctypes.Structure) -> None:
    operation = ctypes.c_uint(command << 8 | _PROJECT)
    check(int(libc.syscall(_QUOTACTL_FD, fd, operation, identity, ctypes.byref(data))), "quotactl")
