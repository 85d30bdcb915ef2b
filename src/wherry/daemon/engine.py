"""The engine, put together once: every room gets what it needs, nothing is global.

`open_engine` does it in the order of recovery: state, content, images, volumes, then containers are adopted while they
keep running, and the network is rebuilt around them.
"""

import functools
import logging
import os
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry import __version__
from wherry.aio import Background, KeyedLock, settle
from wherry.api.services import Doors, EngineFacts, Services
from wherry.builder import deps as building
from wherry.builder.build import Builder
from wherry.containers import deps as containers
from wherry.containers.life.recover import recover as recover_containers
from wherry.containers.live import LiveTable
from wherry.containers.store import ContainerStore
from wherry.containers.views.image_users import mounted_layers
from wherry.daemon.config import BUILT_IN_RUNTIMES, Config, find_init, find_runtimes, parse_size
from wherry.daemon.engine_registry import keep_rest
from wherry.daemon.registries import registry_config
from wherry.errors import Failed
from wherry.events import Events
from wherry.images import deps as images
from wherry.images.upkeep.recover import recover as recover_images
from wherry.kernel import cgroup
from wherry.network.ipam import DEFAULT_POOLS
from wherry.network.networks import NetworkConfig, Networks
from wherry.registry.folder import FolderStore
from wherry.runtime.shim_client import RuntimeSpec, Shims
from wherry.state import Put, State
from wherry.storage.choose import Choice, choose
from wherry.storage.content import ContentStore
from wherry.storage.snapshot import Snapshotter
from wherry.volumes.volumes import Volumes

log = logging.getLogger(__name__)

DIRECTORIES = {"containers": 0o710, "volumes": 0o701, "work": 0o700}  # of the data root, beside storage's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """All rooms, open. `close` leaves containers running."""

    services: Services
    state: State
    shims: Shims
    networks: Networks
    snapshots: Snapshotter
    rest: FolderStore  # of the registry: what is no image
    background: Background

    async def close(self) -> None:
        """Stop what belongs to the daemon; the network goes too when nothing runs that could need it."""
        await self.services.builder.close()
        await self.background.close()
        await self.rest.close()
        containers = self.services.containers
        keep = any(each.running for each in containers.store)
        await self.networks.stop(keep=keep)
        if not keep:
            await self.services.volumes.close()
            await settle(cgroup.remove_empty, containers.settings.cgroup_parent)
        await self.shims.stop()
        await settle(self.snapshots.close)
        self.state.close()


async def open_engine(config: Config) -> Engine:
    """Build and recover everything; raises a WherryError that says what this machine lacks."""
    data_root, exec_root = Path(config.data_root), Path(config.exec_root)
    await settle(_make_directories, data_root, exec_root)
    runtimes = {
        name: RuntimeSpec(path=entry.path, args=tuple(entry.runtime_args))
        for name, entry in find_runtimes(config).items()
    }
    default_runtime = config.default_runtime or next(
        name for name in (*BUILT_IN_RUNTIMES, *runtimes) if name in runtimes
    )
    if default_runtime not in runtimes:
        raise Failed(f"default-runtime {default_runtime} is not installed on this machine")
    state = await settle(State, data_root / "state.db")
    events, background = Events(), Background()
    content = await settle(ContentStore, data_root)
    choice = await settle(choose, data_root, config.storage_driver)
    snapshots = choice.snapshotter
    registry = registry_config(config, os.environ)
    image_deps = await settle(
        lambda: images.build(
            state=state,
            events=events,
            content=content,
            snapshots=snapshots,
            registry=registry,
            work=data_root / "work",
            downloads=config.max_concurrent_downloads,
            uploads=config.max_concurrent_uploads,
        )
    )
    store = ContainerStore(state)
    image_deps.roots.append(lambda: (set(), mounted_layers(store)))
    volumes = Volumes(state, data_root / "volumes", events, users=lambda: volume_users(store))
    networks = Networks(network_config(config), state, events)
    shims = Shims(exec_root)
    settings = containers.Settings(
        data_root=data_root,
        exec_root=exec_root,
        runtimes=runtimes,
        default_runtime=default_runtime,
        init_path=find_init(config),
        init_always=config.init,
        cgroup_parent=config.cgroup_parent or "/wherry",
        log_driver=config.log_driver,
        log_options=tuple(config.log_opts.items()),
        default_shm_size=config.default_shm_size,
    )
    container_deps = containers.Deps(
        state=state,
        events=events,
        store=store,
        locks=KeyedLock(),
        live=LiveTable(),
        images=image_deps,
        snapshots=snapshots,
        networks=networks,
        volumes=volumes,
        shims=shims,
        background=background,
        settings=settings,
    )
    builder = await settle(open_builder, container_deps, image_deps, builder_settings(config, settings))
    facts = engine_facts(config, engine_id=await settle(_engine_id, state), choice=choice, settings=settings)
    services = Services(
        containers=container_deps,
        images=image_deps,
        builder=builder,
        networks=networks,
        volumes=volumes,
        events=events,
        facts=facts,
        buildkit=functools.cache(functools.partial(open_doors, builder)),
    )
    rest = await settle(keep_rest, image_deps, data_root / "uploads")
    await recover_images(image_deps)
    await builder.recover()
    await volumes.start()
    await shims.start()
    await recover_containers(container_deps)
    return Engine(
        services=services,
        state=state,
        shims=shims,
        networks=networks,
        snapshots=snapshots,
        rest=rest,
        background=background,
    )


def builder_settings(config: Config, settings: containers.Settings) -> building.Settings:
    return building.Settings(
        root=settings.data_root / "build",
        exec_root=settings.exec_root,
        runtime=settings.runtimes[settings.default_runtime],
        cgroup_parent=settings.cgroup_parent,
        default_shm_size=settings.default_shm_size,
        collecting=config.builder.gc.enabled,
        keep_storage=parse_size(config.builder.gc.default_keep_storage or "0"),
    )


def open_builder(containers: containers.Deps, images: images.Deps, settings: building.Settings) -> Builder:
    """Blocking. Before garbage is looked for: the build cache keeps layers."""
    return Builder(
        building.Deps(
            state=containers.state,
            events=containers.events,
            images=images,
            networks=containers.networks,
            shims=containers.shims,
            background=containers.background,
            settings=settings,
        )
    )


def open_doors(builder: Builder) -> Doors:
    """What BuildKit's clients come in by. Loaded when the first of them does: gRPC takes some megabytes."""
    from wherry.buildkit import doors

    return doors.Doors(builder)


def _make_directories(data_root: Path, exec_root: Path) -> None:
    try:
        for name, mode in DIRECTORIES.items():
            (data_root / name).mkdir(mode=mode, parents=True, exist_ok=True)
        exec_root.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as exc:
        raise Failed(f"cannot make {exc.filename}: {exc.strerror}") from exc


def volume_users(store: ContainerStore) -> Mapping[str, Sequence[str]]:
    """Volume name -> ids of the containers that mount it."""
    users: dict[str, list[str]] = {}
    for container in store:
        for point in container.mounts:
            if point.type == "volume":
                users.setdefault(point.name, []).append(container.id)
    return users


def network_config(config: Config) -> NetworkConfig:
    pools = [(pool.base, pool.size) for pool in config.default_address_pools] or DEFAULT_POOLS
    return NetworkConfig(
        instance=config.own_instance,
        bridge=config.bridge,
        bip=config.bip,
        mtu=config.mtu,
        icc=config.icc,
        ip_forward=config.ip_forward,
        ip_masq=config.ip_masq,
        default_bind=config.ip,
        dns=config.dns,
        dns_options=config.dns_opts,
        dns_search=config.dns_search,
        host_dns=config.host_dns,
        host_gateways=config.host_gateway_ips,
        network_options=config.default_network_opts,
        respect_firewall=config.firewall == "respect",
        address_pools=pools,
    )


def engine_facts(config: Config, *, engine_id: str, choice: Choice, settings: containers.Settings) -> EngineFacts:
    return EngineFacts(
        id=engine_id,
        name=platform.node(),
        version=__version__,
        root=settings.data_root,
        started=time.time_ns(),
        driver=choice.snapshotter.name,
        driver_status=choice.status,
        runtimes={name: spec.path for name, spec in settings.runtimes.items()},
        default_runtime=settings.default_runtime,
        log_driver=config.log_driver,
        init_binary=os.path.basename(settings.init_path),
        debug=config.debug,
        labels=config.labels,
        address_pools=[(pool.base, pool.size) for pool in config.default_address_pools],
    )


def _engine_id(state: State) -> str:
    """Drawn once per data root."""
    known = state.rows("settings").get("engine-id")
    if known is not None:
        return known.decode()
    fresh = str(uuid.uuid4())
    state.write(Put("settings", "engine-id", fresh.encode()))
    return fresh
