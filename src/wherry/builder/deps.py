"""What every verb of this room is given: built once by `daemon/engine.py`, never changed."""

from dataclasses import dataclass, field
from pathlib import Path

from wherry.aio import Background, KeyedLock
from wherry.events import Events
from wherry.images.deps import Deps as ImageDeps
from wherry.network.networks import Networks
from wherry.runtime.shim_client import RuntimeSpec, Shims
from wherry.state import State
from wherry.storage.content import ContentStore
from wherry.storage.snapshot import Snapshotter


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The part of the daemon's configuration that builds need."""

    root: Path  # <data root>/build: contexts, git, cache mounts, records
    exec_root: Path
    runtime: RuntimeSpec
    cgroup_parent: str = "/wherry"
    default_shm_size: int = 64 << 20  # bytes
    parallel: int = 16  # steps that run at a time, of all builds
    collecting: bool = True  # what is too much is removed by itself
    keep_storage: int = 0  # bytes of build cache kept by automatic collection; 0 = a tenth of the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    state: State
    events: Events
    images: ImageDeps
    networks: Networks
    shims: Shims
    background: Background
    settings: Settings
    locks: KeyedLock = field(default_factory=KeyedLock)
    cache_users: dict[Path, int] = field(default_factory=dict)  # steps by the directory of a cache mount

    @property
    def snapshots(self) -> Snapshotter:
        return self.images.snapshots

    @property
    def content(self) -> ContentStore:
        return self.images.content
