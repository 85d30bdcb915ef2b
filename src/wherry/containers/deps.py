"""What the verbs of this room work with: built once by `daemon/engine.py`, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.aio import Background, KeyedLock
from wherry.containers.live import Live, LiveTable
from wherry.containers.record import Container
from wherry.containers.store import ContainerStore
from wherry.events import Event, Events
from wherry.images.deps import Deps as ImageDeps
from wherry.network.networks import Networks
from wherry.runtime.shim_client import RuntimeSpec, Shims
from wherry.state import State
from wherry.storage.snapshot import Snapshotter
from wherry.volumes.volumes import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The part of the daemon's configuration that containers need."""

    data_root: Path
    exec_root: Path
    runtimes: Mapping[str, RuntimeSpec]
    default_runtime: str
    init_always: bool = False  # --init unless the request says otherwise
    init_path: str = ""  # host path of the program for --init; "" when there is none
    cgroup_parent: str = "/wherry"
    log_driver: str = "json-file"
    log_options: tuple[tuple[str, str], ...] = ()
    default_shm_size: int = 64 << 20  # bytes

    def directory(self, container: Container) -> Path:
        """Where a container's own files are: log, hosts, hostname, resolv.conf."""
        return self.data_root / "containers" / container.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    state: State
    events: Events
    store: ContainerStore
    locks: KeyedLock  # by container id: one verb at a time changes a container
    live: LiveTable
    images: ImageDeps
    snapshots: Snapshotter
    networks: Networks
    volumes: Volumes
    shims: Shims
    background: Background
    settings: Settings

    def live_of(self, container: Container) -> Live:
        return self.live.of(container)

    def publish(self, container: Container, action: str, **attributes: str) -> None:
        """Tell the world, with Docker's attributes: labels, image and name besides the given ones."""
        self.events.publish(
            Event(
                type="container",
                action=action,
                actor=container.id,
                attributes={
                    **(container.config.labels or {}),
                    "image": container.image,
                    "name": container.name,
                    **attributes,
                },
            )
        )
