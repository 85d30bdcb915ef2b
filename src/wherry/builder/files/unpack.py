"""ADD of a local archive: its files instead of itself.

What is an archive is said by its content: a tar, plain or compressed by gzip, bzip2, xz or zstd, with at least one
entry. It is read in this process, bounded by `Limits`; every path is resolved beneath the target's root.
"""

import itertools
import os
import stat
from collections.abc import Iterable

from wherry.builder.files.clock import Clock
from wherry.builder.files.paths import join, lstat, resolve, shown
from wherry.errors import InvalidParameter
from wherry.kernel.files import closing
from wherry.storage.archive import Entry, Kind, TarReader, normalize, show
from wherry.storage.compression import Limits, decompress, pieces
from wherry.storage.extract import WHITEOUT, Extractor
from wherry.storage.pack import open_directory, open_file

_DEVICES = (Kind.CHAR, Kind.BLOCK, Kind.FIFO)
_SNIFFED = 4  # pieces of uncompressed data in which the first entry must begin


def open_archive(root: int, path: bytes) -> int | None:
    """An fd of the file, at its begin; None when it is no regular file, or no archive."""
    found = lstat(root, path)
    if found is None or not stat.S_ISREG(found.st_mode) or not found.st_size:
        return None
    directory, _, name = path.rpartition(b"/")
    with closing(open_directory(root, directory)) as parent:
        fd = open_file(parent, name)
    try:
        reader = TarReader(itertools.islice(decompress(lambda size: os.read(fd, size)), _SNIFFED))
        if reader.next() is not None:
            os.lseek(fd, 0, os.SEEK_SET)
            return fd
    except InvalidParameter:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def unpack(
    archive: int, path: bytes, target: int, directory: bytes, *, owner: tuple[int, int] | None, clock: Clock
) -> None:
    """Extract into the resolved `directory`, which exists and is the root of the archive. `path` names it in messages.

    As in BuildKit links on an entry's way are followed, within that root; devices and fifos are left out; later entries
    replace earlier ones and what is there; the archive's entry for its root is not looked at. Raises InvalidParameter
    for a bad archive.
    """
    consumed = 0

    def read(size: int) -> bytes:
        nonlocal consumed
        data = os.read(archive, size)
        consumed += len(data)
        return data

    what, limits = f"archive {shown(path)}", Limits()
    uncompressed = pieces(decompress(read, what=what), limits, lambda: consumed)
    with closing(open_directory(target, directory)) as root:
        reader = _Below(uncompressed, what=what, root=root, clock=clock, limits=limits)
        Extractor(root, owner=owner, limits=limits).extract(reader)
    seen: set[bytes] = set()
    for parent in reader.parents:
        while parent not in seen:
            seen.add(parent)
            clock.changed(join(directory, parent))
            parent = parent.rpartition(b"/")[0]


class _Below(TarReader):
    """An archive's entries at the places they belong, with the times they may have."""

    def __init__(self, chunks: Iterable[bytes], *, what: str, root: int, clock: Clock, limits: Limits) -> None:
        super().__init__(chunks, what=what, max_headers=3 * limits.max_entries)
        self._root, self._clock, self._what = root, clock, what
        self._parent = self._place = b""  # of the entry before: as it was said, and where that is
        self.parents = {b""}  # directories that something was put into

    def next(self) -> Entry | None:
        while (entry := super().next()) is not None:
            name = normalize(entry.name)
            if not name or entry.kind in _DEVICES:
                continue
            if any(part.startswith(WHITEOUT) for part in name.split(b"/")):
                raise InvalidParameter(
                    f"{self._what}: {show(name)} cannot be put into a layer: there such a name means a deletion"
                )
            parent, _, base = name.rpartition(b"/")
            if parent != self._parent:
                self._parent, self._place = parent, resolve(self._root, parent)
                self.parents.add(self._place)
            entry.name = join(self._place, base)
            if entry.kind is Kind.HARDLINK:
                entry.link = resolve(self._root, normalize(entry.link), follow=False)
            entry.mtime = self._clock.bounded(entry.mtime)
            return entry
        return None
