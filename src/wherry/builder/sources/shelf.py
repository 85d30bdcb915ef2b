"""Shelf: what was fetched from elsewhere, each made once, used by any number of builds, removed when nobody uses it.

    <root>/<name>/files/     the files
    <root>/<name>/about      what its maker wants to know about it later; its mtime is the time of the last use
    <root>/.<random>/        being made; garbage at start-up

A thing appears by one rename when it is complete, and never changes. Nothing is flushed to the disk, so what was made
before the machine's last boot, which a power cut may have torn, is made anew.
"""

import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wherry.aio import KeyedLock, finish, settle
from wherry.storage.refusal import refused
from wherry.storage.tree import measure, remove_tree

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,200}\Z")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class About(msgspec.Struct, frozen=True, kw_only=True):
    size: int  # bytes of the files
    boot: str
    description: str = ""
    notes: dict[str, str] = {}


@dataclass(slots=True)
class Draft:
    """A thing being made."""

    files: Path  # an empty directory, to be filled
    description: str = ""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    description: str = ""
    size: int  # bytes
    used: int  # ns since the epoch: the last time
    created: int  # ns
    in_use: bool


@dataclass(frozen=True, slots=True)
class Thing:
    files: Path
    notes: dict[str, str]


class Shelf:
    """One kind of things, below `root`, which is this object's own."""

    def __init__(self, root: Path) -> None:
        """Blocking: drops what was being made when the last daemon ended."""
        self._root = root
        self._users: dict[str, int] = {}
        self._locks = KeyedLock()
        self._boot = _BOOT.read_text().strip()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in root.glob(".*"):
            remove_tree(path)

    @asynccontextmanager
    async def use(self, name: str, make: Callable[[Draft], Awaitable[None]]) -> AsyncIterator[Thing]:
        """The thing called `name`, which stays for the time of the block; made by `make` when there is none."""
        with _counted(self._users, name):
            async with self._locks(name):
                thing = await settle(self._find, name)
                if thing is None:
                    await self._make(name, make)
                    thing = await settle(self._find, name)
            assert thing is not None
            yield thing

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """A directory on the same file system, for the time of the block. What the disk refuses there is Failed."""
        place = self._root / f".{os.urandom(8).hex()}"
        try:
            await settle(place.mkdir, 0o700)
            yield place
        except OSError as exc:
            raise refused("cannot keep what was fetched", exc, self._root) from exc
        finally:
            await finish(settle(_drop, place))

    async def _make(self, name: str, make: Callable[[Draft], Awaitable[None]]) -> None:
        async with self.scratch() as place:
            draft = Draft(place / "files")
            await settle(draft.files.mkdir, 0o755)
            await make(draft)
            await settle(self._publish, place, name, draft)

    def _publish(self, place: Path, name: str, draft: Draft) -> None:
        size = measure(draft.files).bytes
        about = About(size=size, boot=self._boot, description=draft.description, notes=draft.notes)
        (place / "about").write_bytes(msgspec.json.encode(about))
        _drop(self._root / name)
        place.rename(self._root / name)

    def _find(self, name: str) -> Thing | None:
        """Marks it as used."""
        assert _NAME.match(name), name
        place = self._root / name
        about = _about(place)
        if about is None or about.boot != self._boot or not (place / "files").is_dir():
            return None
        os.utime(place / "about")
        return Thing(place / "files", about.notes)

    def named(self, prefix: str) -> list[tuple[str, dict[str, str]]]:
        """Names that begin so, with the notes; the last used first (blocking)."""
        found = [(entry.used, entry.name) for entry in self.entries() if entry.name.startswith(prefix)]
        known = [(name, _about(self._root / name)) for _, name in sorted(found, reverse=True)]
        return [(name, about.notes) for name, about in known if about is not None and about.boot == self._boot]

    def entries(self) -> list[Entry]:
        """Everything there is (blocking)."""
        found: list[Entry] = []
        for place in self._root.iterdir():
            about = None if place.name.startswith(".") else _about(place)
            if about is None:
                continue
            try:
                used, created = (place / "about").stat().st_mtime_ns, (place / "files").stat().st_ctime_ns
            except FileNotFoundError:
                continue
            in_use = place.name in self._users
            found.append(
                Entry(
                    name=place.name,
                    description=about.description,
                    size=about.size,
                    used=used,
                    created=created,
                    in_use=in_use,
                )
            )
        return found

    async def remove(self, name: str) -> int:
        """The bytes that were freed; 0, and it stays, when it is in use or not there."""
        if name in self._users:
            return 0
        async with self._locks(name):
            if name in self._users:
                return 0
            return await settle(self._remove, name)

    def _remove(self, name: str) -> int:
        about = _about(self._root / name)
        away = self._root / f".{os.urandom(8).hex()}"
        try:
            (self._root / name).rename(away)
        except FileNotFoundError:
            return 0
        _drop(away)
        return about.size if about is not None else 0


@dataclass(slots=True)
class _counted:  # noqa: N801 - reads like contextlib.closing
    users: dict[str, int]
    name: str

    def __enter__(self) -> None:
        self.users[self.name] = self.users.get(self.name, 0) + 1

    def __exit__(self, *exc: object) -> None:
        self.users[self.name] -= 1
        if not self.users[self.name]:
            del self.users[self.name]


def _about(place: Path) -> About | None:
    try:
        return msgspec.json.decode((place / "about").read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError):
        return None


def _drop(place: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_tree(place)
