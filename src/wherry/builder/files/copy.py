"""Copying what was selected into a tree, as BuildKit does (tonistiigi/fsutil, copy): `cp -a`, with its own rules for
what is there already.

    a file over a file, link or device     replaces it
    a file over a directory                 refused
    a directory over a directory            merged; those below the one copied get the source's attributes, and those
                                            that are only parents of what is copied the source's mode
    a directory over anything else          refused
"""

import logging
import os
import stat
from collections.abc import Sequence

from wherry.builder.files.clock import Clock
from wherry.builder.files.modes import Change
from wherry.builder.files.paths import check_name, join, lstat, make_directories, resolve, shown
from wherry.builder.files.select import Chosen
from wherry.builder.files.taken import Filter, Visit, visits
from wherry.errors import Failed, InvalidParameter
from wherry.kernel.files import closing, copy_data
from wherry.storage.extract import is_whiteout
from wherry.storage.pack import kept_xattrs, open_directory, open_file
from wherry.storage.refusal import refused
from wherry.storage.tree import remove_at

log = logging.getLogger(__name__)

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 1 << 17  # bytes; read and written in one piece


class Copier:
    """Copies of one action. The clock is settled by the caller, when all is copied."""

    def __init__(
        self,
        source: int,
        target: int,
        *,
        owner: tuple[int, int] | None,
        mode: Change | None,
        clock: Clock,
        replace: bool,
    ) -> None:
        self._source, self._target = source, target
        self._owner, self._mode, self._clock, self._replace = owner, mode, clock, replace
        self._first: dict[tuple[int, int], bytes] = {}  # files with several names: where the first copy is
        self._file_at: dict[bytes, tuple[int, int]] = {}  # the reverse

    def is_directory(self, target: bytes) -> bool:
        found = lstat(self._target, target)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def copy(self, chosen: Chosen, target: bytes, wanted: Filter | None, *, contents: bool) -> None:
        """Copy `chosen` to the resolved path `target`: there, or into the directory that is there."""
        found = lstat(self._target, target)
        into = found is not None and (not contents if chosen.directory else stat.S_ISDIR(found.st_mode))
        if into:
            target = join(target, chosen.name)
        above = target if contents and chosen.directory and found is None else target.rpartition(b"/")[0]
        make_directories(self._target, above, mode=0o755, owner=self._owner, clock=self._clock)
        if chosen.directory:
            with closing(open_directory(self._source, chosen.path)) as top:
                for visit in visits(top, wanted):
                    self._directory(visit, join(target, visit.path), join(chosen.path, visit.path))
            return
        directory, _, name = chosen.path.rpartition(b"/")
        status = lstat(self._source, chosen.path)
        assert status is not None
        with closing(open_directory(self._source, directory)) as fd:
            self._files(Visit(directory, fd, [(name, status)]), above, directory, rename=target.rpartition(b"/")[2])

    def _directory(self, visit: Visit, path: bytes, source: bytes) -> None:
        made = self._make(path)
        found = os.fstat(visit.fd)
        try:
            if made or visit.path:
                with closing(open_directory(self._target, path)) as fd:
                    if made or visit.taken:
                        self._set_attributes(fd, found, kept_xattrs(visit.fd), path)
                    else:
                        os.fchmod(fd, stat.S_IMODE(found.st_mode))
        except OSError as exc:
            raise refused(f"cannot copy {shown(source)}", exc, shown(path)) from exc
        if source and (made or visit.taken):  # the time of a context's root is when it was sent
            self._clock.copied_directory(path, found.st_mtime_ns)
        if visit.files:
            self._files(visit, path, source)

    def _make(self, path: bytes) -> bool:
        """False when the directory was there."""
        parent, _, name = path.rpartition(b"/")
        check_name(path, name)
        while True:
            try:
                os.mkdir(path or b".", 0o700, dir_fd=self._target)
            except FileExistsError:
                found = lstat(self._target, path)
                assert found is not None
                if stat.S_ISDIR(found.st_mode):
                    return False
                if not self._replace:
                    raise InvalidParameter(_no_directory(self._target, path, found)) from None
                os.unlink(path, dir_fd=self._target)
                self._forget(path)
            except OSError as exc:
                raise refused("cannot make a directory", exc, shown(path)) from exc
            else:
                self._clock.changed(parent)
                return True

    def _files(self, visit: Visit, directory: bytes, source: bytes, *, rename: bytes | None = None) -> None:
        """Copy the files of `visit` into `directory`, one of them under another name."""
        self._clock.changed(directory)
        with closing(open_directory(self._target, directory)) as fd:
            for name, found in visit.files:
                base = name if rename is None else rename
                path = join(directory, base)
                check_name(path, base)
                try:
                    self._one(visit.fd, name, found, fd, base, path)
                except OSError as exc:
                    raise refused(f"cannot copy {shown(join(source, name))}", exc, shown(path)) from exc

    def _one(self, source: int, name: bytes, found: os.stat_result, target: int, base: bytes, path: bytes) -> None:
        identity = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and self._link(identity, target, base, path):
            return
        if stat.S_ISREG(found.st_mode):
            self._file(source, name, found, target, base, path)
        elif stat.S_ISLNK(found.st_mode):
            link = os.readlink(name, dir_fd=source)
            self._clear(target, base, path)
            os.symlink(link, base, dir_fd=target)
            self._set_at(target, base, found)
        elif stat.S_ISSOCK(found.st_mode):
            return  # means nothing without the process that listens on it
        else:
            if is_whiteout(found):
                raise InvalidParameter(
                    f"{shown(path)}: device 0:0 cannot be put into a layer: there it means a deletion"
                )
            self._clear(target, base, path)
            os.mknod(base, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=target)
            self._set_at(target, base, found)
        if found.st_nlink > 1:
            self._first[identity] = path
            self._file_at[path] = identity

    def _link(self, identity: tuple[int, int], target: int, base: bytes, path: bytes) -> bool:
        """True when it is another name of a file copied before."""
        self._clear(target, base, path)
        first = self._first.get(identity)
        if first is None:
            return False
        os.link(first, base, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
        return True

    def _file(self, source: int, name: bytes, found: os.stat_result, target: int, base: bytes, path: bytes) -> None:
        with closing(open_file(source, name)) as old:
            try:
                new = os.open(base, _CREATE, 0o600, dir_fd=target)
            except FileExistsError:
                self._clear(target, base, path)
                new = os.open(base, _CREATE, 0o600, dir_fd=target)
            with closing(new):
                size = found.st_size
                if size > _SMALL or found.st_blocks * 512 < size:
                    copy_data(old, new, size)
                elif size:
                    data = memoryview(os.read(old, size))
                    if len(data) != size:
                        raise Failed(f"cannot copy to {shown(path)}: the file became shorter meanwhile")
                    while data:  # a disk that is full takes a part at first
                        data = data[os.write(new, data) :]
                self._set_attributes(new, found, kept_xattrs(old), path)
                time = self._clock.copied(found.st_mtime_ns)
                os.utime(new, ns=(time, time))

    def _clear(self, target: int, base: bytes, path: bytes) -> None:
        """Remove what is in the way of a file."""
        try:
            found = os.stat(base, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(base, dir_fd=target)
            self._forget(path)
        elif self._replace:
            remove_at(target, base)
            self._first.clear()
            self._file_at.clear()
        else:
            raise InvalidParameter(f"cannot replace to directory {shown(path)} with file")

    def _forget(self, path: bytes) -> None:
        """What was there, maybe copied a moment ago, is gone."""
        if (identity := self._file_at.pop(path, None)) is not None:
            del self._first[identity]

    def _set_attributes(self, fd: int, found: os.stat_result, xattrs: dict[bytes, bytes], path: bytes) -> None:
        """Owner first: chown takes setuid bits and file capabilities away."""
        os.fchown(fd, *(self._owner or (found.st_uid, found.st_gid)))
        os.fchmod(fd, self._mode(found.st_mode) if self._mode else stat.S_IMODE(found.st_mode))
        for name, value in xattrs.items():
            try:
                os.setxattr(fd, name, value)
            except OSError as exc:  # not for this file system or this process: it goes without, as in BuildKit
                log.warning("attribute %s of %s is not kept: %s", os.fsdecode(name), shown(path), exc.strerror)

    def _set_at(self, target: int, base: bytes, found: os.stat_result) -> None:
        """The same for what cannot be opened."""
        os.chown(base, *(self._owner or (found.st_uid, found.st_gid)), dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(base, self._mode(found.st_mode) if self._mode else stat.S_IMODE(found.st_mode), dir_fd=target)
        time = self._clock.copied(found.st_mtime_ns)
        os.utime(base, ns=(time, time), dir_fd=target, follow_symlinks=False)


def copy_selection(
    copier: Copier,
    selected: Sequence[Chosen],
    wanted: Filter | None,
    target: bytes,
    *,
    contents: bool,
    several: bool = False,
) -> None:
    """Copy all that is `selected` to the resolved `target`; `several`: more comes to the same target.

    Raises InvalidParameter when several files would get one name: the last would be all that is left.
    """
    files = sum(not chosen.directory for chosen in selected)
    if (files > 1 or (files and several)) and not copier.is_directory(target):
        raise InvalidParameter(
            "When using COPY with more than one source file, the destination must be a directory and end with a /"
        )
    for chosen in selected:
        copier.copy(chosen, target, wanted, contents=contents)


def _no_directory(root: int, path: bytes, found: os.stat_result) -> str:
    words = f"cannot copy to non-directory: {shown(path)}"
    if not stat.S_ISLNK(found.st_mode):
        return words
    link = os.fsdecode(os.readlink(path, dir_fd=root))
    return f"{words} (a symbolic link to {link}: name {shown(resolve(root, path))} as the target instead)"
