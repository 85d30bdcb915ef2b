"""The build cache: what steps resulted in, by their keys.

Row in state table `build_cache`, key the cache key: see `Entry`. The layers are in the snapshot store, beside those of
images; an entry keeps them there. A row is written only after its layers are on disk (`flush`), so what is found after
a crash is whole. In memory everything is known at once.
Row in state table `build_slots`, key "<project> <slot>": the ingredients of the step that was last there.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from wherry.aio import settle
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import ChainID, Digest
from wherry.errors import WherryError
from wherry.state import Delete, Put, State
from wherry.storage.snapshot import Snapshotter

log = logging.getLogger(__name__)

CHECKSUM = "checksum"  # kind of an entry that remembers what files a copy takes, and no layers
MAX_SLOTS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    key: str
    outputs: dict[int, tuple[TreeLayer, ...]] = field(default_factory=dict)  # trees by output number, base first
    kind: str = "regular"  # regular, exec.cachemount, …: BuildKit's record types, or CHECKSUM
    description: str = ""
    created: int = 0  # ns since the epoch
    used: int = 0  # likewise
    uses: int = 0
    chain: str = ""  # of a checksum: the tree it is of
    checksum: str = ""
    files: dict[str, str] = field(default_factory=dict)  # of a checksum, to explain

    @property
    def chains(self) -> list[ChainID]:
        return [layers[-1].chain for layers in self.outputs.values() if layers]

    @property
    def size(self) -> int:
        """Bytes of the files in its own layers: the top ones."""
        return sum(max(layers[-1].size, 0) for layers in self.outputs.values() if layers)


@dataclass(slots=True)
class Imported:
    """What caches of elsewhere say, for the time of one build. Layers may have to be fetched, or be nowhere."""

    trees: dict[str, Mapping[int, Tree]] = field(default_factory=dict)  # results by key
    checksums: dict[str, str] = field(default_factory=dict)  # of files that copies take


class Cache:
    """Loaded once. Used from the event loop."""

    def __init__(self, state: State, snapshots: Snapshotter) -> None:
        self._state, self._snapshots = state, snapshots
        self._entries: dict[str, Entry] = {}
        self._slots: dict[str, bytes] = dict(state.rows("build_slots"))
        self._dirty: set[str] = set()
        self._dirty_slots: set[str] = set()
        self._flushing = asyncio.Lock()
        for key, raw in state.rows("build_cache").items():
            try:
                self._entries[key] = msgspec.json.decode(raw, type=Entry)
            except msgspec.MsgspecError as exc:
                log.warning("an entry of the build cache cannot be read and is left out: %s: %s", key, exc)

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def find(self, key: str) -> Entry | None:
        """An entry whose layers are here; it counts as used. One that lost them is forgotten."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.kind != CHECKSUM and not all(self._snapshots.has(chain) for chain in entry.chains):
            self._entries.pop(key)
            self._dirty.add(key)
            return None
        entry = self._entries[key] = replace(entry, used=time.time_ns(), uses=entry.uses + 1)
        self._dirty.add(key)
        return entry

    def add(self, key: str, outputs: Mapping[int, Tree], *, description: str) -> Entry:
        now = time.time_ns()
        entry = Entry(
            key=key,
            outputs={number: tree.layers for number, tree in outputs.items()},
            description=description,
            created=now,
            used=now,
        )
        self._entries[key] = entry
        self._dirty.add(key)
        return entry

    def checksum(self, key: str) -> Entry | None:
        """What is remembered of a selection of files."""
        return self._entries.get(key)

    def remember(self, key: str, chain: str, checksum: str, files: Mapping[str, str]) -> None:
        now = time.time_ns()
        self._entries[key] = Entry(
            key=key, kind=CHECKSUM, chain=chain, checksum=checksum, files=dict(files), created=now, used=now
        )
        self._dirty.add(key)

    # Places

    def slot(self, project: str, slot: str) -> dict[str, str] | None:
        raw = self._slots.get(f"{project} {slot}")
        return None if raw is None else msgspec.json.decode(raw, type=dict[str, str])

    def put_slot(self, project: str, slot: str, made_from: Mapping[str, str]) -> None:
        key = f"{project} {slot}"
        raw = msgspec.json.encode(made_from)
        if self._slots.get(key) == raw:
            return
        self._slots[key] = raw
        self._dirty_slots.add(key)
        if len(self._slots) > MAX_SLOTS:
            oldest = next(iter(self._slots))
            del self._slots[oldest]
            self._dirty_slots.add(oldest)

    # Disk

    async def flush(self) -> None:
        """Write down what is new, after the layers it stands on."""
        async with self._flushing:
            keys, slots = self._dirty, self._dirty_slots
            self._dirty, self._dirty_slots = set(), set()
            entries = {key: self._entries.get(key) for key in keys}
            try:
                await settle(self._write, entries, {key: self._slots.get(key) for key in slots})
            except WherryError:
                self._dirty |= keys
                self._dirty_slots |= slots
                raise

    def _write(self, entries: Mapping[str, Entry | None], slots: Mapping[str, bytes | None]) -> None:
        if not entries and not slots:
            return
        self._snapshots.sync()
        self._state.write(
            *(
                Delete("build_cache", key) if entry is None else Put("build_cache", key, msgspec.json.encode(entry))
                for key, entry in entries.items()
            ),
            *(
                Delete("build_slots", key) if raw is None else Put("build_slots", key, raw)
                for key, raw in slots.items()
            ),
        )

    # Garbage

    def roots(self) -> tuple[set[Digest], set[ChainID]]:
        """What the entries keep alive (images/garbage.py)."""
        return set(), {chain for entry in self._entries.values() for chain in entry.chains}

    def forget(self, keys: Iterable[str]) -> list[ChainID]:
        """Drop entries, and the checksums of trees of which no entry is left; the chains nothing here needs any more.

        An image may still have such a tree: it is read again when a build next takes files of it.
        """
        gone: list[ChainID] = []
        for key in keys:
            if (entry := self._entries.pop(key, None)) is not None:
                self._dirty.add(key)
                gone += entry.chains
        left = self.roots()[1]
        dropped = [chain for chain in dict.fromkeys(gone) if chain not in left]
        for key, entry in list(self._entries.items()):
            if entry.kind == CHECKSUM and entry.chain not in left:
                del self._entries[key]
                self._dirty.add(key)
        return dropped
