"""restart: stop if it runs, then start."""

from wherry.aio import finish
from wherry.containers.deps import Deps
from wherry.containers.life.start import start_afresh
from wherry.containers.life.stop import cancel_restart, end, signal_of, timeout_of
from wherry.containers.making.signals import parse_signal
from wherry.containers.record import Container
from wherry.errors import NotFound


async def restart(deps: Deps, name: str, *, signal: str | None = None, timeout: int | None = None) -> None:
    """Stop if it runs, then start."""
    container = deps.store.resolve(name)
    number = parse_signal(signal or signal_of(container))
    await finish(_restart(deps, container, name, number, timeout_of(container, timeout)))
    deps.publish(container, "restart")


async def _restart(deps: Deps, container: Container, name: str, number: int, seconds: int) -> None:
    await cancel_restart(deps, container)
    if container.running:
        await end(deps, container, number, seconds, keep=True)
    async with deps.locks(container.id):
        if deps.store.get(container.id) is None:
            raise NotFound(f"No such container: {name}")
        if not container.running:
            await start_afresh(deps, container)
