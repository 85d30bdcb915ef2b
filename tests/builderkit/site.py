"""Builds in process: real snapshots, real programs in real containers without a network; the client is the test."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.images import busybox, docker_archive
from imagekit.world import World
from wherry.aio import Background
from wherry.builder.build import Builder
from wherry.builder.client import NoClient, Transferred
from wherry.builder.deps import Deps, Settings
from wherry.builder.graph import LocalSource, ResolveMode
from wherry.builder.job import Built, Job
from wherry.builder.log import LogEvent, VertexEvent
from wherry.builder.options import Export, Options
from wherry.builder.trees import Directory, Tree
from wherry.images.archives.load import load
from wherry.kernel import cgroup
from wherry.kernel.mount import detached
from wherry.network.networks import NetworkConfig, Networks
from wherry.runtime.oci import RuntimeSpec
from wherry.runtime.shim_client import Shims
from wherry.storage.overlay import OverlaySnapshotter

CGROUP_PARENT = "/wherry-build-tests"


@dataclass
class Files(NoClient):
    """A client with one directory, which is its context and has its Dockerfile; and with secrets."""

    path: Path
    secrets: dict[str, bytes] = field(default_factory=dict)

    async def local(self, source: LocalSource, transferred: Transferred) -> Directory:
        transferred(1)
        return Directory(path=self.path, identity="")

    async def secret(self, secret_id: str) -> bytes | None:
        return self.secrets.get(secret_id)


@dataclass
class Site:
    """A builder, and a project to build."""

    builder: Builder
    client: Files
    world: World
    shims: Shims

    def write(self, **files: str) -> None:
        """Files of the context; `__` in a name is a slash, `_` a dot."""
        for name, text in files.items():
            path = self.client.path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (1_700_000_000, 1_700_000_000))

    async def begin(self, **options: Any) -> Job:
        return await self.builder.begin(client=self.client, project="test", **options)

    async def build(self, dockerfile: str, *, exports: tuple[Export, ...] = (), **options: Any) -> "Finished":
        """Build, or raise what the build raises; its record says the same."""
        (self.client.path / "Dockerfile").write_text(dockerfile)
        os.utime(self.client.path / "Dockerfile", (1_600_000_000, 1_600_000_000))
        job = await self.begin()
        try:
            built = await job.frontend(Options(resolve=ResolveMode.LOCAL, **options))
            response = await job.export(built, exports)
        except BaseException as exc:
            await job.end(error=exc)
            raise
        await job.end(response=response)
        return Finished(self, job, built, response)

    def held(self) -> dict[str, list[str]]:
        """What must not grow: snapshots that are written to, shims, files of steps."""
        root = self.builder.deps.settings
        return {
            "snapshots": list(self.world.snapshots.keys()),
            "shims": self.shims.ids(),
            "steps": os.listdir(root.exec_root / "build") if (root.exec_root / "build").is_dir() else [],
            "scratch": os.listdir(root.root / "scratch") if (root.root / "scratch").is_dir() else [],
            "jobs": list(self.builder.jobs),
        }


@dataclass
class Finished:
    site: Site
    job: Job
    built: Built
    response: Mapping[str, str]

    @property
    def tree(self) -> Tree:
        result = self.built.platforms[0].result
        assert isinstance(result, Tree)
        return result

    @property
    def steps(self) -> dict[str, VertexEvent]:
        """The last event of each vertex, by name."""
        return {event.name: event for event in self.job.log.events if isinstance(event, VertexEvent)}

    @property
    def ran(self) -> list[str]:
        """Instructions that were not found in the cache."""
        return [name for name, event in self.steps.items() if event.slot and not event.cached and event.why]

    @property
    def output(self) -> bytes:
        return b"".join(event.data for event in self.job.log.events if isinstance(event, LogEvent))

    def why(self, part: str) -> str:
        return next(event.why for name, event in self.steps.items() if part in name)

    def read(self, path: str) -> bytes:
        with detached(self.site.world.snapshots.view(self.tree.chain)) as root:
            return Path(f"/proc/self/fd/{root}/{path}").read_bytes()

    def stat(self, path: str) -> os.stat_result:
        with detached(self.site.world.snapshots.view(self.tree.chain)) as root:
            return os.stat(path, dir_fd=root, follow_symlinks=False)

    def has(self, path: str) -> bool:
        with detached(self.site.world.snapshots.view(self.tree.chain)) as root:
            return os.path.lexists(f"/proc/self/fd/{root}/{path}")


@asynccontextmanager
async def open_site(root: Path, driver: Any = OverlaySnapshotter) -> AsyncIterator[Site]:
    """A builder on what is at `root`, which may be there already."""
    root.mkdir(exist_ok=True)
    (root / "project").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wherry-exec-") as exec_root:
        world = World(root, driver(root))
        shims = Shims(Path(exec_root))
        networks = Networks(NetworkConfig(bridge="none"), world.state, world.deps.events)
        background = Background()
        settings = Settings(
            root=root / "build",
            exec_root=Path(exec_root),
            runtime=RuntimeSpec(path="/usr/bin/crun"),
            cgroup_parent=CGROUP_PARENT,
        )
        deps = Deps(
            state=world.state,
            events=world.deps.events,
            images=world.deps,
            networks=networks,
            shims=shims,
            background=background,
            settings=settings,
        )
        builder = Builder(deps)
        await builder.recover()
        await shims.start()
        await networks.start({})  # without a bridge: neither links nor rules are made
        try:
            yield Site(builder, Files(root / "project"), world, shims)
        finally:
            await builder.close()
            await background.close()
            await shims.stop()
            await networks.stop(keep=True)
            world.snapshots.close()
            world.state.close()
            await asyncio.to_thread(cgroup.remove_empty, CGROUP_PARENT)


async def load_busybox(site: Site) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield docker_archive([busybox()])

    await load(site.world.deps, chunks(), progress=lambda message: None)
