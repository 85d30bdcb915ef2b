"""start: network, files, process. All or nothing, undone in reverse when a step fails."""

import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from wherry.aio import finish, settle
from wherry.containers.attached import asked, joined, linking
from wherry.containers.deps import Deps
from wherry.containers.life import exits, health
from wherry.containers.life.networking import publish
from wherry.containers.life.stop import cancel_restart
from wherry.containers.live import Live
from wherry.containers.making import links
from wherry.containers.making.endpoints import note_started
from wherry.containers.making.files import move_host, write_network_files
from wherry.containers.making.sandbox import request
from wherry.containers.making.sources import prepare_binds
from wherry.containers.making.spec import shim_spec
from wherry.containers.making.volumes import mount_volumes, unmount_volumes
from wherry.containers.record import Container, State, Status
from wherry.errors import Conflict, Failed, NotModified, WherryError
from wherry.network.networks import Sandbox
from wherry.runtime.shim_client import Shim

log = logging.getLogger(__name__)


async def start(deps: Deps, name: str) -> None:
    """Start a created or exited container; raises NotModified when it runs, Conflict when it cannot be started.

    Once begun it goes to its end, even when the client that asked has gone.
    """
    container = deps.store.resolve(name)
    await finish(_start(deps, container, name))


async def _start(deps: Deps, container: Container, name: str) -> None:
    if container.state.status is Status.RESTARTING:
        await cancel_restart(deps, container)
    async with deps.locks(container.id):
        match container.state.status:
            case Status.RUNNING:
                raise NotModified(f"container {name} is already running")
            case Status.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
        await start_afresh(deps, container)


async def start_afresh(deps: Deps, container: Container) -> None:
    """As `start_locked`, for a user: its restart policy begins to count anew. Conflict when it is being removed."""
    if container.state.status in (Status.REMOVING, Status.DEAD):
        raise Conflict("container is marked for removal and cannot be started")
    deps.live_of(container).backoff = 0.0
    container.state.restart_count = 0
    await start_locked(deps, container)


async def start_locked(deps: Deps, container: Container) -> None:
    """Start a container that does not run; its lock is held by the caller. Raises WherryErrors only."""
    live = deps.live_of(container)
    try:
        async with AsyncExitStack() as undo:
            shim = await _create_process(deps, container, live, undo)
            at = time.time_ns()
            await shim.start()
            _mark_running(container, live, shim, at)
            await deps.store.save(container)
            undo.pop_all()  # started: nothing to undo
    except WherryError as exc:
        await _note_failure(deps, container, live, exc)
        raise
    except OSError as exc:
        failure = Failed(f"cannot start container {container.name}: {exc.strerror or exc}")
        await _note_failure(deps, container, live, failure)
        raise failure from exc
    try:
        await _attach_waiting(live, shim)  # those that came while it was being let go
    except (WherryError, OSError):
        live.give_up_pending()  # it has ended already
    for point in container.mounts:
        if point.type == "volume":
            deps.volumes.mounted(point.name, container.id, destination=point.destination, rw=point.rw)
    if users := linking(deps.store).get(container.id):
        await settle(_tell_linked, deps, container, users)
    deps.publish(container, "start")
    health.watch(deps, container)
    deps.background.spawn(exits.watch(deps, container, shim, start=start_locked), name=f"exit of {container.id[:12]}")


def _tell_linked(deps: Deps, container: Container, users: Sequence[tuple[Container, str]]) -> None:
    """Its address may be another one now: change the hosts of those that are linked to it. Blocking."""
    for other, alias in users:
        address = links.address(container)
        if not other.running or not address:
            continue
        try:
            move_host(deps.settings.directory(other), alias, address)
        except OSError as exc:
            log.warning("/etc/hosts of container %s cannot be changed: %s", other.name, exc.strerror)


async def _create_process(deps: Deps, container: Container, live: Live, undo: AsyncExitStack) -> Shim:
    """Everything up to the process that waits to be let go.

    The row then tells what the process has, not that it runs: should the daemon die now, the shim takes the process
    along and nothing has run; should it die after letting go, recovery finds the shim or its exit.
    """
    await deps.shims.forget(container.id)  # the shim of the last run may still be tidying up
    await settle(prepare_binds, container.mounts)

    undo.push_async_callback(unmount_volumes, deps, container)
    await mount_volumes(deps, container)

    undo.push_async_callback(deps.networks.release, container.id)
    async with _connected(deps, container) as sandbox:
        if joined(container) is None:
            await settle(
                write_network_files,
                deps.settings.directory(container),
                container,
                networks=deps.networks,
                attached=sandbox.endpoints,
                links=links.hosts(deps, container),
            )
        undo.push_async_callback(deps.shims.forget, container.id)
        shim = await deps.shims.create(shim_spec(deps, container), netns=sandbox.netns)

    undo.push_async_callback(shim.destroy)
    await _attach_waiting(live, shim)

    undo.push_async_callback(_take_back, deps, container, live, replace(container.state))
    container.endpoints, container.ports = sandbox.endpoints, sandbox.ports
    note_started(container, sandbox.endpoints)
    await deps.store.save(container)
    for endpoint in sandbox.endpoints:
        publish(deps, container, endpoint, "connect")
    return shim


async def _attach_waiting(live: Live, shim: Shim) -> None:
    """Connect the sessions that were opened before there was a process."""
    while live.pending:
        session = live.pending[0]
        if not session.streams.done():
            streams = await shim.attach(stdin=session.stdin, stdout=session.stdout, stderr=session.stderr)
            session.streams.set_result(streams)
        live.pending.remove(session)


def _mark_running(container: Container, live: Live, shim: Shim, at: int) -> None:
    state = container.state
    state.move(Status.RUNNING)
    state.pid, state.pid_start = shim.pid, shim.pid_start
    state.started_at = at
    state.error, state.oom_killed, state.stopped_by_user = "", False, False
    state.health = health.fresh(container)
    live.shim = shim
    live.ended.clear()


async def _take_back(deps: Deps, container: Container, live: Live, before: State) -> None:
    """The process was there but could not be let go: back to what the container was."""
    live.shim = None
    live.ended.set()
    container.state = before
    container.endpoints, container.ports = (), ()
    await deps.store.save(container)


@asynccontextmanager
async def _connected(deps: Deps, container: Container) -> AsyncIterator[Sandbox]:
    """The container's network; our fd of its namespace is closed at the end, when the shim has its own."""
    if joined(container) is not None:
        yield Sandbox(netns=None, endpoints=())  # joined by path: see containers/making/spec.py
        return
    sandbox = await deps.networks.connect(container.id, request(deps, container))
    try:
        yield sandbox if asked(container) else replace(sandbox, endpoints=())  # loopback alone: on no network
    finally:
        if sandbox.netns is not None:
            os.close(sandbox.netns)


async def _note_failure(deps: Deps, container: Container, live: Live, error: WherryError) -> None:
    """What inspect shows of a failed start; sessions that waited for it end, and --rm takes the container away."""
    live.give_up_pending()
    container.state.error = error.message
    container.state.exit_code = exit_code_of(error.message)
    try:
        await deps.store.save(container)
    except WherryError as exc:  # never over the first error
        log.warning("the failed start of container %s is not noted: %s", container.name, exc.message)
    if container.host_config.auto_remove:
        await exits.auto_remove(deps, container)


def exit_code_of(message: str) -> int:
    """The exit code Docker gives a container (and its CLI itself) for this error of start."""
    if "executable file not found" in message or "no such file or directory" in message:
        return 127
    return 126 if "permission denied" in message else 128
