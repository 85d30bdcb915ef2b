"""Directories into which clients send their files, kept so that the next build only sends what changed.

    <root>/<id>/files/      as the client has them, owned by 0:0
    <root>/<id>/slot        whose they are, and since when (JSON)
    <root>/<id>/known       checksums of the files, each with the size, times and inode it was taken at (JSON)

A slot belongs to one build at a time. Who syncs into it makes a `Mirror` of it and names every entry the client has;
what is there already, by size and modification time, is not sent again. Blocking: callers on the event loop go through
`aio.settle`.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wherry.builder.graph import LocalSource
from wherry.digest import of
from wherry.errors import Failed, InvalidParameter
from wherry.ids import generate

log = logging.getLogger(__name__)

MAX_ENTRIES = 2_000_000  # of one context
MAX_PATH = 4096  # bytes
OPEN_FILES = 32  # being written at a time; the least recent one is closed and opened again when its next bytes come
XATTRS = ("user.", "security.capability")  # what is kept of extended attributes

_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is no UTF-8

# (size, mtime ns, ctime ns, inode, sha256 hex)
Known = tuple[int, int, int, int, str]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """The file `slot`."""

    key: str
    patterns: str = ""
    description: str = ""
    created: int = 0  # ns since the epoch
    used: int = 0
    uses: int = 0
    size: int = 0  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A slot, for `buildx du` and pruning."""

    id: str
    description: str
    created: int  # ns since the epoch
    used: int
    uses: int
    size: int  # bytes
    in_use: bool


@dataclass(slots=True)
class Slot:
    """A directory held by one build; `known` is what it knew of its files when it was taken."""

    id: str
    root: Path
    header: _Header
    known: dict[str, Known] = field(default_factory=dict)
    content: str = ""  # a name for exactly what is in it, times aside; "" = not known
    failed: bool = False  # the disk refused something: nothing is kept, so that the disk does not stay full of it

    @property
    def path(self) -> Path:
        return self.root / "files"


class ContextPool:
    """The slots below `root`. Everything there belongs to it; what a crash left half made is removed at the start."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._slots: dict[str, _Header] = {}
        self._held: set[str] = set()
        self._contents: dict[str, str] = {}  # of slots, as long as this process lives
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in list(os.scandir(root)):
            try:
                self._slots[entry.name] = msgspec.json.decode((root / entry.name / "slot").read_bytes(), type=_Header)
            except (OSError, msgspec.DecodeError):
                _remove_tree(entry.path)

    def acquire(self, key: str, *, patterns: str = "", description: str = "") -> Slot:
        """A directory for `key`, held until `release`: the one last filled by the same patterns, else another of the
        same key, else a new one. Raises Failed when the disk has no room for it.
        """
        with self._lock:
            free = [
                (header.patterns == patterns, header.used, slot_id, header)
                for slot_id, header in self._slots.items()
                if header.key == key and slot_id not in self._held
            ]
            if free:
                _, _, slot_id, found = max(free, key=lambda each: each[:3])
                header = msgspec.structs.replace(found, patterns=patterns)
            else:
                slot_id = generate()[:24]
                header = _Header(key=key, patterns=patterns, description=description, created=time.time_ns())
            self._slots[slot_id] = header
            self._held.add(slot_id)
            content = self._contents.pop(slot_id, "")
        slot = Slot(slot_id, self._root / slot_id, header, content=content)
        try:
            slot.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            slot.known = _read_known(slot.root / "known")
            self._write_header(slot_id, header)
        except OSError as exc:
            self.discard(slot)
            raise Failed(f"cannot make a directory for the files of a build: {_words(exc)}") from exc
        return slot

    def release(self, slot: Slot) -> None:
        """The build is over: the files may serve another one. Idempotent."""
        if slot.failed:
            self.discard(slot)
            return
        with self._lock:
            if slot.id not in self._held:
                return
            size = sum(size for size, *_ in slot.known.values())
            header = msgspec.structs.replace(slot.header, used=time.time_ns(), uses=slot.header.uses + 1, size=size)
            self._slots[slot.id] = header
            self._contents[slot.id] = slot.content
        try:
            _replace(slot.root / "known", msgspec.json.encode(_textual(slot.known)))
            self._write_header(slot.id, header)
        except OSError as exc:
            log.warning("the files of a build in %s are not kept: %s", slot.root, _words(exc))
            self.discard(slot)
            return
        with self._lock:
            self._held.discard(slot.id)

    def discard(self, slot: Slot) -> None:
        """The files are of no use to another build. Idempotent."""
        with self._lock:
            if slot.id not in self._held:
                return
            self._slots.pop(slot.id, None)
            self._contents.pop(slot.id, None)
        _remove_tree(slot.root)
        with self._lock:
            self._held.discard(slot.id)

    def usage(self) -> list[Usage]:
        with self._lock:
            return [
                Usage(
                    id=slot_id,
                    description=header.description,
                    created=header.created,
                    used=header.used,
                    uses=header.uses,
                    size=header.size,
                    in_use=slot_id in self._held,
                )
                for slot_id, header in self._slots.items()
            ]

    def remove(self, ids: Sequence[str]) -> list[Usage]:
        """Remove those of `ids` that no build holds; says which."""
        gone = []
        for each in self.usage():
            if each.id not in ids:
                continue
            with self._lock:
                if each.id in self._held or self._slots.pop(each.id, None) is None:
                    continue
            _remove_tree(self._root / each.id)
            gone.append(each)
        return gone

    def prune(self, *, keep: int | None = None, unused_since: int | None = None) -> list[Usage]:
        """Remove what was last used before `unused_since` (ns), then the least recently used down to `keep` bytes.

        With neither, everything goes that no build holds.
        """
        free = sorted((each for each in self.usage() if not each.in_use), key=lambda each: each.used)
        if keep is None and unused_since is None:
            return self.remove([each.id for each in free])
        doomed = [each for each in free if unused_since is not None and each.used < unused_since]
        if keep is not None:
            rest = [each for each in free if each not in doomed]
            total = sum(each.size for each in rest)
            for each in rest:
                if total <= keep:
                    break
                doomed.append(each)
                total -= each.size
        return self.remove([each.id for each in doomed])

    def _write_header(self, slot_id: str, header: _Header) -> None:
        _replace(self._root / slot_id / "slot", msgspec.json.encode(header))


def _read_known(path: Path) -> dict[str, Known]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Known])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _textual(known: Mapping[str, Known]) -> dict[str, Known]:
    """Without the files whose names are no UTF-8, which JSON cannot have: of them nothing is known."""
    return {path: each for path, each in known.items() if path.isascii() or not _SURROGATE.search(path)}


def _words(exc: OSError) -> str:
    """As Docker has them: `/a/b: no space left on device`."""
    reason = (exc.strerror or str(exc)).lower()
    return f"{exc.filename}: {reason}" if exc.filename else reason


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def _remove_tree(path: str | Path) -> None:
    """Best effort: what stays is found again at the next start."""
    if not os.path.isdir(path) or os.path.islink(path):
        with suppress(OSError):
            os.unlink(path)
        return
    with suppress(OSError):
        os.unlink(os.path.join(path, "slot"))  # first: a tree half gone is not taken for a slot
    shutil.rmtree(path, ignore_errors=True)


def slot_key(source: LocalSource, session_key: str) -> tuple[str, str]:
    """`key` and `patterns` for a client's directory; `session_key` names the client's side of it.

    What of a directory is wanted for different purposes (all of it; its .dockerignore) has different `shared_key`s,
    or one would empty the other's slot.
    """
    key = of("\0".join((session_key, source.name, source.shared_key)).encode())
    patterns = of(repr((source.include, source.exclude, source.follow)).encode())
    return key, patterns


# --- syncing ----------------------------------------------------------------------------------------------------------


_PLAIN = "plain"  # beginning of the names of contents without extended attributes


@dataclass(slots=True)
class _File:
    """A regular file whose content is on its way."""

    path: str
    mtime: int
    mode: int
    size: int  # as announced
    xattrs: Mapping[str, bytes]
    hash: "hashlib._Hash"
    written: int = 0


class _Disk:
    """What the disk refuses within the block is told in words, and the slot is given up."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, OSError):
            self._slot.failed = True
            raise Failed(f"cannot keep the files of the build: {_words(error)}") from error


class Mirror:
    """Makes the files of a slot equal to what a client lists: parents before children, each path once.

    `add` says whether the content is wanted; then `write` in any number of pieces, and `close_file`. `finish` after the
    last removes what was not listed. Raises InvalidParameter for a listing that is not well-formed, after which the
    files can be synced again, and Failed for what the disk refuses.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._disk = _Disk(slot)
        self._root = os.fspath(slot.path)
        self._before, slot.content = slot.content, ""  # until it is finished
        self._was_plain = self._before.startswith(_PLAIN)
        self._plain = True  # no file has extended attributes
        self._altered = False  # attributes of what is there
        self._present: dict[str, os.stat_result] = {}
        with self._disk:
            _scan(self._root, "", self._present)
        self._directories: dict[str, int] = {"": 0}  # listed ones: modification time
        self._touched: set[str] = set()  # directories whose modification time was lost
        self._listed: set[str] = set()
        self._inodes: set[int] = set()  # of files with several names
        self._changed: set[str] = set()  # files written in this sync
        self._open: dict[str, _File] = {}
        self._fds: dict[str, int] = {}
        self._known: dict[str, Known] = {}
        self.received = 0  # bytes
        self.newest = 0  # ns: modification time of the youngest entry, directories aside

    def add(
        self,
        path: str,
        *,
        mode: int,
        size: int = 0,
        mtime: int = 0,
        link: str = "",
        device: int = 0,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> bool:
        """One entry; `mode` with the type bits of stat(2), `link` a symlink's target or a hardlink's earlier path."""
        kind = stat.S_IFMT(mode)
        parent, _, _ = path.rpartition("/")
        if path in self._listed or parent not in self._directories or not _is_clean(path, parent):
            self._refuse(path, parent)
        if "\0" in link:
            raise InvalidParameter(f"invalid context: {path!r} is a link to {link[:200]!r}")
        if len(self._listed) >= MAX_ENTRIES:
            raise InvalidParameter(f"the context has more than {MAX_ENTRIES} entries: exclude some in .dockerignore")
        self._listed.add(path)
        have = self._present.get(path)
        kept = {name: value for name, value in xattrs.items() if _is_kept(name)} if xattrs else {}
        self._plain = self._plain and not kept
        if kind != stat.S_IFDIR:
            self.newest = max(self.newest, mtime)
        with self._disk:
            if kind == stat.S_IFREG and not link:
                return self._add_file(path, parent, have, mode, size, mtime, kept)
            if kind == stat.S_IFDIR:
                self._add_directory(path, parent, have, mode, mtime)
            elif kind == stat.S_IFREG:
                self._add_hardlink(path, parent, have, link)
            else:
                self._add_special(path, parent, have, mode, mtime, link, device)
        return False

    def write(self, path: str, data: bytes) -> None:
        """The next bytes of a wanted file."""
        file = self._open.get(path)
        if file is None:
            raise InvalidParameter(f"content was sent for {path!r}, which was not asked for")
        with self._disk:
            self._append(path, data)
        file.hash.update(data)
        file.written += len(data)
        self.received += len(data)

    def _append(self, path: str, data: bytes) -> None:
        fd = self._fds.pop(path, -1)
        if fd < 0:
            if len(self._fds) >= OPEN_FILES:
                os.close(self._fds.pop(next(iter(self._fds))))
            fd = os.open(f"{self._root}/{path}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._fds[path] = fd
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def close_file(self, path: str) -> None:
        """The content of a wanted file is complete."""
        file = self._open.pop(path, None)
        if file is None:
            raise InvalidParameter(f"the end of {path!r} was sent, which was not asked for")
        fd = self._fds.pop(path, -1)
        if fd >= 0:
            os.close(fd)
        full = f"{self._root}/{path}"
        with self._disk:
            _set_xattrs(full, file.xattrs)
            os.chmod(full, file.mode)
            os.utime(full, ns=(file.mtime, file.mtime))
            self._know(path, os.lstat(full), file.hash.hexdigest())

    @property
    def unfinished(self) -> int:
        """Files asked for that are not complete."""
        return len(self._open)

    def finish(self) -> dict[str, str]:
        """After the last file: remove what was not listed. Returns the files' checksums (sha256 hex) by path."""
        if self._open:
            raise InvalidParameter(f"the content of {next(iter(self._open))!r} did not come")
        with self._disk:
            self._remove_unlisted()
            self._set_times()
        self._slot.known = self._known
        if self._before and not self._touched and not self._altered:
            self._slot.content = self._before
        else:
            self._slot.content = f"{_PLAIN if self._plain else 'full'}-{generate()}"
        return {path: known[4] for path, known in self._known.items()}

    def _remove_unlisted(self) -> None:
        for path in sorted(self._present.keys() - self._listed, reverse=True):
            full = f"{self._root}/{path}"
            if stat.S_ISDIR(self._present[path].st_mode):
                os.rmdir(full)
            else:
                os.unlink(full)
            self._touched.add(path.rpartition("/")[0])

    def _set_times(self) -> None:
        for path in sorted(self._directories.keys() - {""}, reverse=True):
            mtime = self._directories[path]
            have = self._present.get(path)
            if path in self._touched or have is None or have.st_mtime_ns != mtime:
                os.utime(f"{self._root}/{path}", ns=(mtime, mtime))

    def close(self) -> None:
        """Whether finished or not: no file stays open. What was learned is kept for the next sync."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._slot.known.update(self._known)

    # one entry

    def _add_file(
        self,
        path: str,
        parent: str,
        have: os.stat_result | None,
        mode: int,
        size: int,
        mtime: int,
        xattrs: Mapping[str, bytes],
    ) -> bool:
        if have is not None and self._is_same_file(path, have, size, mtime):
            full = f"{self._root}/{path}"
            known = self._slot.known.get(path)
            same = known is not None and known[:4] == (have.st_size, have.st_mtime_ns, have.st_ctime_ns, have.st_ino)
            changed = have.st_mode != mode
            if changed:
                os.chmod(full, stat.S_IMODE(mode))
            if not (same and self._was_plain and not xattrs) and _xattrs(full) != xattrs:
                _set_xattrs(full, xattrs)
                changed = True
            self._altered = self._altered or changed
            if known is not None and same:
                self._know(path, os.lstat(full) if changed else have, known[4])
            return False
        self._clear(path, parent, have)
        fd = os.open(f"{self._root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.close(fd)
        self._open[path] = _File(path, mtime, stat.S_IMODE(mode), size, xattrs, hashlib.sha256())
        self._changed.add(path)
        return True

    def _is_same_file(self, path: str, have: os.stat_result, size: int, mtime: int) -> bool:
        if not stat.S_ISREG(have.st_mode) or have.st_size != size or have.st_mtime_ns != mtime:
            return False
        if have.st_nlink > 1:
            if have.st_ino in self._inodes:  # two names of one file, which the client has as two files
                return False
            self._inodes.add(have.st_ino)
        return True

    def _add_directory(self, path: str, parent: str, have: os.stat_result | None, mode: int, mtime: int) -> None:
        full = f"{self._root}/{path}"
        if have is None or not stat.S_ISDIR(have.st_mode):
            self._clear(path, parent, have)
            os.mkdir(full)
            os.chmod(full, stat.S_IMODE(mode))
            self._touched.add(path)
        elif have.st_mode != mode:
            os.chmod(full, stat.S_IMODE(mode))
            self._altered = True
        self._directories[path] = mtime

    def _add_hardlink(self, path: str, parent: str, have: os.stat_result | None, link: str) -> None:
        first = self._present.get(link)
        if link not in self._listed or link in self._directories or not _is_clean(link, link.rpartition("/")[0]):
            raise InvalidParameter(f"{path!r} is a hard link to {link!r}, which was not listed before it")
        if have is not None and first is not None and have.st_ino == first.st_ino and link not in self._changed:
            if link in self._known:
                self._known[path] = self._known[link]
            return
        self._clear(path, parent, have)
        os.link(f"{self._root}/{link}", f"{self._root}/{path}", follow_symlinks=False)

    def _add_special(
        self, path: str, parent: str, have: os.stat_result | None, mode: int, mtime: int, link: str, device: int
    ) -> None:
        full = f"{self._root}/{path}"
        if stat.S_ISLNK(mode):
            if have is not None and stat.S_ISLNK(have.st_mode) and os.readlink(full) == link:
                if have.st_mtime_ns != mtime:
                    os.utime(full, ns=(mtime, mtime), follow_symlinks=False)
                return
            self._clear(path, parent, have)
            os.symlink(link, full)
        else:
            if have is not None and (have.st_mode, have.st_rdev, have.st_mtime_ns) == (mode, device, mtime):
                return
            self._clear(path, parent, have)
            try:
                os.mknod(full, mode, device)
            except PermissionError as exc:
                raise Failed(f"cannot make the device or pipe {path!r} of the context: {exc.strerror}") from exc
            os.chmod(full, stat.S_IMODE(mode))
        os.utime(full, ns=(mtime, mtime), follow_symlinks=False)

    def _clear(self, path: str, parent: str, have: os.stat_result | None) -> None:
        """Nothing is at `path`, and its directory will get its time back."""
        self._touched.add(parent)
        if have is None:
            return
        full = f"{self._root}/{path}"
        if not stat.S_ISDIR(have.st_mode):
            os.unlink(full)
            return
        shutil.rmtree(full)
        prefix = path + "/"
        for below in [each for each in self._present if each.startswith(prefix)]:
            del self._present[below]

    def _know(self, path: str, found: os.stat_result, checksum: str) -> None:
        self._known[path] = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, checksum)

    def _refuse(self, path: str, parent: str) -> None:
        if path in self._listed:
            raise InvalidParameter(f"invalid context: {path!r} is listed twice")
        if not _is_clean(path, parent):
            raise InvalidParameter(f"invalid context: {path[:200]!r} is not a clean relative path")
        raise InvalidParameter(f"invalid context: {path!r} is listed before its directory")


def _is_clean(path: str, parent: str) -> bool:
    """`parent` has been found clean before, so only the last name is to be looked at when it is a listed one."""
    name = path[len(parent) + 1 :] if parent else path
    return bool(name) and name not in (".", "..") and "/" not in name and "\0" not in path and len(path) <= MAX_PATH


def _is_kept(xattr: str) -> bool:
    return xattr.startswith(XATTRS) and "\0" not in xattr


def _scan(root: str, below: str, found: dict[str, os.stat_result]) -> None:
    """Every entry under `root`, by relative path."""
    pending = [below]
    while pending:
        directory = pending.pop()
        prefix = f"{directory}/" if directory else ""
        with os.scandir(f"{root}/{directory}" if directory else root) as entries:
            for entry in entries:
                path = prefix + entry.name
                found[path] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def _xattrs(path: str) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name.startswith(XATTRS)}


def _set_xattrs(path: str, wanted: Mapping[str, bytes]) -> None:
    """Where the file system has none they are left out, as an archive of it would leave them out."""
    with suppress(OSError):
        for name in _xattrs(path).keys() - wanted.keys():
            os.removexattr(path, name, follow_symlinks=False)
        for name, value in wanted.items():
            os.setxattr(path, name, value, follow_symlinks=False)
