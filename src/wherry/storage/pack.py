"""Files on disk become tar entries.

Reads beneath an open directory and never follows a symbolic link. The tree may be changing: what vanishes is left out,
what shrinks is filled with zero bytes.
"""

import errno
import os
import stat

from wherry.errors import Failed
from wherry.kernel.files import BENEATH_NO_SYMLINKS, openat2
from wherry.storage.archive import Entry, Kind, show
from wherry.storage.archive_writer import TarWriter

# Attributes that belong to the file, not to the machine it is on: the others (labels, overlay's own) stay here.
TRAVELLING = ("user.", "security.capability")
_NOT_OURS = ("user.overlay.",)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PIECES = 16_384  # of one sparse file: their list must fit into what readers take
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


class Packer:
    """Adds files to `writer`; the second name of an inode it has seen becomes a hard link.

    With `sparse` holes in files stay holes, which other readers of layers may not know.
    """

    def __init__(self, writer: TarWriter, *, sparse: bool = False) -> None:
        self._writer = writer
        self._sparse = sparse
        self._seen: dict[tuple[int, int], bytes] = {}
        self.entries = 0

    def add(self, directory: int, base: bytes, path: bytes, found: os.stat_result) -> None:
        """The entry `base` of the open `directory` as `path`, with its content if it is a file.

        Sockets are left out: they mean nothing elsewhere.
        """
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return
        try:
            entry = describe(path, kind, found)
            if kind is not Kind.DIRECTORY and found.st_nlink > 1:
                first = self._seen.setdefault((found.st_dev, found.st_ino), path)
                if first != path:
                    entry.kind, entry.link, entry.size = Kind.HARDLINK, first, 0
            if entry.kind is Kind.FILE:
                self._file(directory, base, entry)
                return
            if kind is Kind.SYMLINK and entry.kind is kind:
                entry.link = os.readlink(base, dir_fd=directory)
            elif kind is Kind.DIRECTORY:
                entry.xattrs = self._directory_xattrs(directory, base)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Failed(f"cannot read {show(path)}: {exc.strerror}") from exc
        self._writer.add(entry)
        self.entries += 1

    def add_whiteout(self, path: bytes) -> None:
        """An empty file by whose name readers of layers know that something is deleted."""
        entry = Entry(path, Kind.FILE)
        entry.mode = 0o600
        self._writer.add(entry)
        self.entries += 1

    def _file(self, directory: int, base: bytes, entry: Entry) -> None:
        fd = open_file(directory, base)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return  # replaced meanwhile
            entry.size = found.st_size
            entry.xattrs = kept_xattrs(fd)
            if self._sparse and found.st_blocks * 512 < found.st_size:
                entry.sparse = data_of(fd, found.st_size)
            if entry.sparse is not None:
                self._writer.add_sparse(entry, fd)
            else:
                self._writer.add_file(entry, fd)
            self.entries += 1
        finally:
            os.close(fd)

    def _directory_xattrs(self, directory: int, base: bytes) -> dict[bytes, bytes]:
        fd = os.open(base, _READ | os.O_DIRECTORY, dir_fd=directory)
        try:
            return kept_xattrs(fd)
        finally:
            os.close(fd)


def open_file(directory: int, base: bytes) -> int:
    """Open for reading without leaving a trace in its access time, where we may."""
    try:
        return os.open(base, _READ | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(base, _READ, dir_fd=directory)


def data_of(fd: int, size: int) -> list[tuple[int, int]] | None:
    """(offset, length) of what is data among holes; None when that is all, or comes in too many pieces."""
    pieces: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return pieces
            return None  # a file system that does not tell
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= size:
            return pieces
        pieces.append((start, end - start))
        if len(pieces) > _PIECES or pieces == [(0, size)]:
            return None
    return pieces


def open_directory(root: int, path: bytes) -> int:
    """The directory `path` below `root`, which has no symbolic link in it."""
    return openat2(root, path or b".", os.O_RDONLY | os.O_DIRECTORY, resolve=BENEATH_NO_SYMLINKS)


def describe(path: bytes, kind: Kind, found: os.stat_result) -> Entry:
    """The entry of what `lstat` found, without its xattrs and link target."""
    entry = Entry(path, kind)
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = found.st_uid, found.st_gid
    entry.mtime = found.st_mtime_ns
    if kind is Kind.FILE:
        entry.size = found.st_size
    elif kind is Kind.CHAR or kind is Kind.BLOCK:
        entry.major, entry.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return entry


def kept_xattrs(fd: int) -> dict[bytes, bytes]:
    """The attributes that travel with a file."""
    try:
        names = os.listxattr(fd)
    except OSError:
        return {}  # a file system without
    return {
        os.fsencode(name): os.getxattr(fd, name)
        for name in names
        if name.startswith(TRAVELLING) and not name.startswith(_NOT_OURS)
    }
