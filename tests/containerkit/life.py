"""A world for the verbs of life: create, start, stop, remove, recover. Real state, records, volumes, images and events;
fakes at the shim, network and snapshot seams, where each effect is a named step that can be made to fail or to wait.

Whatever a verb acquires is in `LifeWorld.held()` until it is given back.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagekit.making import make
from imagekit.world import MemorySnapshots
from imagekit.world import World as ImageWorld
from wherry.aio import Background, KeyedLock
from wherry.containers.deps import Deps, Settings
from wherry.containers.life import create as creating
from wherry.containers.life import start as starting
from wherry.containers.live import Live, LiveTable
from wherry.containers.record import Container, State, Status
from wherry.containers.store import ContainerStore
from wherry.digest import ChainID
from wherry.errors import Conflict, NotFound, Unavailable
from wherry.events import Events
from wherry.ids import ContainerID, generate
from wherry.kernel.mount import Mount
from wherry.network.endpoint import Endpoint, EndpointRequest, Port
from wherry.network.networks import NetworkConfig, Running, Sandbox, SandboxRequest
from wherry.network.ports import PortRequest
from wherry.network.records import NetworkRecord
from wherry.runtime.devices import Device
from wherry.runtime.shim_client import Exit, Part, RuntimeSpec, Shim, ShimSpec
from wherry.spec.engine import ContainerConfig, CreateContainer, HostConfig, NetworkingConfig, RestartPolicy
from wherry.state import Change
from wherry.state import State as Database
from wherry.volumes.volumes import Volumes

NOW = 1_700_000_000 * 10**9
ENDPOINT = Endpoint(
    network="bridge",
    network_id="b" * 64,
    endpoint_id="e" * 64,
    mac="02:42:ac:11:00:02",
    ip="172.17.0.2",
    prefix=16,
    gateway="172.17.0.1",
)
PORT = Port(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080)


class Steps:
    """The effects as they come. Each has a name and, counted from the last `clear`, a number."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.fail_at: int | None = None  # number of the step that fails, once
        self.failing: dict[str, Exception] = {}  # steps that fail every time
        self.notice: Callable[[str], None] = lambda name: None  # called at each step, maybe from a thread
        self.gates: dict[str, asyncio.Event] = {}  # steps that wait
        self.reached: dict[str, asyncio.Event] = {}

    def clear(self, *, fail_at: int | None = None) -> None:
        self.taken.clear()
        self.fail_at = fail_at

    def take(self, name: str) -> None:
        number = len(self.taken)
        self.taken.append(name)
        self.notice(name)
        if number == self.fail_at:
            self.fail_at = None
            raise Unavailable(f"{name} cannot be done")
        if (error := self.failing.get(name)) is not None:
            raise error

    async def wait(self, name: str) -> None:
        """As `take`, with a point where the caller can be cancelled."""
        if (reached := self.reached.get(name)) is not None:
            reached.set()
        if (gate := self.gates.get(name)) is not None:
            await gate.wait()
        await asyncio.sleep(0)
        self.take(name)

    def hold(self, name: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Make a step wait; (set when it is reached, to be set to let it go on)."""
        self.reached[name], self.gates[name] = asyncio.Event(), asyncio.Event()
        return self.reached[name], self.gates[name]


class StepState(Database):
    def __init__(self, steps: Steps) -> None:
        super().__init__(None)
        self.steps = steps

    def write(self, *changes: Change) -> None:
        self.steps.take("write " + changes[0].table)
        super().write(*changes)


class StepSnapshots(MemorySnapshots):
    name = "overlay2"

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def prepare(self, key: str, parent: ChainID | None, *, container: bool = False) -> None:
        if container:
            self.steps.take("prepare")
        super().prepare(key, parent)

    def parent_of_key(self, key: str) -> ChainID | None:
        if key not in self.rw:
            raise NotFound(f"no such snapshot: {key}")
        return super().parent_of_key(key)

    def mounts(self, key: str) -> list[Mount]:
        return [Mount(type="overlay", source="overlay", options=("lowerdir=/l",))]

    def remove(self, key: str) -> None:
        if key in self.rw:
            self.steps.take("remove snapshot")
        super().remove(key)


class StepVolumes(Volumes):
    steps: Steps

    async def ensure(self, name: str, **options: Any) -> Path:
        await self.steps.wait("ensure volume")
        return await super().ensure(name, **options)

    async def fill(self, name: str, rootfs: Sequence[Mount], destination: str) -> None:
        await self.steps.wait("fill volume")

    async def discard(self, name: str) -> None:
        await self.steps.wait("discard volume")
        await super().discard(name)


class StepNetworks:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.config = NetworkConfig()
        self.bridge_gateway = "172.17.0.1"
        self.connected: set[str] = set()
        self.published: dict[str, tuple[Port, ...]] = {}  # where it has been changed
        self.fds: list[int] = []
        self.running: Mapping[ContainerID, Running] | None = None
        self.known = {
            name: NetworkRecord(id=identity * 64, name=name, driver=driver, created=NOW)
            for name, identity, driver in (("bridge", "b", "bridge"), ("host", "d", "host"), ("none", "f", "null"))
        }
        self.address = ENDPOINT.ip
        self.requests: list[SandboxRequest] = []
        self.joined: list[tuple[str, str]] = []  # container and network of those that came while it ran
        self.joins: list[tuple[EndpointRequest, str]] = []
        self.left: list[tuple[str, str, str]] = []
        self.renamed: list[tuple[str, str, str]] = []

    async def start(self, running: Mapping[ContainerID, Running]) -> None:
        self.running = running
        self.connected = set(running)

    def add(self, name: str, *, driver: str = "bridge", **options: Any) -> NetworkRecord:
        """A network that somebody has made."""
        record = NetworkRecord(id=generate(), name=name, driver=driver, created=NOW, **options)
        self.known[name] = record
        return record

    def resolve(self, name: str) -> NetworkRecord:
        name = "bridge" if name in ("", "default") else name
        for record in self.known.values():
            if name == record.name or record.id.startswith(name):
                return record
        raise NotFound(f"network {name} not found")

    async def connect(self, container_id: str, request: SandboxRequest) -> Sandbox:
        await self.steps.wait("connect")
        self.requests.append(request)
        records = [self.resolve(each.network) for each in request.endpoints] or [self.resolve(request.mode)]
        self.connected.add(container_id)
        endpoints = tuple(self._endpoint(record, number) for number, record in enumerate(records))
        if records[0].name == "host":
            return Sandbox(netns=None, endpoints=endpoints)
        self.fds.append(os.open("/dev/null", os.O_RDONLY))
        return Sandbox(netns=self.fds[-1], endpoints=endpoints, ports=(PORT,))

    def _endpoint(self, record: NetworkRecord, number: int) -> Endpoint:
        if record.name == "bridge":
            return replace(ENDPOINT, ip=self.address)
        bare = record.driver in ("host", "null")
        return replace(
            ENDPOINT,
            network=record.name,
            network_id=record.id,
            endpoint_id=generate(),
            driver=record.driver,
            ip="" if bare else f"10.{number}.0.2",
            ip6="" if bare or not record.ipv6 else f"fd0{number}::2",
        )

    async def join(
        self, container_id: str, wanted: EndpointRequest, netns_path: str
    ) -> tuple[Endpoint, tuple[Port, ...]]:
        await self.steps.wait("join")
        record = self.resolve(wanted.network)
        self.joined.append((container_id, record.name))
        self.joins.append((wanted, netns_path))
        return self._endpoint(record, len(self.joined) + 10), (PORT,)

    async def leave(self, container_id: str, network: str, netns_path: str) -> tuple[Port, ...]:
        await self.steps.wait("leave")
        with contextlib.suppress(ValueError):
            self.joined.remove((container_id, self.resolve(network).name))
        self.left.append((container_id, self.resolve(network).name, netns_path))
        return ()

    def held(self, container_id: str) -> None:
        """What its record says is all there is."""

    async def rename_container(self, container_id: str, old: str, new: str) -> None:
        self.renamed.append((container_id, old, new))

    async def change_ports(
        self, container_id: str, add: Sequence[PortRequest], remove: Sequence[Port]
    ) -> tuple[Port, ...]:
        await self.steps.wait("change ports")
        kept = [port for port in self.published.get(container_id, (PORT,)) if port not in remove]
        more = [
            Port(
                container_port=each.container_port,
                protocol=each.protocol,
                host_ip=each.host_ip or "0.0.0.0",
                host_port=each.first or 49153,
            )
            for each in add
        ]
        self.published[container_id] = (*kept, *more)
        return self.published[container_id]

    async def release(self, container_id: str) -> None:
        if container_id in self.connected:
            await self.steps.wait("release")
        self.connected.discard(container_id)


class LifeShim(Shim):
    """The shim of one run. Its process obeys signals unless it is `deaf` to all but SIGKILL, and not while frozen."""

    def __init__(self, owner: "StepShims", container_id: str, *, started: bool = False) -> None:  # not Shim's own
        self.owner, self.id = owner, container_id
        self.pid, self.pid_start = 4000 + len(owner.made), 77
        self.started, self.paused, self.deaf = started, False, False
        self.gone = False  # it has ended, and we have not heard of it yet
        self.signals: list[int] = []
        self.clients: list[str] = []
        self.limits: list[Mapping[str, Any]] = []  # what `update` was told
        self.inside: dict[str, Any] = {}  # what came to it while it ran, by path: parts, tmpfs options, devices
        self.cgroups: dict[str, str] = {}
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def live(self) -> bool:
        return not self.exited.done()

    @property
    def netns_path(self) -> str:
        return self.namespace_path("net")

    def namespace_path(self, kind: str) -> str:
        return f"/proc/{self.pid}/ns/{kind}"

    async def start(self) -> None:
        await self.owner.steps.wait("start")
        self.started = True
        if self.owner.at_once is not None:
            self.end(self.owner.at_once)

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> Any:
        await self.owner.steps.wait("attach")
        self.clients.append("created" if not self.started else "started")
        return self.clients, stdin

    async def kill(self, number: int) -> None:
        await self.owner.steps.wait("kill")
        if self.exited.done() or self.gone:
            raise NotFound("the container's init process has ended")
        self.signals.append(number)
        self._obey()

    def _obey(self) -> None:
        deadly = [number for number in self.signals if number == 9 or (number in (2, 3, 15) and not self.deaf)]
        if deadly and not self.paused:
            self.end(128 + deadly[-1])

    async def pause(self) -> None:
        await self.owner.steps.wait("pause")
        self.paused = True

    async def resume(self) -> None:
        await self.owner.steps.wait("resume")
        self.paused = False
        self._obey()

    async def update(self, resources: Mapping[str, Any]) -> None:
        await self.owner.steps.wait("update")
        self.limits.append(resources)

    async def attach_mount(self, path: str, part: Part) -> None:
        await self.owner.steps.wait("attach mount")
        self.inside[path] = part

    async def attach_tmpfs(self, path: str, options: Sequence[str]) -> None:
        await self.owner.steps.wait("attach mount")
        self.inside[path] = tuple(options)

    async def detach_mount(self, path: str) -> None:
        await self.owner.steps.wait("detach mount")
        self.inside.pop(path, None)

    async def make_node(self, device: Device) -> None:
        await self.owner.steps.wait("make node")
        self.inside[device.path] = device

    async def remove_node(self, device: Device) -> None:
        await self.owner.steps.wait("remove node")
        self.inside.pop(device.path, None)

    async def destroy(self) -> None:
        await self.owner.steps.wait("destroy")
        self.end(137)

    def end(self, code: int, *, at: int = 0, oom: bool = False, error: str = "") -> None:
        """The process ends, and we hear of it."""
        if not self.exited.done():
            self.exited.set_result(Exit(code=code, at=at or NOW + 10**9, oom_killed=oom, error=error))


class StepShims:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.made: list[LifeShim] = []
        self.specs: list[ShimSpec] = []
        self.directories: dict[str, LifeShim | Exit | None] = {}  # what is found by `adopt`
        self.at_once: int | None = None  # every process ends with this code as soon as it starts

    @property
    def last(self) -> LifeShim:
        return self.made[-1]

    def add(self, container_id: str, *, started: bool = False) -> LifeShim:
        shim = LifeShim(self, container_id, started=started)
        self.made.append(shim)
        self.directories[container_id] = shim
        return shim

    def ids(self) -> list[str]:
        return sorted(self.directories)

    def part(self, container_id: str, number: int) -> str:
        return f"/run/{container_id}/part{number}"

    async def create(self, spec: ShimSpec, *, netns: int | None) -> LifeShim:
        await self.steps.wait("create process")
        assert spec.id not in self.directories, "two runs at a time"
        if netns is not None:
            os.fstat(netns)
        self.specs.append(spec)
        return self.add(spec.id)

    async def adopt(self, container_id: str) -> LifeShim | Exit | None:
        return self.directories.get(container_id)

    async def forget(self, container_id: str) -> None:
        if container_id not in self.directories:
            return
        await self.steps.wait("forget")
        found = self.directories.get(container_id)
        if isinstance(found, LifeShim) and found.live:
            raise Conflict(f"container {container_id} has a running shim")
        self.directories.pop(container_id, None)


class LifeWorld:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = Steps()
        self.snapshots = StepSnapshots(self.steps)
        (root / "images").mkdir()
        self.images = ImageWorld(root / "images", self.snapshots)
        self.state = StepState(self.steps)
        self.networks = StepNetworks(self.steps)
        self.shims = StepShims(self.steps)
        self.open()

    def open(self) -> None:
        """As a daemon does at its start: what is on disk, in shims and in snapshots is all it knows."""
        self.events = Events()
        self.store = ContainerStore(self.state)
        self.volumes = StepVolumes(self.state, self.root / "volumes", self.events, users=self._users)
        self.volumes.steps = self.steps
        self.background = Background()
        self.live_table = LiveTable()
        self.deps = Deps(
            state=self.state,
            events=self.events,
            store=self.store,
            locks=KeyedLock(),
            live=self.live_table,
            images=self.images.deps,
            snapshots=self.snapshots,
            networks=self.networks,  # type: ignore[arg-type]
            volumes=self.volumes,
            shims=self.shims,  # type: ignore[arg-type]
            background=self.background,
            settings=Settings(
                data_root=self.root,
                exec_root=self.root / "run",
                runtimes={"crun": RuntimeSpec(path="/usr/bin/crun")},
                default_runtime="crun",
            ),
        )

    def _users(self) -> Mapping[str, Sequence[str]]:
        return {point.name: [each.id] for each in self.store for point in each.mounts if point.name}

    async def load(self) -> None:
        """The image `busybox`, and `data`, which has a VOLUME."""
        await self.images.put(make([{"bin/sh": b"#"}]), "busybox:latest")
        config = {"Cmd": ["sh"], "Volumes": {"/data": {}}}
        await self.images.put(make([{"bin/sh": b"#"}, {"data": None}], config=config), "data:latest")
        self.steps.clear()

    async def create(
        self, name: str | None = None, *, image: str = "busybox", host: HostConfig | None = None, **config: Any
    ) -> Container:
        body = CreateContainer(image=image, host_config=host or HostConfig(), **config)
        created = await creating.create(self.deps, body, name=name, platform=None)
        found = self.store.get(created.id)
        assert found is not None
        return found

    async def run(self, name: str | None = None, **options: Any) -> Container:
        container = await self.create(name, **options)
        await starting.start(self.deps, container.id)
        return container

    async def restart_daemon(self) -> None:
        """The daemon ends, its containers go on."""
        await self.background.close()
        self.open()

    def record(self, status: Status, name: str = "web", *, host: HostConfig | None = None, **state: Any) -> Container:
        """A record that an earlier daemon left on disk, in `status`; call `open` to see it."""
        started = {} if status is Status.CREATED else {"started_at": NOW}
        finished = {"finished_at": NOW + 5} if status in (Status.EXITED, Status.RESTARTING, Status.DEAD) else {}
        container = Container(
            id=ContainerID(generate()),
            name=name,
            created=NOW - 1,
            image="busybox",
            image_id=self.images.deps.store.get("busybox").id,
            path="sh",
            args=[],
            config=ContainerConfig(image="busybox", hostname="box"),
            host_config=host or HostConfig(runtime="crun", network_mode="default"),
            networking=NetworkingConfig(),
            state=State(status=status, **{**started, **finished, **state}),
            complete=True,
        )
        if container.running:
            container.state.pid, container.endpoints, container.ports = 4242, (ENDPOINT,), (PORT,)
        self.snapshots.rw[container.id] = self.images.deps.store.get("busybox").chain
        self.deps.settings.directory(container).mkdir(parents=True)
        return container

    def live(self, container: Container) -> Live:
        return self.deps.live_of(container)

    def stored(self, container: Container) -> Container | None:
        """The record as the next daemon would read it."""
        return ContainerStore(self.state).get(container.id)

    def held(self) -> set[str]:
        """Everything that somebody would have to give back."""
        open_fds = [fd for fd in self.networks.fds if _is_null(fd)]
        directories = self.root / "containers"
        return {
            *(f"network {key[:12]}" for key in self.networks.connected),
            *(f"netns {fd}" for fd in open_fds),
            *(f"shim {key[:12]}" for key in self.shims.directories),
            *(f"process {shim.id[:12]}" for shim in self.shims.made if shim.live),
            *(f"snapshot {key[:12]}" for key in self.snapshots.rw),
            *(f"directory {path.name[:12]}" for path in (directories.iterdir() if directories.is_dir() else ())),
            *(f"record {key[:12]}" for key in self.state.rows("containers")),
            *(f"name {key}" for key in self.state.rows("names")),
            *(f"volume {key[:12]}" for key in self.state.rows("volumes")),
            *(f"mounted {name}" for name in self.state.rows("volumes") if self.volumes.users_now(name)),
            *(f"container {each.id[:12]}" for each in self.store),
            *(f"live {key[:12]}" for key in self.live_table._by_id),
        }

    def actions(self, kind: str = "container") -> list[str]:
        return [event.action for event in self.events.past(0, 1 << 63) if event.type == kind]

    async def idle(self) -> None:
        """Until all that goes on in the background waits for something outside."""
        for _ in range(3):
            await asyncio.sleep(0)
        while self._busy():  # noqa: ASYNC110 - threads of `settle` have no event of their own
            await asyncio.sleep(0.001)

    def _busy(self) -> bool:
        """Somebody tidies up, restarts, or has an exit to record: who watches what still runs only waits."""
        running = {f"exit of {each.id[:12]}" for each in self.deps.store if each.running}
        names = {task.get_name() for task in asyncio.all_tasks() if not task.done()} - running
        return any(name.startswith(("tidying", "restart", "exit of")) for name in names)

    async def close(self) -> None:
        for gate in self.steps.gates.values():
            gate.set()
        await self.background.close()
        self.state.close()
        self.images.state.close()
        for fd in self.networks.fds:
            if _is_null(fd):
                os.close(fd)


def _is_null(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
    except OSError:
        return False


def restart(name: str, retries: int = 0) -> HostConfig:
    return HostConfig(
        runtime="crun",
        network_mode="default",
        restart_policy=RestartPolicy(name=name, maximum_retry_count=retries),
    )


REMOVES_ITSELF = HostConfig(runtime="crun", network_mode="default", auto_remove=True)


class _CancelledAt:
    """Run `work`, and cancel the task that awaits this when it waits for the `number`th time."""

    def __init__(self, work: Awaitable[Any], number: int) -> None:
        self.work, self.number = work, number
        self.waited = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.work.__await__()
        sent: Any = None
        error: BaseException | None = None
        while True:
            try:
                future = steps.send(sent) if error is None else steps.throw(error)  # type: ignore[attr-defined]
            except StopIteration as stop:
                return stop.value
            if self.waited == self.number:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # it is delivered where `work` waits now
            self.waited += 1
            try:
                sent, error = (yield future), None
            except BaseException as exc:
                sent, error = None, exc


async def cancelled_at(number: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Cancel `work` at its `number`th wait; False when it has ended before, so that there is no such wait."""
    steps = _CancelledAt(work, number)

    async def run() -> None:
        await steps

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.create_task(run())
    return steps.waited > number


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


def numbers(limit: int = 200) -> Iterator[int]:
    yield from range(limit)
