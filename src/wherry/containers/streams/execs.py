"""exec: further processes in a running container. Made, started once, inspected; forgotten a while after their end.

What is known of an exec lives in `Live.execs` only. Its shim connection is made before the process exists, so no byte
of output is missed. An exec goes on when its client leaves.
"""

import asyncio
import base64
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass

from wherry.aio import finish, settle
from wherry.containers.deps import Deps
from wherry.containers.live import Exec, Streams
from wherry.containers.making import links
from wherry.containers.record import Container, Status
from wherry.containers.streams import detach
from wherry.containers.streams.relay import CHUNK, HEADER, STDOUT, Stream, frame, relay, unframe
from wherry.containers.views.shapes import Document
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, WherryError
from wherry.ids import ExecID, generate
from wherry.kernel import cgroup
from wherry.runtime.shim_client import ExecSpec, Shim
from wherry.spec.engine import ExecConfig, ExecStart, words

KEPT = 300.0  # s that a finished exec can still be inspected; Docker's own clean-up interval
READY = 10.0  # s that a resize waits for the exec to be started, as in Docker
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def create(deps: Deps, name: str, config: ExecConfig) -> ExecID:
    """Register a command to be run in a running container. Raises NotFound, Conflict, InvalidParameter."""
    found = _register(deps, deps.store.resolve(name), name, config)
    deps.background.spawn(settle(cgroup.expect_moves), name="expecting an exec")
    return found.id


def _register(deps: Deps, container: Container, name: str, config: ExecConfig) -> Exec:
    check_running(container, name)
    if not words(config.cmd):
        raise InvalidParameter("No exec command specified")
    _parse_keys(config.detach_keys)
    found = Exec(id=ExecID(generate()), container=container.id, config=config)
    live = deps.live_of(container)
    _drop_old(live.execs)
    live.execs[found.id] = found
    deps.publish(container, f"exec_create: {_command(found)}", execID=found.id)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSession:
    """A claimed exec with a client; `run` it once."""

    deps: Deps
    exec: Exec
    options: ExecStart

    @property
    def tty(self) -> bool:
        return self.exec.config.tty

    async def run(self, stream: Stream) -> None:
        """Start the process and talk until it ends or the client leaves.

        A failure to start is told in the stream, in Docker's words: the answer to the client has been sent already.
        """
        config = self.exec.config
        try:
            streams = await finish(_start(self.deps, self.exec, self.options, detached=False))
        except WherryError as exc:
            text = f"{exc.message}\r\n".encode()
            with suppress(OSError):  # the client is gone
                await stream.write(text if self.tty else frame(STDOUT, text))
            return
        except asyncio.CancelledError:  # the client left while the process was started, which was finished
            if self.exec.handle is not None and self.exec.handle.streams is not None:
                self.exec.handle.streams[1].close()
            raise
        if streams is None:
            return
        keys = _parse_keys(config.detach_keys or detach.DEFAULT) if self.tty else b""
        detached = await relay(
            stream, streams, stdin=config.attach_stdin, output=config.attach_stdout or config.attach_stderr, keys=keys
        )
        if detached:
            container = self.deps.store.get(self.exec.container)
            if container is not None:
                self.deps.publish(container, "exec_detach", execID=self.exec.id)
        elif self.exec.handle is not None:
            # The client asks for the exit code as soon as the stream ends: it must be known by then.
            await asyncio.wait((self.exec.handle.exited,))


async def open_exec(deps: Deps, exec_id: str, options: ExecStart) -> ExecSession:
    """Claim an exec to be started with a client. Raises NotFound, Conflict (started already, container not running)."""
    found = _claim(deps, exec_id)
    return ExecSession(deps=deps, exec=found, options=options)


async def start_detached(deps: Deps, exec_id: str, options: ExecStart) -> None:
    """Start an exec nobody is attached to. Raises as `open_exec`, and whatever made the start fail."""
    await finish(_start(deps, _claim(deps, exec_id), options, detached=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """How an exec of the engine's own ended."""

    code: int
    output: bytes  # of both streams, as it came; cut at the limit
    cut: bool
    timed_out: bool  # it was killed, with all that had come of it


async def capture(deps: Deps, container: Container, config: ExecConfig, *, limit: int, timeout: float) -> Captured:
    """Run a command in a container to its end, `timeout` seconds after it has started at the latest.

    Nothing of it goes on afterwards, also when the caller is cancelled or the daemon ends. Raises what `open_exec` and
    a failing start raise.
    """
    found = _claim(deps, _register(deps, container, container.name, config).id)
    try:
        streams = await finish(_start(deps, found, ExecStart(), detached=False, tied=True))
        assert streams is not None
        assert found.handle is not None
        return await _capture(streams, found.handle.exited, limit, timeout)
    finally:
        if found.handle is not None and found.handle.streams is not None:
            found.handle.streams[1].close()  # what still runs is killed
        deps.live_of(container).execs.pop(found.id, None)


async def _capture(streams: Streams, exited: Awaitable[int], limit: int, timeout: float) -> Captured:
    reader, writer = streams
    output = bytearray()
    timed_out = False
    try:
        async with asyncio.timeout(timeout):
            while True:
                _, length = unframe(await reader.readexactly(HEADER))
                for start in range(0, length, CHUNK):
                    data = await reader.readexactly(min(CHUNK, length - start))
                    output += data[: limit + 1 - len(output)]
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # it has ended
    except TimeoutError:
        timed_out = True
        writer.close()  # what still runs is killed
    code = await asyncio.shield(exited)
    return Captured(code=code, output=bytes(output[:limit]), cut=len(output) > limit, timed_out=timed_out)


async def inspect(deps: Deps, exec_id: str) -> Document:
    """Docker's ExecInspectResponse. Raises NotFound."""
    found = _find(deps, exec_id)
    config = found.config
    entrypoint, *arguments = words(config.cmd)
    process: Document = {
        "tty": config.tty,
        "entrypoint": entrypoint,
        "arguments": arguments,
        "privileged": config.privileged,
    }
    if config.user:
        process["user"] = config.user
    return {
        "ID": found.id,
        "Running": found.running,
        "ExitCode": found.exit_code,
        "ProcessConfig": process,
        "OpenStdin": config.attach_stdin,
        "OpenStderr": config.attach_stderr,
        "OpenStdout": config.attach_stdout,
        "CanRemove": False,
        "ContainerID": found.container,
        "DetachKeys": base64.b64encode(_parse_keys(config.detach_keys)).decode(),  # bytes, as Go encodes them
        "Pid": found.pid,
    }


async def resize(deps: Deps, exec_id: str, *, height: int, width: int, patience: float = READY) -> None:
    """Set the size of an exec's terminal; waits a little for an exec that is being started. Raises NotFound, Failed."""
    found = _find(deps, exec_id)
    try:
        async with asyncio.timeout(patience):
            await found.ready.wait()
    except TimeoutError:
        raise Failed("timeout waiting for exec session ready") from None
    container = deps.store.get(found.container)
    shim = deps.live_of(container).shim if container is not None else None
    if found.handle is None or not found.running or shim is None:
        raise NotFound("no such exec")
    await shim.exec_resize(found.id, height, width)


def check_running(container: Container, name: str) -> None:
    """Raise Conflict unless processes can be started in the container now."""
    match container.state.status:
        case Status.RUNNING:
            return
        case Status.PAUSED:
            raise Conflict(f"container {name} is paused, unpause the container before exec")
        case Status.RESTARTING:
            raise Conflict(f"container {name} is restarting, wait until the container is running")
    raise Conflict(f"container {container.id} is not running")


def _find(deps: Deps, exec_id: str) -> Exec:
    found = deps.live.find_exec(exec_id)
    if found is None:
        raise NotFound(f"No such exec instance: {exec_id}")
    return found


def _claim(deps: Deps, exec_id: str) -> Exec:
    """The exec, marked as started: it can be started once."""
    found = _find(deps, exec_id)
    container = deps.store.get(found.container)
    if container is None:
        raise NotFound(f"No such exec instance: {exec_id}")
    check_running(container, container.name)
    if found.started:
        raise Conflict(f"exec command {exec_id} {'is already running' if found.running else 'has already run'}")
    found.started = True
    return found


async def _start(deps: Deps, found: Exec, options: ExecStart, *, detached: bool, tied: bool = False) -> Streams | None:
    """Start a claimed exec and see to its end in the background; the streams, unless nobody is attached."""
    container = deps.store.get(found.container)
    shim = deps.live_of(container).shim if container is not None else None
    try:
        if container is None or shim is None:
            raise Conflict(f"container {found.container} is not running")
        deps.publish(container, f"exec_start: {_command(found)}", execID=found.id)
        found.running = True
        handle = await shim.exec(_spec(deps, container, found, options, detached=detached, tied=tied))
    except BaseException as exc:
        found.running = False
        found.exit_code = exit_code_of(str(exc))
        found.finished = time.monotonic()
        found.ready.set()
        raise
    found.handle, found.pid = handle, handle.pid
    found.ready.set()
    deps.background.spawn(_watch(deps, container, found, shim), name=f"end of exec {found.id[:12]}")
    return handle.streams


async def _watch(deps: Deps, container: Container, found: Exec, shim: Shim) -> None:
    """Note the end of an exec. One task per running exec."""
    assert found.handle is not None
    code = await asyncio.shield(found.handle.exited)
    found.exit_code, found.running, found.finished = code, False, time.monotonic()
    deps.publish(container, "exec_die", execID=found.id, exitCode=str(code))


def exit_code_of(message: str) -> int:
    """The exit code Docker gives an exec that failed to start."""
    return 127 if "executable file not found" in message or "no such file or directory" in message else 126


def _spec(deps: Deps, container: Container, found: Exec, options: ExecStart, *, detached: bool, tied: bool) -> ExecSpec:
    config = found.config
    size = options.console_size or config.console_size
    return ExecSpec(
        id=found.id,
        args=words(config.cmd),
        env=environment(deps, container, config),
        cwd=config.working_dir,
        user=config.user,
        group_add=container.host_config.group_add or [],
        privileged=config.privileged,
        tty=config.tty,
        stdin=config.attach_stdin and not detached,
        stdout=config.attach_stdout,
        stderr=config.attach_stderr,
        console_size=(size[0], size[1]) if config.tty and size and len(size) == 2 else None,
        detach=detached,
        tied=tied,
    )


def environment(deps: Deps, container: Container, config: ExecConfig) -> list[str]:
    """The container's variables with the exec's over them; as in Docker an entry without `=` takes the name away."""
    merged: dict[str, str | None] = {
        "PATH": f"PATH={DEFAULT_PATH}",
        "HOSTNAME": f"HOSTNAME={container.config.hostname}",
    }
    if config.tty:
        merged["TERM"] = "TERM=xterm"
    _overlay(merged, links.environment(deps, container))
    _overlay(merged, container.config.env)
    _overlay(merged, config.env)
    return [entry for entry in merged.values() if entry is not None]


def _overlay(merged: dict[str, str | None], entries: list[str] | None) -> None:
    for entry in entries or []:
        name, equals, _ = entry.partition("=")
        merged[name] = entry if equals else None


def end_run(execs: dict[ExecID, Exec]) -> None:
    """The container has ended: what was not started is forgotten.

    The rest stays, even if the container starts again at once: a client asks for the exit code of its exec after the
    end of the stream, and both may be the work of the container's end.
    """
    for each in tuple(execs.values()):
        if not each.started:
            del execs[each.id]
        elif not each.finished:
            each.finished = time.monotonic()  # or a moment later, when its exit code arrives


def _drop_old(execs: dict[ExecID, Exec]) -> None:
    """A container that is exec'd into every second for a year must not fill the memory."""
    now = time.monotonic()
    for exec_id in [each.id for each in execs.values() if each.finished and now - each.finished > KEPT]:
        del execs[exec_id]


def _command(found: Exec) -> str:
    return " ".join(words(found.config.cmd))


def _parse_keys(text: str) -> bytes:
    try:
        return detach.parse(text) if text else b""
    except ValueError as exc:
        raise InvalidParameter(f"invalid detach keys ({text}) provided") from exc
