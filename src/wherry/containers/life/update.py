"""update: limits, restart policy, published ports, mounts and devices of a container that exists, running or not.

All or nothing: what is asked for is checked first; then done in an order in which everything can be taken back when a
later step fails. The record is written last but by mounts and devices, which have their own (life/changes_mounts.py).
"""

import logging
import posixpath
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from msgspec.structs import replace

from wherry.aio import finish, settle
from wherry.containers.deps import Deps
from wherry.containers.life import changes_mounts as changes
from wherry.containers.making import config as checks
from wherry.containers.making import limits, publishing
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, Failed, InvalidParameter, WherryError
from wherry.kernel import cgroup
from wherry.network.endpoint import Port
from wherry.network.ports import PortRequest
from wherry.runtime import resources
from wherry.runtime.shim_client import Shim
from wherry.spec.engine import DeviceMapping, HostConfig, Mount, Resources, UpdateContainer

log = logging.getLogger(__name__)

# What takes its new value whenever there is one; the rest of `Resources` cannot change, and Docker ignores it.
_CHANGEABLE = (
    "blkio_weight",
    "cpu_shares",
    "nano_cpus",
    "cpu_period",
    "cpu_quota",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_swap",
    "memory_reservation",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
)
Caller = tuple[int, int] | None  # uid, gid
_NO_POLICY = ("", "no")


async def update(deps: Deps, name: str, body: UpdateContainer, *, caller: Caller = None) -> list[str]:
    """Change a container; returns warnings. `caller` is who asks, where that is known: see `add_mount`.

    Raises InvalidParameter, NotFound, Conflict, Failed: nothing is changed.
    """
    asked, warnings = limits.keep_supported(body, limits.support())
    checks.check_update(asked)
    publishing.check(asked.publish_add or {}, asked.publish_rm or [])
    container = deps.store.resolve(name)
    await finish(_update(deps, container, asked, caller))
    deps.publish(container, "update")
    return warnings


async def _update(deps: Deps, container: Container, body: UpdateContainer, caller: Caller) -> None:
    async with deps.locks(container.id):
        if container.state.status in (Status.REMOVING, Status.DEAD):
            raise _refused(container, Conflict('container is marked for removal and cannot be "update"'))
        try:
            host = merge(container.host_config, body)
            ports = publishing.change(container, body.publish_add or {}, body.publish_rm or [])
        except Conflict as exc:
            raise _refused(container, exc) from exc
        async with AsyncExitStack() as undo:
            await _change_ports(deps, container, ports, undo)
            await _change_mounts(deps, container, body, caller, undo)
            await _change_limits(deps, container, host)
            before = container.host_config
            undo.callback(setattr, container, "host_config", before)
            container.host_config = _settled(container.host_config, host, ports)  # mounts have changed it meanwhile
            await deps.store.save(container)
            undo.pop_all()


def _refused(container: Container, why: WherryError) -> WherryError:
    return type(why)(f"Cannot update container {container.id}: {why.message}")


def merge(host: HostConfig, body: UpdateContainer) -> HostConfig:
    """The limits and restart policy of a container after an update; raises Conflict in Docker's words."""
    _check_cpu(host, body)
    changed = {name: value for name in _CHANGEABLE if (value := getattr(body, name))}
    if body.memory and not body.memory_swap:
        if 0 < host.memory_swap < body.memory and host.memory:
            raise Conflict(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same "
                "time"
            )
        if not host.memory_swap:
            changed["memory_swap"] = 2 * body.memory  # as for a container that is created with this limit
    swap, memory = changed.get("memory_swap", host.memory_swap), changed.get("memory", host.memory)
    if 0 < swap < memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if body.pids_limit is not None:
        changed["pids_limit"] = max(0, body.pids_limit)
    if body.restart_policy.name:
        if host.auto_remove and body.restart_policy.name not in _NO_POLICY:
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        changed["restart_policy"] = body.restart_policy
    return replace(host, **changed)


def _check_cpu(host: HostConfig, body: UpdateContainer) -> None:
    """--cpus is another word for period and quota: whoever chose one of both ways stays with it."""
    for given, what, held, other in (
        (body.nano_cpus, "Nano CPUs", host.cpu_period, "CPU Period"),
        (body.nano_cpus, "Nano CPUs", host.cpu_quota, "CPU Quota"),
        (body.cpu_period, "CPU Period", host.nano_cpus, "NanoCPUs"),
        (body.cpu_quota, "CPU Quota", host.nano_cpus, "NanoCPUs"),
    ):
        if given > 0 and held > 0:
            raise Conflict(f"Conflicting options: {what} cannot be updated as {other} has already been set")


def _settled(now: HostConfig, wanted: HostConfig, ports: publishing.Change) -> HostConfig:
    """`now`, with what this update decides besides mounts and devices."""
    fields = {name: getattr(wanted, name) for name in (*_CHANGEABLE, "pids_limit", "restart_policy")}
    return replace(now, **fields, port_bindings=ports.bindings, publish_all_ports=ports.publish_all)


# Ports


async def _change_ports(deps: Deps, container: Container, change: publishing.Change, undo: AsyncExitStack) -> None:
    """A port of the host that moves to another port of the container is given up first, the others at the end."""
    if not container.running or not (change.add or change.remove):
        return
    undo.push_async_callback(_take_ports_back, deps, container, container.ports)
    moving = [port for port in change.remove if any(_wants(request, port) for request in change.add)]
    if moving:
        container.ports = await deps.networks.change_ports(container.id, (), moving)
    leaving = [port for port in change.remove if port not in moving]
    container.ports = await deps.networks.change_ports(container.id, change.add, leaving)


def _wants(request: PortRequest, port: Port) -> bool:
    return request.protocol == port.protocol and request.first <= port.host_port <= request.last


async def _take_ports_back(deps: Deps, container: Container, before: tuple[Port, ...]) -> None:
    added = [port for port in container.ports if port not in before]
    missing = [
        PortRequest(
            container_port=port.container_port,
            protocol=port.protocol,
            host_ip=port.host_ip,
            first=port.host_port,
            last=port.host_port,
        )
        for port in before
        if port not in container.ports
    ]
    if added:  # first: they may hold what is missing
        await _tried(deps.networks.change_ports(container.id, (), added), container)
    if missing:
        await _tried(deps.networks.change_ports(container.id, missing, ()), container)
    container.ports = before


async def _tried(step: Awaitable[object], container: Container) -> None:
    """A step back: its failure must not hide the first one."""
    try:
        await step
    except (WherryError, OSError) as exc:
        log.error("a failed update of container %s is not wholly taken back: %s", container.name, exc)


# Mounts and devices


async def _change_mounts(
    deps: Deps, container: Container, body: UpdateContainer, caller: Caller, undo: AsyncExitStack
) -> None:
    """What leaves goes first: something else may come to its place."""
    for target in body.mount_rm or ():
        before = _mount_at(container, target)
        await changes.remove_mount(deps, container, target)
        if before is not None:
            _push(undo, container, partial(changes.add_mount, deps, container, before))
    for mount in body.mount_add or ():
        await changes.add_mount(deps, container, mount, caller=caller)
        _push(undo, container, partial(changes.remove_mount, deps, container, mount.target))
    for path in body.device_rm or ():
        held = _device_at(container, path)
        await changes.remove_device(deps, container, path)
        if held is not None:
            _push(undo, container, partial(changes.add_device, deps, container, held))
    for device in body.device_add or ():
        await changes.add_device(deps, container, device)
        path = device.path_in_container or device.path_on_host
        _push(undo, container, partial(changes.remove_device, deps, container, path))


def _push(undo: AsyncExitStack, container: Container, back: Callable[[], Awaitable[None]]) -> None:
    async def step() -> None:
        await _tried(back(), container)

    undo.push_async_callback(step)


def _mount_at(container: Container, target: str) -> Mount | None:
    """What would bring this mount back."""
    path = posixpath.normpath(target)
    for mount in container.host_config.mounts or ():
        if posixpath.normpath(mount.target) == path:
            return mount
    for point in container.mounts:
        if point.destination == path:
            return Mount(type=point.type, source=point.name or point.source, target=path, read_only=not point.rw)
    return None


def _device_at(container: Container, path: str) -> DeviceMapping | None:
    devices = container.host_config.devices or ()
    return next((each for each in devices if (each.path_in_container or each.path_on_host) == path), None)


# Limits


def changed_limits(before: HostConfig, after: HostConfig) -> Resources:
    """The limits that differ; with those that the kernel and runtimes only take together."""
    fields = {name for name in (*_CHANGEABLE, "pids_limit") if getattr(before, name) != getattr(after, name)}
    for pair in ({"memory", "memory_swap"}, {"cpu_period", "cpu_quota"}):
        if fields & pair:
            fields |= pair
    return replace(Resources(), **{name: getattr(after, name) for name in fields})


async def _change_limits(deps: Deps, container: Container, after: HostConfig) -> None:
    shim = deps.live_of(container).shim
    if not container.running or shim is None:
        return
    before = container.host_config
    try:
        await _apply(shim, before, after)
    except (WherryError, OSError) as exc:
        await _tried(_apply(shim, after, before), container)
        cause = exc.message if isinstance(exc, WherryError) else exc.strerror or str(exc)
        raise _refused(container, Failed(cause)) from exc


async def _apply(shim: Shim, before: HostConfig, after: HostConfig) -> None:
    """Tell the kernel what differs. Some limits are lifted in other ways than they are set."""
    document = resources.update(changed_limits(before, after))
    if before.memory and not after.memory:
        document["memory"] = {"limit": -1, "swap": -1}
    if document:
        await shim.update(document)
    if _pids(before) and not _pids(after):
        await settle(cgroup.lift_pids, shim.cgroups)
    if _quota(before) and not _quota(after):
        await settle(cgroup.lift_cpu, shim.cgroups)


def _pids(host: HostConfig) -> int:
    return max(0, host.pids_limit or 0)


def _quota(host: HostConfig) -> int:
    return host.nano_cpus or max(0, host.cpu_quota)
