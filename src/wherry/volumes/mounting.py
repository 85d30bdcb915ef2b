"""Volumes whose content is there only while it is mounted: by the first container that uses one, until the last has
ended. Blocking.

    <root>/<name>          bound to itself and shared, as long as the volume is mounted
    <root>/<name>/_data    the mount

A shim lives in a copy of the daemon's mount namespace. That copy has what is mounted when the shim begins; by the
shared mount around it, it also learns of the end, so that nobody keeps a file system alive that no volume uses.
Words of errors are Docker's, with what is missing after them.
"""

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from wherry.errors import Failed
from wherry.kernel import loop
from wherry.kernel.mount import (
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    bind,
    mount_raw,
    parse_options,
    umount,
)
from wherry.kernel.mountinfo import entries
from wherry.volumes.record import Volume, words

log = logging.getLogger(__name__)

_NETWORK = ("nfs", "nfs4", "cifs", "smb3")
_DISCARD = "discard"  # what is deleted in an image file becomes a hole in it

Resolve = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One mount(2), as Docker makes it of a volume's options."""

    fstype: str
    device: str
    flags: int  # MS_*
    propagation: int  # MS_*; 0 for none
    data: str  # for the file system
    file: bool = False  # `device` is a file, and needs a loop device


def resolve_host(name: str) -> str:
    """The address of a host. Raises OSError."""
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def plan(volume: Volume, image: Path, *, resolve: Resolve = resolve_host) -> Plan:
    """What is to be mounted for `volume`; `image` is its own file system, if it has one. Raises Failed."""
    if volume.image:
        return Plan(fstype="ext4", device=str(image), flags=0, propagation=0, data=_DISCARD, file=True)
    options = volume.options or {}
    fstype, device = options.get("type", ""), options.get("device", "")
    given = [word for word in words(options) if word != "loop"]
    parsed = parse_options(given)
    data = list(parsed.data)
    if fstype in _NETWORK:
        device, data = _with_address(fstype, device, data, resolve)
    return Plan(
        fstype=fstype,
        device=device,
        flags=parsed.flags,
        propagation=parsed.propagation,
        data=",".join(data),
        file=not parsed.flags & (MS_BIND | MS_REMOUNT) and _is_file(device),
    )


def _is_file(device: str) -> bool:
    try:
        return device.startswith("/") and stat.S_ISREG(os.stat(device).st_mode)
    except OSError:
        return False


def _with_address(fstype: str, device: str, data: list[str], resolve: Resolve) -> tuple[str, list[str]]:
    """The kernel wants addresses where people write names. What it cannot do without is taken from the device."""
    found = next((word.removeprefix("addr=") for word in data if word.startswith("addr=")), "")
    if found:
        address = _lookup(found, "error resolving passed in network volume address", resolve)
        return device, [f"addr={address}" if word.startswith("addr=") else word for word in data]
    if fstype.startswith("nfs"):
        host = device.partition(":/")[0].strip("[]")
        if not host or host == device:
            return device, data
        return device, [*data, f"addr={_lookup(host, 'error resolving passed in network volume address', resolve)}"]
    parts = urlsplit(device)
    if not parts.hostname:
        return device, data
    address = _lookup(parts.hostname, f"error resolving CIFS host name ({parts.hostname})", resolve)
    return urlunsplit(parts._replace(netloc=f"[{address}]" if ":" in address else address)), data


def _lookup(host: str, what: str, resolve: Resolve) -> str:
    with suppress(OSError):
        socket.inet_pton(socket.AF_INET, host)
        return host
    try:
        return resolve(host)
    except (OSError, UnicodeError) as exc:
        raise Failed(f"{what}: lookup {host}: no such host") from exc


def mount(own: Path, volume: Volume, *, resolve: Resolve = resolve_host) -> None:
    """Mount `volume`, whose directory is `own`; nothing happens when it is mounted. Raises Failed in Docker's words."""
    data = own / "_data"
    if is_mounted(data):
        return
    try:
        what = plan(volume, own / "_image", resolve=resolve)
        with _device(what, data) as device, ExitStack() as undo:  # a file is opened by another mount than the one to go
            _share(own, undo)
            _mount(what, device, data)
            undo.pop_all()
    except Failed as exc:
        raise Failed(f"error while mounting volume '{data}': {exc.message}") from exc


def _share(own: Path, undo: ExitStack) -> None:
    """Make `own` a shared mount of itself, unless a mount that could not be taken away has left it one."""
    if not is_mounted(own):
        try:
            bind(str(own), str(own))
        except OSError as exc:
            raise Failed(f"failed to mount local volume: bind {own}: {_lower(exc)}") from exc
        undo.callback(_take_away, own)
    mount_raw(None, str(own), None, MS_SHARED)


@contextmanager
def _device(what: Plan, target: Path) -> Iterator[str]:
    """The device to be mounted; one for a file is there as long as this block, or its mount. Raises Failed."""
    if not what.file:
        yield what.device
        return
    with ExitStack() as held:
        try:
            device = held.enter_context(loop.attached(what.device, read_only=bool(what.flags & MS_RDONLY)))
        except OSError as exc:
            raise Failed(_refused(what, target, exc)) from exc
        yield device


def _mount(what: Plan, device: str, target: Path) -> None:
    """Raises Failed; then nothing is mounted."""
    try:
        if what.flags & MS_BIND and not device.startswith("/"):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))  # relative to what?
        mount_raw(device, str(target), what.fstype, what.flags, what.data or None)
    except OSError as exc:
        raise Failed(_refused(what, target, exc)) from exc
    try:
        if what.propagation:
            mount_raw(None, str(target), None, what.propagation)
        if what.flags & MS_BIND and (rest := what.flags & ~(MS_BIND | MS_REC)):
            mount_raw(None, str(target), None, MS_REMOUNT | MS_BIND | rest)
    except OSError as exc:
        umount(target)
        raise Failed(_refused(what, target, exc)) from exc


def _refused(what: Plan, target: Path, exc: OSError) -> str:
    text = f"failed to mount local volume: mount {what.device}:{target}"
    if what.flags:
        text += f", flags: 0x{what.flags:x}"
    if what.data:
        text += f", data: {_masked(what.data)}"
    return f"{text}: {_lower(exc)}{_cause(what, exc)}"


def _masked(data: str) -> str:
    """`data` with the password that may be in it hidden."""
    return ",".join(
        "password=********" if word.startswith(("password=", "pass=")) else word for word in data.split(",")
    )


def _lower(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()


def _cause(what: Plan, exc: OSError) -> str:
    """What is missing, where it can be known; for the end of a message."""
    cause = ""
    if exc.errno == errno.ENODEV and what.fstype in ("none", "bind"):
        cause = "a directory of the host is shown by o=bind"
    elif exc.errno == errno.ENODEV and not _kernel_has(what.fstype):
        cause = f"this kernel has no file system {what.fstype}"
    elif str(exc.filename).startswith("/dev/loop"):
        cause = "this machine has no loop devices: load the module loop"
    elif what.flags & MS_BIND and not what.device.startswith("/"):
        cause = "the device of a bind volume is an absolute path"
    elif exc.errno == errno.ENOTBLK:
        cause = f"{what.device} is neither a block device nor a file that holds a file system"
    elif exc.errno == errno.EINVAL and what.fstype in _NETWORK:
        cause = "an option is missing or unknown: see the kernel's log (dmesg)"
    elif exc.errno == errno.EINVAL and what.device.startswith("/") and not what.flags & MS_BIND:
        cause = f"{what.device} does not hold a file system {what.fstype}, or an option is unknown to it"
    return f" ({cause})" if cause else ""


def _kernel_has(fstype: str) -> bool:
    with open("/proc/filesystems") as table:
        return any(line.split()[-1] == fstype for line in table)


def unmount(own: Path) -> None:
    """Undo `mount`; idempotent. What is still busy goes as soon as it is not."""
    while is_mounted(own / "_data"):
        _take_away(own / "_data")
    while is_mounted(own):
        _take_away(own)


def _take_away(target: Path) -> None:
    """Written back and gone when this returns, unless somebody in the host's namespace has it open."""
    try:
        umount(target, detach=False)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            log.warning("%s is in use by a process of the host: it is unmounted when that ends", target)
        umount(target)


def is_mounted(path: Path) -> bool:
    """Something is mounted at `path`, in the daemon's namespace."""
    text = os.path.realpath(path)
    return any(entry.point == text for entry in entries())


def below(root: Path) -> list[Path]:
    """Everything mounted below `root`, the deepest first."""
    inside = f"{os.path.realpath(root)}/"
    return [Path(entry.point) for entry in reversed(list(entries())) if entry.point.startswith(inside)]


def unmount_all(root: Path, *, except_for: set[str]) -> None:
    """Unmount what is mounted below `root`, but for the volumes in `except_for`."""
    place = os.path.realpath(root)
    for path in below(root):
        if path.relative_to(place).parts[0] not in except_for:
            with suppress(OSError):  # it went with another one
                _take_away(path)
