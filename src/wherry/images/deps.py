"""What every verb of this room is given."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wherry.aio import KeyedLock
from wherry.digest import ChainID, Digest
from wherry.distribution.config import RegistryConfig
from wherry.events import Event, Events
from wherry.images.leases import Leases
from wherry.images.store import Image, ImageStore
from wherry.state import State
from wherry.storage.content import ContentStore
from wherry.storage.snapshot import Snapshotter

DOWNLOADS = 3  # layers fetched at a time, over all pulls, as in Docker
UPLOADS = 5  # blobs pushed at a time, over all pushes, as in Docker
EXTRACTIONS = 2  # layers unpacked at a time

Roots = Callable[[], tuple[set[Digest], set[ChainID]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    state: State
    events: Events
    content: ContentStore
    snapshots: Snapshotter
    store: ImageStore
    leases: Leases
    registry: RegistryConfig
    work: Path  # scratch space, emptied at start
    roots: list[Roots] = field(default_factory=list)  # what others keep in the same stores: not garbage either
    locks: KeyedLock = field(default_factory=KeyedLock)
    downloads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DOWNLOADS))
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS))
    extractions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EXTRACTIONS))

    def announce(self, action: str, image: Image | None, *, actor: str = "", name: str = "") -> None:
        """Tell the world, with Docker's attributes: the image's labels, and `name`."""
        attributes = dict(image.config.config.labels or {}) if image else {}
        if name:
            attributes["name"] = name
        self.events.publish(Event(type="image", action=action, actor=actor or name, attributes=attributes))

    def announce_prune(self, freed: int) -> None:
        self.events.publish(Event(type="image", action="prune", actor="", attributes={"reclaimed": str(freed)}))


def build(
    *,
    state: State,
    events: Events,
    content: ContentStore,
    snapshots: Snapshotter,
    registry: RegistryConfig,
    work: Path,
    downloads: int = DOWNLOADS,
    uploads: int = UPLOADS,
) -> Deps:
    """Load what is stored and put the room together (blocking). `recover.recover(deps)` comes next."""
    return Deps(
        state=state,
        events=events,
        content=content,
        snapshots=snapshots,
        store=ImageStore(state, content),
        leases=Leases(state),
        registry=registry,
        work=work,
        downloads=asyncio.Semaphore(downloads),
        uploads=asyncio.Semaphore(uploads),
    )
