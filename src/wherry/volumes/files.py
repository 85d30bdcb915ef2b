"""What happens to volumes' directories on disk; see volumes.py for the tree. Blocking."""

import errno
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wherry import ids
from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.kernel.files import fsync_directory, openat2, rename_noreplace
from wherry.kernel.mount import Mount, detached
from wherry.storage.tree import remove_tree
from wherry.volumes import bodies
from wherry.volumes.copy_up import copy_attributes, copy_tree
from wherry.volumes.mounting import mount, unmount
from wherry.volumes.record import Volume

log = logging.getLogger(__name__)

REMOVING = ".removing-"
MAKING = ".making-"
PARCEL = ".parcel-"  # a file on its way to a registry, or from one
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def move_away(directory: Path, doomed: Path) -> None:
    """Take a volume out of sight in one step. Raises Conflict when something is mounted in it: a delete would go on
    into that mount and take what is not the volume's."""
    inside = os.fsencode(str(directory)) + b"/"
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            where = line.split()[4].replace(b"\\040", b" ")
            if where.startswith(inside):
                raise Conflict(f"remove {directory.name}: {os.fsdecode(where)} is a mount point: unmount it first")
    with suppress(FileNotFoundError):  # no directory, nothing to keep
        directory.rename(doomed)


def delete(doomed: Path) -> None:
    """Delete a directory that was moved away; what cannot be deleted is logged and tried again at the next start."""
    try:
        remove_tree(doomed)
    except FileNotFoundError:
        pass
    except OSError as exc:
        log.warning("cannot delete %s of a removed volume: %s", exc.filename or doomed, exc.strerror)


def fill(data: Path, own: Path, rootfs: Sequence[Mount], destination: str) -> None:
    """See Volumes.fill. The tree is read through a detached mount: no name in any namespace, gone with its fd."""
    if os.listdir(data):
        return
    with detached(rootfs) as root:
        populate(data, own, root, destination)


def populate(data: Path, own: Path, rootfs: int, destination: str) -> None:
    """Copy what `rootfs`, a directory fd, has at `destination` into the empty directory `data`.

    `own` is the volume's own directory, where the copy is made first. Only a complete copy is moved into `data`, whose
    inode stays the same: another container may have it mounted.
    """
    if os.listdir(data):
        return
    try:
        source = openat2(rootfs, destination, os.O_PATH)  # as if `rootfs` were the root: no link leads out of it
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            raise InvalidParameter(f"cannot mount volume over existing file, file exists {destination}")
        origin = os.open(".", _DIRECTORY, dir_fd=source)
    finally:
        os.close(source)
    try:
        _copy_in(origin, own, data)
    finally:
        os.close(origin)


def _copy_in(origin: int, own: Path, data: Path) -> None:
    copy, ready = own / "_copy", own / "_ready"
    _clear(copy)
    own.mkdir(mode=0o701, exist_ok=True)
    copy.mkdir(mode=0o700)
    try:
        target = os.open(copy, _DIRECTORY | os.O_NOFOLLOW)
        try:
            copy_tree(origin, target)
        finally:
            os.close(target)
    except BaseException:
        _clear(copy)
        raise
    copy.rename(ready)
    move_in(ready, data)


def move_in(ready: Path, data: Path) -> None:
    """Move a finished copy's entries into `data`, and its attributes; entries that exist are kept. Idempotent.

    A rename within one filesystem: a volume that is a directory of the host may be on another one, so fall back to
    a second copy.
    """
    source = os.open(ready, _DIRECTORY | os.O_NOFOLLOW)
    try:
        target = os.open(data, _DIRECTORY)
        try:
            if os.fstat(source).st_dev == os.fstat(target).st_dev:
                for name in os.listdir(source):
                    with suppress(FileExistsError):
                        rename_noreplace(f"{ready}/{name}", f"{data}/{name}")
                copy_attributes(source, target)
            elif not os.listdir(target):
                copy_tree(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    _clear(ready)


def _clear(path: Path) -> None:
    with suppress(FileNotFoundError):
        remove_tree(path)


def replace_content(own: Path, fresh: Path) -> None:
    """Let `fresh`, complete and of the kind of what it replaces (`_data` or `_image`), be the volume's content."""
    if fresh.name == "_image":
        os.replace(fresh, own / "_image")
    else:
        fresh.rename(own / "_next")  # from here on it happens, crash or not
        finish_replacing(own)
    fsync_directory(own)


def finish_replacing(own: Path) -> None:
    """Idempotent; nothing happens when no content is on its way in."""
    fresh, data, old = own / "_next", own / "_data", own / "_old"
    if fresh.exists():
        if data.exists():
            _clear(old)
            data.rename(old)
        fresh.rename(data)
    _clear(old)


@dataclass(frozen=True, slots=True)
class Recovered:
    changed: Sequence[Volume]  # rows to be written: data that has none, changes that are complete now
    forget: Sequence[str]  # rows whose removal had begun


def recover(root: Path, known: Mapping[str, Volume]) -> Recovered:
    """Bring the directories in line with the rows `known`, and tell which rows to change."""
    root.mkdir(mode=0o701, parents=True, exist_ok=True)
    changed: list[Volume] = []
    for volume in known.values():
        if volume.moving:
            try:
                changed.append(arrive(root, volume))
            except OSError as exc:  # one broken volume must not keep the daemon from starting
                log.error("volume %s cannot take its place from %s: %s", volume.name, volume.moving, exc)
    moving = {volume.moving for volume in known.values()}  # what is still there could not be moved
    forget: list[str] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(REMOVING):
            name = entry.name.removeprefix(REMOVING).rpartition("-")[0]
            if name in known and not (root / name).exists():
                forget.append(name)
            delete(entry)
        elif entry.name in moving:
            continue
        elif entry.name.startswith((MAKING, PARCEL)):
            unmount(entry)
            delete(entry)
        elif entry.name not in known and ids.is_name(entry.name) and (entry / "_data").is_dir():
            created = (entry / "_data").stat().st_ctime_ns
            changed.append(Volume(name=entry.name, created=created, image=(entry / "_image").exists()))
            log.warning("volume %s has data and no record: adopted", entry.name)
    for volume in {**known, **{each.name: each for each in changed}}.values():
        if volume.name not in forget:
            make_again(root, volume)
    return Recovered(changed, forget)


def arrive(root: Path, volume: Volume) -> Volume:
    """Let the directory that is to become `volume`'s be it; the volume as it is then. Idempotent."""
    if (root / volume.moving).exists():
        rename_noreplace(str(root / volume.moving), str(root / volume.name))
        fsync_directory(root)
    return replace(volume, moving="")


def make_again(root: Path, volume: Volume) -> None:
    """Complete what a crash left of one volume."""
    own = root / volume.name
    try:
        bodies.thaw(own)
        _clear(own / "_copy")
        finish_replacing(own)
        if (own / "_snapshots").is_dir():
            for entry in (own / "_snapshots").iterdir():
                if entry.name.startswith(MAKING):
                    delete(entry)
        if not (own / "_data").is_dir() or (volume.image and not (own / "_image").exists()):
            bodies.make(own, volume)
        if (own / "_ready").is_dir():
            _finish_filling(own, volume)
    except (OSError, Failed) as exc:  # one broken volume must not keep the daemon from starting
        log.error("volume %s cannot be recovered: %s", volume.name, exc)


def _finish_filling(own: Path, volume: Volume) -> None:
    if volume.foreign:
        _clear(own / "_ready")  # its content is elsewhere, perhaps out of reach
    elif volume.image:
        mount(own, volume)
        try:
            for entry in (own / "_data").iterdir():  # a part of the copy: it was begun in an empty volume
                remove_tree(entry)
            move_in(own / "_ready", own / "_data")
        finally:
            unmount(own)
    else:
        move_in(own / "_ready", own / "_data")
