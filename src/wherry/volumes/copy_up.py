"""Copy a directory tree, all of it: owners, modes, times, xattrs, hard links, device nodes, holes.

Used once per new volume, to give it what the image has at its mount point. The source is hostile (an image's files) and
is reached only through `source`, a directory fd: every directory is opened below it with `openat2`, symlinks are copied
and never followed. Blocking; stdlib and `kernel` only.
"""

import errno
import os
import stat
from collections import deque
from contextlib import suppress

from wherry.kernel.files import BENEATH_NO_SYMLINKS, copy_data, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.ENOTSUP, errno.EPERM, errno.EINVAL)

Inode = tuple[int, int]


def copy_tree(source: int, target: int) -> None:
    """Fill the empty directory `target` with everything in `source`, and give it the attributes of `source`.

    Directories are opened anew from the two roots by their relative path, never kept open, so that a deep tree cannot
    use up file descriptors. Raises OSError; the target is then incomplete.
    """
    links: dict[Inode, bytes] = {}  # inode with several names -> where its copy is, relative to `target`
    todo = deque([b""])
    done: list[bytes] = []
    while todo:
        path = todo.popleft()
        todo.extend(_copy_directory(source, target, path, links))
        done.append(path)
    for path in reversed(done):  # a directory's times change with every entry made in it: set them last, deepest first
        _copy_directory_attributes(source, target, path)


def copy_attributes(source: int, target: int) -> None:
    """Give the open file or directory `target` owner, mode, xattrs and times of `source`."""
    info = os.fstat(source)
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))  # after chown, which clears set-id bits
    for name in _xattrs(source):
        _set_xattr(target, name, os.getxattr(source, name), follow_symlinks=True)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _open_directory(root: int, path: bytes) -> int:
    if not path:
        return os.dup(root)
    return openat2(root, path, _DIRECTORY, resolve=BENEATH_NO_SYMLINKS)


def _copy_directory(source: int, target: int, path: bytes, links: dict[Inode, bytes]) -> list[bytes]:
    """Copy the entries of one directory and return the paths of its subdirectories, made but not filled."""
    found: list[bytes] = []
    origin = _open_directory(source, path)
    try:
        copy = _open_directory(target, path)
        try:
            for name in sorted(map(os.fsencode, os.listdir(origin))):
                where = path + b"/" + name if path else name
                if _copy_entry(origin, copy, name, target, where, links):
                    found.append(where)
        finally:
            os.close(copy)
    finally:
        os.close(origin)
    return found


def _copy_entry(origin: int, copy: int, name: bytes, target: int, where: bytes, links: dict[Inode, bytes]) -> bool:
    """Make one entry; True when it is a directory."""
    info = os.stat(name, dir_fd=origin, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(name, 0o700, dir_fd=copy)
        return True
    inode = (info.st_dev, info.st_ino)
    if info.st_nlink > 1 and inode in links:
        os.link(links[inode], name, src_dir_fd=target, dst_dir_fd=copy, follow_symlinks=False)
        return False
    if stat.S_ISREG(info.st_mode):
        _copy_file(origin, copy, name)
    else:
        _copy_special(origin, copy, name, info)
    if info.st_nlink > 1:
        links[inode] = where
    return False


def _copy_file(origin: int, copy: int, name: bytes) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=origin)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=copy)
        try:
            copy_data(reader, writer, os.fstat(reader).st_size)
            copy_attributes(reader, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_special(origin: int, copy: int, name: bytes, info: os.stat_result) -> None:
    """A symlink, device node, fifo or socket."""
    link = stat.S_ISLNK(info.st_mode)
    if link:
        os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=copy)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=copy)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=copy, follow_symlinks=False)
    if not link:
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=copy)
    before = b"/proc/self/fd/%d/%s" % (origin, name)
    after = b"/proc/self/fd/%d/%s" % (copy, name)
    for attribute in _xattrs(before, follow_symlinks=False):
        value = os.getxattr(before, attribute, follow_symlinks=False)
        _set_xattr(after, attribute, value, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=copy, follow_symlinks=False)


def _copy_directory_attributes(source: int, target: int, path: bytes) -> None:
    origin = _open_directory(source, path)
    try:
        copy = _open_directory(target, path)
        try:
            copy_attributes(origin, copy)
        finally:
            os.close(copy)
    finally:
        os.close(origin)


def _xattrs(path: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
    with suppress(OSError):
        names = os.listxattr(path, follow_symlinks=follow_symlinks)
        return [name for name in names if not name.startswith("trusted.overlay.")]
    return []


def _set_xattr(path: int | bytes, name: str, value: bytes, *, follow_symlinks: bool) -> None:
    try:
        os.setxattr(path, name, value, follow_symlinks=follow_symlinks)
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:  # the volume's filesystem may know fewer attributes than the image's
            raise
