"""stop and kill: how a running container is brought to its end."""

import asyncio
import signal as signals
from contextlib import suppress

from wherry.aio import finish
from wherry.containers.deps import Deps
from wherry.containers.life import health
from wherry.containers.live import WaitResult
from wherry.containers.making.signals import parse_signal
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, Failed, NotFound, NotModified
from wherry.runtime.shim_client import Unreachable

DEFAULT_TIMEOUT = 10  # s, between the stop signal and SIGKILL
LAST_RESORT = 30  # s, for a process to die of SIGKILL (uninterruptible I/O, a frozen disk)


async def stop(deps: Deps, name: str, *, signal: str | None = None, timeout: int | None = None) -> None:
    """Send the stop signal, then SIGKILL after `timeout` seconds (-1: never). NotModified if it does not run."""
    container = deps.store.resolve(name)
    number = parse_signal(signal or signal_of(container))
    if container.state.status is Status.RESTARTING:
        await cancel_restart(deps, container)
        return
    if not container.running:
        raise NotModified(f"container {name} is not running")
    await finish(end(deps, container, number, timeout_of(container, timeout)))
    deps.publish(container, "stop")


async def kill(deps: Deps, name: str, *, signal: str | None = None) -> None:
    """Send one signal (SIGKILL by default) to the container's main process."""
    container = deps.store.resolve(name)
    number = parse_signal(signal or "KILL")
    stops = number in (signals.SIGKILL, parse_signal(signal_of(container)))
    async with deps.locks(container.id):
        if not container.running or not await _send(deps, container, number, stops=stops):
            raise Conflict(f"cannot kill container: {name}: container {container.id} is not running")


async def cancel_restart(deps: Deps, container: Container) -> None:
    """A container that waits for its automatic restart stays down instead. Nothing happens otherwise."""
    async with deps.locks(container.id):
        live = deps.live_of(container)
        if container.state.status is not Status.RESTARTING:
            return
        if live.restart is not None:
            live.restart.cancel()
            live.restart = None
        container.state.stopped_by_user = True
        container.state.move(Status.EXITED)
        await deps.store.save(container)
        live.finish_exit(WaitResult(container.state.exit_code))


async def end_now(deps: Deps, container: Container) -> None:
    """SIGKILL and wait for the end, for `rm -f`."""
    await cancel_restart(deps, container)
    if container.running:
        await end(deps, container, signals.SIGKILL, 0)


async def end(deps: Deps, container: Container, number: int, seconds: int, *, keep: bool = False) -> None:
    """Signal, wait, SIGKILL, wait. `keep`: an auto-remove container survives this one exit."""
    ended = deps.live_of(container).ended
    await _interrupt(deps, container, number, keep=keep)
    if await _ended(ended, None if seconds < 0 else seconds):
        return
    await _interrupt(deps, container, signals.SIGKILL, keep=keep)
    if not await _ended(ended, LAST_RESORT):
        raise Failed(
            f"cannot stop container {container.name}: its process {container.state.pid} did not end within "
            f"{LAST_RESORT} seconds of SIGKILL; it may hang in the kernel on a device or a network file system"
        )


async def _interrupt(deps: Deps, container: Container, number: int, *, keep: bool) -> None:
    async with deps.locks(container.id):
        if container.running:
            deps.live_of(container).keep_after_exit = keep
            await _send(deps, container, number, stops=True)


async def _send(deps: Deps, container: Container, number: int, *, stops: bool) -> bool:
    """Signal the init process of a running container, whose lock is held; False when it has just ended by itself.

    After one that is to stop it, its restart policy leaves it alone, and a frozen one is thawed, as in Docker.
    """
    shim = deps.live_of(container).shim
    if shim is None:
        raise Failed(f"cannot signal container {container.name}: nothing watches over its process any more")
    if stops and not container.state.stopped_by_user:
        container.state.stopped_by_user = True
        if container.host_config.restart_policy.name not in ("", "no"):
            await deps.store.save(container)  # for a daemon that comes to know of the exit later
    try:
        await shim.kill(number)
    except (NotFound, Unreachable):
        return False
    deps.publish(container, "kill", signal=str(number))
    if stops and container.state.status is Status.PAUSED:
        with suppress(NotFound, Conflict, Unreachable):  # v2 kills a frozen process at once
            await shim.resume()
            container.state.move(Status.RUNNING)
            await deps.store.save(container)
            health.watch(deps, container)
            deps.publish(container, "unpause")
    return True


async def _ended(ended: asyncio.Event, seconds: int | None) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return ended.is_set()
    return True


def signal_of(container: Container) -> str:
    return container.config.stop_signal or "TERM"


def timeout_of(container: Container, timeout: int | None) -> int:
    if timeout is not None:
        return timeout
    configured = container.config.stop_timeout
    return configured if isinstance(configured, int) else DEFAULT_TIMEOUT
