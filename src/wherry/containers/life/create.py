"""create: everything decided and checked, the name reserved, the writable layer and the volumes made.

The first record is written incomplete, naming all that will be made (`Container.complete`); recovery removes such a
record with what it names, so a crash at any instant leaves nothing. Nothing runs yet and no network is touched.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import msgspec

from wherry.aio import finish, settle
from wherry.containers.attached import joined
from wherry.containers.deps import Deps
from wherry.containers.life.remove import discard
from wherry.containers.making import config as checks
from wherry.containers.making import endpoints, limits, links, names
from wherry.containers.making.mounts import over_daemon, resolve, with_caller
from wherry.containers.making.sources import doubts, prepare_binds
from wherry.containers.making.spec import check_security
from wherry.containers.making.volumes import make_volume
from wherry.containers.record import Container, MountPoint
from wherry.errors import InvalidParameter, NotFound
from wherry.ids import ContainerID, generate, short
from wherry.images.garbage import pinned
from wherry.images.store import Image
from wherry.kernel import cgroup
from wherry.network.files import check_dns, parse_extra_host
from wherry.network.ports import parse_ports
from wherry.reference import is_identifier, parse
from wherry.spec.engine import ContainerConfig, CreateContainer, HostConfig, LogConfig, words

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Created:
    id: ContainerID
    warnings: list[str]


async def create(
    deps: Deps, body: CreateContainer, *, name: str | None, platform: str | None, caller: tuple[int, int] | None = None
) -> Created:
    """Make a container; raises NotFound for a missing image, Conflict for a taken name, InvalidParameter otherwise.

    `caller`: uid and gid of who asks, where that is known: `idmap` means these.
    """
    if name is not None:
        checks.check_name(name.removeprefix("/"))
    if not body.image:
        raise InvalidParameter("no image specified: the request must name an image")
    if not is_identifier(body.image):
        parse(body.image)  # a name that can be none is the request's fault, not an image that is missing
    deps.background.spawn(settle(cgroup.expect_moves), name="expecting a start")
    async with pinned(deps.images, body.image, platform=platform) as image:
        if caller is not None:
            host = with_caller(body.host_config, "caller={}-{}".format(*caller))
            body = msgspec.structs.replace(body, host_config=host)
        container, warnings = await _create(deps, body, image, name)
    deps.publish(container, "create")
    return Created(container.id, warnings)


async def _create(deps: Deps, body: CreateContainer, image: Image, name: str | None) -> tuple[Container, list[str]]:
    settings = deps.settings
    config = checks.merge(checks.split_request(body), image.config.config)
    checks.check_config(config)
    asked, discarded = limits.keep_supported(body.host_config, limits.support())
    checks.check_network_mode(body)
    checks.check_host(asked, settings.runtimes)
    host = checks.with_defaults(
        asked,
        runtime=settings.default_runtime,
        log=LogConfig(type=settings.log_driver, config=dict(settings.log_options)),
        cgroup_v2=cgroup.layout() is cgroup.Layout.V2,
        shm_size=settings.default_shm_size,
    )
    try:
        host = links.resolve(deps, host)
        container = _draft(deps, body, config, host, image, name)
        warnings = _check_all(deps, container)
    except NotFound as exc:  # clients take "not found" for the image, and would pull it
        raise InvalidParameter(exc.message) from exc
    volumes = [point.name for point in container.mounts if point.type == "volume"]
    with deps.volumes.hold(*volumes):
        async with AsyncExitStack() as undo:
            await deps.store.add(container)
            undo.push_async_callback(_undo, deps, container)
            check_images(deps, container.mounts)
            await settle(deps.snapshots.prepare, container.id, image.chain, container=True)
            await settle(settings.directory(container).mkdir, mode=0o710, parents=True, exist_ok=True)
            await _make_volumes(deps, container, image)
            container.complete = True
            await deps.store.save(container)
            undo.pop_all()  # created: nothing to undo
    return container, [*discarded, *warnings]


def _draft(
    deps: Deps, body: CreateContainer, config: ContainerConfig, host: HostConfig, image: Image, name: str | None
) -> Container:
    container_id = ContainerID(generate())
    argv = [*words(config.entrypoint), *words(config.cmd)]
    if not config.hostname and host.uts_mode != "host" and not host.network_mode.startswith("container:"):
        config = msgspec.structs.replace(config, hostname=short(container_id))
    container = Container(
        id=container_id,
        name=name.removeprefix("/") if name is not None else names.generate({each.name for each in deps.store}),
        created=time.time_ns(),
        image=body.image,
        image_id=image.id,
        path=argv[0],
        args=argv[1:],
        config=config,
        host_config=host,
        networking=endpoints.draft(deps.networks, config, host, body.networking_config),
        mounts=_resolve_mounts(deps, config, host),
        driver=deps.snapshots.name,
        runtime=host.runtime,
    )
    if host.log_config.type == "json-file":
        container.log_path = str(deps.settings.directory(container) / f"{container_id}-json.log")
    return container


def _resolve_mounts(deps: Deps, config: ContainerConfig, host: HostConfig) -> tuple[MountPoint, ...]:
    def others(name: str) -> Sequence[MountPoint]:
        return deps.store.resolve(name).mounts

    points = resolve(host, image_volumes=config.volumes or {}, others=others)
    return over_daemon((find_image(deps, point) for point in points), host, deps.settings.data_root)


def find_image(deps: Deps, point: MountPoint) -> MountPoint:
    """A mount of an image with the image it means now. Raises NotFound, InvalidParameter."""
    if point.type != "image" or point.chain:
        return point
    image = deps.images.store.get(point.source)
    if image.chain is None:
        raise InvalidParameter(f'invalid mount config for type "image": image {point.source} has no layers')
    return replace(point, image_id=image.id, chain=image.chain)


def check_images(deps: Deps, points: Sequence[MountPoint]) -> None:
    """Once the record names the images their layers stay: but were they still there? Raises InvalidParameter."""
    for point in points:
        if point.type == "image" and deps.images.store.find(point.image_id) is None:
            raise InvalidParameter(f"No such image: {point.source}")


def _check_all(deps: Deps, container: Container) -> list[str]:
    """The checks that need the whole picture; returns warnings for the user."""
    host = container.host_config
    for mode, what in ((host.ipc_mode, "IPC"), (host.pid_mode, "PID")):
        if mode.startswith("container:"):
            deps.store.resolve(mode.removeprefix("container:"))
        elif mode not in ("", "private", "shareable", "none", "host"):
            raise InvalidParameter(f"invalid {what} mode: {mode}")
    check_dns(host.dns or [])
    for extra in host.extra_hosts or []:
        parse_extra_host(extra)
    parse_ports(container.config.exposed_ports, host.port_bindings, host.publish_all_ports)
    if (other := joined(container)) is not None:
        deps.store.resolve(other)
    for point in container.mounts:
        if point.must_exist:
            prepare_binds([point])
    warnings = [*doubts(container.mounts), *check_security(deps, container)]
    if host.network_mode == "host" and host.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    return warnings


async def _make_volumes(deps: Deps, container: Container, image: Image) -> None:
    """Make what does not exist yet, fill new and empty volumes from the image, and note where they are."""
    mounts = {mount.target: mount for mount in container.host_config.mounts or []}
    points = [
        await make_volume(deps, point, mounts.get(point.destination), image.chain) if point.type == "volume" else point
        for point in container.mounts
    ]
    container.mounts = tuple(points)


async def _undo(deps: Deps, container: Container) -> None:
    container.complete = False  # nobody finds what is on its way out
    try:
        await finish(discard(deps, container, volumes=True))
    except Exception:
        log.exception("create of container %s failed, and so did its clean-up", container.id)
