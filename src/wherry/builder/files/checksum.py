"""The content of what a Copy takes, as one digest: its part of a cache key.

It covers what a copy can bring along: names, kinds, modes, owners, targets of links, extended attributes, device
numbers, which names are one file, and the content. Times are no part of it.
"""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from wherry.builder.files.paths import join, lstat, unusable
from wherry.builder.files.select import Chosen, Selection
from wherry.builder.files.taken import visits
from wherry.builder.graph import Copy
from wherry.kernel.files import closing
from wherry.storage.pack import TRAVELLING, kept_xattrs, open_directory, open_file

FILES_MAX = 10_000  # named one by one in a Checksum
_INDEXED_MAX = 100_000  # files whose digest is remembered
_SETTLED = 50_000_000  # ns; a change within the granularity of file times would not be seen
_CHUNK = 1 << 20
_NOT_OURS = "user.overlay."


@dataclass(frozen=True, slots=True)
class Checksum:
    """`files` is for explanations: paths from the root of the source, the first `FILES_MAX` of them; a directory has a
    slash at its end.
    """

    digest: str  # sha256:…
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A tree or directory that files are taken from, opened by the caller."""

    root: int
    identity: str = ""  # a name for exactly this content; "" when there is none
    checksums: Mapping[str, str] = field(default_factory=dict)  # known already: relative path -> sha256 of the content


class ChecksumIndex:
    """What was read once, remembered as long as the daemon runs. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def of(self, source: Source) -> "Checksums":
        return Checksums(self, source)

    def get(self, version: tuple[int, ...]) -> str | None:
        return self._files.get(version)

    def keep(self, version: tuple[int, ...], digest: str) -> None:
        with self._lock:
            self._files[version] = digest
            if len(self._files) > _INDEXED_MAX:
                self._files.popitem(last=False)


class Checksums:
    """What is known of one source."""

    def __init__(self, index: ChecksumIndex, source: Source) -> None:
        self._index, self._source = index, source

    def content(self, directory: int, name: bytes, path: bytes, found: os.stat_result) -> str:
        """sha256 of a regular file, in hexadecimal."""
        given = self._source.checksums
        version = self._version(found)
        digest = (given.get(os.fsdecode(path)) if given else None) or self._index.get(version)
        if digest is None:
            with closing(open_file(directory, name)) as fd:
                digest = _hash(fd)
            # what changed a moment ago might change again without its times telling
            if time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) > _SETTLED:
                self._index.keep(version, digest)
        return digest.removeprefix("sha256:")

    def _version(self, found: os.stat_result) -> tuple[int, ...]:
        """The same for the same file. A file of layers has it whatever it is mounted with: overlay invents devices."""
        device = 0 if self._source.identity else found.st_dev
        return device, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def checksum(root: int, action: Copy, selection: Selection, known: Checksums) -> Checksum:
    """Of what `select` gave for `action`, read from the tree `root`.

    A chosen file or directory counts without its own name, which the operation says; those found by a wildcard with it.
    The attributes of a directory that only lends its contents do not count: they go nowhere.
    """
    hasher = _Hasher(known)
    for chosen in selection.chosen:
        hasher.add(root, chosen, selection, contents=action.contents)
    return hasher.finish()


class _Hasher:
    def __init__(self, known: Checksums) -> None:
        self._known = known
        self._whole = hashlib.sha256()
        self._files: dict[str, str] = {}
        self._names: dict[tuple[int, int], int] = {}  # files that have several, by the number of the first one met
        self._count = 0

    def add(self, root: int, chosen: Chosen, selection: Selection, *, contents: bool) -> None:
        self._whole.update(b"/" + (chosen.name if selection.by_wildcard else b"") + b"\0")
        try:
            if chosen.directory:
                self._directory(root, chosen, selection, contents=contents)
                return
            with closing(open_directory(root, chosen.path.rpartition(b"/")[0])) as fd:
                found = lstat(root, chosen.path)
                assert found is not None
                self._file(fd, chosen.path.rpartition(b"/")[2], found, path=b"", place=chosen.path)
        except OSError as exc:
            raise unusable(chosen.path, exc) from exc

    def finish(self) -> Checksum:
        return Checksum(f"sha256:{self._whole.hexdigest()}", self._files)

    def _directory(self, root: int, chosen: Chosen, selection: Selection, *, contents: bool) -> None:
        with closing(open_directory(root, chosen.path)) as top:
            for visit in visits(top, selection.filter):
                place = join(chosen.path, visit.path)
                if visit.path or not contents:
                    found = os.fstat(visit.fd)
                    self._note(visit.path, place + b"/", _record(found, kept_xattrs(visit.fd)))
                for name, found in visit.files:
                    self._file(visit.fd, name, found, path=join(visit.path, name), place=join(place, name))

    def _file(self, directory: int, name: bytes, found: os.stat_result, *, path: bytes, place: bytes) -> None:
        """`path` is how it counts, `place` where it is in the source."""
        first = self._count
        if found.st_nlink > 1:
            first = self._names.setdefault((found.st_dev, found.st_ino), first)
        if first != self._count:
            detail = b"the same file as number %d" % first
        elif stat.S_ISREG(found.st_mode):
            detail = self._known.content(directory, name, place, found).encode()
        elif stat.S_ISLNK(found.st_mode):
            detail = os.readlink(name, dir_fd=directory)
        else:
            detail = b"%d" % found.st_rdev
        xattrs = _xattrs(directory, name) if stat.S_ISREG(found.st_mode) else {}
        self._note(path, place, _record(found, xattrs, detail))

    def _note(self, path: bytes, place: bytes, record: bytes) -> None:
        self._count += 1
        digest = hashlib.sha256(record).hexdigest()
        self._whole.update(path + b"\0" + digest.encode())
        if len(self._files) < FILES_MAX:
            self._files[place.decode("utf-8", "backslashreplace")] = f"sha256:{digest}"


def _record(found: os.stat_result, xattrs: Mapping[bytes, bytes], detail: bytes = b"") -> bytes:
    """Without ambiguity: lengths before what may hold anything."""
    text = b"%o %d %d %d\0" % (found.st_mode, found.st_uid, found.st_gid, len(detail)) + detail
    for name, value in sorted(xattrs.items()):
        text += b"%s\0%d\0" % (name, len(value)) + value
    return text


def _xattrs(directory: int, name: bytes) -> dict[bytes, bytes]:
    """As `kept_xattrs`, without opening the file."""
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}  # a file system without
    return {
        os.fsencode(each): os.getxattr(path, each, follow_symlinks=False)
        for each in names
        if each.startswith(TRAVELLING) and not each.startswith(_NOT_OURS)
    }


def _hash(fd: int) -> str:
    hasher = hashlib.sha256()
    while data := os.read(fd, _CHUNK):
        hasher.update(data)
    return hasher.hexdigest()
