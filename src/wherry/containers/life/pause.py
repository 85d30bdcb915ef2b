"""pause and unpause: freeze all processes of a container, thaw them."""

import asyncio

from wherry.containers.deps import Deps
from wherry.containers.life import health
from wherry.containers.record import Status
from wherry.errors import Conflict

PATIENCE = 5.0  # s, for a probe to end


async def pause(deps: Deps, name: str) -> None:
    """Raises Conflict when the container is not running or already paused."""
    container = deps.store.resolve(name)
    async with deps.locks(container.id):
        if container.state.status is Status.PAUSED:
            raise Conflict(f"Container {name} is already paused")
        if container.state.status is Status.RESTARTING:
            raise Conflict(f"Container {name} is restarting, wait until the container is running")
        if not container.running or (shim := deps.live_of(container).shim) is None:
            raise Conflict(f"Container {name} is not running")
        before = container.state.health
        if (monitor := health.stop(deps, container)) is not None:
            await asyncio.wait((monitor,), timeout=PATIENCE)  # a probe that is frozen cannot be killed
        try:
            await shim.pause()
        except BaseException:
            container.state.health = before
            health.watch(deps, container)
            raise
        container.state.move(Status.PAUSED)
        await deps.store.save(container)
    deps.publish(container, "pause")


async def unpause(deps: Deps, name: str) -> None:
    """Raises Conflict when the container is not paused."""
    container = deps.store.resolve(name)
    async with deps.locks(container.id):
        if container.state.status is not Status.PAUSED or (shim := deps.live_of(container).shim) is None:
            raise Conflict(f"Container {name} is not paused")
        await shim.resume()
        container.state.move(Status.RUNNING)
        await deps.store.save(container)
        health.watch(deps, container, at_once=True)
    deps.publish(container, "unpause")
