"""Paths of a tree: as an action says them, and as they are when the tree's symbolic links are followed."""

import errno
import os
import posixpath
import stat

from wherry.builder.files.clock import Clock
from wherry.errors import InvalidParameter
from wherry.storage.archive import show
from wherry.storage.extract import WHITEOUT

LINKS_MAX = 255  # followed in one path
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR)


def below(path: str) -> bytes:
    """`path`, from the root whether it begins with a slash or not; neither `.` nor `..` is left in it."""
    if "\0" in path:
        raise InvalidParameter(f"path {path[:100]!r} has a NUL byte in it")
    return os.fsencode(posixpath.normpath("/" + path.lstrip("/")).lstrip("/"))


def means_directory(path: str) -> bool:
    """A target that says of itself that it is a directory: "", ".", "x/", "x/."."""
    return path in ("", ".") or path.endswith(("/", "/."))


def shown(path: bytes) -> str:
    """For messages: absolute, and printable whatever the name."""
    text = "/" + path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else show(b"/" + path)


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory and name else directory or name


def lstat(root: int, path: bytes) -> os.stat_result | None:
    """None when there is nothing."""
    try:
        return os.stat(path or b".", dir_fd=root, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in _NOTHING_THERE:
            return None
        raise unusable(path, exc) from exc


def resolve(root: int, path: bytes, *, follow: bool = True) -> bytes:
    """The same place without a symbolic link on the way; the last name may stay one when not to `follow`.

    Links lead where they would after a chroot to `root`. What does not exist is taken as it stands, so a path to be
    made can be resolved too.
    """
    todo = path.split(b"/")[::-1]
    done: list[bytes] = []
    links = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            del done[-1:]
            continue
        done.append(part)
        if not todo and not follow:
            break
        try:
            target = os.readlink(b"/".join(done), dir_fd=root)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, *_NOTHING_THERE):
                continue
            raise unusable(path, exc) from exc
        links += 1
        if links > LINKS_MAX:
            raise InvalidParameter(f"{shown(path)}: too many symbolic links, or a circle of them")
        done = [] if target.startswith(b"/") else done[:-1]
        todo += target.split(b"/")[::-1]
    return b"/".join(done)


def make_directories(root: int, path: bytes, *, mode: int, owner: tuple[int, int] | None, clock: Clock) -> None:
    """Make the resolved `path` and what is missing above it. What is there stays as it is."""
    parts = path.split(b"/") if path else []
    missing = len(parts)
    while missing and (found := lstat(root, b"/".join(parts[:missing]))) is None:
        missing -= 1
    if missing and found is not None and not stat.S_ISDIR(found.st_mode):
        raise InvalidParameter(f"mkdir {shown(b'/'.join(parts[:missing]))}: not a directory")
    for depth in range(missing + 1, len(parts) + 1):
        make_directory(root, b"/".join(parts[:depth]), mode=mode, owner=owner, clock=clock)


def make_directory(root: int, path: bytes, *, mode: int, owner: tuple[int, int] | None, clock: Clock) -> None:
    """Make one; FileExistsError when something is there. A setgid parent passes its group and that bit on."""
    parent, _, name = path.rpartition(b"/")
    check_name(path, name)
    os.mkdir(path, 0o700, dir_fd=root)
    if owner is not None:
        os.chown(path, *owner, dir_fd=root)
    inherited = os.stat(path, dir_fd=root).st_mode & stat.S_ISGID
    os.chmod(path, mode | inherited, dir_fd=root)
    clock.changed(parent)
    clock.made(path)


def check_name(path: bytes, name: bytes) -> None:
    if name.startswith(WHITEOUT):
        raise InvalidParameter(f"{shown(path)} cannot be put into a layer: there such a name means a deletion")


def unusable(path: bytes, exc: OSError) -> InvalidParameter:
    return InvalidParameter(f"{shown(path)}: {(exc.strerror or str(exc)).lower()}")
