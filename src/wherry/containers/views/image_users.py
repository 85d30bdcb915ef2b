"""Which containers were made from which image: what removing images must know."""

from collections.abc import Iterator, Mapping, Sequence

from wherry.containers.record import Status
from wherry.containers.store import ContainerStore
from wherry.images.upkeep.remove import ContainerUse

_IN_USE = frozenset({Status.RUNNING, Status.PAUSED, Status.RESTARTING})


class ImageUsers(Mapping[str, Sequence[ContainerUse]]):
    """Which containers were made from which image, at the moment of asking: they come and go meanwhile."""

    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    def __getitem__(self, image_id: str) -> list[ContainerUse]:
        found = [
            ContainerUse(id=container.id, running=container.state.status in _IN_USE)
            for container in self._store
            if container.image_id == image_id
        ]
        if not found:
            raise KeyError(image_id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter({container.image_id for container in self._store})

    def __len__(self) -> int:
        return len({container.image_id for container in self._store})
