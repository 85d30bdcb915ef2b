"""Results of a build that come to the user: archives into files, trees into directories, blobs into OCI layouts."""

from __future__ import annotations

import os
import stat

from wherry.cli.build_layouts import blob_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

STDOUT = 1


class Unacceptable(Exception):
    """What the engine sends is nothing to be written here."""


class FileSink:
    """One stream into a file that stands there when it is complete, or onto standard output."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fresh = ""
        if path == "-":
            self._fd = STDOUT
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._fresh = f"{path}.{os.getpid()}.part"
        self._fd = os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def entry(self, mode: int, size: int, mtime: int, device: int, path: str, link: str) -> None:
        raise Unacceptable("a tree came where a stream was expected")

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        if self._fresh:
            os.close(self._fd)
            os.replace(self._fresh, self._path)
            self._fresh = ""

    def abandon(self) -> None:
        """What is half written goes."""
        if self._fresh:
            os.close(self._fd)
            os.unlink(self._fresh)
            self._fresh = ""


class BlobSink(FileSink):
    def __init__(self, layout: str, digest: str, size: int) -> None:
        import hashlib

        self._hash = hashlib.new(digest.partition(":")[0])
        self._digest, self._size, self._written = digest, size, 0
        super().__init__(blob_path(layout, digest))

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._written += len(data)
        super().write(data)

    def finish(self) -> None:
        if self._written != self._size or self._hash.hexdigest() != self._digest.partition(":")[2]:
            self.abandon()
            raise Unacceptable(f"blob {self._digest} came broken")
        super().finish()


class TreeSink:
    """Files below a directory of the user's: what is there already stays, unless it has the same name.

    No symlink below the directory is followed. Owners are set where this user may.
    """

    def __init__(self, root: str, prefix: str = "") -> None:
        """Below the directory `prefix` of `root`, when there is one."""
        if prefix and (prefix.startswith(".") or "/" in prefix or "\0" in prefix):
            raise Unacceptable(f"the engine sent files for a directory named {prefix!r}")
        self._root = f"{root}/{prefix}" if prefix else root
        os.makedirs(self._root, exist_ok=True)
        self._file = -1
        self._times: list[tuple[str, int, int]] = []  # of directories: path, mode, mtime; set when all is there
        self._mtime = 0

    def entry(self, mode: int, size: int, mtime: int, device: int, path: str, link: str) -> None:
        self._close_file()
        full = self._place(path)
        if stat.S_ISDIR(mode):
            self._clear(full, directory=True)
            if not os.path.isdir(full):
                os.mkdir(full, 0o700)
            self._times.append((full, stat.S_IMODE(mode), mtime))
            return
        self._clear(full)
        if stat.S_ISLNK(mode):
            os.symlink(link, full)
        elif stat.S_ISREG(mode) and link:
            os.link(self._place(link), full, follow_symlinks=False)
            return
        elif stat.S_ISREG(mode):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(full, flags, stat.S_IMODE(mode) & 0o777)
            os.fchmod(self._file, stat.S_IMODE(mode))
            self._mtime = mtime
            return
        elif stat.S_ISFIFO(mode):
            os.mkfifo(full, stat.S_IMODE(mode))
        else:
            return  # devices mean nothing outside a container
        os.utime(full, ns=(mtime, mtime), follow_symlinks=False)

    def write(self, data: bytes) -> None:
        if self._file < 0:
            raise Unacceptable("content came without a file")
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def finish(self) -> None:
        self._close_file()
        for full, mode, mtime in reversed(self._times):
            os.chmod(full, mode)
            os.utime(full, ns=(mtime, mtime))

    def abandon(self) -> None:
        self._close_file()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.utime(self._file, ns=(self._mtime, self._mtime))
            os.close(self._file)
            self._file = -1

    def _place(self, path: str) -> str:
        """Where `path` is; every directory on the way is a real one."""
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise Unacceptable(f"the engine sent a file named {path!r}")
        here = self._root
        for part in parts[:-1]:
            here = f"{here}/{part}"
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                raise Unacceptable(f"the engine sent {path!r}, and {here} is no directory")
        return f"{here}/{parts[-1]}"

    def _clear(self, full: str, *, directory: bool = False) -> None:
        try:
            info = os.lstat(full)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            if not directory:
                raise Unacceptable(f"cannot write {full}: there is a directory of that name")
            return
        os.unlink(full)


def pairs(data: bytes, count: int) -> Sequence[tuple[str, str]]:
    """Paths and links out of the data of a frame."""
    parts = data.split(b"\0")
    if len(parts) != 2 * count + 1:
        raise Unacceptable("the engine names its files in a way that makes no sense")
    names = [os.fsdecode(part) for part in parts]
    return list(zip(names[0:-1:2], names[1:-1:2], strict=True))
