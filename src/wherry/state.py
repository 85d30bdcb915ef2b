"""State: what the engine knows, in one SQLite file.

    <root>/state.db      WAL; one table per kind: key TEXT PRIMARY KEY, value BLOB (a JSON document)

Each kind's owner keeps its own copy in memory, loads it once with `rows` and writes through `write`, where all that
must be true together commits together. What was acknowledged to a user survives a power cut: `synchronous=FULL`.
Its blocks for some time to come are allocated beforehand (`_reserve`), so that on a full disk things can still be
removed, and a killed daemon started again.
Thread-safe and blocking (0.1-0.5 ms a write; longer on a slow disk): on the event loop go through `aio.settle`.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Conflict, Corrupt, Failed
from wherry.kernel import files

TABLES = (
    "containers",  # container id -> record
    "names",  # container name -> container id
    "images",  # image id -> record
    "tags",  # familiar reference -> image id and manifest digest
    "leases",  # lease id -> what it protects
    "networks",  # network id -> record
    "endpoints",  # container id -> addresses and ports held
    "volumes",  # volume name -> record
    "settings",  # engine id and the like
    "builds",  # build id -> what is known of it (builder/records)
    "build_cache",  # cache key -> what a step resulted in (builder/solve/cache.py)
    "build_slots",  # place in a project -> what the step there was made from, to explain the next miss
    "build_blobs",  # diffID -> descriptor of the blob made of a layer built here
    "registry_manifests",  # repository@digest -> what the registry knows of a manifest (registry/folder.py)
    "registry_tags",  # repository:tag -> digest
    "registry_blobs",  # repository@digest -> a blob visible there
)
VERSION = 1  # of the tables above: PRAGMA user_version
LOG_RESERVE = 4608 << 10  # bytes; SQLite writes its log from the beginning again after 1000 pages
FILE_RESERVE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Put:
    table: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Insert:
    """Like Put, but the key must be new: the whole write fails with Conflict otherwise."""

    table: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the key; nothing happens when it is not there."""

    table: str
    key: str


Change = Put | Insert | Delete


class State:
    """The open database. One per data root: a second one on the same file is refused by the daemon's lock."""

    def __init__(self, path: Path | None) -> None:
        """Open or make the file; None keeps everything in memory. Raises Corrupt or Failed, naming the file."""
        self._lock = threading.Lock()
        self._where = str(path) if path else "(memory)"
        if path is not None and path.exists():
            _reserve(path, path.stat().st_size, FILE_RESERVE)  # never while it is open: closing drops SQLite's locks
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except sqlite3.DatabaseError as exc:
            raise Corrupt(f"state file {self._where} cannot be used: {exc}; move it away to start afresh") from exc
        if path is not None:
            _reserve(Path(f"{path}-wal"), 0, LOG_RESERVE)

    def _migrate(self) -> None:
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            raise Failed(f"state file {self._where} was written by a newer Wherry (format {found}, we know {VERSION})")
        self._db.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        if found != VERSION:
            self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("COMMIT")

    def rows(self, table: str) -> Mapping[str, bytes]:
        """All rows of `table`, in key order."""
        assert table in TABLES
        with self._lock:
            return dict(self._db.execute(f"SELECT key, value FROM {table} ORDER BY key"))

    def row(self, table: str, key: str) -> bytes | None:
        assert table in TABLES
        with self._lock:
            found = self._db.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def write(self, *changes: Change) -> None:
        """Apply all or none. Raises Conflict for an Insert whose key exists, Failed when the disk refuses."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for change in changes:
                    self._apply(change)
                self._db.execute("COMMIT")
            except sqlite3.IntegrityError as exc:
                self._roll_back()
                raise Conflict(f"already exists: {exc}") from exc
            except sqlite3.Error as exc:
                self._roll_back()
                raise Failed(f"cannot write state file {self._where}: {exc}") from exc

    def _apply(self, change: Change) -> None:
        assert change.table in TABLES
        match change:
            case Put(table, key, value):
                self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, value))
            case Insert(table, key, value):
                self._db.execute(f"INSERT INTO {table} VALUES (?, ?)", (key, value))
            case Delete(table, key):
                self._db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _reserve(path: Path, offset: int, size: int) -> None:
    """Allocate blocks without making the file longer; where that cannot be, everything else still works."""
    with contextlib.suppress(OSError), files.closing(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as fd:
        files.reserve(fd, offset, size)
