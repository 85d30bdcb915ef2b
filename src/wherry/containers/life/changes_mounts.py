"""Mounts and devices that come to a container, or go, while it runs; a stopped one gets them at its next start.

The container's lock is held by the caller. Each function has either done everything, in the kernel and in the record
(HostConfig.Mounts, HostConfig.Devices and the mount points, so that a restart has it and inspect shows it), or raised
and changed nothing.
"""

from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.errors import NotSupported
from wherry.spec.engine import DeviceMapping, Mount

_MISSING = "this engine cannot change the mounts and devices of a container yet"


async def add_mount(deps: Deps, container: Container, mount: Mount) -> None:
    """Mount what `--mount` would. Raises InvalidParameter, Conflict (something is mounted there), NotFound, Failed."""
    raise NotSupported(_MISSING)


async def remove_mount(deps: Deps, container: Container, target: str) -> None:
    """Take the mount at `target` away. Raises NotFound when there is none of the user's, Conflict, Failed."""
    raise NotSupported(_MISSING)


async def add_device(deps: Deps, container: Container, device: DeviceMapping) -> None:
    """Make the device's node and allow its use. Raises InvalidParameter, Conflict, Failed, and NotSupported where the
    kernel gives no way to allow it (cgroup v2)."""
    raise NotSupported(_MISSING)


async def remove_device(deps: Deps, container: Container, path: str) -> None:
    """Take the node at `path` (in the container) away, and the permission. Raises NotFound, Failed."""
    raise NotSupported(_MISSING)
