"""Trees made of real layers, and what is needed to export them."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imagekit.world import World
from wherry.aio import Background
from wherry.builder.client import NoClient, Transferred
from wherry.builder.deps import Deps, Settings
from wherry.builder.export.work import Variant, Work
from wherry.builder.log import BuildLog, StatusEvent, VertexEvent
from wherry.builder.solve.seal import seal
from wherry.builder.trees import SCRATCH, Tree
from wherry.digest import Digest
from wherry.images.leases import Lease
from wherry.kernel.mount import open_detached
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, host_platform
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter

EPOCH = 1_700_000_000 * 1_000_000_000  # ns


@dataclass
class Receiver(NoClient):
    """A client that keeps what it is sent."""

    streams: dict[int, bytes] = field(default_factory=dict)
    metadata: dict[int, dict[str, str]] = field(default_factory=dict)
    directories: list[tuple[int, str, dict[str, bytes | None]]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)

    async def send_stream(self, exporter: int, metadata: Mapping[str, str], data: AsyncIterator[bytes]) -> None:
        self.metadata[exporter] = dict(metadata)
        self.streams[exporter] = b"".join([piece async for piece in data])

    async def send_directory(self, exporter: int, root: Path, transferred: Transferred, *, prefix: str = "") -> None:
        found: dict[str, bytes | None] = {}
        for directory, names, files in os.walk(root):
            for name in [*names, *files]:
                path = Path(directory, name)
                found[os.path.relpath(path, root)] = None if path.is_dir() else path.read_bytes()
        transferred(1)
        self.directories.append((exporter, prefix, found))

    async def write_blob(self, store: str, digest: Digest, size: int, data: AsyncIterator[bytes]) -> None:
        assert store == "export"
        self.blobs[digest] = b"".join([piece async for piece in data])
        assert len(self.blobs[digest]) == size


@dataclass
class Bench:
    """A builder's stores, and trees in them."""

    world: World
    deps: Deps
    client: Receiver = field(default_factory=Receiver)
    log: BuildLog = field(default_factory=BuildLog)
    lease: Lease = field(init=False)

    async def layer(self, parent: Tree, change: Callable[[Path], object], created_by: str = "RUN x") -> Tree:
        """`parent` and a layer of what `change` does to the mounted tree."""
        snapshots = self.world.snapshots
        snapshots.prepare("step", parent.chain)
        fd = open_detached(snapshots.mounts("step"), attributes=0)
        try:
            change(Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        return await seal(self.deps, self.lease, "step", parent, epoch=EPOCH, created_by=created_by)

    async def files(self, parent: Tree = SCRATCH, **contents: str) -> Tree:
        def write(root: Path) -> None:
            for name, text in contents.items():
                (root / name).write_text(text)

        return await self.layer(parent, write)

    def variant(self, tree: Tree, **fields: Any) -> Variant:
        given = {
            "platform": host_platform(),
            "config": ContainerConfig(cmd=["sh"]),
            "history": [History(created_by=layer.created_by) for layer in tree.layers],
        }
        return Variant(tree=tree, **{**given, **fields})

    def work(self, *variants: Variant, **fields: Any) -> Work:
        async def bring(tree: Tree) -> Tree:
            return tree

        return Work(
            deps=self.deps,
            lease=self.lease,
            client=self.client,
            log=self.log,
            variants=variants,
            bring=bring,
            epoch=EPOCH,
            **fields,
        )

    @property
    def lines(self) -> list[str]:
        """What was shown."""
        return [event.id for event in self.log.events if isinstance(event, StatusEvent) and event.completed]

    @property
    def vertices(self) -> list[VertexEvent]:
        return [event for event in self.log.events if isinstance(event, VertexEvent) and event.completed]


def open_bench(root: Path, driver: Any) -> Bench:
    root.mkdir()
    world = World(root, driver(root))
    deps = Deps(
        state=world.state,
        events=world.deps.events,
        images=world.deps,
        networks=None,  # type: ignore[arg-type]  # nothing runs here
        shims=None,  # type: ignore[arg-type]
        background=Background(),
        settings=Settings(root=root / "build", exec_root=root / "exec", runtime=None),  # type: ignore[arg-type]
    )
    return Bench(world, deps)


@pytest.fixture(params=[OverlaySnapshotter, NativeSnapshotter], ids=["overlay", "native"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made = open_bench(tmp_path / "one", request.param)
    async with made.world.deps.leases.hold("test") as made.lease:
        yield made
    made.world.snapshots.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Bench]:
    """Another machine."""
    made = open_bench(tmp_path / "other", OverlaySnapshotter)
    async with made.world.deps.leases.hold("test") as made.lease:
        yield made
    made.world.snapshots.close()
