"""rename: give a container another name."""

from wherry.containers.deps import Deps
from wherry.containers.making.config import check_name
from wherry.errors import InvalidParameter, NotFound


async def rename(deps: Deps, name: str, new: str) -> None:
    """Raises NotFound, InvalidParameter for a bad or equal name, Conflict for one in use."""
    new = new.removeprefix("/")
    if not name or not new:
        raise InvalidParameter("Neither old nor new names may be empty")
    container = deps.store.resolve(name)
    check_name(new)
    async with deps.locks(container.id):
        if deps.store.get(container.id) is None:
            raise NotFound(f"No such container: {name}")
        if new == container.name:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        old = container.name
        await deps.store.rename(container, new)
        await deps.networks.rename_container(container.id, old, new)
    deps.publish(container, "rename", oldName=f"/{old}")
