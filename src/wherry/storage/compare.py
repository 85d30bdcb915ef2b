"""Damage in a layer: its directory compared with the same layer extracted anew, and mended from it.

Both directories are on one file system, in the form their snapshotter wants. Nothing of the damaged one is pulled away
as a whole, since containers may be running on it: what is wrong is replaced one file at a time, by a rename.
Synchronous, in bounded memory.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.kernel.files import closing, syncfs
from wherry.storage.archive import show
from wherry.storage.extract import is_whiteout
from wherry.storage.pack import kept_xattrs, open_directory, open_file
from wherry.storage.refusal import refused
from wherry.storage.tree import list_directory, remove_at, walk

_CHUNK = 1 << 20  # bytes compared at once
_OPAQUE = "trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Difference:
    path: bytes  # from the root of the layer; b"" is the root
    what: str  # in words: "missing", "its mode is 0644, not 0755"

    def __str__(self) -> str:
        return f"{show(self.path or b'/')}: {self.what}"


def differences(right: Path, found: Path, *, contents: bool = True) -> Iterator[Difference]:
    """What is wrong in the tree `found`, which should be as `right` is; parents before what is in them.

    Compared are kinds, sizes, owners, modes, times, link targets, device numbers, attributes, and `contents`. A
    directory that is missing, or should not be there, is one difference. The answer may be mended while it is read.
    """
    with closing(os.open(right, _DIRECTORY)) as old, closing(os.open(found, _DIRECTORY)) as new:
        if what := _differs(os.fstat(old), os.fstat(new)) or _fds_differ(old, new):
            yield Difference(b"", what)
        for listing in walk(old):
            prefix = listing.path + b"/" if listing.path else b""
            try:
                directory = open_directory(new, listing.path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # told already
            with closing(directory):
                there = dict(list_directory(directory))
                for base, expected in listing.entries:
                    what = _entry_differs(listing.fd, directory, base, expected, there.pop(base, None), contents)
                    if what:
                        yield Difference(prefix + base, what)
                for base in there:
                    yield Difference(prefix + base, "not part of the layer")


def _entry_differs(
    old: int, new: int, base: bytes, expected: os.stat_result, found: os.stat_result | None, contents: bool
) -> str:
    if found is None:
        return "missing"
    if what := _differs(expected, found):
        return what
    try:
        if stat.S_ISLNK(expected.st_mode):
            target = os.readlink(base, dir_fd=new)
            return "" if target == os.readlink(base, dir_fd=old) else f"leads to {show(target)}"
        if stat.S_ISDIR(expected.st_mode):
            with closing(open_directory(old, base)) as one, closing(open_directory(new, base)) as other:
                return _fds_differ(one, other)
        if stat.S_ISREG(expected.st_mode):
            with closing(open_file(old, base)) as one, closing(open_file(new, base)) as other:
                return _fds_differ(one, other) or (
                    "its content was altered" if contents and not same_bytes(one, other) else ""
                )
    except FileNotFoundError:
        return "missing"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return ""


def _differs(expected: os.stat_result, found: os.stat_result) -> str:
    """By lstat; without times and sizes of directories, which change with what is in them, and times of deletions."""
    if stat.S_IFMT(expected.st_mode) != stat.S_IFMT(found.st_mode):
        return "something of another kind"
    if expected.st_mode != found.st_mode:
        return f"its mode is {stat.S_IMODE(found.st_mode):04o}, not {stat.S_IMODE(expected.st_mode):04o}"
    if (expected.st_uid, expected.st_gid) != (found.st_uid, found.st_gid):
        return f"its owner is {found.st_uid}:{found.st_gid}, not {expected.st_uid}:{expected.st_gid}"
    if stat.S_ISDIR(expected.st_mode):
        return ""
    if expected.st_size != found.st_size:
        return f"it has {found.st_size} bytes, not {expected.st_size}"
    if expected.st_rdev != found.st_rdev:
        return "another device"
    if expected.st_mtime_ns != found.st_mtime_ns and not is_whiteout(expected):
        return "its time of change is another"
    return ""


def _fds_differ(old: int, new: int) -> str:
    if kept_xattrs(old) != kept_xattrs(new) or _opaque(old) != _opaque(new):
        return "its extended attributes are others"
    return ""


def _opaque(fd: int) -> bytes:
    try:
        return os.getxattr(fd, _OPAQUE)
    except OSError:
        return b""


def same_bytes(old: int, new: int) -> bool:
    """Of two open files."""
    offset = 0
    while True:
        one, other = os.pread(old, _CHUNK, offset), os.pread(new, _CHUNK, offset)
        if one != other:
            return False
        if not one:
            return True
        offset += len(one)


def mend(right: Path, found: Path, path: bytes) -> None:
    """End a difference: what is right at `path` is moved from one tree to the other. Failed when the disk refuses.

    Directories on the way are there: they are mended first.
    """
    with closing(os.open(right, _DIRECTORY)) as old_root, closing(os.open(found, _DIRECTORY)) as new_root:
        try:
            _mend(old_root, new_root, path)
        except OSError as exc:
            raise refused(f"cannot mend {show(path)}", exc, found) from exc


def _mend(old_root: int, new_root: int, path: bytes) -> None:
    directory, _, base = path.rpartition(b"/")
    with closing(open_directory(old_root, directory)) as old, closing(open_directory(new_root, directory)) as new:
        if not path:
            _copy_attributes(old, new)
            return
        model = os.fstat(old)
        expected, there = _lstat(old, base), _lstat(new, base)
        if expected is None:
            remove_at(new, base)
        elif there is not None and stat.S_ISDIR(expected.st_mode) and stat.S_ISDIR(there.st_mode):
            with closing(open_directory(old, base)) as one, closing(open_directory(new, base)) as other:
                _copy_attributes(one, other)
        else:
            if there is not None and (stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(expected.st_mode)):
                remove_at(new, base)
            os.rename(base, base, src_dir_fd=old, dst_dir_fd=new)
        for changed in (old, new):  # the old one may be a model again
            os.utime(changed, ns=(model.st_atime_ns, model.st_mtime_ns))


def _lstat(directory: int, base: bytes) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(base, dir_fd=directory, follow_symlinks=False)
    return None


def _copy_attributes(old: int, new: int) -> None:
    """Owner, mode and attributes of a directory."""
    model = os.fstat(old)
    os.fchown(new, model.st_uid, model.st_gid)
    os.fchmod(new, stat.S_IMODE(model.st_mode))
    expected, there = kept_xattrs(old), kept_xattrs(new)
    for name in there.keys() - expected.keys():
        os.removexattr(new, name)
    for name, value in expected.items():
        os.setxattr(new, name, value)
    if opaque := _opaque(old):
        os.setxattr(new, _OPAQUE, opaque)
    elif _opaque(new):
        os.removexattr(new, _OPAQUE)


def flush(tree: Path) -> None:
    """Make what was mended durable."""
    try:
        with closing(os.open(tree, _DIRECTORY)) as fd:
            syncfs(fd)
    except OSError as exc:
        raise refused("cannot write what was mended to disk", exc, tree) from exc
