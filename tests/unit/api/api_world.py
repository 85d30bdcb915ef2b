"""Services of real rooms in a temporary directory, without a kernel's help: nothing in here can start a container."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from wherry.aio import Background, KeyedLock
from wherry.api.services import EngineFacts, Services
from wherry.builder import deps as building
from wherry.builder.build import Builder
from wherry.containers.deps import Deps, Settings
from wherry.containers.live import LiveTable
from wherry.containers.record import Container, State, Status
from wherry.containers.store import ContainerStore
from wherry.distribution.config import RegistryConfig
from wherry.errors import Forbidden, NotFound
from wherry.events import Events
from wherry.filters import Filters
from wherry.ids import ContainerID, generate
from wherry.images import deps as images
from wherry.network import documents
from wherry.network.endpoint import Endpoint
from wherry.network.networks import Networks
from wherry.network.records import NetworkRecord
from wherry.runtime.shim_client import RuntimeSpec, Shims
from wherry.spec.engine import ContainerConfig, CreateNetwork, HostConfig
from wherry.state import State as Database
from wherry.storage.content import ContentStore
from wherry.storage.native import NativeSnapshotter
from wherry.volumes.volumes import Volumes

NETWORK = {"Id": "b" * 64, "Name": "bridge", "Driver": "bridge", "Scope": "local"}


class FakeNetworks:
    """The network seam, as far as it is looked at."""

    def __init__(self) -> None:
        self.asked: list[dict[str, tuple[str, Sequence[Endpoint]]]] = []
        self.made: list[CreateNetwork] = []
        self.removed: list[str] = []
        self.pruned: list[tuple[Filters, int | None]] = []

    def records(self) -> list[NetworkRecord]:
        return [
            NetworkRecord(id="b" * 64, name="bridge", driver="bridge", created=1),
            NetworkRecord(id="a" * 64, name="front", driver="bridge", created=1, labels={"x": "1"}),
            NetworkRecord(id="c" * 64, name="host", driver="host", created=1),
        ]

    def list(self) -> "list[dict[str, object]]":
        return [documents.network(record, {}) for record in self.records()]

    def resolve(self, name: str) -> NetworkRecord:
        for record in self.records():
            if name and (name == record.name or record.id.startswith(name)):
                return record
        raise NotFound(f"network {name} not found")

    async def create(self, body: CreateNetwork) -> tuple[str, str]:
        self.made.append(body)
        return "a" * 64, "be careful"

    async def rename_container(self, container_id: str, old: str, new: str) -> None:
        pass

    async def remove(self, name: str) -> str:
        if self.resolve(name).predefined:
            raise Forbidden(f"{name} is a pre-defined network and cannot be removed")
        self.removed.append(name)
        return self.resolve(name).id

    async def prune(self, filters: Filters, before: int | None) -> "list[str]":
        self.pruned.append((filters, before))
        return [] if before else ["front"]

    def inspect(self, name: str, containers: dict[str, tuple[str, Sequence[Endpoint]]]) -> dict[str, object]:
        self.asked.append(containers)
        if name not in ("bridge", "b" * 12):
            raise NotFound(f"network {name} not found")
        return dict(NETWORK)


class World:
    def __init__(self, root: Path, registry: RegistryConfig | None = None) -> None:
        state, self.events = Database(root / "state.db"), Events()
        self.store = ContainerStore(state)
        self.networks = FakeNetworks()
        snapshots = NativeSnapshotter(root)
        networks = cast(Networks, self.networks)
        image_deps = images.build(
            state=state,
            events=self.events,
            content=ContentStore(root),
            snapshots=snapshots,
            registry=registry
            or RegistryConfig(insecure=("10.0.0.0/8", "registry.test:5000"), mirrors=("https://mirror.test/",)),
            work=root / "work",
        )
        self.volumes = Volumes(state, root / "volumes", self.events)
        self.containers = Deps(
            state=state,
            events=self.events,
            store=self.store,
            locks=KeyedLock(),
            live=LiveTable(),
            images=image_deps,
            snapshots=snapshots,
            networks=networks,
            volumes=self.volumes,
            shims=cast(Shims, None),
            background=Background(),
            settings=Settings(data_root=root, exec_root=root, runtimes={}, default_runtime="crun"),
        )
        self.builder = Builder(
            building.Deps(
                state=state,
                events=self.events,
                images=image_deps,
                networks=networks,
                shims=cast(Shims, None),
                background=Background(),
                settings=building.Settings(
                    root=root / "build", exec_root=root, runtime=RuntimeSpec(path="/usr/bin/crun"), collecting=False
                ),
            )
        )
        facts = EngineFacts(
            id="id",
            name="host",
            version="9.9",
            root=root,
            started=0,
            runtimes={"crun": "/usr/bin/crun"},
            default_runtime="crun",
        )
        self.services = Services(
            containers=self.containers,
            images=image_deps,
            builder=self.builder,
            networks=networks,
            volumes=self.volumes,
            events=self.events,
            facts=facts,
        )

    async def add(self, name: str, *, status: Status = Status.RUNNING, created: int = 1) -> Container:
        """A record and nothing behind it."""
        container = Container(
            id=ContainerID(generate()),
            name=name,
            created=created,
            image="busybox",
            image_id="sha256:" + "1" * 64,
            path="sleep",
            args=["100"],
            config=ContainerConfig(image="busybox"),
            host_config=HostConfig(network_mode="bridge"),
            state=State(status=status),
            complete=True,
        )
        await self.store.add(container)
        if container.running:
            self.containers.live_of(container).ended.clear()
        return container
