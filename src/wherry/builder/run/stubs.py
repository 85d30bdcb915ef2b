"""Mount points a runtime makes for what it mounts: files and directories that are no part of a step's result."""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.kernel.files import closing, openat2
from wherry.kernel.mount import detached
from wherry.storage.snapshot import Snapshotter

MTAB = "/etc/mtab"  # the one placeholder that is a link


@dataclass(frozen=True, slots=True, kw_only=True)
class Stubs:
    key: str  # of the snapshot
    missing: tuple[str, ...]  # absolute; paths that were not there before, deepest first
    times: tuple[tuple[str, int, int], ...]  # directories a stub is made in: path, atime, mtime (ns)


def find_missing(snapshots: Snapshotter, key: str, targets: Sequence[str]) -> Stubs:
    """What mounting on `targets` will make in the snapshot `key`. Blocking."""
    missing: dict[str, None] = {}
    times: dict[str, tuple[str, int, int]] = {}
    with detached(snapshots.peek(key)) as root:
        for target in targets:
            parent = ""
            for part in [each for each in os.path.normpath(target).split("/") if each]:
                path = f"{parent}/{part}"
                if _lookup(root, path) is None:
                    missing[path] = None
                    if parent not in missing and (found := _lookup(root, parent or "/")) is not None:
                        times[parent or "/"] = (parent or "/", found.st_atime_ns, found.st_mtime_ns)
                parent = path
    return Stubs(
        key=key,
        missing=tuple(sorted(missing, key=lambda path: path.count("/"), reverse=True)),
        times=tuple(times.values()),
    )


def remove_stubs(snapshots: Snapshotter, stubs: Stubs) -> None:
    """Remove those that are there and still empty; their directories look as they did. Blocking."""
    removed = False
    with closing(os.open(snapshots.upper(stubs.key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        for path in stubs.missing:
            removed = _remove(root, path) or removed
        for path, atime, mtime in stubs.times if removed else ():
            try:
                fd = openat2(root, path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            with closing(fd):
                os.utime(fd, ns=(atime, mtime))


def remove_placeholders(snapshots: Snapshotter, key: str) -> None:
    """Take away what was made for any container where the snapshot holds it itself (placeholders.py); a layer is not to
    have it. Blocking.
    """
    paths = sorted((os.fsdecode(path) for path in snapshots.placeholders(key)), key=lambda path: -path.count("/"))
    if not paths:
        return
    below = snapshots.view(snapshots.parent_of_key(key))
    with (
        closing(os.open(snapshots.upper(key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
        detached(below) as base,
    ):
        for path in paths:
            _remove(root, f"/{path}")
        for directory in {os.path.dirname(path) for path in paths}:
            found = _lookup(base, directory or "/")
            with (
                contextlib.suppress(OSError),
                closing(openat2(root, directory or ".", os.O_RDONLY | os.O_DIRECTORY)) as fd,
            ):
                if found is not None:
                    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _lookup(root: int, path: str) -> os.stat_result | None:
    try:
        fd = openat2(root, path, os.O_PATH)
    except OSError:
        return None
    with closing(fd):
        return os.fstat(fd)


def _remove(root: int, path: str) -> bool:
    """The upper directory holds the path without what links above it mean: those were not missing."""
    parent, _, base = path.rpartition("/")
    try:
        fd = openat2(root, parent or "/", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    with closing(fd):
        try:
            found = os.stat(base, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(base, dir_fd=fd)
            elif (stat.S_ISREG(found.st_mode) and found.st_size == 0) or (stat.S_ISLNK(found.st_mode) and path == MTAB):
                os.unlink(base, dir_fd=fd)
            else:
                return False
        except OSError:
            return False
    return True
