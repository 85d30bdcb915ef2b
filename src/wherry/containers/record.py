"""A container's record: the one mutable thing in the engine, changed only under the container's lock.

Kept as JSON in state table `containers`; `encode` and `decode` are inverse. What is only known while it runs (the shim,
attached clients, execs) lives in `containers/live.py`, never here.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from wherry.errors import Conflict
from wherry.ids import ContainerID
from wherry.network.endpoint import Endpoint, Port
from wherry.spec.engine import ContainerConfig, HostConfig, NetworkingConfig


class Status(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"  # exited, and its restart policy will start it again
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"  # removal failed half-way; only rm is possible


ALLOWED = {
    Status.CREATED: frozenset({Status.RUNNING, Status.EXITED, Status.REMOVING}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.EXITED, Status.RESTARTING}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING}),
    Status.RESTARTING: frozenset({Status.RUNNING, Status.EXITED, Status.REMOVING}),
    Status.EXITED: frozenset({Status.RUNNING, Status.EXITED, Status.REMOVING}),
    Status.REMOVING: frozenset({Status.DEAD, Status.REMOVING}),
    Status.DEAD: frozenset({Status.REMOVING}),
}


class HealthStatus(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One run of a health check."""

    start: int  # ns since the epoch
    end: int
    exit_code: int  # -1: it could not be run, or took too long
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    status: HealthStatus = HealthStatus.STARTING
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()  # the last few, oldest first


@dataclass(slots=True, kw_only=True)
class State:
    status: Status = Status.CREATED
    pid: int = 0  # host pid of init; 0 when there is none
    pid_start: int = 0  # its start time in clock ticks since boot: tells a reused pid
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0  # ns since the epoch; 0 = never
    finished_at: int = 0
    restart_count: int = 0
    stopped_by_user: bool = False  # unless-stopped and always do not bring it back
    health: Health | None = None  # None: no health check, or never started

    def move(self, to: Status) -> None:
        """Change status; raises Conflict, touching nothing, when the table does not allow it."""
        if to not in ALLOWED[self.status]:
            raise Conflict(f"container is {self.status} and cannot become {to}")
        self.status = to


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """A resolved mount, as inspect shows it."""

    type: str  # bind, volume, tmpfs, image
    source: str  # host path; "" for tmpfs; of an image its name as typed
    destination: str
    name: str = ""  # volumes
    driver: str = ""  # volumes
    mode: str = ""  # as typed after the second colon of -v
    rw: bool = True
    propagation: str = ""
    options: tuple[str, ...] = ()  # further mount options, tmpfs's data among them
    anonymous: bool = False  # a volume made for this container: rm -v takes it
    no_copy: bool = False
    recursive: bool = True
    must_exist: bool = False  # --mount: a missing host path is an error; -v makes it
    subpath: str = ""  # of a volume or image: what is mounted of it; "" = all
    flat_read_only: bool = False  # mounts below a read-only bind stay writable
    deep_read_only: bool = False  # that they do not is demanded; else it is done where kernel and runtime can
    id_map: str = ""  # see runtime.id_map
    image_id: str = ""  # images
    chain: str = ""  # images: the layers to mount


@dataclass(slots=True, kw_only=True)
class Container:
    id: ContainerID
    name: str  # without the slash that the API puts before it
    created: int  # ns since the epoch
    image: str  # as typed
    image_id: str
    path: str  # argv[0]
    args: list[str]
    config: ContainerConfig
    host_config: HostConfig
    networking: NetworkingConfig = field(default_factory=NetworkingConfig)
    mounts: tuple[MountPoint, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[Port, ...] = ()
    driver: str = "overlay2"
    runtime: str = "crun"
    log_path: str = ""
    platform: str = "linux"
    complete: bool = False  # False until create has done everything: recovery removes such a record and what it names
    state: State = field(default_factory=State)

    @property
    def running(self) -> bool:
        """There is a process, paused or not."""
        return self.state.status in (Status.RUNNING, Status.PAUSED)


def encode(container: Container) -> bytes:
    return msgspec.json.encode(container)


def decode(raw: bytes) -> Container:
    return msgspec.json.decode(raw, type=Container)
