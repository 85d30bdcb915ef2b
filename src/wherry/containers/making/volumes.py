"""The volumes of containers: made with them, mounted while they run."""

from collections.abc import Iterable
from dataclasses import replace

from wherry.containers.deps import Deps
from wherry.containers.record import Container, MountPoint
from wherry.digest import ChainID
from wherry.spec.engine import Mount


async def make_volume(deps: Deps, point: MountPoint, mount: Mount | None, chain: ChainID | None) -> MountPoint:
    """The volume of one mount point, filled with what the layers `chain` have there; the point with its place.

    `mount` is the `--mount` it comes from, if there is one. What is to be a part of the volume is never filled.
    """
    options = mount.volume_options if mount is not None else None
    source = await deps.volumes.ensure(
        point.name,
        driver=point.driver,
        options=(options.driver_config.options if options and options.driver_config else None) or {},
        labels=(options.labels if options else None) or {},
        anonymous=point.anonymous,
    )
    if not point.no_copy and not point.subpath:
        await deps.volumes.fill(point.name, deps.snapshots.view(chain), point.destination)
    return replace(point, source=str(source))


async def mount_volumes(deps: Deps, container: Container) -> None:
    """Make the content of its volumes be there, and note where. The undo is `unmount_volumes`."""
    points = []
    for point in container.mounts:
        if point.type == "volume":
            point = replace(point, source=str(await deps.volumes.mount(point.name, container.id)))
        points.append(point)
    container.mounts = tuple(points)


async def unmount_volumes(deps: Deps, container: Container) -> None:
    """The container has ended. Idempotent."""
    for name in {point.name for point in container.mounts if point.type == "volume"}:
        await deps.volumes.unmount(name, container.id)


def users_of(containers: Iterable[Container]) -> dict[str, list[str]]:
    """Volume -> ids of those of the containers that use it."""
    found: dict[str, list[str]] = {}
    for container in containers:
        for name in {point.name for point in container.mounts if point.type == "volume"}:
            found.setdefault(name, []).append(container.id)
    return found
