"""File trees on disk: measuring, and removing them safely however deep they are and whatever they hold.

Trees come from containers, so their depth and names are hostile: nothing here recurses, follows a symbolic link, or
holds more than a few fds.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidParameter
from wherry.kernel.files import BENEATH_NO_SYMLINKS, openat2

log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 32  # directories held open while removing; what is deeper is moved up first


@dataclass(frozen=True, slots=True)
class Usage:
    bytes: int  # sum of file sizes; a hard-linked file counts once
    inodes: int


@dataclass(slots=True)
class Listing:
    """One directory of a tree: its path from the root ("" for the root), its fd while it is visited, its entries."""

    path: bytes
    fd: int
    entries: list[tuple[bytes, os.stat_result]]  # in byte order of the names


def walk(root_fd: int) -> Iterator[Listing]:
    """Every directory below `root_fd`, parents first, in a fixed order; entries that vanish meanwhile are left out.

    A directory that the caller takes out of `entries` is not visited. The fd is closed when the walk goes on.
    """
    stack = [b""]
    while stack:
        path = stack.pop()
        try:
            fd = openat2(root_fd, path or b".", _DIRECTORY, resolve=BENEATH_NO_SYMLINKS)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            if path and len(path) >= 4000:
                raise InvalidParameter(
                    f"path too long to be stored: {os.fsdecode(path[:80])}… ({len(path)} bytes)"
                ) from exc
            raise
        try:
            listing = Listing(path, fd, list_directory(fd))
            yield listing
            prefix = path + b"/" if path else b""
            stack += [prefix + name for name, found in reversed(listing.entries) if stat.S_ISDIR(found.st_mode)]
        finally:
            os.close(fd)


def list_directory(fd: int) -> list[tuple[bytes, os.stat_result]]:
    """Names and lstat results, in byte order of the names."""
    found = []
    with os.scandir(fd) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
    found.sort(key=lambda pair: pair[0])
    return found


def measure(root: Path) -> Usage:
    """What the tree below `root` occupies, `root` itself counted as an inode."""
    size, inodes = 0, 1
    seen: set[tuple[int, int]] = set()
    fd = os.open(root, _DIRECTORY)
    try:
        for listing in walk(fd):
            for _, found in listing.entries:
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    identity = (found.st_dev, found.st_ino)
                    if identity in seen:
                        continue
                    seen.add(identity)
                inodes += 1
                if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                    size += found.st_size
    finally:
        os.close(fd)
    return Usage(size, inodes)


def remove_tree(path: Path | str) -> None:
    """Delete `path`, a directory or anything else, and all below it; FileNotFoundError when it is not there."""
    path = os.fspath(path)
    parent = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_at(parent, os.fsencode(os.path.basename(path)))
    finally:
        os.close(parent)


def remove_at(parent: int, name: bytes) -> None:
    """`remove_tree` of one entry of the open directory `parent`."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    except PermissionError:  # unlink of a directory where the file system says EPERM
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
    top = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(top: int) -> None:
    """Delete everything in the open directory `top`. Deep directories are first moved up into `top` itself."""
    moved = 0
    while True:
        stack: list[tuple[int, list[bytes]]] = [(os.dup(top), _purge(top))]
        names: list[bytes] = []  # of the open directories in `stack`, without the first
        again = False
        try:
            while stack:
                fd, subdirectories = stack[-1]
                if subdirectories and len(stack) > _DEPTH:
                    for name in subdirectories:
                        moved += 1
                        os.rename(name, b".wherry-%d-%d" % (os.getpid(), moved), src_dir_fd=fd, dst_dir_fd=top)
                    subdirectories.clear()
                    again = True
                if subdirectories:
                    name = subdirectories.pop()
                    child = os.open(name, _DIRECTORY, dir_fd=fd)
                    stack.append((child, _purge(child)))
                    names.append(name)
                    continue
                os.close(fd)
                stack.pop()
                if names:
                    os.rmdir(names.pop(), dir_fd=stack[-1][0])
        finally:
            for fd, _ in stack:
                os.close(fd)
        if not again:
            return


def _purge(fd: int) -> list[bytes]:
    """Unlink all but the directories in `fd`; their names."""
    with os.scandir(fd) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=fd)
    return [name for name, is_directory in found if is_directory]


class Trash:
    """Where trees go to be deleted: out of the way by one rename, emptied by a thread that lives while there is work.

    What cannot be deleted is logged, and tried again at the next start.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._waiting: list[Path] = []
        self._worker: threading.Thread | None = None

    def discard(self, path: Path) -> None:
        """Take `path` away now, delete it later; nothing happens when it is not there."""
        target = self._root / os.urandom(16).hex()
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return
        self._enqueue([target])

    def recover(self) -> None:
        """Delete what an earlier process left."""
        with self._lock:
            busy = set(self._waiting)
        self._enqueue([path for path in self._root.iterdir() if path not in busy])

    def drain(self) -> None:
        """Wait until everything discarded is deleted."""
        with self._lock:
            worker = self._worker
        if worker is not None:
            worker.join()

    def _enqueue(self, paths: list[Path]) -> None:
        if not paths:
            return
        with self._lock:
            self._waiting += paths
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="wherry-trash", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                path = self._waiting[0]
            try:
                remove_tree(path)
            except FileNotFoundError:
                pass
            except OSError as exc:
                log.warning("cannot delete %s: %s", path, exc.strerror)
            with self._lock:
                self._waiting.pop(0)
