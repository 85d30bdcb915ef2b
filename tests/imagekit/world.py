"""The images room on stores of its own, and what it holds: for tests of verbs from their outside."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imagekit.making import Made, digest
from wherry.digest import ChainID, DiffID, Digest, chain_id, extend_chain
from wherry.distribution.config import RegistryConfig
from wherry.events import Event, Events
from wherry.images import deps as images
from wherry.images.deps import Deps
from wherry.images.record import Image, ImageID, Layer
from wherry.kernel.mount import Mount
from wherry.reference import parse
from wherry.spec.image import OCI_LAYER_GZIP, Descriptor, decode_config, decode_manifest
from wherry.state import State
from wherry.storage.content import ContentStore
from wherry.storage.snapshot import Snapshotter, Usage, Whiteouts


class MemorySnapshots:
    """A snapshotter without files: which layers and snapshots there are. The fake at the kernel seam."""

    name = "memory"
    whiteouts = Whiteouts.APPLY

    def __init__(self) -> None:
        self.layers: dict[ChainID, ChainID | None] = {}
        self.rw: dict[str, ChainID | None] = {}

    def has(self, chain: ChainID) -> bool:
        return chain in self.layers

    def parent(self, chain: ChainID) -> ChainID | None:
        from wherry.errors import NotFound

        if chain not in self.layers:
            raise NotFound(chain)
        return self.layers[chain]

    def parent_of_key(self, key: str) -> ChainID | None:
        return self.rw[key]

    def prepare(self, key: str, parent: ChainID | None) -> None:
        self.rw[key] = parent

    def view(self, chain: ChainID | None) -> list[Mount]:
        return []

    def commit(self, key: str, chain: ChainID) -> None:
        self.layers[chain] = self.rw.pop(key)

    def sync(self) -> None: ...

    def remove(self, key: str) -> None:
        self.rw.pop(key, None)

    def remove_layer(self, chain: ChainID) -> None:
        assert chain not in self.layers.values(), "a layer is removed from under another"
        assert chain not in self.rw.values(), "a layer is removed from under a container"
        self.layers.pop(chain, None)

    def usage(self, name: str) -> Usage:
        return Usage(0, 0)

    def keys(self) -> Iterator[str]:
        return iter(list(self.rw))

    def chains(self) -> Iterator[ChainID]:
        return iter(list(self.layers))

    def recover(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class World:
    root: Path
    snapshots: Snapshotter
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    state: State = field(init=False)
    deps: Deps = field(init=False)
    messages: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = State(self.root / "state.db")
        self.open()

    def open(self) -> None:
        """As a daemon does at its start; again for a restart."""
        self.deps = images.build(
            state=self.state,
            events=Events(),
            content=ContentStore(self.root),
            snapshots=self.snapshots,
            registry=self.registry,
            work=self.root / "work",
        )

    def tell(self, message: dict[str, object]) -> None:
        self.messages.append(message)

    @property
    def statuses(self) -> list[str]:
        return [str(message.get("status") or message.get("stream")) for message in self.messages]

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event.action, event.actor) for event in self.all_events()]

    def all_events(self) -> list[Event]:
        return self.deps.events.past(0, 1 << 63)

    def held(self) -> dict[str, set[str]]:
        """Everything there is in any store, but for `partials`."""
        return {
            "blobs": set(self.deps.content.walk()),
            "ingests": {path.name for path in (self.root / "ingest").glob("*")} - self._partials(),
            "layers": set(self.snapshots.chains()),
            "snapshots": set(self.snapshots.keys()),
            "scratch": {path.name for path in self.deps.work.iterdir()} if self.deps.work.exists() else set(),
            **{table: set(self.state.rows(table)) for table in ("images", "tags", "leases")},
        }

    def _partials(self) -> set[str]:
        return {path.name for path in (self.root / "ingest").glob("partial-*")}

    def partials(self) -> dict[str, int]:
        """Downloads that broke off: digest -> bytes there are."""
        return {
            "sha256:" + name.removeprefix("partial-"): (self.root / "ingest" / name).stat().st_size
            for name in self._partials()
        }

    async def put(self, made: Made, *names: str, parent: str = "", index: tuple[bytes, str] | None = None) -> Image:
        """Make `made` an image without pulling: its layers are said to be there. `index`: what the names name."""
        config = decode_config(made.config)
        layers: list[Layer] = []
        for blob, diff_id in zip(made.layers, config.rootfs.diff_ids, strict=True):
            below = layers[-1].chain if layers else None
            chain = extend_chain(below, diff_id)
            if not self.snapshots.has(chain):
                self.snapshots.prepare("x", below)
                self.snapshots.commit("x", chain)
            layers.append(
                Layer(
                    chain=chain,
                    diff_id=diff_id,
                    digest=Digest(digest(blob)),
                    media_type=OCI_LAYER_GZIP,
                    size=len(blob),
                    unpacked=100,
                )
            )
        for data in (made.manifest, *made.blobs.values()):
            self.deps.content.write(data)
        manifest = decode_manifest(made.manifest)
        image = Image(
            id=ImageID(made.id),
            config=config,
            manifests=(
                Descriptor(media_type=manifest.media_type, digest=Digest(made.digest), size=len(made.manifest)),
            ),
            layers=tuple(layers),
            blobs=frozenset({Digest(made.digest), *map(Digest, made.blobs)}),
            parent=parent,
        )
        target = None
        if index is not None:
            top = self.deps.content.write(index[0])
            target = Descriptor(media_type=index[1], digest=top, size=len(index[0]))
        references = [parse(name).tagged() for name in names]
        return await self.deps.store.put(image, references=references, target=target)


NOTHING: dict[str, set[str]] = {
    name: set() for name in ("blobs", "ingests", "layers", "snapshots", "scratch", "images", "tags", "leases")
}


def chain_of(made: Made) -> ChainID | None:
    return chain_id([DiffID(diff_id) for diff_id in made.diff_ids])
