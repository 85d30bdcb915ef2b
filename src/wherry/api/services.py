"""What the REST wire serves: built once by `daemon/engine.py`, never changed."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wherry.builder.build import Builder
from wherry.containers.deps import Deps as ContainerDeps
from wherry.events import Events
from wherry.images.deps import Deps as ImageDeps
from wherry.network.networks import Networks
from wherry.volumes.volumes import Volumes

API_VERSION = "1.51"  # newest: what we advertise, and what a path without a version means
MIN_API_VERSION = "1.24"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What `GET /info` and `GET /version` say about the engine itself; facts about the machine are in `host.py`."""

    id: str
    name: str  # of the host
    version: str
    root: Path
    started: int  # ns since the epoch
    driver: str = "overlay2"
    driver_status: Sequence[tuple[str, str]] = ()
    runtimes: Mapping[str, str] = field(default_factory=dict)  # name -> path
    default_runtime: str = ""
    log_driver: str = "json-file"
    cgroup_driver: str = "cgroupfs"
    init_binary: str = ""
    debug: bool = False
    labels: Sequence[str] = ()
    live_restore: bool = True
    security_options: Sequence[str] = ("name=seccomp,profile=builtin",)
    address_pools: Sequence[tuple[str, int]] = ()  # (base, size)
    warnings: Sequence[str] = ()


class Taken(Protocol):
    """The other side of a connection that leaves HTTP/1.1."""

    @property
    def protocol(self) -> asyncio.Protocol:
        """Gets the connection, and from then on its bytes."""

    async def run(self) -> None:
        """Until the connection has ended, and all that it began."""


class Doors(Protocol):
    """BuildKit's, of `buildkit/`: what is spoken on connections that api/grpc.py hands over."""

    def grpc(self) -> Taken: ...

    def session(self, headers: Mapping[str, str], methods: Sequence[str]) -> Taken:
        """`headers`: uuid, name, sharedkey. Raises InvalidParameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    containers: ContainerDeps
    images: ImageDeps
    builder: Builder
    networks: Networks
    volumes: Volumes
    events: Events
    facts: EngineFacts
    buildkit: Callable[[], Doors] | None = None  # opened by the first client that wants in
