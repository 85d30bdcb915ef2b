"""Is a directory what extracting a layer made of it? Read along with the archive; nothing is written.

Runs where extraction runs (`confined.py`), on the tree as root, read-only. The answer is "yes" or a doubt: an archive
may hold what can only be judged by extracting it again (an entry that comes twice, a sparse file, a deletion in a
directory that hides everything anyway), and so may a damaged tree. "Yes" is certain: every entry was found as it should
be, no two of them in one place, and the tree has as many entries as there should be.
"""

import os
import stat

from wherry.kernel.files import closing, openat2
from wherry.storage.archive import Entry, Kind, TarReader, normalize, show
from wherry.storage.extract import OPAQUE, WHITEOUT, Whiteouts, bounded_time, is_whiteout
from wherry.storage.pack import TRAVELLING, kept_xattrs, open_directory, open_file
from wherry.storage.tree import walk

TRACKED = 1_000_000  # entries that are remembered
_AUFS = b".wh..wh."
_IMPLIED_MODE = 0o755
_KINDS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


class Doubt(Exception):
    """What could not be confirmed."""


class Verifier:
    """`root`: directory fd of the tree; the rest as for the Extractor. `contents`: files are read, too."""

    def __init__(self, root: int, *, whiteouts: Whiteouts | None, below: int | None, contents: bool) -> None:
        self._root, self._whiteouts, self._below, self._contents = root, whiteouts, below, contents
        self._seen: set[bytes] = set()
        self._implied: set[bytes] = set()  # directories on the way to what was seen
        self._root_described = False
        self._directory = (b"", root)  # the one opened last
        self.opaque: set[bytes] = set()  # directories that the caller must find marked so, and no others

    def verify(self, reader: TarReader) -> str:
        """ "" when the tree is as it should be, else a doubt in words. The archive is read to its end in any case."""
        doubt = ""
        try:
            while (entry := reader.next()) is not None:
                if not doubt:
                    doubt = self._doubt(entry, reader)
            return doubt or self._count()
        finally:
            self._close()

    def _doubt(self, entry: Entry, reader: TarReader) -> str:
        try:
            self._verify(entry, reader)
        except Doubt as exc:
            return f"{show(entry.name)}: {exc}"
        except OSError as exc:
            return f"{show(entry.name)}: {exc.strerror}"
        return ""

    def _verify(self, entry: Entry, reader: TarReader) -> None:
        path = normalize(entry.name)
        directory, _, base = path.rpartition(b"/")
        if entry.kind is not Kind.DIRECTORY and self._whiteouts is not None:
            if base.startswith(WHITEOUT):
                self._verify_deletion(directory, base)
                return
            if entry.kind is Kind.CHAR and entry.major == entry.minor == 0:
                self._verify_whiteout(directory, base)
                return
        if path:
            self._note(path)
        parent = self._open(directory)
        found = os.stat(base or b".", dir_fd=parent, follow_symlinks=False)
        if entry.kind is Kind.HARDLINK:
            self._verify_link(entry, found)
            return
        self._verify_attributes(entry, found)
        if entry.kind is Kind.SYMLINK:
            _confirm(os.readlink(base, dir_fd=parent) == entry.link, "leads elsewhere")
            _confirm(not entry.xattrs, "a link with attributes")
        elif entry.kind is Kind.FILE:
            with closing(open_file(parent, base)) as fd:
                self._verify_file(entry, fd, found, reader)
        elif entry.kind is Kind.DIRECTORY:
            with closing(open_directory(self._root, path)) as fd:
                _verify_xattrs(entry, fd)
            self._root_described = self._root_described or not path
        else:
            _confirm(not entry.xattrs, "a node with attributes")

    def _note(self, path: bytes) -> None:
        """Each place is confirmed once."""
        _confirm(path not in self._seen, "comes twice")
        _confirm(len(self._seen) < TRACKED, f"one of more than {TRACKED} entries")
        self._seen.add(path)
        self._note_way(path.rpartition(b"/")[0])

    def _verify_attributes(self, entry: Entry, found: os.stat_result) -> None:
        _confirm(stat.S_IFMT(found.st_mode) == _KINDS[entry.kind], "is of another kind")
        _confirm((found.st_uid, found.st_gid) == (entry.uid, entry.gid), "has another owner")
        if entry.kind is not Kind.SYMLINK:
            _confirm(stat.S_IMODE(found.st_mode) == entry.mode, "has another mode")
        if entry.kind is not Kind.DIRECTORY:
            _confirm(found.st_mtime_ns == bounded_time(entry.mtime), "has another time of change")
        if entry.kind is Kind.CHAR or entry.kind is Kind.BLOCK:
            _confirm(found.st_rdev == os.makedev(entry.major, entry.minor), "is another device")

    def _verify_file(self, entry: Entry, fd: int, found: os.stat_result, reader: TarReader) -> None:
        _confirm(entry.sparse is None, "is a sparse file")
        _confirm(found.st_size == entry.size, "has another size")
        _verify_xattrs(entry, fd)
        if self._contents and entry.size:
            offset = 0
            for piece in reader.stored():
                _confirm(os.pread(fd, len(piece), offset) == piece, "has another content")
                offset += len(piece)

    def _verify_link(self, entry: Entry, found: os.stat_result) -> None:
        """Its attributes are those of the first name."""
        path = normalize(entry.link)
        _confirm(path in self._seen, "links to what is not confirmed")
        directory, _, base = path.rpartition(b"/")
        with closing(open_directory(self._root, directory)) as parent:
            first = os.stat(base, dir_fd=parent, follow_symlinks=False)
        _confirm((first.st_dev, first.st_ino) == (found.st_dev, found.st_ino), "is not linked")
        _confirm(not is_whiteout(first), "links to a deletion")

    # Deletions

    def _verify_deletion(self, directory: bytes, base: bytes) -> None:
        if base == OPAQUE:
            if self._whiteouts is Whiteouts.OVERLAY:
                below = self._stat_below(directory) if directory else None
                _confirm(bool(directory), "hides everything below")
                if self._below is None or (below is not None and stat.S_ISDIR(below.st_mode)):
                    self.opaque.add(directory)
                    self._open(directory)
                    self._note_way(directory)
        elif not base.startswith(_AUFS):
            self._verify_whiteout(directory, base[len(WHITEOUT) :])

    def _verify_whiteout(self, directory: bytes, name: bytes) -> None:
        """Where nothing is below, a deletion leaves nothing; elsewhere a device, unless the layer makes it anew."""
        path = directory + b"/" + name if directory else name
        if self._whiteouts is Whiteouts.APPLY or (self._below is not None and self._stat_below(path) is None):
            _confirm(path not in self._seen, "deletes what the layer itself brings")
            return
        self._note(path)
        _confirm(is_whiteout(os.stat(name, dir_fd=self._open(directory), follow_symlinks=False)), "is not deleted")

    def _note_way(self, directory: bytes) -> None:
        while directory and directory not in self._seen and directory not in self._implied:
            self._implied.add(directory)
            directory = directory.rpartition(b"/")[0]

    def _stat_below(self, path: bytes) -> os.stat_result | None:
        if self._below is None:
            return None
        directory, _, base = path.rpartition(b"/")
        try:
            with closing(openat2(self._below, directory or b".", os.O_PATH | os.O_DIRECTORY)) as fd:
                return os.stat(base or b".", dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None

    # In the end

    def _count(self) -> str:
        """Nothing else is there, and what the archive only implies is like what is below."""
        expected = len(self._seen | self._implied)
        implied = self._implied - self._seen
        if not self._root_described:
            implied.add(b"")
        found = 0
        for listing in walk(self._root):
            found += len(listing.entries)
            if listing.path in implied:
                below = self._stat_below(listing.path)
                here = os.fstat(listing.fd)
                model = (_IMPLIED_MODE, 0, 0)
                if below is not None and stat.S_ISDIR(below.st_mode):
                    model = stat.S_IMODE(below.st_mode), below.st_uid, below.st_gid
                if (stat.S_IMODE(here.st_mode), here.st_uid, here.st_gid) != model or kept_xattrs(listing.fd):
                    return f"{show(listing.path or b'/')}: has other attributes"
                implied.discard(listing.path)
        if implied:
            return f"{show(min(implied))}: is missing"
        return "" if found == expected else f"there are {found} entries, not {expected}"

    def _open(self, directory: bytes) -> int:
        """The fd of `directory` in the tree, valid until the next call. Links on the way are not followed."""
        if self._directory[0] != directory:
            fd = open_directory(self._root, directory)
            self._close()
            self._directory = (directory, fd)
        return self._directory[1]

    def _close(self) -> None:
        if self._directory[1] != self._root:
            os.close(self._directory[1])
        self._directory = (b"", self._root)


def _confirm(sure: bool, otherwise: str) -> None:
    if not sure:
        raise Doubt(otherwise)


def _verify_xattrs(entry: Entry, fd: int) -> None:
    """Those that travel with a file; the others belong to the machine."""
    expected = {name: value for name, value in entry.xattrs.items() if os.fsdecode(name).startswith(TRAVELLING)}
    _confirm(kept_xattrs(fd) == expected, "has other attributes")
