"""Mount points every container needs, kept out of what the container is said to have changed.

A runtime makes `/etc/hosts`, `/proc`, … where it mounts over them. Made beforehand, below the writable layer, they
show up neither in `docker diff` nor in a committed image. The list is Docker's.
"""

import os
import stat
from collections.abc import Callable

from wherry.kernel.files import BENEATH_NO_SYMLINKS, closing, openat2

_MODE = 0o755
_OPEN = os.O_RDONLY | os.O_DIRECTORY


def _directory(base: bytes, parent: int) -> None:
    os.mkdir(base, _MODE, dir_fd=parent)
    os.chmod(base, _MODE, dir_fd=parent)  # whatever the umask


def _file(base: bytes, parent: int) -> None:
    with closing(os.open(base, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE, dir_fd=parent)) as fd:
        os.fchmod(fd, _MODE)


def _mtab(base: bytes, parent: int) -> None:
    os.symlink("/proc/mounts", base, dir_fd=parent)


_ALL: tuple[tuple[bytes, Callable[[bytes, int], None]], ...] = (
    (b".dockerenv", _file),
    (b"dev/console", _file),
    (b"dev/pts", _directory),
    (b"dev/shm", _directory),
    (b"etc/hostname", _file),
    (b"etc/hosts", _file),
    (b"etc/mtab", _mtab),
    (b"etc/resolv.conf", _file),
    (b"proc", _directory),
    (b"sys", _directory),
)


def make_placeholders(target: int, below: int) -> list[bytes]:
    """Make in `target` what is missing in the tree `below` (both directory fds, which may be the same tree).

    Directories on the way take owner, mode and times of those below, which they will hide. What the image has put in
    the way (a symbolic link for `/etc`) is left alone. Returns the paths made.
    """
    made: list[bytes] = []
    for path, make in _ALL:
        directory, _, base = path.rpartition(b"/")
        if _exists(below, path) or (parent := _open_parent(target, below, directory, made)) < 0:
            continue
        with closing(parent):
            make(base, parent)
        made.append(path)
    for directory in {path.rpartition(b"/")[0] for path in made}:
        _copy_times(target, below, directory)
    return made


def _exists(below: int, path: bytes) -> bool:
    try:
        os.close(openat2(below, path, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _open_parent(target: int, below: int, directory: bytes, made: list[bytes]) -> int:
    """The directory in `target`, made like the one below; -1 when something else is there below."""
    if not directory:
        return os.dup(target)
    try:
        return openat2(target, directory, _OPEN, resolve=BENEATH_NO_SYMLINKS)
    except FileNotFoundError:
        pass
    except OSError:
        return -1
    model: os.stat_result | None = None
    try:
        fd = openat2(below, directory, _OPEN, resolve=BENEATH_NO_SYMLINKS)
    except FileNotFoundError:
        pass
    except OSError:
        return -1
    else:
        with closing(fd):
            model = os.fstat(fd)
    _directory(directory, target)  # one level: that is how deep the list goes
    if model is None:
        made.append(directory)
    else:
        os.chown(directory, model.st_uid, model.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(directory, stat.S_IMODE(model.st_mode), dir_fd=target)
    return openat2(target, directory, _OPEN, resolve=BENEATH_NO_SYMLINKS)


def _copy_times(target: int, below: int, directory: bytes) -> None:
    try:
        fd = openat2(below, directory or b".", _OPEN, resolve=BENEATH_NO_SYMLINKS)
    except OSError:
        return
    with closing(fd):
        found = os.fstat(fd)
        os.utime(directory or b".", ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target)
