"""The containers of this engine: all records in memory, each change committed to state before it is acknowledged.

Names are unique through the table `names` (name -> id). Lookups are by full id, name, or unique id prefix, in that
order, as in Docker.
"""

import asyncio
from collections.abc import Iterator

from wherry.aio import finish, settle
from wherry.containers.record import Container, decode, encode
from wherry.errors import Conflict, InvalidParameter, NotFound
from wherry.ids import ContainerID, is_prefix
from wherry.state import Change, Delete, Insert, Put, State


class ContainerStore:
    """Used from the event loop only. A record is changed under its container's lock, then saved."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._by_id: dict[ContainerID, Container] = {}
        self._by_name: dict[str, ContainerID] = {}
        for raw in state.rows("containers").values():
            container = decode(raw)
            self._by_id[container.id] = container
            self._by_name[container.name] = container.id

    def all(self) -> list[Container]:
        """Every container, oldest first."""
        return sorted(self._by_id.values(), key=lambda container: container.created)

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def get(self, container_id: ContainerID) -> Container | None:
        return self._by_id.get(container_id)

    def resolve(self, name: str) -> Container:
        """Find by id, name (with or without slash) or unique id prefix; raises NotFound or InvalidParameter."""
        container = self._find(name)
        if container is None or not container.complete:
            raise NotFound(f"No such container: {name}")
        return container

    def _find(self, name: str) -> Container | None:
        if not name:
            raise InvalidParameter("invalid container name or ID: value is empty")
        if (found := self._by_id.get(ContainerID(name))) is not None:
            return found
        if (named := self._by_name.get(name.removeprefix("/"))) is not None:
            return self._by_id[named]
        if not is_prefix(name):
            return None
        matches = [container for key, container in self._by_id.items() if key.startswith(name)]
        if len(matches) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {name}")
        return matches[0] if matches else None

    async def add(self, container: Container) -> None:
        """Reserve the name and write the first, incomplete record; raises Conflict when the name is taken.

        Cancelled, it has done nothing.
        """
        self._refuse_taken(container.name)
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id
        try:
            await self._write(
                Insert("names", container.name, container.id.encode()),
                Insert("containers", container.id, encode(container)),
            )
        except asyncio.CancelledError:
            await self.remove(container)  # the write was made: only then is the cancellation delivered
            raise
        except BaseException:
            self._forget(container)
            raise

    async def save(self, container: Container) -> None:
        """Commit the record as it is now."""
        await self._write(Put("containers", container.id, encode(container)))

    async def rename(self, container: Container, name: str) -> None:
        """Change the name in memory and on disk at once; raises Conflict when it is taken."""
        await finish(self._rename(container, name))

    async def _rename(self, container: Container, name: str) -> None:
        self._refuse_taken(name)
        old = container.name
        self._by_name[name] = container.id
        container.name = name
        try:
            await self._write(
                Delete("names", old),
                Insert("names", name, container.id.encode()),
                Put("containers", container.id, encode(container)),
            )
        except BaseException:
            container.name = old
            del self._by_name[name]
            raise
        del self._by_name[old]

    async def remove(self, container: Container) -> None:
        """Forget the container and free its name, in memory and on disk at once."""
        await finish(self._remove(container))

    async def _remove(self, container: Container) -> None:
        await self._write(Delete("containers", container.id), Delete("names", container.name))
        self._forget(container)

    def _forget(self, container: Container) -> None:
        self._by_id.pop(container.id, None)
        self._by_name.pop(container.name, None)

    def _refuse_taken(self, name: str) -> None:
        if (owner := self._by_name.get(name)) is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    async def _write(self, *changes: Change) -> None:
        await settle(self._state.write, *changes)
