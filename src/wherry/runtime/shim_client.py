"""Shims as the daemon sees them: made through the zygote, spoken to over sockets, adopted after a restart.

    <exec root>/shims/<container id>/    one run of a container; what is in it: see `shim`

    create ── Shim (a process waits) ── start ── … ── Shim.exited ── forget (the directory goes)

All output streams arrive ready for the API's wire: framed, or raw for a terminal. A run's directory stays until
`forget`, so that an exit that no daemon has seen is found by `adopt`.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from wherry.aio import settle
from wherry.errors import Conflict, Failed, NotFound
from wherry.kernel import cgroup
from wherry.kernel.mount import Mount
from wherry.runtime import security
from wherry.runtime.cleanup import clean_up
from wherry.runtime.control import (
    Control,
    Document,
    Exit,
    ShimProcess,
    Streams,
    Unreachable,
    connect,
    open_stream,
    read_exit,
)
from wherry.runtime.devices import Device
from wherry.runtime.filters import Filters
from wherry.runtime.oci import RuntimeSpec
from wherry.runtime.shim.bundle import Bundle
from wherry.runtime.shim.requests import LogSpec, Part, Size
from wherry.runtime.zygote_client import Zygote

log = logging.getLogger(__name__)

__all__ = [
    "ExecHandle",
    "ExecSpec",
    "Exit",
    "LogSpec",
    "Part",
    "RuntimeSpec",
    "Shim",
    "ShimSpec",
    "Shims",
    "Streams",
    "Unreachable",
]

_GONE = 30.0  # s a shim may take to end after its container has, and a change to a running one


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimSpec:
    """All that one run of a container needs."""

    id: str
    spec: Mapping[str, Any]  # OCI runtime spec; the shim fills in root, user and the sandbox's network namespace
    rootfs: Sequence[Mount]  # mounted one over the other
    parts: Sequence[Part] = ()  # of other trees; the spec binds number n from `Shims.part(id, n)`
    runtime: RuntimeSpec
    log: LogSpec
    user: str = ""  # looked up in the rootfs
    group_add: Sequence[str] = ()
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    console_size: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSpec:
    id: str
    args: Sequence[str]
    env: Sequence[str]
    cwd: str = ""  # "" = the container's
    user: str = ""  # "" = the container's
    group_add: Sequence[str] = ()
    privileged: bool = False
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    console_size: Size | None = None
    detach: bool = False
    tied: bool = False  # killed, with all that comes of it, when its streams are closed or the daemon ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecHandle:
    """A started exec."""

    id: str
    pid: int
    streams: Streams | None  # None when it was started detached
    exited: asyncio.Future[int]


class Shim:
    """One running (or created) container."""

    def __init__(self, owner: "Shims", container_id: str, control: Control, hello: Document) -> None:
        self.id = container_id
        self.pid: int = hello["pid"]  # of init
        self.pid_start: int = hello["start"]  # clock ticks since boot
        self.started: bool = hello["started"]
        self.paused: bool = hello["paused"]  # as it was when we connected, and as we made it since
        self.tty: bool = hello["tty"]
        self.cgroups: Mapping[str, str] = hello["groups"]  # directory by controller; by "" on v2
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._control = control
        self.shim_pid: int = hello["shim"]
        control.end.add_done_callback(lambda _: owner.note_end(self))

    @property
    def live(self) -> bool:
        """Its init has not ended, as far as is known."""
        return not self.exited.done() and not self._control.end.done()

    @property
    def netns_path(self) -> str:
        """The network namespace, for another container to join."""
        return self.namespace_path("net")

    def namespace_path(self, kind: str) -> str:
        """A namespace of the container by its name in /proc: net, ipc, pid, uts, cgroup."""
        return f"/proc/{self.pid}/ns/{kind}"

    def end(self) -> Exit | None:
        """How the shim says it ended; None when it said nothing (yet)."""
        return self._control.end.result() if self._control.end.done() else None

    async def start(self) -> None:
        """Let the created process go."""
        await self._control.request("start")
        self.started = True

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> Streams:
        """A client of the container's stdio: bytes for it to read, and its raw input to write.

        `write_eof` is the end of the client's input, and of the container's if it was created with StdinOnce. The
        reader's EOF means that the container has ended, or that the client was cut off because it did not read.
        """
        sock = await self._owner.connect(self.id)
        streams, _ = await open_stream(sock, {"op": "attach", "stdin": stdin, "stdout": stdout, "stderr": stderr})
        return streams

    async def exec(self, spec: ExecSpec) -> ExecHandle:
        """Run a further process. Its streams are connected before it begins."""
        document: Document = {
            **asdict(spec),
            "op": "exec",
            "capabilities": security.available() if spec.privileged else None,
        }
        streams: Streams | None = None
        if spec.id in self._control.execs:
            raise Conflict(f"exec {spec.id} is running")
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._control.execs[spec.id] = exited
        try:
            if spec.detach:
                answer = await self._control.request(**document)
            else:
                streams, answer = await open_stream(await self._owner.connect(self.id), document)
        except BaseException:
            self._control.execs.pop(spec.id, None)
            raise
        return ExecHandle(id=spec.id, pid=answer["pid"], streams=streams, exited=exited)

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        await self._control.request("exec-resize", id=exec_id, height=height, width=width)

    async def exec_kill(self, exec_id: str, number: int) -> None:
        await self._control.request("exec-kill", id=exec_id, signal=int(number))

    async def kill(self, number: int) -> None:
        """Signal init alone. Raises NotFound when it has ended."""
        try:
            await self._control.request("kill", signal=int(number))
        except Unreachable as exc:
            raise NotFound("the container's init process has ended") from exc

    async def kill_all(self, number: int) -> None:
        """Signal every process of the container."""
        await self._control.request("kill-all", signal=int(number))

    async def pause(self) -> None:
        await self._control.request("pause")
        self.paused = True

    async def resume(self) -> None:
        """Idempotent."""
        await self._control.request("resume")
        self.paused = False

    async def resize(self, height: int, width: int) -> None:
        """Nothing happens without a terminal."""
        await self._control.request("resize", height=height, width=width)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Change limits: `linux.resources` of the OCI runtime spec."""
        await self._control.request("update", resources=resources)

    def processes(self) -> list[int]:
        """Host pids of all its processes. Blocking, briefly."""
        return cgroup.processes(self.cgroups) or [self.pid]

    async def attach_mount(self, path: str, part: Part) -> None:
        """Mount a part of another tree at `path` of the running container, which is made when it is missing.

        This and the three below raise Conflict, InvalidParameter, NotFound or Failed, and then have changed nothing.
        """
        await self._owner.change(self, "attach", path, part=part_document(part))

    async def attach_tmpfs(self, path: str, options: Sequence[str]) -> None:
        await self._owner.change(self, "attach", path, tmpfs=list(options))

    async def detach_mount(self, path: str) -> None:
        """Unmount what is at `path`; who has files of it open keeps them."""
        await self._owner.change(self, "detach", path)

    async def make_node(self, device: Device) -> None:
        """Make a device node. Its use is allowed by the caller, through `cgroups`."""
        await self._owner.change(self, "make-node", device.path, node=_node(device))

    async def remove_node(self, device: Device) -> None:
        """Remove the node of just this device; nothing happens when there is none."""
        await self._owner.change(self, "remove-node", device.path, node=_node(device))

    async def destroy(self) -> None:
        """Kill whatever there is and wait until shim and container are gone. Idempotent."""
        with contextlib.suppress(Unreachable):
            await self._control.request("destroy")
        await asyncio.wait((self._control.end,))
        await self._owner.await_gone(self.id)

    def disconnect(self) -> None:
        """Leave it to itself: a running container goes on."""
        self._control.close()


class Shims:
    """All shims of one exec root."""

    def __init__(self, exec_root: Path) -> None:
        self._root = exec_root / "shims"
        self._zygote = Zygote()
        self._filters = Filters(exec_root)
        self._shims: dict[str, Shim] = {}  # those whose end was not dealt with yet
        self._processes: dict[str, ShimProcess] = {}  # shim process by container, until it is gone
        self._tasks: set[asyncio.Task[None]] = set()

    def directory(self, container_id: str) -> Path:
        return self._root / container_id

    def part(self, container_id: str, number: int) -> str:
        """Where a container's shim puts a part of another tree."""
        return Bundle(directory=str(self.directory(container_id))).part(number)

    async def start(self) -> None:
        """Bring the zygote up."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._zygote.start()

    async def stop(self) -> None:
        """Leave: the zygote ends, containers go on and wait for the next daemon. No `exited` comes any more."""
        for shim in tuple(self._shims.values()):
            shim.disconnect()
        self._shims.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for each in tuple(self._processes.values()):
            each.close()
        self._processes.clear()
        await self._zygote.stop()

    def ids(self) -> list[str]:
        """Containers that have a run here: going on, ended and not forgotten, or broken off."""
        try:
            return sorted(path.name for path in self._root.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []

    async def create(self, spec: ShimSpec, *, netns: int | None) -> Shim:
        """A new shim with its container created: the process exists and waits for `Shim.start`.

        `netns` is a network namespace that the container joins; the caller keeps and closes the fd. Raises
        InvalidParameter when the program, its user or directory cannot be, Failed for anything else, in Docker's
        words. Then, as after a cancellation, nothing is left.
        """
        await self.forget(spec.id)
        oci_spec = await settle(self._filters.apply, spec.spec, spec.runtime)
        directory = self.directory(spec.id)
        directory.mkdir(mode=0o700, parents=True)
        request = {**_create_document(spec), "op": "create", **_spec_document(oci_spec)}
        control = Control()
        try:
            try:
                hello = await self._ask(directory, control, netns, request)
            except Unreachable:
                if control.process is not None:
                    raise
                await self._zygote.renew()  # it was killed before it could fork
                control = Control()
                hello = await self._ask(directory, control, netns, request)
        except BaseException as exc:
            words = _last_words(directory)
            await asyncio.shield(self._abandon(spec.id, control))
            if isinstance(exc, Unreachable):
                raise Failed(f"failed to create task for container: its shim ended: {words}") from exc
            raise
        return self._register(spec.id, control, hello)

    async def adopt(self, container_id: str) -> Shim | Exit | None:
        """What became of a run that an earlier daemon made.

        A Shim: it is there. An Exit: it ended by itself. None: nothing is left to be had; if the shim was killed, its
        container has been killed now.
        """
        if container_id in self._shims:
            return self._shims[container_id]
        directory = self.directory(container_id)
        if not directory.is_dir():
            return None
        control = Control()
        try:
            sock = await self.connect(container_id)
            await asyncio.get_running_loop().create_unix_connection(lambda: control, sock=sock)
            control.send({"op": "control"})
            return self._register(container_id, control, await control.hello)
        except (Unreachable, OSError):
            control.close()
        if (end := read_exit(directory)) is not None:
            return end
        await settle(clean_up, directory)
        return read_exit(directory)

    async def forget(self, container_id: str) -> None:
        """Remove what a run has left, after waiting for its shim to end. Idempotent; not for a run that goes on."""
        shim = self._shims.get(container_id)
        if shim is not None and shim.live:
            raise Conflict(f"container {container_id} has a running shim")
        await self.await_gone(container_id)
        directory = self.directory(container_id)
        if directory.exists():
            await settle(_remove, directory)

    async def await_gone(self, container_id: str) -> None:
        """Wait for the end of a shim process; one that does not end by itself is killed."""
        shim_process = self._processes.get(container_id)
        if shim_process is not None:
            await shim_process.wait(_GONE)
            self._processes.pop(container_id, None)

    async def connect(self, container_id: str) -> socket.socket:
        """A connection to a shim. Raises Unreachable when there is none."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            directory = os.open(self.directory(container_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await connect(sock, f"/proc/self/fd/{directory}/shim.sock")  # a socket's path ends at 108 bytes
            finally:
                os.close(directory)
        except OSError as exc:
            sock.close()
            raise Unreachable("the container's shim has ended") from exc
        except BaseException:
            sock.close()
            raise
        return sock

    async def change(self, shim: Shim, op: str, path: str, **details: object) -> None:
        """Have a running container changed; see `shim.changes`."""
        request = {"op": op, "path": path, "pid": shim.pid, "start": shim.pid_start, **details}
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                await self._zygote.change(str(self.directory(shim.id)), theirs.fileno())
            except BaseException:
                ours.close()
                raise
        try:
            async with asyncio.timeout(_GONE):
                (_, writer), _ = await open_stream(ours, request)
        except Unreachable as exc:
            raise Failed(f"cannot change container {shim.id[:12]}: what was to do it was killed") from exc
        except TimeoutError as exc:
            raise Failed(
                f"cannot change container {shim.id[:12]}: no answer in {_GONE:.0f} s: does {path}, or what is to be "
                "mounted there, lie on a file system that hangs?"
            ) from exc
        writer.close()

    def note_end(self, shim: Shim) -> None:
        """Called when a control connection has ended, or has said that the container did."""
        if self._shims.get(shim.id) is not shim:
            return  # we are leaving: the container goes on
        end = shim.end()
        if end is not None:
            del self._shims[shim.id]
            shim.exited.set_result(end)
            return
        task = asyncio.get_running_loop().create_task(self._mourn(shim), name=f"lost shim {shim.id[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _mourn(self, shim: Shim) -> None:
        """A shim broke off: killed, most likely. Its container must not go on unattended."""
        directory = self.directory(shim.id)
        await self.await_gone(shim.id)
        end = read_exit(directory)
        if end is None:
            log.error("the shim of container %s was killed: killing the container", shim.id[:12])
            await settle(clean_up, directory)
            end = Exit(code=137, at=time.time_ns(), oom_killed=False, error="the container's shim was killed")
        self._shims.pop(shim.id, None)
        if not shim.exited.done():
            shim.exited.set_result(end)

    async def _ask(
        self, directory: Path, control: Control, netns: int | None, request: Mapping[str, object]
    ) -> Document:
        """Have a shim forked and make it create the container. Raises what went wrong, Unreachable when it died."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                await asyncio.get_running_loop().create_unix_connection(lambda: control, sock=ours)
            except BaseException:
                ours.close()
                raise
            fds = [theirs.fileno(), *(() if netns is None else (netns,))]
            await self._zygote.fork(str(directory), fds, shared=bool(request["shared"]))
        control.send(request)
        return await control.hello

    async def _abandon(self, container_id: str, control: Control) -> None:
        """The undo of `create`: a shim whose daemon hangs up before the start takes everything down."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE):
                await control.known.wait()  # a shim may be on its way
        control.close()
        if control.process is not None:
            await control.process.wait(_GONE)
        directory = self.directory(container_id)
        await settle(clean_up, directory)
        await settle(_remove, directory)

    def _register(self, container_id: str, control: Control, hello: Document) -> Shim:
        shim = Shim(self, container_id, control, hello)
        self._shims[container_id] = shim
        if control.process is not None:
            self._processes[container_id] = control.process
        return shim


def _last_words(directory: Path) -> str:
    try:
        lines = (directory / "shim.log").read_text(errors="replace").splitlines()
    except OSError:
        return "it left no word"
    return lines[-1] if lines else "it left no word"


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():  # one error at a time is worth a second look: something may have been being written
        shutil.rmtree(directory)


def _create_document(spec: ShimSpec) -> Document:
    return {
        "id": spec.id,
        "rootfs": _mount_documents(spec.rootfs),
        "parts": [part_document(part) for part in spec.parts],
        "runtime": {"path": spec.runtime.path, "args": spec.runtime.args},
        "log": {**asdict(spec.log), "attrs": dict(spec.log.attrs)},
        "user": spec.user,
        "group_add": list(spec.group_add),
        "tty": spec.tty,
        "open_stdin": spec.open_stdin,
        "stdin_once": spec.stdin_once,
        "console_size": spec.console_size,
    }


def _node(device: Device) -> Document:
    kind = stat.S_IFCHR if device.kind == "c" else stat.S_IFBLK
    return {
        "mode": kind | device.mode,
        "major": device.major,
        "minor": device.minor,
        "uid": device.uid,
        "gid": device.gid,
    }


def part_document(part: Part) -> Document:
    return {**asdict(part), "mounts": _mount_documents(part.mounts)}


def _mount_documents(mounts: Sequence[Mount]) -> list[Document]:
    return [{"type": each.type, "source": each.source, "options": each.options} for each in mounts]


def _spec_document(spec: Mapping[str, Any]) -> Document:
    """The spec taken apart as `bundle.Spec` has it."""
    linux = spec["linux"]
    joined = next((each.get("path") for each in linux["namespaces"] if each["type"] == "ipc"), None)
    pid = re.fullmatch(r"/proc/(\d+)/ns/ipc", joined or "")
    return {
        "shared": linux.get("rootfsPropagation") == "shared",
        "shm_of": int(pid[1]) if pid else 0,
        "spec": {
            "process": spec["process"],
            "root": spec["root"],
            "namespaces": linux["namespaces"],
            "destinations": [each["destination"] for each in spec["mounts"]],
            "cgroups_path": linux.get("cgroupsPath", ""),
            "members": _members(spec, without=("process", "root", "linux")),
            "linux_members": _members(linux, without=("namespaces",)),
        },
    }


def _members(document: Mapping[str, Any], *, without: tuple[str, ...]) -> str:
    """A JSON object's text without its braces."""
    return msgspec.json.encode({key: value for key, value in document.items() if key not in without})[1:-1].decode()
