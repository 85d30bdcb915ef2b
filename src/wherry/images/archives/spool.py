"""Spool: an archive of images read once, as it comes, in a thread.

Every file is known by its name and by the digest of its content. Small ones stay in memory, the rest goes straight to
where blobs are kept; what no image turns out to need is dropped with the lease. Names in the archive are only ever
looked up, never paths on disk. Outer compression: gzip, zstd, bzip2, xz or none.
"""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from wherry import digest as digests
from wherry.digest import Digest, is_digest
from wherry.errors import Corrupt, InvalidParameter
from wherry.images.leases import Lease
from wherry.storage.archive import Entry, Kind, TarReader, normalize, show, text
from wherry.storage.compression import HEAD, Compression, Limits, decompress, detect, pieces
from wherry.storage.content import ContentStore

MAX_FILES = 100_000  # members of an archive
MAX_LINKS = 10  # links followed to one file
SMALL = 1 << 18  # bytes of a file that is kept in memory
HELD = 32 << 20  # bytes of all such files together

LIMITS = Limits(reserve=0)  # of the archive itself; its layers are held to their own


@dataclass(frozen=True, slots=True)
class File:
    digest: Digest
    size: int
    compression: Compression
    data: bytes | None = None  # None: in the content store


Arrived = Callable[[File], None]  # told, in the reading thread, of every file as soon as it is complete


@dataclass(slots=True)
class Archive:
    """What was in it: files by normalised name, links apart; and by digest, whatever they are called."""

    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    blobs: dict[Digest, File] = field(default_factory=dict)
    whole: bool = True  # it has an end; one that just stops between two files may have been cut there

    def find(self, name: str) -> File | None:
        """By name as a document gives it, links followed."""
        name = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if (file := self.files.get(name)) is not None:
                return file
            if name not in self.links:
                return None
            name = self.links[name]
        return None

    def add(self, name: str, file: File) -> None:
        self.links.pop(name, None)
        self.files[name] = file
        self.blobs[file.digest] = file

    def link(self, name: str, target: str) -> None:
        self.files.pop(name, None)
        self.links[name] = target


def keep(content: ContentStore, file: File) -> None:
    """See to it that the file is in the content store; the lease must protect it already."""
    if file.data is not None:
        content.write(file.data)


class Spool:
    def __init__(self, content: ContentStore, lease: Lease, limits: Limits, arrived: Arrived) -> None:
        self._content = content
        self._lease = lease
        self._limits = limits
        self._arrived = arrived
        self._consumed = 0
        self._held = 0  # bytes of files in memory

    def read(self, stream: BinaryIO) -> Archive:
        """The whole archive. Raises InvalidParameter, or Corrupt for a blob that is not what its name says."""

        def counted(size: int) -> bytes:
            data = stream.read(size)
            self._consumed += len(data)
            return data

        archive = Archive()
        reader = TarReader(self._bounded(decompress(counted, what="image archive")), what="image archive")
        for count, entry in enumerate(reader):
            if count >= MAX_FILES:
                raise InvalidParameter(f"image archive has more than {MAX_FILES} entries")
            self._take(archive, reader, entry)
        if not self._consumed:
            raise InvalidParameter("image archive is empty")
        archive.whole = reader.marked
        return archive

    def _bounded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        return pieces(chunks, self._limits, lambda: self._consumed)

    def _take(self, archive: Archive, reader: TarReader, entry: Entry) -> None:
        if entry.name.startswith(b"/"):
            raise InvalidParameter(f"image archive: entry {show(entry.name)} has an absolute name")
        name = text(normalize(entry.name))
        match entry.kind:
            case Kind.FILE:
                file = self._store(name, reader, entry)
                archive.add(name, file)
                self._arrived(file)
            case Kind.SYMLINK:
                target = posixpath.join(posixpath.dirname(name), text(entry.link))
                archive.link(name, _inside(target, entry))
            case Kind.HARDLINK:
                archive.link(name, _inside(text(entry.link), entry))
            case Kind.DIRECTORY:
                pass
            case _:
                raise InvalidParameter(f"image archive: entry {show(entry.name)} is a {entry.kind.name.lower()}")

    def _store(self, name: str, reader: TarReader, entry: Entry) -> File:
        """One file; a blob's name is checked against its content."""
        expected = blob_name(name)
        if entry.size <= min(SMALL, HELD - self._held):
            data = b"".join(reader.data())
            self._held += len(data)
            found = digests.of(data)
            if expected is not None and expected != found:
                raise Corrupt(f"{name} of the image archive: wrong digest: expected {expected}, got {found}")
            return File(found, len(data), detect(data[:HEAD]), data)
        head = b""
        ingest = self._content.ingest_new(f"{name} of the image archive")
        try:
            for piece in reader.stored() if entry.sparse is None else self._bounded(map(bytes, reader.data())):
                if len(head) < HEAD:
                    head += bytes(piece[: HEAD - len(head)])
                ingest.write(piece)
            size = ingest.offset
            self._lease.note(ingest.digest)
            found = ingest.commit(expected)
        finally:
            ingest.abort()
        return File(found, size, detect(head))


def blob_name(name: str) -> Digest | None:
    """The digest in a name like `blobs/sha256/<hex>`; None for other names."""
    parts = name.split("/")
    found = f"sha256:{parts[2]}" if len(parts) == 3 and parts[:2] == ["blobs", "sha256"] else ""
    return Digest(found) if is_digest(found) else None


def _inside(target: str, entry: Entry) -> str:
    normal = posixpath.normpath(target)
    if normal.startswith(("/", "../")) or normal == "..":
        raise InvalidParameter(
            f"image archive: link {show(entry.name)} leads out of the archive, to {show(entry.link)}"
        )
    return normal
