"""Mounting: the mount value, and the system calls that make it true.

A `Mount` is data: who describes a root file system (a snapshotter) never mounts it. `mount` attaches one at a path of
the caller's mount namespace; `open_detached` makes one that is attached nowhere and seen only through its fd.

Stdlib only: the shim imports this. No function changes the working directory or starts a thread, except where its
docstring says so for kernels before 6.5.
"""

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from wherry.kernel.libc import check, libc

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC = 256, 1024, 2048, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNS = 0x20000

# The new mount calls have one number on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_FSOPEN_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_FSMOUNT_CLOEXEC = 1
_MOVE_FROM_EMPTY_PATH, _MOVE_TO_EMPTY_PATH = 0x4, 0x40
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
_ATTR_IDMAP = 0x100000

MAX_LOWERS = 500  # OVL_MAX_STACK
_STRING_MAX = 255  # bytes fsconfig takes as one string
_CLASSIC_MAX = 4095  # bytes mount(2) takes as its data
_PLAIN = re.compile(rb"/[A-Za-z0-9/_.@%+-]*\Z")  # paths no option parser reads otherwise

# name -> (flag, True to set it and False to clear it)
_FLAGS = {
    "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False),
    "nosuid": (MS_NOSUID, True),
    "suid": (MS_NOSUID, False),
    "nodev": (MS_NODEV, True),
    "dev": (MS_NODEV, False),
    "noexec": (MS_NOEXEC, True),
    "exec": (MS_NOEXEC, False),
    "sync": (MS_SYNCHRONOUS, True),
    "async": (MS_SYNCHRONOUS, False),
    "noatime": (MS_NOATIME, True),
    "atime": (MS_NOATIME, False),
    "nodiratime": (MS_NODIRATIME, True),
    "diratime": (MS_NODIRATIME, False),
    "relatime": (MS_RELATIME, True),
    "norelatime": (MS_RELATIME, False),
    "strictatime": (MS_STRICTATIME, True),
    "nosymfollow": (MS_NOSYMFOLLOW, True),
    "bind": (MS_BIND, True),
    "rbind": (MS_BIND | MS_REC, True),
    "remount": (MS_REMOUNT, True),
    "defaults": (0, True),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount, in the words of fstab and the OCI runtime spec.

    An overlay names its directories in its options (`lowerdir=top:…:base`, `upperdir=`, `workdir=`), with `:` and `\\`
    inside a path escaped by `\\`.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """Mount options told apart: MS_* flags, propagation to set afterwards (0 for none), text for the file system."""

    flags: int
    propagation: int
    data: tuple[str, ...]


def parse_options(options: Sequence[str]) -> Options:
    """Later options win over earlier ones, as in mount(8)."""
    flags = propagation = 0
    data = []
    for option in options:
        if option in _FLAGS:
            bits, on = _FLAGS[option]
            flags = flags | bits if on else flags & ~bits
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option:
            data.append(option)
    return Options(flags, propagation, tuple(data))


def mount(what: Mount, target: str | os.PathLike[str]) -> None:
    """Attach `what` at the existing path `target`, in the caller's mount namespace.

    On kernels before 6.5 nothing else differs for the caller than that an overlay of about 200 layers is the limit.
    """
    parsed = parse_options(what.options)
    path = os.fspath(target)
    if what.type == "overlay":
        overlay = Overlay.parse(parsed.data)
        mount_overlay(
            path, overlay.lowers, overlay.upper, overlay.work, overlay.options, read_only=bool(parsed.flags & MS_RDONLY)
        )
        rest = parsed.flags & ~MS_RDONLY
        if rest:
            mount_raw(None, path, None, MS_REMOUNT | MS_BIND | parsed.flags)
    elif parsed.flags & MS_BIND or what.type == "bind":
        bind(
            what.source,
            path,
            recursive=bool(parsed.flags & MS_REC) or what.type == "rbind",
            flags=parsed.flags & ~(MS_BIND | MS_REC),
        )
    else:
        mount_raw(what.source, path, what.type, parsed.flags, ",".join(parsed.data) or None)
    if parsed.propagation:
        mount_raw(None, path, None, parsed.propagation)


def mount_raw(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    check(
        libc.mount(
            os.fsencode(source) if source is not None else None,
            os.fsencode(target),
            fstype.encode() if fstype is not None else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data is not None else None,
        ),
        target,
    )


def bind(source: str, target: str, *, recursive: bool = False, flags: int = 0) -> None:
    """Bind `source` at `target`; `flags` (MS_RDONLY, MS_NODEV, …) need a second call, which this makes."""
    mount_raw(source, target, None, MS_BIND | (MS_REC if recursive else 0))
    if flags:
        try:
            mount_raw(None, target, None, MS_REMOUNT | MS_BIND | flags)
        except OSError:
            umount(target)
            raise


def umount(target: str | os.PathLike[str], *, detach: bool = True, follow: bool = False) -> None:
    """Take the topmost mount off `target`; detached: at once out of sight, gone when its last user is.

    A `target` that is a symbolic link is refused unless `follow`: an fd's name in /proc is one.
    """
    flags = (MNT_DETACH if detach else 0) | (0 if follow else UMOUNT_NOFOLLOW)
    check(libc.umount2(os.fsencode(target), flags), os.fspath(target))


def make_rslave(path: str = "/") -> None:
    """Mounts still arrive from outside, ours no longer leave."""
    mount_raw(None, path, None, MS_SLAVE | MS_REC)


def make_rprivate(path: str = "/") -> None:
    mount_raw(None, path, None, MS_PRIVATE | MS_REC)


def unshare_mounts() -> None:
    """Give the calling process (or thread) a mount namespace of its own."""
    check(libc.unshare(CLONE_NEWNS), "unshare mount namespace")


def pivot_root(new_root: str, put_old: str) -> None:
    check(libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """What an overlay is made of: lower directories top first, and both or neither of upper and work."""

    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    options: tuple[str, ...]

    @classmethod
    def parse(cls, options: Sequence[str]) -> "Overlay":
        found: dict[str, str] = {}
        rest = []
        for option in options:
            key, separator, value = option.partition("=")
            if separator and key in ("lowerdir", "upperdir", "workdir"):
                found[key] = value
            else:
                rest.append(option)
        return cls(
            lowers=tuple(_split_lowers(found.get("lowerdir", ""))),
            upper=_unescape(found["upperdir"]) if "upperdir" in found else None,
            work=_unescape(found["workdir"]) if "workdir" in found else None,
            options=tuple(rest),
        )


def overlay_mount(
    lowers: Sequence[str], upper: str | None = None, work: str | None = None, options: Sequence[str] = ()
) -> Mount:
    """The Mount of an overlay: the inverse of `Overlay.parse`."""
    words = ["lowerdir=" + ":".join(escape(lower) for lower in lowers)]
    if upper is not None and work is not None:
        words += [f"upperdir={escape(upper)}", f"workdir={escape(work)}"]
    return Mount(type="overlay", source="overlay", options=(*words, *options))


def escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _split_lowers(text: str) -> Iterator[str]:
    for part in re.findall(r"(?:[^:\\]|\\.)+", text, flags=re.DOTALL):
        yield _unescape(part)


def overlay_parameters() -> frozenset[str]:
    """The switches this kernel's overlay has (`metacopy`, `redirect_dir`, `index`, `xino_auto`, …).

    Empty while the module is not loaded: make any overlay first.
    """
    try:
        return frozenset(os.listdir("/sys/module/overlay/parameters"))
    except FileNotFoundError:
        return frozenset()


def overlay_can_be_volatile() -> bool:
    """The kernel knows the option `volatile` (since 5.10): what is written need not survive a crash."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 10)


def mount_overlay(
    target: str,
    lowers: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str] = (),
    *,
    read_only: bool = False,
) -> None:
    """Attach an overlay at `target`; `lowers` top first. Raises OSError naming the target.

    By fsopen and `lowerdir+`; before kernel 6.5 by mount(2), with the directories named as `/proc/self/fd/N`, which
    keeps 200 layers within the 4 KiB that mount(2) reads.
    """
    attributes = ATTR_RDONLY if read_only else 0
    try:
        fd = _overlay_new(lowers, upper, work, options, attributes)
    except OSError as exc:
        if not _lacks_new_api(exc):
            raise _named(exc, target) from exc
        mount_overlay_classic(target, lowers, upper, work, options, read_only=read_only)
        return
    try:
        attach(fd, target)
    finally:
        os.close(fd)


def mount_overlay_classic(
    target: str,
    lowers: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str] = (),
    *,
    read_only: bool = False,
) -> None:
    """`mount_overlay` by mount(2), on any kernel."""
    with contextlib.ExitStack() as fds:
        words = ["lowerdir=" + ":".join(_by_fd(lower, fds) for lower in lowers)]
        if upper is not None and work is not None:
            words += [f"upperdir={_by_fd(upper, fds)}", f"workdir={_by_fd(work, fds)}"]
        data = ",".join([*words, *options])
        if len(data) > _CLASSIC_MAX:
            raise OSError(errno.E2BIG, f"overlay of {len(lowers)} layers: too many for this kernel (6.5 can)", target)
        mount_raw("overlay", target, "overlay", MS_RDONLY if read_only else 0, data)


def attach(fd: int, target: str | int) -> None:
    """Attach the detached mount `fd` at `target` (move_mount), a path or an fd of what it is to cover."""
    if isinstance(target, int):
        flags = _MOVE_FROM_EMPTY_PATH | _MOVE_TO_EMPTY_PATH
        check(libc.syscall(_MOVE_MOUNT, fd, b"", target, b"", flags), "move_mount")
    else:
        check(libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY_PATH), target)


@contextlib.contextmanager
def detached(mounts: Sequence[Mount]) -> Iterator[int]:
    """As `open_detached`, for paths that lead up: symbolic links with `..` resolved by openat2 within the root.

    The fd the kernel gave is kept as well. Closing it takes the mount out of its anonymous namespace, after which every
    step of a walk that drops a reference counts as a change of the mount table, and openat2 answers EAGAIN for ever.
    """
    kept = _detached(mounts, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
    try:
        fd = _reopen(os.dup(kept))
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(kept)


def clone_tree(source: str | int, *, recursive: bool = True) -> int:
    """A detached copy of what is at `source` (a path, or an fd of it), for `attach` in any mount namespace.

    With the mounts below it, unless `recursive` is false. Its propagation is the source's: see `set_attributes`.
    """
    return _open_tree(source, recursive=recursive)


def new_tmpfs(options: Sequence[str]) -> int:
    """A new tmpfs, attached nowhere; `options` as mount(8) has them."""
    parsed = parse_options(options)
    with contextlib.ExitStack() as undo:
        context = check(int(libc.syscall(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)), "tmpfs")
        undo.callback(os.close, context)
        configure = _configurer(context)
        configure("source", "tmpfs")
        for option in parsed.data:
            key, separator, value = option.partition("=")
            configure(key, value if separator else None)
        if libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0) < 0:
            raise _explained(context, ctypes.get_errno(), "tmpfs")
        attributes = parsed.flags & (ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)  # MS_* of the same value
        return check(int(libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)), "tmpfs")


def open_detached(mounts: Sequence[Mount], *, attributes: int = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC) -> int:
    """A directory fd of the root that `mounts` describe, attached nowhere; it vanishes when the last fd is closed.

    Usable by openat from any thread. `mounts` is exactly one overlay or bind, as snapshotters return. Device nodes
    inside cannot be opened (`attributes`). Before kernel 6.5 an overlay is made by a short-lived thread in a mount
    namespace of its own.
    """
    return _reopen(_detached(mounts, attributes))


def _detached(mounts: Sequence[Mount], attributes: int) -> int:
    """The O_PATH fd of a new detached mount."""
    if len(mounts) != 1:
        raise ValueError(f"a detached root is one mount, not {len(mounts)}")
    what = mounts[0]
    parsed = parse_options(what.options)
    if parsed.flags & MS_RDONLY:
        attributes |= ATTR_RDONLY
    if what.type == "overlay":
        overlay = Overlay.parse(parsed.data)
        try:
            fd = _overlay_new(overlay.lowers, overlay.upper, overlay.work, overlay.options, attributes)
        except OSError as exc:
            if not _lacks_new_api(exc):
                raise _named(exc, "overlay") from exc
            return detached_by_thread(what, attributes)
    elif what.type == "bind" or parsed.flags & MS_BIND:
        fd = _open_tree(what.source, recursive=bool(parsed.flags & MS_REC))
        _restrict(fd, attributes, what.source)
    else:
        raise ValueError(f"cannot open a {what.type} mount detached")
    return fd


def detached_by_thread(what: Mount, attributes: int) -> int:
    """`open_detached` without fsopen: a thread mounts in its own namespace, clones the mount, and takes all with it."""
    import tempfile
    import threading

    result: list[int] = []
    failure: list[BaseException] = []

    def make(point: str) -> None:
        try:
            unshare_mounts()
            make_rprivate("/")
            overlay = Overlay.parse(parse_options(what.options).data)
            mount_overlay_classic(point, overlay.lowers, overlay.upper, overlay.work, overlay.options)
            fd = _open_tree(point, recursive=False)
            _restrict(fd, attributes, point)
            result.append(fd)
        except BaseException as exc:
            failure.append(exc)

    with tempfile.TemporaryDirectory(prefix="wherry-") as point:
        thread = threading.Thread(target=make, args=(point,))
        thread.start()
        thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _reopen(fd: int) -> int:
    """An ordinary directory fd instead of the O_PATH one: scandir, fsync and xattrs work on it too."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _open_tree(source: str | int, *, recursive: bool) -> int:
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if isinstance(source, int):
        return check(int(libc.syscall(_OPEN_TREE, source, b"", flags | _AT_EMPTY_PATH)), "open_tree")
    return check(int(libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)), source)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_attributes(
    fd: int, attributes: int = 0, *, propagation: int = 0, userns: int | None = None, recursive: bool = True
) -> None:
    """Change the detached mount `fd` (mount_setattr, kernel 5.12), and those below it when `recursive`.

    `attributes`: ATTR_* to set. `propagation`: MS_PRIVATE, MS_SLAVE or MS_SHARED; 0 leaves it. `userns`: an fd of the
    user namespace whose id maps say which id of the file system (inside) is which id of the mount (outside).
    """
    attr = _MountAttr(attributes | (0 if userns is None else _ATTR_IDMAP), 0, propagation, userns or 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    check(libc.syscall(_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr)), "mount_setattr")


def _restrict(fd: int, attributes: int, name: str) -> None:
    """Set ATTR_* on the detached mount `fd`, which is closed when that fails."""
    try:
        set_attributes(fd, attributes)
    except OSError as exc:
        os.close(fd)
        raise OSError(exc.errno, exc.strerror, name) from exc


def _overlay_new(
    lowers: Sequence[str], upper: str | None, work: str | None, options: Sequence[str], attributes: int
) -> int:
    """The fd of a detached overlay. Raises OSError with what the kernel logged; see `_lacks_new_api`."""
    if len(lowers) > MAX_LOWERS:
        raise OSError(errno.E2BIG, f"overlay of {len(lowers)} layers: the kernel takes {MAX_LOWERS}")
    with contextlib.ExitStack() as undo:
        context = check(int(libc.syscall(_FSOPEN, b"overlay", _FSOPEN_CLOEXEC)), "overlay")
        undo.callback(os.close, context)
        configure = _configurer(context)
        configure("source", "overlay")
        for lower in lowers:
            configure("lowerdir+", _short(lower, undo))
        if upper is not None and work is not None:
            configure("upperdir", _short(upper, undo))
            configure("workdir", _short(work, undo))
        for option in options:
            key, separator, value = option.partition("=")
            configure(key, value if separator else None)
        if libc.syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0) < 0:
            raise _explained(context, ctypes.get_errno(), "overlay")
        return check(int(libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)), "overlay")


def _configurer(context: int) -> Callable[[str, str | None], None]:
    def configure(key: str, value: str | None) -> None:
        command = _SET_FLAG if value is None else _SET_STRING
        text = None if value is None else os.fsencode(value)
        if libc.syscall(_FSCONFIG, context, command, key.encode(), text, 0) < 0:
            raise _explained(context, ctypes.get_errno(), f"{key}={value}" if value is not None else key)

    return configure


def _explained(context: int, number: int, what: str) -> OSError:
    """The OSError of `number` with the messages the kernel left in the context's log."""
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(context, 8192):
            lines.append(os.fsdecode(line).strip().partition(" ")[2])
    text = os.strerror(number)
    return OSError(number, f"{text} ({'; '.join(lines)})" if lines else text, what)


def _lacks_new_api(exc: OSError) -> bool:
    """True when the kernel is too old for fsopen (5.2) or `lowerdir+` (6.5)."""
    return exc.errno == errno.ENOSYS or (exc.errno == errno.EINVAL and str(exc.filename).startswith("lowerdir+="))


def _named(exc: OSError, target: str) -> OSError:
    return OSError(exc.errno, f"{exc.strerror}: {exc.filename}", target) if exc.filename else exc


def _short(path: str, fds: contextlib.ExitStack) -> str:
    """`path` itself when fsconfig reads it as it stands, else a name through an fd that `fds` holds open."""
    encoded = os.fsencode(path)
    return path if len(encoded) <= _STRING_MAX and _PLAIN.match(encoded) else _by_fd(path, fds)


def _by_fd(path: str, fds: contextlib.ExitStack) -> str:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    fds.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"
