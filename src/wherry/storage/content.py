"""Content store: immutable blobs named by digest.

    <root>/blobs/sha256/<hex>    committed, mode 0444
    <root>/ingest/<name>         being written (name: digest of its ref); what is there at start-up is garbage
    <root>/ingest/partial-<hex>  a download of sha256:<hex>, which a later one goes on with, also after a restart; when
                                 it is complete, a second link to the blob until what it belongs to is complete too

A blob becomes visible by one rename, after fsync, and only if its digest is the expected one. An ingest is held by one
writer at a time (flock); one that was left may be taken up again where it stopped: until `recover`, and a download
(`download_ref`) until nobody has written to it for PARTIAL_LIFE.
Thread-safe and synchronous: callers on the event loop go through `aio.settle`.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from wherry import digest
from wherry.digest import Digest
from wherry.errors import Conflict, Corrupt, Failed, InvalidParameter, NotFound
from wherry.kernel.files import fsync_directory
from wherry.storage.refusal import refused

PARTIAL_LIFE = 24 * 3600  # seconds a broken-off download is kept
_CHUNK = 1 << 20  # bytes read at once
_DOWNLOAD = "layer "  # beginning of the refs of downloads; a digest follows
_PARTIAL = "partial-"  # beginning of their files' names

Trace = Callable[[str], None]  # told the name of every step about to be made; tests stop the world there


def no_trace(step: str) -> None:
    """Go on."""


def download_ref(blob: Digest) -> str:
    """The ref of an ingest that outlives a failure and a restart."""
    return _DOWNLOAD + blob


def _file_name(ref: str) -> str:
    wanted = ref.removeprefix(_DOWNLOAD)
    if wanted != ref and digest.is_digest(wanted):
        return _PARTIAL + digest.hex_part(Digest(wanted))
    return hashlib.sha256(ref.encode()).hexdigest()[:32]


class ContentStore:
    """Open (and make) the store below `root`."""

    def __init__(self, root: Path, *, trace: Trace = no_trace) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._ingest = root / "ingest"
        self._trace = trace
        self._appearing = threading.Lock()  # no blob appears between the last look at it and its deletion
        for directory in (self._blobs, self._ingest):
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise refused("cannot keep images", exc, directory) from exc

    def path(self, blob: Digest) -> Path:
        """Where `blob` is or would be."""
        return self._blobs / digest.hex_part(digest.parse(blob))

    def has(self, blob: Digest) -> bool:
        return self.path(blob).is_file()

    def size(self, blob: Digest) -> int:
        """Bytes; NotFound."""
        try:
            return self.path(blob).stat().st_size
        except FileNotFoundError:
            raise _missing(blob) from None

    def open(self, blob: Digest) -> BinaryIO:
        """A file to read; its digest is not checked again. NotFound."""
        try:
            return open(self.path(blob), "rb", buffering=0)
        except FileNotFoundError:
            raise _missing(blob) from None

    def read(self, blob: Digest, *, limit: int) -> bytes:
        """The whole blob, verified. InvalidParameter when it has more than `limit` bytes, NotFound, Corrupt."""
        with self.open(blob) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InvalidParameter(f"blob {blob} has {size} bytes; at most {limit} are accepted here")
            data = file.read(size) if size else b""
        found = digest.of(data)
        if found != blob:
            raise Corrupt(f"blob {blob} is damaged on disk: its content has the digest {found}")
        return data

    def write(self, data: bytes) -> Digest:
        """Store a small blob; nothing happens when it is there already."""
        name = digest.of(data)
        if not self.has(name):
            with self.ingest_new(f"blob {name}") as ingest:
                ingest.write(data)
                ingest.commit(name, len(data))
        return name

    def ingest(self, ref: str) -> "Ingest":
        """Begin, or take up again, the writing of a blob under the caller's name for it. Conflict when it is held."""
        return self._begin(self._ingest / _file_name(ref), ref)

    def ingest_new(self, what: str) -> "Ingest":
        """Begin a blob that nobody will go on with: leaving its `with` drops what was not committed.

        `what` is for messages: "layer 2 of the archive".
        """
        return self._begin(self._ingest / os.urandom(16).hex(), what, once=True)

    def ingest_at(self, path: Path, ref: str) -> "Ingest":
        """Likewise with a file of the caller's, on the same file system: `recover` does not know of it."""
        return self._begin(path, ref)

    def _begin(self, path: Path, ref: str, *, once: bool = False) -> "Ingest":
        return Ingest(path, ref, blobs=self._blobs, appearing=self._appearing, trace=self._trace, once=once)

    def delete(self, blob: Digest, *, unless: Callable[[Digest], bool] = lambda blob: False) -> bool:
        """Remove a blob; nothing happens when it is not there. Open files stay readable.

        False, and nothing happens, when `unless` says so; in between no ingest makes the blob (anew).
        """
        with self._appearing:
            if unless(blob):
                return False
            self.path(blob).unlink(missing_ok=True)
            return True

    def forget_download(self, blob: Digest) -> None:
        """What a download of `blob` left to be gone on with is not wanted any more, unless somebody goes on with it."""
        _drop_idle(self._ingest / _file_name(download_ref(blob)), age=0)

    def walk(self) -> Iterator[Digest]:
        """Every committed blob, in no order."""
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                if digest.is_digest(name := f"sha256:{entry.name}"):
                    yield Digest(name)

    def examine(self, blob: Digest, *, size: int | None = None, quick: bool = False) -> str:
        """What is wrong with the blob on disk: "" for nothing, "missing", "truncated" or "altered".

        `size`: what it should be, if somebody said so. With `quick` its content is read only when it has another.
        Failed when it cannot be read.
        """
        path = self.path(blob)
        try:
            with open(path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno()).st_size
                if quick and size in (None, found):
                    return ""
                if hashlib.file_digest(file, "sha256").hexdigest() == digest.hex_part(blob):
                    return ""
                return "truncated" if size is not None and found < size else "altered"
        except (FileNotFoundError, IsADirectoryError):
            return "missing"
        except OSError as exc:
            raise refused(f"cannot read blob {blob}", exc, path) from exc

    def unfinished(self) -> list[Path]:
        """Files of blobs being written, but for downloads that can be gone on with; some may have lost their writer."""
        return [path for path in self._ingest.iterdir() if not path.name.startswith(_PARTIAL)]

    @staticmethod
    def is_left(path: Path) -> bool:
        """An `unfinished` file, seen a while ago, is still there and nobody holds it.

        Not to be asked at once: a writer that begins just now would be told that another one holds it.
        """
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def recover(self) -> None:
        """At start-up, before any writer: drop what was being written, but for downloads that can go on."""
        for path in self._ingest.iterdir():
            if not path.name.startswith(_PARTIAL):
                path.unlink(missing_ok=True)
        self.expire()

    def expire(self, *, age: float = PARTIAL_LIFE) -> int:
        """Drop downloads that broke off and were not gone on with for `age` seconds; the bytes that were freed."""
        return sum(_drop_idle(path, age=age) for path in self._ingest.glob(f"{_PARTIAL}*"))


def _drop_idle(path: Path, *, age: float) -> int:
    """Remove an ingest's file that nobody holds and nobody wrote to for `age` seconds; its bytes, 0 when it stays."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if time.time() - found.st_mtime < age:
            return 0
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == found.st_ino:  # else it was committed, and another is being written
            path.unlink()
            return found.st_size
    return 0


class Ingest:
    """A blob being written. Leaving its `with` keeps its bytes for a later `ingest` of the ref, but of `ingest_new`."""

    def __init__(
        self, path: Path, ref: str, *, blobs: Path, appearing: threading.Lock, trace: Trace, once: bool
    ) -> None:
        self.ref = ref
        self._path, self._blobs, self._appearing = path, blobs, appearing
        self._trace, self._once = trace, once
        self._ended = False  # nothing of it is left to be dropped
        self._file = self._open()
        self._hash = hashlib.sha256()
        self.offset = 0  # bytes held so far; writing goes on here
        try:
            while data := self._file.read(_CHUNK):
                self._hash.update(data)
                self.offset += len(data)
        except BaseException as exc:
            self._file.close()
            if isinstance(exc, OSError):
                raise self._refused(exc) from exc
            raise

    @property
    def path(self) -> Path:
        """Where its bytes are until it is committed; others may read them there."""
        return self._path

    def _refused(self, exc: OSError) -> Failed:
        return refused(f"cannot store {self.ref}", exc, self._path.parent)

    def _open(self) -> BinaryIO:
        while True:
            try:
                file = open(self._path, "a+b", buffering=0)  # noqa: SIM115 - the ingest holds it
            except PermissionError as exc:
                if not self._unlock():
                    raise self._refused(exc) from exc
                continue
            except OSError as exc:
                raise self._refused(exc) from exc
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                links = os.fstat(file.fileno()).st_nlink
                if links == 1:
                    return file
                if links > 1:  # it is a blob, too, which must not be changed
                    os.unlink(self._path)
            except BlockingIOError:
                file.close()
                raise Conflict(f"{self.ref} is already being downloaded or loaded") from None
            except BaseException:
                file.close()
                raise
            file.close()  # committed or aborted between our open and our lock

    def _unlock(self) -> bool:
        """Make a download that was kept when complete writable again, for who is not root; False: it is none."""
        try:
            found = self._path.stat()
            if found.st_mode & stat.S_IWUSR:
                return False
            if found.st_nlink > 1:
                self._path.unlink()  # it is a blob, too, which must not be changed
            else:
                self._path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._once:
            self.abort()
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; Failed when the disk refuses."""
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:]) or 0
        except OSError as exc:
            raise self._refused(exc) from exc
        finally:
            self._hash.update(view[:done])
            self.offset += done

    @property
    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest("sha256:" + self._hash.hexdigest())

    def reset(self) -> None:
        """Forget what was written: the peer does not go on where we stopped."""
        os.ftruncate(self._file.fileno(), 0)
        self._hash = hashlib.sha256()
        self.offset = 0

    def commit(self, expected: Digest | None, size: int | None = None, *, keep: bool = False) -> Digest:
        """Make the blob visible and durable, and end the ingest; its digest.

        With `keep` the ingest's file stays as a second link: should the blob be removed as garbage, a later ingest of
        the same ref finds all its bytes.

        With another digest or size than expected nothing becomes visible, what was written is dropped, and Corrupt
        (digest) or InvalidParameter (size) is raised.
        """
        found = self.digest
        if size is not None and size != self.offset:
            self.abort()
            raise InvalidParameter(f"{self.ref}: wrong size: expected {size} bytes, got {self.offset}")
        if expected is not None and expected != found:
            self.abort()
            raise Corrupt(f"{self.ref}: wrong digest: expected {expected}, got {found}")
        try:
            self._trace("chmod")
            os.fchmod(self._file.fileno(), stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            self._trace("fsync")
            os.fsync(self._file.fileno())
            self._publish(self._blobs / digest.hex_part(found), keep)
            self._trace("fsync directory")
            fsync_directory(self._blobs)
        except OSError as exc:
            raise self._refused(exc) from exc
        finally:
            self.close()
        self._ended = True
        return found

    def _publish(self, blob: Path, keep: bool) -> None:
        self._trace("link" if keep else "rename")
        with self._appearing:
            if keep:
                with contextlib.suppress(FileExistsError):
                    os.link(self._path, blob)
            else:
                os.rename(self._path, blob)

    def abort(self) -> None:
        """Drop what was written. Idempotent; after a commit nothing happens, after one that failed it is dropped."""
        if not self._ended:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._ended = True
        self.close()

    def close(self) -> None:
        """Let go of the ingest; what was written stays."""
        self._file.close()


def _missing(blob: Digest) -> NotFound:
    return NotFound(f"no such blob: {blob}")
