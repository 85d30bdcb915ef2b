"""Which containers were made from which image or mount it: what removing images must know."""

from collections.abc import Iterator, Mapping, Sequence

from wherry.containers.record import Container, Status
from wherry.containers.store import ContainerStore
from wherry.digest import ChainID
from wherry.images.upkeep.remove import ContainerUse

_IN_USE = frozenset({Status.RUNNING, Status.PAUSED, Status.RESTARTING})


class ImageUsers(Mapping[str, Sequence[ContainerUse]]):
    """Which containers use which image, at the moment of asking: they come and go meanwhile."""

    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    def __getitem__(self, image_id: str) -> list[ContainerUse]:
        found = [
            ContainerUse(id=container.id, running=container.state.status in _IN_USE)
            for container in self._store
            if image_id in _used(container)
        ]
        if not found:
            raise KeyError(image_id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter({image_id for container in self._store for image_id in _used(container)})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def mounted_layers(store: ContainerStore) -> set[ChainID]:
    """The layers of images that containers mount; those that containers stand on are kept by their snapshots."""
    return {ChainID(point.chain) for container in store for point in container.mounts if point.chain}


def _used(container: Container) -> set[str]:
    return {container.image_id, *(point.image_id for point in container.mounts if point.image_id)}
