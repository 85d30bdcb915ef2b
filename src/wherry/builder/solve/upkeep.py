"""What builds keep on disk, as `docker builder du` shows it, and taking it away: by size, age, use; by hand or policy.

regular                 results of steps (cache.py); their layers are shared with images
source.local            directories of clients (contexts.py)
source.git.checkout     repositories; source.http: files of the web (sources/)
exec.cachemount         cache mounts (run/caches.py)
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.aio import settle
from wherry.builder.contexts import ContextPool
from wherry.builder.deps import Deps
from wherry.builder.solve.cache import CHECKSUM, Cache
from wherry.builder.sources.shelf import Entry
from wherry.digest import ChainID
from wherry.errors import InvalidParameter
from wherry.images import garbage
from wherry.storage.tree import measure, remove_tree

REGULAR, LOCAL, GIT, HTTP, MOUNT = "regular", "source.local", "source.git.checkout", "source.http", "exec.cachemount"
DEFAULT_SHARE = 10  # of the disk: one tenth may be build cache, as in Docker
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "ms": 0.001, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    id: str
    type: str
    description: str = ""
    size: int = 0  # bytes
    created: int = 0  # ns since the epoch
    used: int = 0  # likewise
    uses: int = 0
    in_use: bool = False
    shared: bool = False  # an image has it too: removing it frees nothing
    parents: tuple[str, ...] = ()

    @property
    def mutable(self) -> bool:
        return self.type in (LOCAL, MOUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    all: bool = False  # also what images share
    filters: Sequence[str] = ()
    keep_duration: int = 0  # ns; what was used since then stays
    reserved: int = 0  # bytes that stay in any case
    max_used: int = 0  # bytes; 0 = no limit
    min_free: int = 0  # bytes of the disk


class Keeper(Protocol):
    """What was fetched from elsewhere and is kept."""

    def entries(self) -> list[Entry]: ...

    async def remove(self, name: str) -> int:
        """Bytes freed; nothing happens to what is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """All places in which builds keep something."""

    deps: Deps
    cache: Cache
    contexts: ContextPool
    shelves: Mapping[str, Keeper]  # by type


async def usage(store: Store, filters: Sequence[str] = ()) -> list[Usage]:
    """The largest first. Raises InvalidParameter for a filter that is none."""
    wanted = [matcher(text) for text in filters]
    found = [*_regular(store), *await settle(_directories, store)]
    found = [each for each in found if all(test(each) for test in wanted)]
    return sorted(found, key=lambda each: each.size, reverse=True)


def _regular(store: Store) -> list[Usage]:
    images = {layer.chain for image in store.deps.images.store.all() for layer in image.layers}
    leased = store.deps.images.leases.protected()[1]
    entries = [entry for entry in store.cache.entries() if entry.kind != CHECKSUM and entry.chains]
    by_chain = {chain: entry.key for entry in entries for chain in entry.chains}
    found = []
    for entry in entries:
        below = {layers[-2].chain for layers in entry.outputs.values() if len(layers) > 1}
        found.append(
            Usage(
                id=_short(entry.key),
                type=REGULAR,
                description=entry.description,
                size=entry.size,
                created=entry.created,
                used=entry.used,
                uses=entry.uses,
                in_use=any(chain in leased for chain in entry.chains),
                shared=all(chain in images for chain in entry.chains),
                parents=tuple(_short(by_chain[chain]) for chain in below if chain in by_chain),
            )
        )
    return found


def _short(key: str) -> str:
    return key.removeprefix("sha256:")[:25]


def _directories(store: Store) -> list[Usage]:
    found = [
        Usage(
            id=each.id,
            type=LOCAL,
            description=each.description,
            size=each.size,
            created=each.created,
            used=each.used,
            uses=each.uses,
            in_use=each.in_use,
        )
        for each in store.contexts.usage()
    ]
    for kind, shelf in store.shelves.items():
        found += [
            Usage(
                id=each.name,
                type=kind,
                description=each.description,
                size=each.size,
                created=each.created,
                used=each.used,
                in_use=each.in_use,
            )
            for each in shelf.entries()
        ]
    return [*found, *(usage for usage, _ in cache_mounts(store.deps))]


def cache_mounts(deps: Deps) -> list[tuple[Usage, Path]]:
    """Blocking: their files are counted."""
    root = deps.settings.root / "caches"
    if not root.is_dir():
        return []
    found = []
    for base in root.iterdir():
        name = _read(base / "id")
        for place in base.iterdir():
            if not (place / "files").is_dir():
                continue
            info = place.stat()
            usage = Usage(
                id=f"{base.name[:21]}-{place.name}",
                type=MOUNT,
                description=f"cached mount {name}",
                size=measure(place / "files").bytes,
                created=int(info.st_ctime_ns),
                used=info.st_mtime_ns,
                in_use=place in deps.cache_users,
            )
            found.append((usage, place))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


async def prune(store: Store, options: PruneOptions) -> list[Usage]:
    """Remove what the options let go, the longest unused first; what went. Nothing that is in use."""
    free = sorted(
        (each for each in await usage(store, options.filters) if not each.in_use and (options.all or not each.shared)),
        key=lambda each: each.used,
    )
    if options.keep_duration:
        before = time.time_ns() - options.keep_duration
        free = [each for each in free if each.used < before]
    doomed = _down_to(free, await _allowed(store, options))
    await _remove(store, doomed)
    return doomed


async def _allowed(store: Store, options: PruneOptions) -> int:
    """Bytes that may stay."""
    limits = [limit for limit in (options.max_used,) if limit]
    if options.min_free:
        disk = shutil.disk_usage(store.deps.settings.root)
        total = sum(each.size for each in await usage(store))
        limits.append(max(total - max(options.min_free - disk.free, 0), 0))
    if not limits:
        return options.reserved
    return max(min(limits), options.reserved)


def _down_to(free: Sequence[Usage], allowed: int) -> list[Usage]:
    if not allowed:
        return list(free)
    total = sum(each.size for each in free)
    doomed = []
    for each in free:
        if total <= allowed:
            break
        doomed.append(each)
        total -= each.size
    return doomed


async def _remove(store: Store, doomed: Sequence[Usage]) -> None:
    ids = {each.id for each in doomed}
    keys = [entry.key for entry in store.cache.entries() if entry.kind != CHECKSUM and _short(entry.key) in ids]
    chains = store.cache.forget(keys)
    await store.cache.flush()
    stacks = [layer for chain in chains for layer in await settle(_stack, store, chain)]
    await garbage.collect(store.deps.images, digests=(), chains=list(dict.fromkeys(stacks)))
    await settle(store.contexts.remove, [each.id for each in doomed if each.type == LOCAL])
    for kind, shelf in store.shelves.items():
        for each in doomed:
            if each.type == kind:
                await shelf.remove(each.id)
    await settle(_remove_mounts, store.deps, {each.id for each in doomed if each.type == MOUNT})


def _stack(store: Store, chain: ChainID) -> list[ChainID]:
    """A chain and what it stands on: all of it may be garbage now."""
    snapshots = store.deps.snapshots
    found = []
    below: ChainID | None = chain
    while below is not None and snapshots.has(below):
        found.append(below)
        below = snapshots.parent(below)
    return found


def _remove_mounts(deps: Deps, ids: set[str]) -> None:
    for found, place in cache_mounts(deps) if ids else ():
        if found.id in ids and place not in deps.cache_users:
            remove_tree(place)
            if not any(each.is_dir() for each in place.parent.iterdir()):
                remove_tree(place.parent)


async def collect(store: Store) -> list[Usage]:
    """Automatic collection: down to what the configuration lets builds keep."""
    keep = store.deps.settings.keep_storage
    if not keep:
        found = os.statvfs(store.deps.settings.root)
        keep = found.f_blocks * found.f_frsize // DEFAULT_SHARE
    if sum(each.size for each in await usage(store)) <= keep:
        return []
    return await prune(store, PruneOptions(all=True, max_used=keep))


def matcher(text: str) -> Callable[[Usage], bool]:
    """A filter in BuildKit's or Docker's words: `until=24h`, `type==regular`, `id=x`, `description~=apt`, `inuse`…"""
    found = re.fullmatch(r"([a-z-]+)(?:(==|!=|~=|=)(.*))?", text, re.DOTALL)
    if found is None:
        raise InvalidParameter(f"invalid filter {text[:100]!r}")
    name, sign, value = found[1], found[2] or "", found[3] or ""
    if name in ("until", "unused-for"):
        before = time.time_ns() - duration(value)
        return lambda usage: usage.used < before
    if name in ("inuse", "shared", "mutable", "private", "immutable"):
        return _flag(name, value not in ("false", "0"))
    if name not in ("id", "parent", "parents", "type", "description"):
        raise InvalidParameter(
            f"invalid filter {text[:100]!r}: want id, parent, type, description, inuse, shared or until"
        )
    pattern = _pattern(value) if sign == "~=" else None

    def test(usage: Usage) -> bool:
        values = usage.parents if name.startswith("parent") else (str(getattr(usage, name)),)
        if pattern is not None:
            return any(pattern.search(each) for each in values)
        same = any(each == value or (name == "id" and bool(value) and each.startswith(value)) for each in values)
        return same if sign != "!=" else not same

    return test


def _flag(name: str, wanted: bool) -> Callable[[Usage], bool]:
    tests: dict[str, Callable[[Usage], bool]] = {
        "inuse": lambda usage: usage.in_use,
        "shared": lambda usage: usage.shared,
        "private": lambda usage: not usage.shared,
        "mutable": lambda usage: usage.mutable,
        "immutable": lambda usage: not usage.mutable,
    }
    return lambda usage: tests[name](usage) is wanted


def _pattern(text: str) -> "re.Pattern[str]":
    try:
        return re.compile(text[:1000])
    except re.error as exc:
        raise InvalidParameter(f"invalid filter: {text[:100]!r} is no regular expression: {exc}") from exc


def duration(text: str) -> int:
    """ns of "24h", "1h30m"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidParameter(f"invalid duration {text[:100]!r}: want one like 24h or 1h30m")
    return int(sum(float(number) * _SECONDS[unit] for number, unit in parts) * 1e9)
