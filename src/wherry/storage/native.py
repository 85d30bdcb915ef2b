"""Snapshots without help from the kernel: every layer is the whole tree, made by copying the one below.

    <root>/layers/<hex>/{diff,parent}
    <root>/rw/<key>/{diff,parent,placeholders}    placeholders: paths, one a line
    <root>/empty/

For file systems that overlayfs does not accept. Copies share blocks where the file system can (reflinks on xfs, btrfs).
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wherry.digest import ChainID
from wherry.errors import NotFound
from wherry.kernel.files import closing, copy_data
from wherry.kernel.mount import Mount
from wherry.storage.content import Trace, no_trace
from wherry.storage.extract import Whiteouts
from wherry.storage.pack import open_directory, open_file
from wherry.storage.placeholders import make_placeholders
from wherry.storage.snapshot import DirectoryStore, copy_root_attributes
from wherry.storage.tree import walk

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NativeSnapshotter(DirectoryStore):
    name = "native"
    whiteouts = Whiteouts.APPLY

    def __init__(self, root: Path, *, trace: Trace = no_trace) -> None:
        super().__init__(root, trace=trace)
        self._empty = root / "empty"
        self._empty.mkdir(exist_ok=True)
        self._empty.chmod(0o755)

    def _fill(self, directory: Path, parent: ChainID | None, *, container: bool) -> None:
        diff = directory / "diff"
        diff.mkdir()
        source = self._tree(parent)
        copy_tree(source, diff)
        if container:
            with closing(os.open(diff, _DIRECTORY)) as fd:
                made = make_placeholders(fd, fd)
            (directory / "placeholders").write_bytes(b"\n".join(made))
        copy_root_attributes(source, diff)

    def _strip(self, directory: Path) -> None:
        (directory / "placeholders").unlink(missing_ok=True)

    def _tree(self, chain: ChainID | None) -> Path:
        return self.layer(chain) if chain is not None else self._empty

    def mounts(self, key: str) -> list[Mount]:
        return [Mount(type="bind", source=os.fspath(self.upper(key)), options=("rbind", "rw"))]

    def peek(self, key: str) -> list[Mount]:
        return _read_only(self.upper(key))

    def base(self, key: str) -> list[Mount]:
        return self.view(self.parent_of_key(key))

    def placeholders(self, key: str) -> frozenset[bytes]:
        try:
            return frozenset((self.key_path(key) / "placeholders").read_bytes().split(b"\n")) - {b""}
        except FileNotFoundError:
            return frozenset()

    def view(self, chain: ChainID | None) -> list[Mount]:
        tree = self._tree(chain)
        if not tree.is_dir():
            raise NotFound(f"no such layer: {chain}")
        return _read_only(tree)


def _read_only(path: Path) -> list[Mount]:
    return [Mount(type="bind", source=os.fspath(path), options=("rbind", "ro"))]


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in `source` into the empty directory `target`, with everything that makes a file what it is.

    Owners, modes, times (ns), attributes, hard links, holes, devices. Sockets are left out.
    """
    with closing(os.open(source, _DIRECTORY)) as old_root, closing(os.open(target, _DIRECTORY)) as new_root:
        seen: dict[tuple[int, int], bytes] = {}
        directories: list[tuple[bytes, os.stat_result]] = []
        for listing in walk(old_root):
            prefix = listing.path + b"/" if listing.path else b""
            with closing(open_directory(new_root, listing.path)) as new:
                for base, found in listing.entries:
                    path = prefix + base
                    if stat.S_ISSOCK(found.st_mode):
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        _copy_directory(listing.fd, new, base, found)
                        directories.append((path, found))
                    elif found.st_nlink > 1 and (first := seen.setdefault((found.st_dev, found.st_ino), path)) != path:
                        _link(new_root, first, new, base)
                    else:
                        _copy_one(listing.fd, new, base, found)
        for path, found in directories:
            with closing(open_directory(new_root, path)) as fd:
                os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy_directory(old: int, new: int, base: bytes, found: os.stat_result) -> None:
    os.mkdir(base, 0o700, dir_fd=new)
    with (
        closing(os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=old)) as source,
        closing(os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=new)) as target,
    ):
        _copy_attributes(source, target, found)


def _link(root: int, first: bytes, new: int, base: bytes) -> None:
    directory, _, name = first.rpartition(b"/")
    with closing(open_directory(root, directory)) as other:
        os.link(name, base, src_dir_fd=other, dst_dir_fd=new, follow_symlinks=False)


def _copy_one(old: int, new: int, base: bytes, found: os.stat_result) -> None:
    """Anything but a directory, and not seen before."""
    if stat.S_ISREG(found.st_mode):
        with closing(open_file(old, base)) as source, closing(os.open(base, _MAKE, 0o600, dir_fd=new)) as target:
            copy_data(source, target, found.st_size)
            _copy_attributes(source, target, found)
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(base, dir_fd=old), base, dir_fd=new)
    else:
        os.mknod(base, found.st_mode, found.st_rdev, dir_fd=new)
    os.chown(base, found.st_uid, found.st_gid, dir_fd=new, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(base, stat.S_IMODE(found.st_mode), dir_fd=new)
    os.utime(base, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=new, follow_symlinks=False)


def _copy_attributes(old: int, new: int, found: os.stat_result) -> None:
    os.fchown(new, found.st_uid, found.st_gid)
    os.fchmod(new, stat.S_IMODE(found.st_mode))
    for name in _xattrs(old):
        os.setxattr(new, name, os.getxattr(old, name))


def _xattrs(fd: int) -> Iterator[str]:
    try:
        yield from os.listxattr(fd)
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
