"""Device nodes of the host that a container is to have. Blocking, briefly; `spec` takes the result."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wherry.errors import Failed, InvalidParameter
from wherry.spec.engine import DeviceMapping, HostConfig

# Not devices of the machine but of a mount, of the session, or made by the runtime itself.
_SKIPPED = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    path: str  # in the container
    kind: str  # c or b
    major: int
    minor: int
    mode: int  # permission bits
    uid: int
    gid: int
    access: str = "rwm"  # for the devices cgroup


def for_container(host: HostConfig) -> list[Device]:
    """The devices a container gets besides the usual ones. Raises Failed or InvalidParameter in Docker's words."""
    for request in host.device_requests or ():
        capabilities = str(request.capabilities or []).replace("'", "").replace(",", "")
        raise Failed(f'could not select device driver "{request.driver}" with capabilities: {capabilities}')
    found = {device.path: device for device in (_walk("/dev", "/dev", "rwm") if host.privileged else ())}
    for mapping in host.devices or ():
        for device in _mapped(mapping):
            if not host.privileged or device.path not in found:
                found[device.path] = device
    return list(found.values())


def numbers(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Major and minor of block devices, for limits on them. Raises Failed naming the path."""
    result = {}
    for path in paths:
        try:
            info = os.stat(path)
        except OSError as exc:
            raise Failed(f"stat {path}: {(exc.strerror or '').lower()}") from exc
        if not stat.S_ISBLK(info.st_mode):
            raise InvalidParameter(f"{path} is not a block device")
        result[path] = os.major(info.st_rdev), os.minor(info.st_rdev)
    return result


def limited_paths(host: HostConfig) -> list[str]:
    """The host devices that a container's blkio options name."""
    groups = (
        host.blkio_weight_device,
        host.blkio_device_read_bps,
        host.blkio_device_write_bps,
        host.blkio_device_read_iops,
        host.blkio_device_write_iops,
    )
    return sorted({each.path for group in groups for each in group or ()})


def _mapped(mapping: DeviceMapping) -> list[Device]:
    host, inside = mapping.path_on_host, mapping.path_in_container or mapping.path_on_host
    access = mapping.cgroup_permissions or "rwm"
    what = f'error gathering device information while adding custom device "{host}"'
    try:
        real = os.path.realpath(host, strict=True)
        info = os.stat(real)
    except OSError as exc:
        raise Failed(f"{what}: {(exc.strerror or str(exc)).lower()}") from exc
    if stat.S_ISDIR(info.st_mode):
        found = list(_walk(real, inside, access))
        if found:
            return found
        raise Failed(f"{what}: not a device node")
    device = _device(info, inside, access)
    if device is None:
        raise Failed(f"{what}: not a device node")
    return [device]


def _walk(directory: str, inside: str, access: str) -> Iterator[Device]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name in _SKIPPED:
                continue
            path = f"{inside}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, path, access)
                continue
            try:
                device = _device(entry.stat(follow_symlinks=False), path, access)
            except FileNotFoundError:
                continue
            if device is not None:
                yield device


def _device(info: os.stat_result, path: str, access: str) -> Device | None:
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        return None
    return Device(
        path=path,
        kind=kind,
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        access=access,
    )
