"""stop and kill: how a running container is brought to its end."""

import asyncio
import signal as signals
from contextlib import suppress

from wherry.aio import finish
from wherry.containers.deps import Deps
from wherry.containers.live import WaitResult
from wherry.containers.record import Container, Status
from wherry.containers.signals import parse_signal
from wherry.errors import Conflict, Failed, NotFound, NotModified
from wherry.runtime.shim_client import Shim, Unreachable

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
    shim = deps.live_of(container).shim
    if not container.running or shim is None:
        raise Conflict(f"cannot kill container: {name}: container {container.id} is not running")
    if _ends(container, number):
        container.state.stopped_by_user = True
    try:
        await _send(container, shim, number)
    except (NotFound, Unreachable):
        raise Conflict(f"cannot kill container: {name}: container {container.id} is not running") from None
    deps.publish(container, "kill", signal=str(number))


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
    live = deps.live_of(container)
    shim = live.shim
    if shim is None:
        return
    container.state.stopped_by_user = True
    live.keep_after_exit = keep
    with suppress(NotFound, Unreachable):  # it has just ended by itself
        await _send(container, shim, number)
        deps.publish(container, "kill", signal=str(number))
    if await _ended(live.ended, None if seconds < 0 else seconds):
        return
    with suppress(NotFound, Unreachable):
        await _send(container, shim, signals.SIGKILL)
        deps.publish(container, "kill", signal=str(int(signals.SIGKILL)))
    if not await _ended(live.ended, LAST_RESORT):
        raise Failed(
            f"cannot stop container {container.name}: its process {container.state.pid} did not end within "
            f"{LAST_RESORT} seconds of SIGKILL; it may hang in the kernel on a device or a network file system"
        )


async def _send(container: Container, shim: Shim, number: int) -> None:
    """Signal the init process; a frozen one is thawed when the signal is meant to end it, as in Docker."""
    paused = container.state.status is Status.PAUSED
    await shim.kill(number)
    if paused and _ends(container, number):
        with suppress(NotFound, Conflict, Unreachable):  # v2 kills a frozen process at once
            await shim.resume()


def _ends(container: Container, number: int) -> bool:
    return number in (signals.SIGKILL, parse_signal(signal_of(container)))


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
