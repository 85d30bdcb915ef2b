"""Which times the files of a step get."""

import os

from wherry.kernel.files import closing
from wherry.storage.extract import bounded_time
from wherry.storage.pack import open_directory


class Clock:
    """Times of one action in the tree `root`.

    A file that is copied keeps its time, but none is younger than the epoch; what is made gets the epoch. An explicit
    `timestamp` (ns; -1 for none) is for both, as it stands. Without an epoch things have the time they were made at.

    Directories get theirs in `settle`, when nothing more is put into them.
    """

    def __init__(self, root: int, *, epoch_ns: int | None, timestamp: int = -1) -> None:
        self._root, self._epoch, self._timestamp = root, epoch_ns, timestamp
        self._directories: dict[bytes, int | None] = {}  # None: it was there, and has other files now

    def copied(self, mtime: int) -> int:
        """For a file that has `mtime` in the source; ns."""
        return self._timestamp if self._timestamp >= 0 else self.bounded(mtime)

    def bounded(self, mtime: int) -> int:
        """`mtime`, or the epoch when that was before; whole seconds, which is what archives keep."""
        time = bounded_time(mtime if self._epoch is None else min(mtime, self._epoch))
        return time - time % 1_000_000_000

    @property
    def new(self) -> int | None:
        """For what no source has; None for now."""
        return self._timestamp if self._timestamp >= 0 else self._epoch

    def changed(self, directory: bytes) -> None:
        """Something was put into it or taken out."""
        self._directories.setdefault(directory, None)

    def made(self, directory: bytes) -> None:
        self._directories[directory] = self.new

    def copied_directory(self, directory: bytes, mtime: int) -> None:
        self._directories[directory] = self.copied(mtime)

    def settle(self) -> None:
        for path, time in self._directories.items():
            try:
                fd = open_directory(self._root, path)
            except OSError:
                continue  # something else took its place meanwhile
            with closing(fd):
                if time is not None:
                    os.utime(fd, ns=(time, time))
                elif self._epoch is not None and os.fstat(fd).st_mtime_ns > self._epoch:
                    os.utime(fd, ns=(self._epoch, self._epoch))
        self._directories.clear()
