"""Which snapshotter a data root gets, and why: overlay where kernel and file system can, else plain copies.

Blocking; once, at the start.
"""

import ctypes
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Failed
from wherry.kernel.files import clone_file, closing
from wherry.kernel.libc import libc
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter, probe
from wherry.storage.snapshot import Snapshotter
from wherry.storage.tree import remove_tree

NATIVE = "native"

_DOCKERS = {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs", "overlay": "overlayfs"}  # what docker info calls them
_D_TYPE = 18  # offset of d_type in glibc's struct dirent of a 64-bit machine
_UNKNOWN = 0  # DT_UNKNOWN

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    snapshotter: Snapshotter
    status: tuple[tuple[str, str], ...]  # for `docker info`, under Docker's names where it has them


def choose(root: Path, wanted: str) -> Choice:
    """A snapshotter on `root`, which is a directory. `wanted`: a driver's name; "" for the best that works.

    Raises Failed when the one that is wanted does not work.
    """
    system = backing(root)
    if wanted == NATIVE:
        return _native(root, system, "configured as storage-driver")
    obstacle = _obstacle(root)
    if obstacle and wanted:
        raise Failed(f"storage-driver {wanted}: overlay does not work on {root} ({system}): {obstacle}")
    if obstacle:
        log.warning("overlay does not work on %s (%s: %s): every layer is a whole copy", root, system, obstacle)
        return _native(root, system, f"overlay does not work here: {obstacle}")
    reason = "configured as storage-driver" if wanted else "overlay works here"
    log.info("storage driver overlay2 on %s at %s: %s", system, root, reason)
    status = (
        ("Backing Filesystem", system),
        ("Supports d_type", "true"),
        ("Using metacopy", "false"),
        ("Native Overlay Diff", "true"),  # an upper directory holds whole files: it is the difference
        ("userxattr", "false"),
        ("Reason", reason),
    )
    return Choice(OverlaySnapshotter(root), status)


def _native(root: Path, system: str, reason: str) -> Choice:
    shared = shares_blocks(root)
    log.info(
        "storage driver native on %s at %s: %s; copies %s", system, root, reason, "share blocks" if shared else "do not"
    )
    status = (
        ("Backing Filesystem", system),
        ("Supports d_type", _text(_knows_types(root))),
        ("Copies Share Blocks", _text(shared)),
        ("Reason", reason),
    )
    return Choice(NativeSnapshotter(root), status)


def _text(value: bool) -> str:
    return "true" if value else "false"


def _obstacle(root: Path) -> str:
    """Why overlay does not work on `root`; "" when it does."""
    try:
        probe(root)
    except OSError as exc:
        return exc.strerror or str(exc)
    return "" if _knows_types(root) else "the file system keeps no file types in its directories (xfs without ftype=1)"


def backing(root: Path) -> str:
    """The file system `root` is on, as Docker calls it."""
    place = os.path.realpath(root)
    best, found = "", "unknown"
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            head, _, tail = line.partition(" - ")
            point = head.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, found = point, tail.split(" ")[0]
    return _DOCKERS.get(found, found)


def shares_blocks(root: Path) -> bool:
    """A copy of a file may share its blocks with it until one is written to (FICLONE: btrfs, xfs)."""
    try:
        with closing(_nameless(root)) as one, closing(_nameless(root)) as other:
            os.write(one, bytes(4096))
            return clone_file(one, other)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return False
        raise Failed(f"cannot write to {root}: {exc.strerror}") from exc


def _nameless(root: Path) -> int:
    path = root / f".probe-{os.urandom(4).hex()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def _knows_types(root: Path) -> bool:
    """Directories on the file system of `root` say what is a directory: overlay's deletions depend on it."""
    place = root / f".probe-{os.urandom(4).hex()}"
    try:
        place.mkdir()
        (place / "inner").mkdir()
        return _UNKNOWN not in _types(place)
    except OSError as exc:
        raise Failed(f"cannot write to {root}: {exc.strerror}") from exc
    finally:
        if place.exists():
            remove_tree(place)


def _types(directory: Path) -> set[int]:
    """d_type of all entries."""
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    stream = libc.opendir(os.fsencode(directory))
    if not stream:
        raise OSError(ctypes.get_errno(), "cannot list it")
    found: set[int] = set()
    try:
        while entry := libc.readdir(ctypes.c_void_p(stream)):
            found.add(ctypes.c_ubyte.from_address(entry + _D_TYPE).value)
    finally:
        libc.closedir(ctypes.c_void_p(stream))
    return found
