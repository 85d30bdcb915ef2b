"""What follows when a container's process has ended: network, record, waiters, restart policy, auto-removal."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from wherry.containers.deps import Deps
from wherry.containers.life import health
from wherry.containers.life.networking import publish
from wherry.containers.life.remove import remove_locked
from wherry.containers.live import WaitResult
from wherry.containers.making.volumes import unmount_volumes
from wherry.containers.record import Container, Status
from wherry.containers.streams import execs
from wherry.errors import WherryError
from wherry.runtime.shim_client import Exit, Shim

log = logging.getLogger(__name__)

Starter = Callable[[Deps, Container], Awaitable[None]]

FIRST_DELAY = 0.1  # s, before the first automatic restart; doubles each time, as in Docker
LONGEST_DELAY = 60.0  # s
LONG_RUN = 10 * 10**9  # ns; a run of this length resets the delay


async def watch(deps: Deps, container: Container, shim: Shim, *, start: Starter) -> None:
    """Wait for the end of this run and deal with it. One task per running container, owned by the daemon."""
    exit_ = await asyncio.shield(shim.exited)
    async with deps.locks(container.id):
        if deps.live_of(container).shim is shim:
            await finish(deps, container, exit_, start=start)


async def finish(deps: Deps, container: Container, exit_: Exit, *, start: Starter) -> None:
    """Record an exit; the lock is held by the caller. Also used by recovery, for exits nobody saw.

    `start` is what a restart policy calls: passed in, since starting comes after exits in the order of imports.
    """
    live = deps.live_of(container)
    live.shim = None
    health.stop(deps, container)
    execs.end_run(live.execs)
    started, endpoints = container.state.started_at, container.endpoints
    again = should_restart(container, exit_.code)
    container.state.restart_count += again
    await _tried(deps.networks.release(container.id), container)
    await _tried(unmount_volumes(deps, container), container)
    _mark_ended(container, exit_, Status.RESTARTING if again else Status.EXITED)
    removes = container.host_config.auto_remove and not live.keep_after_exit
    live.keep_after_exit = False
    if not removes:  # else the next row written is its removal: one commit less on the way out
        await _tried(deps.store.save(container), container)
    if exit_.oom_killed:
        deps.publish(container, "oom")
    seconds = max(0, container.state.finished_at - started) // 10**9
    deps.publish(container, "die", exitCode=str(exit_.code), execDuration=str(seconds))
    for endpoint in endpoints:
        publish(deps, container, endpoint, "disconnect")
    for point in container.mounts:
        if point.type == "volume":
            deps.volumes.unmounted(point.name, container.id)
    live.ended.set()
    live.finish_exit(WaitResult(exit_.code, exit_.error or None))
    if again:
        restart_later(deps, container, ran=container.state.finished_at - started, start=start)
    elif removes:
        await auto_remove(deps, container)
    else:
        deps.background.spawn(_tidy(deps, container), name=f"tidying up after {container.id[:12]}")


async def _tried(step: Awaitable[None], container: Container) -> None:
    """A step whose failure must not keep the world from learning of the exit."""
    try:
        await step
    except (WherryError, OSError):
        log.exception("the exit of container %s is not dealt with wholly", container.name)


async def _tidy(deps: Deps, container: Container) -> None:
    """Remove what the run has left. Under the lock: a new run would have the same directory."""
    async with deps.locks(container.id):
        if deps.store.get(container.id) is container and not container.running:
            await deps.shims.forget(container.id)


def _mark_ended(container: Container, exit_: Exit, status: Status) -> None:
    state = container.state
    state.move(status)
    state.pid = state.pid_start = 0
    state.exit_code, state.error = exit_.code, exit_.error
    state.oom_killed = exit_.oom_killed
    state.finished_at = exit_.at or time.time_ns()
    container.endpoints, container.ports = (), ()


def should_restart(container: Container, code: int) -> bool:
    """What the restart policy says of an exit with this code."""
    policy, state = container.host_config.restart_policy, container.state
    if state.stopped_by_user:
        return False
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return code != 0 and (not policy.maximum_retry_count or state.restart_count < policy.maximum_retry_count)
        case _:
            return False


def _next_delay(last: float, ran: int) -> float:
    if not last or ran >= LONG_RUN:
        return FIRST_DELAY
    return min(last * 2, LONGEST_DELAY)


def restart_later(deps: Deps, container: Container, *, ran: int, start: Starter) -> None:
    """Start a RESTARTING container again after a while; `ran` is how long its last run was (ns)."""
    live = deps.live_of(container)
    live.backoff = _next_delay(live.backoff, ran)
    live.restart = deps.background.spawn(
        _restart_later(deps, container, live.backoff, start), name=f"restart of {container.id[:12]}"
    )


async def _restart_later(deps: Deps, container: Container, delay: float, start: Starter) -> None:
    await asyncio.sleep(delay)
    async with deps.locks(container.id):
        if container.state.status is not Status.RESTARTING:
            return
        deps.live_of(container).restart = None
        try:
            await start(deps, container)
        except WherryError as exc:
            log.warning("cannot restart container %s: %s", container.name, exc.message)
            container.state.move(Status.EXITED)
            await _tried(deps.store.save(container), container)
            deps.live_of(container).finish_exit(WaitResult(container.state.exit_code, exc.message))


async def auto_remove(deps: Deps, container: Container) -> None:
    """`--rm`: take the ended container and its anonymous volumes away; the lock is held by the caller."""
    try:
        await remove_locked(deps, container, volumes=True)
    except (WherryError, OSError):
        log.exception("automatic removal of container %s failed", container.name)
