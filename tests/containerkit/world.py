"""A world for the verbs that look at containers and talk to them: real store, state, events and files, fakes at the
shim, image, snapshot and network seams."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wherry.aio import Background, KeyedLock
from wherry.containers.deps import Deps, Settings
from wherry.containers.live import Live, LiveTable
from wherry.containers.record import Container, MountPoint, State, Status
from wherry.containers.store import ContainerStore
from wherry.errors import InvalidParameter, NotFound
from wherry.events import Events
from wherry.ids import ContainerID, generate
from wherry.kernel.mount import Mount
from wherry.network.endpoint import Endpoint, Port
from wherry.spec.engine import ContainerConfig, HostConfig
from wherry.spec.image import Descriptor, ImageConfig
from wherry.state import State as Database
from wherry.volumes.volumes import Volumes

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
NOW = 1_700_000_000 * 10**9 + 123_456_789


async def connected() -> tuple[Streams, Streams]:
    """Both ends of a connection."""
    one, other = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks work until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


def open_files(kind: str) -> list[str]:
    """What this process has open of which the name begins like this: `pipe:`, a path."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if name.startswith(kind))


class FakeShim:
    """A shim whose container does what the test says."""

    def __init__(self) -> None:
        self.live = True
        self.pid = 4242
        self.clients: list[Streams] = []  # the shim's ends of the connections
        self.flags: list[dict[str, bool]] = []
        self.sizes: list[tuple[int, int]] = []
        self.exec_sizes: list[tuple[str, int, int]] = []
        self.execs: list[Any] = []  # ExecSpec
        self.exec_error: Exception | None = None
        self.exec_exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pids: list[int] = []
        self.calls: list[str] = []

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> Streams:
        ours, theirs = await connected()
        self.clients.append(ours)
        self.flags.append({"stdin": stdin, "stdout": stdout, "stderr": stderr})
        return theirs

    async def resize(self, height: int, width: int) -> None:
        self.sizes.append((height, width))

    async def exec(self, spec: Any) -> Any:
        self.execs.append(spec)
        if self.exec_error is not None:
            raise self.exec_error
        streams = None
        if not spec.detach:
            ours, streams = await connected()
            self.clients.append(ours)
        return SimpleNamespace(pid=777, streams=streams, exited=self.exec_exit)

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        self.exec_sizes.append((exec_id, height, width))

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    def processes(self) -> list[int]:
        return self.pids


class FakeClient:
    """The API's end of a session, with a client the test plays."""

    def __init__(self) -> None:
        self.typed: asyncio.Queue[bytes] = asyncio.Queue()
        self.got = b""
        self.changed = asyncio.Event()
        self.gone = False

    async def read(self) -> bytes:
        return await self.typed.get()

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError("the client is gone")
        self.got += data
        self.changed.set()

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def expect(self, data: bytes) -> None:
        """Wait until exactly `data` has arrived."""
        async with asyncio.timeout(10):
            while len(self.got) < len(data):
                self.changed.clear()
                await self.changed.wait()
        assert self.got == data


@dataclass(frozen=True)
class FakeImage:
    id: str
    size: int = 1000
    diff_ids: tuple[str, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    platforms: tuple["FakeImage", ...] = ()  # further ones of its name
    config: ImageConfig = field(default_factory=lambda: ImageConfig(architecture="amd64", os="linux"))

    @property
    def manifest(self) -> Descriptor:
        return self.manifests[0]


class FakeImages:
    def __init__(self) -> None:
        self.by_name: dict[str, FakeImage] = {}
        self.asked: list[str] = []

    def find(self, image_id: str) -> FakeImage | None:
        known = (each for image in self.by_name.values() for each in (image, *image.platforms))
        return next((image for image in known if image.id == image_id), None)

    def platforms(self, name: str) -> list[FakeImage]:
        image = self.get(name)
        return [image, *image.platforms]

    def get(self, name: str, *, platform: str | None = None) -> FakeImage:
        self.asked.append(name)
        for known, image in self.by_name.items():
            if name in (known, image.id):
                return image
        if not name:
            raise InvalidParameter("invalid reference format")
        raise NotFound(f"No such image: {name}")


class FakeSnapshots:
    name = "overlay2"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes: dict[str, int] = {}

    def mounts(self, key: str) -> list[Mount]:
        options = ("lowerdir=/l2:/l1", f"upperdir={self.root}/rw/{key}/diff", f"workdir={self.root}/rw/{key}/work")
        return [Mount(type="overlay", source="overlay", options=options)]

    def usage(self, key: str) -> Any:
        return SimpleNamespace(bytes=self.bytes.get(key, 0), inodes=1)

    def peek(self, key: str) -> list[Mount]:
        return self.mounts(key)

    def upper(self, key: str) -> Path:
        return self.root / "rw" / key / "diff"

    def parent_of_key(self, key: str) -> str:
        raise NotFound(f"no such snapshot: {key}")

    def remove(self, key: str) -> None:
        pass


@dataclass
class World:
    root: Path
    state: Database = field(init=False)
    images: FakeImages = field(default_factory=FakeImages)
    real_images: Any = None  # images.deps.Deps, where the test wants them
    real_snapshots: Any = None
    shim: FakeShim = field(default_factory=FakeShim)

    def __post_init__(self) -> None:
        self.state = Database(self.root / "state.db")
        self.events = Events()
        self.store = ContainerStore(self.state)
        self.snapshots = self.real_snapshots or FakeSnapshots(self.root)
        self.background = Background()
        self.images.by_name["busybox"] = FakeImage("sha256:" + "1" * 64)
        self.deps = Deps(
            state=self.state,
            events=self.events,
            store=self.store,
            locks=KeyedLock(),
            live=LiveTable(),
            images=self.real_images or SimpleNamespace(store=self.images),
            snapshots=self.snapshots,
            networks=SimpleNamespace(release=_nothing),  # type: ignore[arg-type]
            volumes=Volumes(self.state, self.root / "volumes", self.events),
            shims=SimpleNamespace(forget=_nothing),  # type: ignore[arg-type]
            background=self.background,
            settings=Settings(data_root=self.root, exec_root=self.root / "run", runtimes={}, default_runtime="crun"),
        )

    async def add(
        self,
        name: str,
        *,
        status: Status = Status.RUNNING,
        config: ContainerConfig | None = None,
        host: HostConfig | None = None,
        mounts: Sequence[MountPoint] = (),
        endpoints: Sequence[Endpoint] = (),
        ports: Sequence[Port] = (),
        args: Sequence[str] = ("sleep", "100"),
        image: str = "busybox",
        created: int = NOW,
        **state: Any,
    ) -> Container:
        """A container as its record would be after the verbs of life have brought it to `status`."""
        started = 0 if status is Status.CREATED else NOW
        found = State(status=status, **{"started_at": started, **state})
        if status in (Status.RUNNING, Status.PAUSED):
            found.pid = self.shim.pid
        known = self.real_images.store.get(image) if self.real_images else self.images.by_name.get(image)
        container = Container(
            id=ContainerID(generate()),
            name=name,
            created=created,
            image=image,
            image_id=known.id if known else "sha256:" + "f" * 64,
            path=args[0],
            args=list(args[1:]),
            config=config or ContainerConfig(image=image, hostname="box"),
            host_config=host or HostConfig(network_mode="bridge"),
            mounts=tuple(mounts),
            endpoints=tuple(endpoints),
            ports=tuple(ports),
            state=found,
            complete=True,
        )
        await self.store.add(container)
        live = self.live(container)
        if container.running:
            live.shim = self.shim  # type: ignore[assignment]
            live.ended.clear()
        return container

    def live(self, container: Container) -> Live:
        return self.deps.live_of(container)

    def actions(self) -> list[str]:
        return [event.action for event in self.events.past(0, 1 << 63)]

    def last_attributes(self) -> Mapping[str, str]:
        return self.events.past(0, 1 << 63)[-1].attributes

    async def close(self) -> None:
        await self.background.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in self.shim.clients:
            writer.close()
            await writer.wait_closed()


async def _nothing(*arguments: object) -> None:
    pass
