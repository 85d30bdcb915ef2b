"""A real exec root with real shims: containers of a busybox root file system over overlay, with crun and with runc."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from wherry import ids
from wherry.kernel import cgroup, process
from wherry.kernel.mount import overlay_mount
from wherry.runtime import devices
from wherry.runtime.shim_client import Exit, LogSpec, RuntimeSpec, Shim, Shims, ShimSpec
from wherry.runtime.spec import SpecInput, SpecMount, build
from wherry.spec.engine import ContainerConfig, HostConfig

CGROUP_PARENT = f"/wherry-test-{os.getpid()}"
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nextra:x:2000:app\nwheel:x:10:\n"


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """The daemon runs on uvloop, an embedding program perhaps on asyncio's own."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A busybox root file system, read by all containers."""
    with tempfile.TemporaryDirectory(prefix="wherry-runtime-") as name:
        root = Path(name) / "rootfs"
        for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "usr/bin"):
            (root / directory).mkdir(parents=True)
        busybox = shutil.which("busybox")
        if busybox is None:
            pytest.skip("busybox-static is not installed")
        shutil.copy(busybox, root / "bin/busybox")
        for applet in (
            "sh echo cat ls true false id env sleep stty head tail dd yes kill ps printf wc pwd mkdir grep test touch "
            "ln rm chmod seq tr mount"
        ).split():
            (root / "bin" / applet).symlink_to("busybox")
        (root / "tmp").chmod(0o1777)
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        yield root
    cgroup.remove_empty(CGROUP_PARENT)


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> RuntimeSpec:
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"{request.param} is not installed")
    return RuntimeSpec(path=path)


@pytest.fixture
def crun() -> RuntimeSpec:
    path = shutil.which("crun")
    if path is None:
        pytest.skip("crun is not installed")
    return RuntimeSpec(path=path)


@dataclass
class World:
    """One exec root, and what tests do with it."""

    shims: Shims
    root: Path
    base: Path
    made: list[str] = field(default_factory=list)

    def spec(
        self,
        args: Sequence[str],
        runtime: RuntimeSpec,
        *,
        host: Mapping[str, Any] | None = None,
        mounts: Sequence[SpecMount] = (),
        tty: bool = False,
        cwd: str = "",
        env: Sequence[str] = (),
        netns: str = "sandbox",
        ipcns: str = "",
        pidns: str = "",
        **shim: Any,
    ) -> ShimSpec:
        container_id = ids.generate()
        self.made.append(container_id)
        layer = self.root / "rw" / container_id
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
        host_config = HostConfig(**(host or {}))
        built = build(
            SpecInput(
                id=container_id,
                args=args,
                config=ContainerConfig(tty=tty, hostname="box", working_dir=cwd, env=list(env)),
                host_config=host_config,
                mounts=mounts,
                netns=netns,
                ipcns=ipcns,
                pidns=pidns,
                cgroups_path=f"{CGROUP_PARENT}/{container_id}",
                devices=devices.for_container(host_config),
            )
        )
        return ShimSpec(
            id=container_id,
            spec=built.spec,
            rootfs=[overlay_mount([str(self.base)], str(layer / "upper"), str(layer / "work"))],
            runtime=runtime,
            log=LogSpec(path=str(layer / "json.log")),
            tty=tty,
            **shim,
        )

    def log(self, container_id: str) -> Path:
        return self.root / "rw" / container_id / "json.log"

    def upper(self, container_id: str) -> Path:
        return self.root / "rw" / container_id / "upper"

    async def started(self, args: Sequence[str], runtime: RuntimeSpec, **options: Any) -> Shim:
        shim = await self.shims.create(self.spec(args, runtime, **options), netns=None)
        await shim.start()
        return shim

    async def run(self, args: Sequence[str], runtime: RuntimeSpec, **options: Any) -> tuple[dict[int, bytes], Exit]:
        """Run to the end: output by stream (all in 0 for a terminal), and the exit."""
        shim = await self.shims.create(self.spec(args, runtime, **options), netns=None)
        reader, writer = await shim.attach(stdin=False, stdout=True, stderr=True)
        await shim.start()
        raw = await reader.read()
        writer.close()
        end = await shim.exited
        await self.shims.forget(shim.id)
        return ({0: raw} if shim.tty else unframe(raw)), end

    async def end_all(self) -> None:
        for container_id in self.shims.ids():
            outcome = await self.shims.adopt(container_id)
            if isinstance(outcome, Shim):
                await outcome.destroy()
            await self.shims.forget(container_id)


def unframe(raw: bytes) -> dict[int, bytes]:
    """Output by stream, from Docker's framing."""
    streams: dict[int, bytes] = {}
    while raw:
        number, length = raw[0], int.from_bytes(raw[4:8])
        assert raw[1:4] == b"\0\0\0"
        assert len(raw) >= 8 + length, "cut frame"
        streams[number] = streams.get(number, b"") + raw[8 : 8 + length]
        raw = raw[8 + length :]
    return streams


@pytest.fixture
async def world(base: Path) -> AsyncIterator[World]:
    """Shims with a zygote. Afterwards nothing of any container may be left."""
    with tempfile.TemporaryDirectory(prefix="wherry-exec-") as name:
        shims = Shims(Path(name))
        await shims.start()
        it = World(shims=shims, root=Path(name), base=base)
        try:
            yield it
        finally:
            await it.end_all()
            await it.shims.stop()
        assert leftovers(it.made) == []


def leftovers(container_ids: Sequence[str]) -> list[str]:
    """Processes, cgroups and mounts that carry one of the ids."""
    found = []
    for container_id in container_ids:
        for where in cgroup.planned_groups(f"{CGROUP_PARENT}/{container_id}").values():
            if os.path.isdir(where):
                found.append(where)
        if container_id in Path("/proc/self/mountinfo").read_text():
            found.append(f"mount of {container_id}")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                groups = Path(f"/proc/{entry}/cgroup").read_text()
            except OSError:
                continue
            if any(container_id in groups for container_id in container_ids) and process.state(int(entry)) != "Z":
                found.append(f"process {entry}")
    return found


@pytest.fixture
def until() -> Callable[..., Any]:
    """`await until(condition)`: polls, with a deadline far beyond what it may take."""

    async def poll(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        async with asyncio.timeout(seconds):
            while not (value := condition()):  # noqa: ASYNC110  # it happens in another process
                await asyncio.sleep(0.01)
            return value

    return poll
