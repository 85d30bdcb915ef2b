"""Snapshots: file trees made of layers, and the writable trees on top of them.

    <root>/layers/<hex of chain>/   committed, never changed: `diff` (the files), `parent` (a chainID, or empty)
    <root>/rw/<key>/                writable: `diff`, `parent`, and what the driver needs besides
    <root>/removed/<random>/        given up; emptied in the background, and at start-up

A snapshotter *returns* mounts and never mounts. Layers are named by the chainID of the stack they complete, so two
images share what they have in common. A layer appears by one rename, after its files are on disk.
Thread-safe and synchronous. Implementations: `overlay.py`, `native.py`; their behaviour is one test suite.
"""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from wherry import digest
from wherry.digest import ChainID
from wherry.errors import Conflict, Corrupt, InvalidParameter, NotFound
from wherry.kernel import files
from wherry.kernel.mount import Mount
from wherry.storage.content import Trace, no_trace
from wherry.storage.extract import Whiteouts
from wherry.storage.refusal import refused
from wherry.storage.tree import Trash, Usage, measure

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")

__all__ = ["Mount", "Snapshotter", "Usage", "Whiteouts"]


class Snapshotter(Protocol):
    """Errors: NotFound for an unknown key or chain, Conflict for a key that exists, Failed when the disk refuses."""

    @property
    def name(self) -> str:
        """As `docker info` shows it: "overlay2", "native"."""

    @property
    def whiteouts(self) -> Whiteouts: ...

    def has(self, chain: ChainID) -> bool: ...

    def examine(self, chain: ChainID, parent: ChainID | None) -> str:
        """What is wrong with a layer, which should stand on `parent`; "" for nothing. Its files are not looked at."""

    def mend(self, key: str, chain: ChainID) -> None:
        """End what `examine` complains of: the layer's parent is that of `key`, its files, if there are none, are those
        of `key`, which goes. Files that are there stay: somebody may be running on them.
        """

    def layer(self, chain: ChainID) -> Path:
        """The directory of the layer's files."""

    def parent(self, chain: ChainID) -> ChainID | None: ...

    def parent_of_key(self, key: str) -> ChainID | None: ...

    def prepare(self, key: str, parent: ChainID | None, *, container: bool = False) -> None:
        """A new writable snapshot on `parent`: for a layer to be extracted, or of a container.

        A container's has the mount points of `placeholders.py`, which do not count as changes.
        """

    def mounts(self, key: str) -> list[Mount]:
        """The writable root file system of `key`. Never mount one key twice at a time: see `peek`."""

    def peek(self, key: str) -> list[Mount]:
        """The same tree read-only; allowed while `mounts(key)` is mounted. Changes made meanwhile may be missed."""

    def base(self, key: str) -> list[Mount]:
        """The read-only tree that `key` was prepared on, a container's placeholders included."""

    def placeholders(self, key: str) -> frozenset[bytes]:
        """Paths in `upper(key)` that are no change as long as they are empty."""

    def view(self, chain: ChainID | None) -> list[Mount]:
        """The read-only tree of `chain`; None is the empty tree."""

    def upper(self, key: str) -> Path:
        """The directory that a layer is extracted into, and that a diff is read from."""

    def commit(self, key: str, chain: ChainID, *, durable: bool = True) -> None:
        """Turn a snapshot into the layer `chain`, atomically and, unless told otherwise, durably.

        When the layer is there already the snapshot is removed. Corrupt when that layer has another parent.
        """

    def sync(self) -> None:
        """Make durable what was committed without being so: before anything is recorded that stands on it."""

    def remove(self, key: str) -> None:
        """Nothing happens when it is not there. Its files are deleted after the return."""

    def remove_layer(self, chain: ChainID) -> None:
        """Nothing happens when it is not there. The caller knows that nothing stands on it."""

    def usage(self, name: str | ChainID) -> Usage:
        """What the snapshot or layer itself occupies, without its parents; walks its files."""

    def keys(self) -> Iterator[str]: ...

    def chains(self) -> Iterator[ChainID]: ...

    def recover(self) -> None:
        """At start-up: drop half-made snapshots, finish deletions."""

    def close(self) -> None:
        """Wait for deletions that are under way."""


class DirectoryStore:
    """What both implementations share: the directories above, without how they are mounted."""

    def __init__(self, root: Path, *, trace: Trace = no_trace) -> None:
        self._root = root
        self._layers, self._rw = root / "layers", root / "rw"
        self._trace = trace
        for directory in (self._layers, self._rw):
            try:
                directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            except OSError as exc:
                raise refused("cannot keep layers", exc, directory) from exc
        self._trash = Trash(root / "removed")
        self._appearing = threading.Lock()
        self._parents: dict[ChainID, ChainID | None] = {}  # of committed layers: never changes while they exist
        self._unsynced: set[ChainID] = set()
        self._syncing = threading.Lock()

    # Layers

    def layer_path(self, chain: ChainID) -> Path:
        if not digest.is_digest(chain):
            raise InvalidParameter(f"invalid chain id {chain[:100]!r}")
        return self._layers / digest.hex_part(chain)

    def has(self, chain: ChainID) -> bool:
        return self.layer(chain).is_dir()

    def layer(self, chain: ChainID) -> Path:
        return self.layer_path(chain) / "diff"

    def examine(self, chain: ChainID, parent: ChainID | None) -> str:
        self._parents.pop(chain, None)  # the disk is asked
        if not self.has(chain):
            return "its files are missing"
        try:
            found = self.parent(chain)
        except NotFound:
            return "the note of its parent is missing"
        except Corrupt as exc:
            return exc.message
        return "" if found == parent else f"it stands on {found}, not on {parent}"

    def mend(self, key: str, chain: ChainID) -> None:
        parent = self.parent_of_key(key)
        if not self.has(chain):
            self._parents.pop(chain, None)
            self.commit(key, chain)
            return
        note, new = self.layer_path(chain) / "parent", self.key_path(key) / "parent"
        try:
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.replace(new, note)
            files.fsync_directory(note.parent)
        except OSError as exc:
            raise refused(f"cannot write the parent of layer {chain}", exc, note) from exc
        self._parents[chain] = parent
        self.remove(key)

    def parent(self, chain: ChainID) -> ChainID | None:
        if chain not in self._parents:
            try:
                text = (self.layer_path(chain) / "parent").read_text()
            except FileNotFoundError:
                raise NotFound(f"no such layer: {chain}") from None
            self._parents[chain] = _chain(text, chain)
        return self._parents[chain]

    def stack(self, chain: ChainID | None) -> list[Path]:
        """The `diff` directories of `chain` and everything below it, top first."""
        found = []
        while chain is not None:
            parent = self.parent(chain)
            path = self.layer(chain)
            if not path.is_dir():
                raise Corrupt(f"layer {chain} is missing on disk: run `wherry system check --repair`")
            found.append(path)
            chain = parent
        return found

    def chains(self) -> Iterator[ChainID]:
        for name in os.listdir(self._layers):
            if digest.is_digest(chain := f"sha256:{name}"):
                yield ChainID(digest.parse(chain))

    def remove_layer(self, chain: ChainID) -> None:
        self._parents.pop(chain, None)
        self._trash.discard(self.layer_path(chain))

    # Writable snapshots

    def key_path(self, key: str) -> Path:
        if _KEY.match(key) is None:
            raise InvalidParameter(f"invalid snapshot key {key[:100]!r}")
        return self._rw / key

    def upper(self, key: str) -> Path:
        path = self.key_path(key) / "diff"
        if not path.is_dir():
            raise NotFound(f"no such snapshot: {key}")
        return path

    def parent_of_key(self, key: str) -> ChainID | None:
        try:
            return _chain((self.key_path(key) / "parent").read_text(), key)
        except FileNotFoundError:
            raise NotFound(f"no such snapshot: {key}") from None

    def prepare(self, key: str, parent: ChainID | None, *, container: bool = False) -> None:
        path, making = self.key_path(key), self._rw / f".{key}-{os.urandom(4).hex()}"
        if path.exists():
            raise Conflict(f"snapshot {key} exists already")
        self.stack(parent)  # NotFound before anything is made
        try:
            self._trace("make")
            making.mkdir(mode=0o700)
            (making / "parent").write_text(parent or "")
            self._fill(making, parent, container=container)
            self._trace("appear")
            files.rename_noreplace(os.fspath(making), os.fspath(path))
        except Exception as exc:
            self._trash.discard(making)
            if isinstance(exc, FileExistsError):
                raise Conflict(f"snapshot {key} exists already") from None
            if isinstance(exc, OSError):
                raise refused(f"cannot prepare snapshot {key}", exc, self._rw) from exc
            raise

    def _fill(self, directory: Path, parent: ChainID | None, *, container: bool) -> None:
        """Make `diff` and what else the driver needs in the new snapshot `directory`."""
        raise NotImplementedError

    def commit(self, key: str, chain: ChainID, *, durable: bool = True) -> None:
        source, target = self.key_path(key), self.layer_path(chain)
        parent = self.parent_of_key(key)
        if not self.has(chain):
            self._make_durable(key, source, sync=durable)
            if not durable:
                self._unsynced.add(chain)
            self._trace("rename")
            try:
                if self._appear(source, target):
                    self._parents[chain] = parent
                    if durable:
                        self._trace("fsync directory")
                        files.fsync_directory(self._layers)
                    return
            except OSError as exc:
                raise refused(f"cannot commit layer {chain}", exc, self._layers) from exc
        if self.parent(chain) != parent:
            raise Corrupt(f"layer {chain} stands on {self.parent(chain)}, not on {parent}")
        self.remove(key)
        if durable:
            self.sync()

    def sync(self) -> None:
        with self._syncing:
            waiting = set(self._unsynced)
            if not waiting:
                return
            try:
                with files.closing(os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                    files.syncfs(fd)
            except OSError as exc:
                raise refused("cannot write layers to disk", exc, self._layers) from exc
            self._unsynced -= waiting

    def _appear(self, source: Path, target: Path) -> bool:
        """False when another pull of the same layer was faster. A layer that lost its files makes room."""
        with self._appearing:
            if target.exists() and not (target / "diff").is_dir():
                self._trash.discard(target)
            try:
                files.rename_noreplace(os.fspath(source), os.fspath(target))
            except FileExistsError:
                return False
            return True

    def _make_durable(self, key: str, source: Path, *, sync: bool) -> None:
        try:
            self._trace("strip")
            self._strip(source)
            if not sync:
                return
            self._trace("sync")
            with files.closing(os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                files.syncfs(fd)  # a layer is thousands of files: one call for all of them
        except OSError as exc:
            raise refused(f"cannot write layer {key} to disk", exc, source) from exc

    def _strip(self, directory: Path) -> None:
        """Remove what only a writable snapshot needs."""

    def remove(self, key: str) -> None:
        self._trash.discard(self.key_path(key))

    def keys(self) -> Iterator[str]:
        for name in os.listdir(self._rw):
            if _KEY.match(name):
                yield name

    def usage(self, name: str | ChainID) -> Usage:
        path = self.layer_path(ChainID(digest.parse(name))) if name.startswith("sha256:") else self.key_path(name)
        try:
            return measure(path / "diff")
        except FileNotFoundError:
            raise NotFound(f"no such snapshot or layer: {name}") from None

    # The store

    def recover(self) -> None:
        for path in self._rw.iterdir():
            if path.name.startswith("."):
                self._trash.discard(path)
        self._trash.recover()

    def close(self) -> None:
        self._trash.drain()


def _chain(text: str, of: str) -> ChainID | None:
    if not text:
        return None
    if not digest.is_digest(text):
        raise Corrupt(f"the parent of {of} on disk is no chain id: {text[:100]!r}")
    return ChainID(digest.parse(text))


def copy_root_attributes(source: Path, target: Path) -> None:
    """Give a new `diff` the owner, mode and times of the root directory below it: overlay shows the top one's."""
    found = source.stat()
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, found.st_mode & 0o7777)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
