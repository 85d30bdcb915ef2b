"""resize: the size of a running container's terminal."""

from wherry.containers.deps import Deps
from wherry.errors import Conflict


async def resize(deps: Deps, name: str, *, height: int, width: int) -> None:
    """Raises NotFound, and Conflict when the container does not run. Nothing happens without a terminal."""
    container = deps.store.resolve(name)
    shim = deps.live_of(container).shim
    if not container.running or shim is None:
        raise Conflict(f"container {container.id} is not running")
    if not container.config.tty:
        return
    await shim.resize(height, width)
    deps.publish(container, "resize", height=str(height), width=str(width))
