"""Mounts and devices that come to a container, or go, while it runs; a stopped one gets them at its next start.

The container's lock is held by the caller. Each function has either done everything, in the kernel and in the record
(HostConfig.Mounts, HostConfig.Devices and the mount points, so that a restart has it and inspect shows it), or raised
and changed nothing. What is to come is recorded first and what goes last: after a crash in between, the next start
makes the record true.
"""

import contextlib
import errno
import posixpath
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec

from wherry.aio import finish, settle
from wherry.containers.deps import Deps
from wherry.containers.making import sources
from wherry.containers.making.mounts import parse_bind, point_of, with_caller
from wherry.containers.making.spec import part_of, tmpfs_of
from wherry.containers.making.volumes import make_volume
from wherry.containers.record import Container, MountPoint, Status
from wherry.digest import ChainID
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, NotSupported
from wherry.images.garbage import pinned, release
from wherry.kernel import cgroup
from wherry.kernel.mount import ATTR_RDONLY, MS_PRIVATE, MS_SLAVE
from wherry.runtime import devices, resources
from wherry.runtime.devices import Device
from wherry.runtime.shim_client import Shim
from wherry.spec.engine import DeviceMapping, HostConfig, Mount

_PROPAGATION = {"private": MS_PRIVATE, "rprivate": MS_PRIVATE, "slave": MS_SLAVE, "rslave": MS_SLAVE}


async def add_mount(deps: Deps, container: Container, mount: Mount, *, caller: tuple[int, int] | None = None) -> None:
    """Mount what `--mount` would; `caller` is who `idmap=caller` means (uid, gid), where that is known.

    Raises InvalidParameter, Conflict (something is mounted there, or below), Failed.
    """
    _check_alive(container)
    if caller is not None:
        host = with_caller(HostConfig(mounts=[mount]), "caller={}-{}".format(*caller))
        mount = (host.mounts or [mount])[0]
    point = point_of(mount)
    _check_free(container, point)
    async with AsyncExitStack() as held:
        if point.type == "image":
            try:
                image = await held.enter_async_context(pinned(deps.images, point.source))
            except NotFound as exc:
                raise InvalidParameter(exc.message) from exc
            point = replace(point, image_id=image.id, chain=image.chain or "")
        elif point.type == "volume":
            held.enter_context(deps.volumes.hold(point.name))
        await finish(_add_mount(deps, container, mount, point))


def _check_alive(container: Container) -> None:
    if container.state.status in (Status.REMOVING, Status.DEAD):
        raise Conflict("container is marked for removal and cannot be changed")


def _check_free(container: Container, point: MountPoint) -> None:
    for other in container.mounts:
        if other.destination == point.destination:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        if other.destination.startswith(point.destination + "/"):
            raise Conflict(f"a mount at {point.destination} would hide the one at {other.destination}")


async def _add_mount(deps: Deps, container: Container, mount: Mount, point: MountPoint) -> None:
    await settle(sources.prepare_binds, [point])
    await settle(sources.check_proc, [point], container.runtime)
    before, mounts = container.host_config, container.mounts
    async with AsyncExitStack() as undo:
        if point.type == "volume":
            if point.anonymous:
                undo.push_async_callback(deps.volumes.discard, point.name)
            chain = await settle(deps.snapshots.parent_of_key, container.id)
            point = await make_volume(deps, point, mount, chain)
            if container.running and not _uses(mounts, point.name):
                undo.push_async_callback(deps.volumes.unmount, point.name, container.id)
                point = replace(point, source=str(await deps.volumes.mount(point.name, container.id)))
        if point.anonymous:  # the record must say which volume it is
            mount = msgspec.structs.replace(mount, source=point.name)
        undo.push_async_callback(_restore, deps, container, before, mounts)
        container.host_config = msgspec.structs.replace(before, mounts=[*(before.mounts or []), mount])
        container.mounts = tuple(sorted((*mounts, point), key=lambda each: each.destination))
        await deps.store.save(container)
        if container.running:
            await _attach(deps, container, point)
        undo.pop_all()
    if container.running and point.type == "volume":
        deps.volumes.mounted(point.name, container.id, destination=point.destination, rw=point.rw)


async def _attach(deps: Deps, container: Container, point: MountPoint) -> None:
    shim = _shim(deps, container)
    if point.type == "tmpfs":
        await shim.attach_tmpfs(point.destination, tmpfs_of(point))
        return
    wanted = await settle(sources.propagations, [point], deps.settings.data_root)
    part = part_of(deps, point, always=True)
    assert part is not None  # only a tmpfs has none
    part = replace(
        part,
        attributes=0 if point.rw else ATTR_RDONLY,
        flat=point.flat_read_only,
        propagation=_PROPAGATION.get(wanted.get(point.destination, "rprivate"), 0),
    )
    await shim.attach_mount(point.destination, part)


def _shim(deps: Deps, container: Container) -> Shim:
    shim = deps.live_of(container).shim
    if shim is None:
        raise Conflict(f"container {container.name} is not running any more")
    return shim


async def _restore(deps: Deps, container: Container, host: HostConfig, mounts: tuple[MountPoint, ...]) -> None:
    container.host_config, container.mounts = host, mounts
    await deps.store.save(container)


def _uses(mounts: tuple[MountPoint, ...], volume: str) -> bool:
    return any(point.type == "volume" and point.name == volume for point in mounts)


async def remove_mount(deps: Deps, container: Container, target: str) -> None:
    """Take the mount at `target` away, wherever it came from (--mount, -v, --tmpfs, --volumes-from, VOLUME).

    A volume stays, the anonymous as well. Raises NotFound when there is none of the user's, Conflict when another lies
    below it, Failed.
    """
    _check_alive(container)
    path = posixpath.normpath(target)
    point = next((each for each in container.mounts if each.destination == path), None)
    if point is None:
        known = ", ".join(each.destination for each in container.mounts) or "none"
        raise NotFound(f"no mount at {target} in container {container.name}: it has {known}")
    if below := [each.destination for each in container.mounts if each.destination.startswith(path + "/")]:
        raise Conflict(f"cannot take the mount at {path} away: {below[0]} is mounted below it")
    await finish(_remove_mount(deps, container, point))


async def _remove_mount(deps: Deps, container: Container, point: MountPoint) -> None:
    if container.running:
        await _shim(deps, container).detach_mount(point.destination)
    container.host_config = _without(container.host_config, point.destination)
    container.mounts = tuple(each for each in container.mounts if each is not point)
    await deps.store.save(container)
    if point.type == "volume" and container.running:
        if not _uses(container.mounts, point.name):
            await deps.volumes.unmount(point.name, container.id)
        deps.volumes.unmounted(point.name, container.id)
    if point.chain:
        await release(deps.images, ChainID(point.chain))


def _without(host: HostConfig, destination: str) -> HostConfig:
    def elsewhere(path: str) -> bool:
        return posixpath.normpath(path) != destination

    return msgspec.structs.replace(
        host,
        mounts=[each for each in host.mounts if elsewhere(each.target)] if host.mounts else host.mounts,
        binds=[each for each in host.binds if elsewhere(parse_bind(each).destination)] if host.binds else host.binds,
        tmpfs={path: options for path, options in host.tmpfs.items() if elsewhere(path)} if host.tmpfs else host.tmpfs,
    )


async def add_device(deps: Deps, container: Container, device: DeviceMapping) -> None:
    """Make the device's node (those of a directory) and allow its use.

    Raises InvalidParameter, Conflict, Failed, and NotSupported where a running container cannot be allowed another
    device (cgroup v2: the rules are a program that only the runtime can write, at the start).
    """
    _check_alive(container)
    inside = device.path_in_container or device.path_on_host
    if any(_inside(each) == posixpath.normpath(inside) for each in container.host_config.devices or []):
        raise Conflict(f"container {container.name} has a device at {inside}")
    found = await settle(devices.for_container, HostConfig(devices=[device]))
    await finish(_add_device(deps, container, device, found))


async def _add_device(deps: Deps, container: Container, mapping: DeviceMapping, found: list[Device]) -> None:
    before = container.host_config
    async with AsyncExitStack() as undo:
        undo.push_async_callback(_restore, deps, container, before, container.mounts)
        container.host_config = msgspec.structs.replace(before, devices=[*(before.devices or []), mapping])
        await deps.store.save(container)
        if container.running:
            shim = _shim(deps, container)
            for each in found:
                undo.push_async_callback(_forbid, shim, each, before)
                await _allow(shim, each, before)
                undo.push_async_callback(shim.remove_node, each)
                await shim.make_node(each)
        undo.pop_all()


async def remove_device(deps: Deps, container: Container, path: str) -> None:
    """Take the node at `path` (in the container) away, and the permission. Raises NotFound, Failed."""
    _check_alive(container)
    wanted = posixpath.normpath(path)
    mapping = next((each for each in container.host_config.devices or [] if _inside(each) == wanted), None)
    if mapping is None:
        raise NotFound(f"no device at {path} was given to container {container.name}")
    await finish(_remove_device(deps, container, mapping))


async def _remove_device(deps: Deps, container: Container, mapping: DeviceMapping) -> None:
    host = container.host_config
    rest = msgspec.structs.replace(host, devices=[each for each in host.devices or [] if each is not mapping])
    if container.running:
        shim = _shim(deps, container)
        for each in await settle(devices.for_container, HostConfig(devices=[mapping])):
            await shim.remove_node(each)
            await _forbid(shim, each, rest)
    container.host_config = rest
    await deps.store.save(container)


def _inside(mapping: DeviceMapping) -> str:
    return posixpath.normpath(mapping.path_in_container or mapping.path_on_host)


def _rule(device: Device) -> str:
    return f"{device.kind} {device.major}:{device.minor} {device.access}"


async def _allow(shim: Shim, device: Device, host: HostConfig) -> None:
    if host.privileged:
        return
    try:
        await settle(cgroup.allow_device, shim.cgroups, _rule(device), allowed=True)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            raise NotSupported(
                f"device {device.path} cannot be allowed to a running container on a machine with cgroup v2: stop the "
                "container first, and it has the device from its next start"
            ) from exc
        raise Failed(f"cannot allow device {device.path}: {exc.strerror}") from exc


async def _forbid(shim: Shim, device: Device, host: HostConfig) -> None:
    """Unless a rule that stays (`host` is what stays) allows the device anyway."""
    if host.privileged:
        return
    others = await settle(devices.for_container, host)
    for rule in resources.device_rules(host, others):
        numbers = rule.get("major", device.major), rule.get("minor", device.minor)
        same = rule.get("type") in (device.kind, "a") and numbers == (device.major, device.minor)
        if rule["allow"] and same and set(device.access) <= set(rule["access"]):
            return
    with contextlib.suppress(OSError):  # the container may be gone, and with it what is to be forbidden
        await settle(cgroup.allow_device, shim.cgroups, _rule(device), allowed=False)
