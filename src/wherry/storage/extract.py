"""A tar archive becomes files below an open directory, and nowhere else.

Every path is resolved by openat2 with the directory as its root, so neither `..` nor a symbolic link, old or new,
leads out; the last component is never followed. Later entries replace earlier ones, as in Docker: a directory keeps
its content when a directory comes again, anything else is removed first.

Deletions in layers (`.wh.name`, `.wh..wh..opq`; OCI image-spec, layer.md) concern what is *below* the layer, in
whatever order they stand; see `Whiteouts`.
"""

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable

from wherry.errors import Failed, InvalidParameter
from wherry.kernel.files import IN_ROOT, closing, openat2
from wherry.storage.archive import Entry, Kind, TarReader, normalize, show
from wherry.storage.compression import Limits
from wherry.storage.tree import list_directory, remove_at

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."  # what aufs kept for itself; opaque is the only one with a meaning
OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")  # what overlayfs believes about its directories

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED = 128  # directories held open
_SMALL = 1 << 16  # bytes; files up to this size are written in one piece
_SPACE_STEP = 64 << 20  # bytes written between two looks at the free space
_SPACE_ENTRIES = 4096  # entries, likewise
_TIME_MAX = (1 << 62) * 1_000_000_000  # ns; the file system clips to what it can store
_WARNINGS = 20  # kept
# The archive is at fault, not the machine.
_BLAME = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL, errno.EFBIG, errno.EMLINK)


class Whiteouts(enum.StrEnum):
    """What a deletion in a layer becomes in the directory the layer is extracted to."""

    OVERLAY = "overlay"  # a character device 0:0, or a directory to be marked opaque
    APPLY = "apply"  # it is carried out: the directory already holds the parent's files


class Extractor:
    """Extracts into `root` (a directory fd, which stays the caller's).

    `whiteouts` None: names like `.wh.x` are names like any other. `below`: the tree under the layer (a directory fd):
    directories the archive does not describe take their attributes from there, and a deletion of what is not there
    leaves no trace. `owner` replaces the entries' owners. `replace_kinds` False refuses to put a directory in place of
    something else or the reverse. `confined`: this process exists for this extraction, its working directory may
    change.
    """

    def __init__(
        self,
        root: int,
        *,
        whiteouts: Whiteouts | None = None,
        limits: Limits | None = None,
        below: int | None = None,
        owner: tuple[int, int] | None = None,
        replace_kinds: bool = True,
        confined: bool = False,
    ) -> None:
        self._root, self._below, self._owner = root, below, owner
        self._whiteouts, self._limits = whiteouts, limits or Limits()
        self._replace_kinds, self._confined = replace_kinds, confined
        self._open: dict[bytes, int] = {b"": root}  # least recently used first
        self._times: dict[bytes, int] = {}  # of directories: set last
        self._unpacked: set[bytes] = set()  # paths of this layer, for Whiteouts.APPLY
        self._made_whiteouts: set[bytes] = set()
        self._until_look = 0
        self.opaque: set[bytes] = set()  # directories the caller has to mark opaque (Whiteouts.OVERLAY)
        self.entries = 0
        self.size = 0  # bytes of the files, symbolic links with their length; as `tree.measure` counts
        self.warnings: list[str] = []
        self._make: dict[Kind, Callable[[Entry, int, bytes, TarReader], None]] = {
            Kind.FILE: self._file,
            Kind.HARDLINK: self._hard_link,
            Kind.SYMLINK: self._symlink,
            Kind.CHAR: self._node,
            Kind.BLOCK: self._node,
            Kind.FIFO: self._node,
        }

    def extract(self, reader: TarReader) -> None:
        """All of it. InvalidParameter when the archive is at fault, Failed when the machine is; both name the entry."""
        try:
            while (entry := reader.next()) is not None:
                try:
                    self._extract(entry, reader)
                except OSError as exc:
                    kind = InvalidParameter if exc.errno in _BLAME else Failed
                    raise kind(f"cannot extract entry {show(entry.name)}: {exc.strerror}") from exc
            self._drop_hidden_whiteouts()
            self._restore_times()
        finally:
            self._forget()

    def _extract(self, entry: Entry, reader: TarReader) -> None:
        self.entries += 1
        self._until_look -= 1
        if self._until_look < 0:
            self._look_at_space()
        path = normalize(entry.name)
        if entry.xattrs:
            self._check_xattrs(entry)
        if entry.kind is Kind.DIRECTORY:
            self._directory(entry, path)
            return
        if not path:
            raise InvalidParameter(f"entry {show(entry.name)}: the root can only be a directory")
        directory, _, base = path.rpartition(b"/")
        if self._whiteouts is not None:
            if base.startswith(WHITEOUT):
                self._delete(entry, directory, base)
                return
            if entry.kind is Kind.CHAR and entry.major == entry.minor == 0:
                self._white_out(directory, base)  # what overlay would take it for
                return
        parent = self._parent(directory)
        if self._whiteouts is Whiteouts.APPLY:
            self._remember(path)
        self._make[entry.kind](entry, parent, base, reader)

    # Kinds of entries

    def _file(self, entry: Entry, parent: int, base: bytes, reader: TarReader) -> None:
        try:
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, base, entry)
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.stored or entry.sparse is not None:
                self._write(fd, entry, reader)
            self._set_owner_mode_xattrs(fd, entry)
            os.utime(fd, ns=self._bounded_times(entry))
        finally:
            os.close(fd)

    def _write(self, fd: int, entry: Entry, reader: TarReader) -> None:
        self.size += entry.size
        self._until_look -= entry.stored * _SPACE_ENTRIES // _SPACE_STEP
        if entry.sparse is None:
            for piece in reader.stored() if entry.stored > _SMALL else (reader.whole(),):
                while (done := os.write(fd, piece)) < len(piece):
                    piece = piece[done:]
                if self._until_look < 0:
                    self._look_at_space()
            return
        os.ftruncate(fd, entry.size)
        regions = iter(entry.sparse)
        offset = left = 0
        for piece in reader.stored():
            while piece:
                while not left:
                    offset, left = next(regions)
                done = os.pwrite(fd, piece[:left], offset)
                offset += done
                left -= done
                piece = piece[done:]

    def _directory(self, entry: Entry, path: bytes) -> None:
        directory, _, base = path.rpartition(b"/")
        if path:
            fd = self._make_directory(self._parent(directory), base, path, entry)
            if self._whiteouts is Whiteouts.APPLY:
                self._remember(path)
        else:
            fd = os.dup(self._root)
        try:
            self._set_owner_mode_xattrs(fd, entry)
        finally:
            os.close(fd)
        self._times[path] = entry.mtime

    def _make_directory(self, parent: int, base: bytes, path: bytes, entry: Entry | None) -> int:
        """The fd of `base` in `parent`, made or already there; what is there and no directory is removed."""
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                if self._whiteouts is Whiteouts.OVERLAY:
                    self.opaque.add(path)  # deleted or replaced, then made anew: what is below stays hidden
                self._clear(parent, base, entry, directory=True)
                os.mkdir(base, 0o700, dir_fd=parent)
        return os.open(base, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)

    def _symlink(self, entry: Entry, parent: int, base: bytes, reader: TarReader) -> None:
        try:
            os.symlink(entry.link, base, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, base, entry)
            os.symlink(entry.link, base, dir_fd=parent)
        self.size += len(entry.link)
        self._set_at(parent, base, entry)

    def _node(self, entry: Entry, parent: int, base: bytes, reader: TarReader) -> None:
        kinds = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
        mode, device = kinds[entry.kind] | 0o600, os.makedev(entry.major, entry.minor)
        try:
            os.mknod(base, mode, device, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, base, entry)
            os.mknod(base, mode, device, dir_fd=parent)
        self._set_at(parent, base, entry)

    def _hard_link(self, entry: Entry, parent: int, base: bytes, reader: TarReader) -> None:
        try:
            directory, _, name = normalize(entry.link).rpartition(b"/")
            source = openat2(self._root, directory or b".", _DIRECTORY)
        except (OSError, InvalidParameter) as exc:
            raise self._absent(entry) from exc
        try:
            found = os.stat(name or b".", dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                raise InvalidParameter(f"entry {show(entry.name)}: hard link to the directory {show(entry.link)}")
            if self._whiteouts is Whiteouts.OVERLAY and is_whiteout(found):
                raise self._absent(entry)
            self._link(entry, source, name, parent, base, found)
        except FileNotFoundError as exc:
            raise self._absent(entry) from exc
        finally:
            os.close(source)

    def _link(self, entry: Entry, source: int, name: bytes, parent: int, base: bytes, found: os.stat_result) -> None:
        def link() -> None:
            os.link(name, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

        try:
            link()
        except FileExistsError:
            there = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
                self._clear(parent, base, entry)
                link()

    def _absent(self, entry: Entry) -> InvalidParameter:
        return InvalidParameter(
            f"entry {show(entry.name)}: hard link to {show(entry.link)}, which is not in this archive before it"
        )

    # Attributes

    def _set_owner_mode_xattrs(self, fd: int, entry: Entry) -> None:
        """Owner first: chown takes setuid bits and file capabilities away."""
        uid, gid = self._owner or (entry.uid, entry.gid)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs.items():
            self._set_xattr(fd, name, value, entry)

    def _set_at(self, parent: int, base: bytes, entry: Entry) -> None:
        """The same for what cannot be opened."""
        uid, gid = self._owner or (entry.uid, entry.gid)
        os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            self._chmod(parent, base, entry.mode)
        if entry.xattrs:
            path = base
            if self._confined:
                os.fchdir(parent)
            else:
                path = b"/proc/self/fd/%d/%s" % (parent, base)
            for name, value in entry.xattrs.items():
                self._set_xattr(path, name, value, entry)
        os.utime(base, ns=self._bounded_times(entry), dir_fd=parent, follow_symlinks=False)

    def _chmod(self, parent: int, base: bytes, mode: int) -> None:
        """chmod follows links, and in a running container somebody may put one here at any moment."""
        if self._confined:
            os.chmod(base, mode, dir_fd=parent)
            return
        with closing(os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                os.chmod(b"/proc/self/fd/%d" % fd, mode)

    def _set_xattr(self, target: int | bytes, name: bytes, value: bytes, entry: Entry) -> None:
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as exc:
            # A file system, a security module or the missing right: Docker goes on without the attribute, too.
            if exc.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
            if len(self.warnings) < _WARNINGS:
                self.warnings.append(f"entry {show(entry.name)}: attribute {show(name)} not set: {exc.strerror}")

    def _check_xattrs(self, entry: Entry) -> None:
        for name in entry.xattrs:
            if name.startswith(OVERLAY_XATTRS):
                raise InvalidParameter(
                    f"entry {show(entry.name)}: attribute {show(name)} is reserved for the overlay file system"
                )
            if not name or len(name) > 255 or b"\0" in name:
                raise InvalidParameter(f"entry {show(entry.name)}: {show(name)} is no name of an extended attribute")

    def _bounded_times(self, entry: Entry) -> tuple[int, int]:
        return (bounded_time(entry.mtime),) * 2

    def _restore_times(self) -> None:
        for path, mtime in self._times.items():
            try:
                fd = openat2(self._root, path or b".", _DIRECTORY)
            except OSError:
                continue  # replaced by a later entry
            try:
                os.utime(fd, ns=(bounded_time(mtime),) * 2)
            finally:
                os.close(fd)

    # Directories on the way

    def _parent(self, directory: bytes) -> int:
        """The fd of `directory`, made where it is missing; valid until the next call."""
        fd = self._open.get(directory)
        if fd is not None:
            if directory:
                self._open[directory] = self._open.pop(directory)  # most recently used
            return fd
        try:
            fd = openat2(self._root, directory, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            self._make_parents(directory)
            fd = openat2(self._root, directory, _DIRECTORY)
        if len(self._open) > _CACHED:
            oldest = next(key for key in self._open if key)
            os.close(self._open.pop(oldest))
        self._open[directory] = fd
        return fd

    def _make_parents(self, directory: bytes) -> None:
        parts = directory.split(b"/")
        fd = os.dup(self._root)
        try:
            for depth, part in enumerate(parts, 1):
                path = b"/".join(parts[:depth])
                try:
                    inner = openat2(self._root, path, _DIRECTORY)
                except (FileNotFoundError, NotADirectoryError):
                    inner = self._make_parent(fd, part, path)
                os.close(fd)
                fd = inner
        finally:
            os.close(fd)

    def _make_parent(self, fd: int, part: bytes, path: bytes) -> int:
        """A directory that the archive only implies; a whiteout of this layer gives way to it."""
        try:
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            # In the way is a file: of the layers below, or a whiteout of this one, it gives way.
            if self._whiteouts is Whiteouts.APPLY:
                old = path not in self._unpacked
            else:
                old = self._whiteouts is Whiteouts.OVERLAY and is_whiteout(found)
            if not old:
                what = "a symbolic link to nowhere" if stat.S_ISLNK(found.st_mode) else "no directory"
                raise InvalidParameter(f"an entry lies in {show(path)}, which is {what}")
        self.entries += 1
        if self.entries > self._limits.max_entries:
            raise InvalidParameter(f"archive has more than {self._limits.max_entries} entries")
        made = self._make_directory(fd, part, path, None)
        below = self._stat_below(path)
        if below is not None and stat.S_ISDIR(below.st_mode):
            os.fchown(made, below.st_uid, below.st_gid)
            os.fchmod(made, stat.S_IMODE(below.st_mode))
            self._times[path] = below.st_mtime_ns
        else:
            os.fchmod(made, 0o755)
        return made

    def _stat_below(self, path: bytes) -> os.stat_result | None:
        if self._below is None:
            return None
        directory, _, base = path.rpartition(b"/")
        try:
            fd = openat2(self._below, directory or b".", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            return os.stat(base, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _clear(self, parent: int, base: bytes, entry: Entry | None, *, directory: bool = False) -> None:
        """Remove what is in the way of `entry`."""
        found = os.stat(base, dir_fd=parent, follow_symlinks=False)
        was_directory = stat.S_ISDIR(found.st_mode)
        if was_directory != directory and not self._replace_kinds and entry is not None:
            words = ("non-directory", "directory") if directory else ("directory", "non-directory")
            raise InvalidParameter(f"cannot overwrite {words[0]} with {words[1]}: {show(entry.name)}")
        if was_directory or stat.S_ISLNK(found.st_mode):
            keep = os.dup(parent)
            try:
                self._forget(keep_open=parent)  # a cached path may have led through it
                remove_at(keep, base)
            finally:
                os.close(keep)
        else:
            os.unlink(base, dir_fd=parent)

    def _forget(self, *, keep_open: int = -1) -> None:
        for fd in self._open.values():
            if fd not in (self._root, keep_open):
                os.close(fd)
        self._open = {b"": self._root}
        if keep_open not in (-1, self._root):
            self._open[b"/"] = keep_open  # a key no path has: closed with the rest

    # Deletions

    def _delete(self, entry: Entry, directory: bytes, base: bytes) -> None:
        """Carry out, or note, what a `.wh.` name says."""
        if base == OPAQUE:
            if self._whiteouts is Whiteouts.APPLY:
                self._remove_old(directory)
            elif not directory and self._below is not None:
                for name, _ in list_directory(self._below):  # overlayfs ignores the mark on a root
                    self._white_out(b"", name)
            elif self._is_directory_below(directory):
                self._parent(directory)
                self.opaque.add(directory)
        elif not base.startswith(_AUFS):
            name = base[len(WHITEOUT) :]
            if name in (b"", b".", b".."):
                raise InvalidParameter(f"entry {show(entry.name)}: a whiteout of nothing")
            self._white_out(directory, name)

    def _is_directory_below(self, path: bytes) -> bool:
        """True also when nobody knows what is below."""
        if self._below is None or not path:
            return True
        found = self._stat_below(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def _white_out(self, directory: bytes, name: bytes) -> None:
        """Hide `name` of the layers below. What this layer itself holds there stays."""
        path = directory + b"/" + name if directory else name
        if self._whiteouts is Whiteouts.APPLY:
            self._remove_below(directory, name, path)
            return
        if self._below is not None and self._stat_below(path) is None:
            return
        parent = self._parent(directory)
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
            self._made_whiteouts.add(path)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self.opaque.add(path)

    def _drop_hidden_whiteouts(self) -> None:
        """Below an opaque directory nothing is left to be hidden, and overlayfs would list the whiteouts themselves."""
        for path in self._made_whiteouts:
            directory, _, name = path.rpartition(b"/")
            above = directory
            while above and above not in self.opaque:
                above = above.rpartition(b"/")[0]
            if not above:
                continue
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                closing(openat2(self._root, directory, _DIRECTORY)) as parent,
            ):
                if is_whiteout(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    os.unlink(name, dir_fd=parent)

    def _remove_below(self, directory: bytes, name: bytes, path: bytes) -> None:
        if path in self._unpacked:
            self._remove_old(path)
            return
        try:
            parent = openat2(self._root, directory or b".", _DIRECTORY)
        except OSError:
            return  # nothing there
        try:
            self._forget()
            remove_at(parent, name)
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)

    def _remove_old(self, path: bytes) -> None:
        """Empty the directory `path` of everything that this layer did not bring."""
        self._forget()
        stack = [path]
        while stack:
            path = stack.pop()
            try:
                fd = openat2(self._root, path or b".", _DIRECTORY)
            except OSError:
                continue
            try:
                for name, found in list_directory(fd):
                    inner = path + b"/" + name if path else name
                    if inner not in self._unpacked:
                        remove_at(fd, name)
                    elif stat.S_ISDIR(found.st_mode):
                        stack.append(inner)
            finally:
                os.close(fd)

    def _remember(self, path: bytes) -> None:
        while path and path not in self._unpacked:
            self._unpacked.add(path)
            path = path.rpartition(b"/")[0]

    def _look_at_space(self) -> None:
        self._until_look = _SPACE_ENTRIES
        if self.entries > self._limits.max_entries:
            raise InvalidParameter(f"archive has more than {self._limits.max_entries} entries")
        found = os.fstatvfs(self._root)
        free = found.f_bavail * found.f_frsize
        reserve = min(self._limits.reserve, found.f_blocks * found.f_frsize // 20)
        if free < reserve:
            words = f"no space left on device: {free} bytes are free where the archive goes, {reserve} stay free"
            raise Failed(words) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mark_opaque(root: int, directories: set[bytes]) -> None:
    """Set on `directories` below `root` what overlayfs reads as "nothing below shows through"."""
    for path in sorted(directories):
        try:
            fd = openat2(root, path or b".", _DIRECTORY, resolve=IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            if exc.errno == errno.ELOOP:  # a later member put a symbolic link there
                continue
            raise
        try:
            os.setxattr(fd, "trusted.overlay.opaque", b"y")
        finally:
            os.close(fd)


def is_whiteout(found: os.stat_result) -> bool:
    """True for what overlayfs writes where a file of the layers below was deleted."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def bounded_time(time: int) -> int:
    """ns, as far as a file system can be asked for."""
    return max(-_TIME_MAX, min(time, _TIME_MAX))
