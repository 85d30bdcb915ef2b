"""What vertices result in: trees of layers, or directories of files.

A tree is known by its chain ID, that is by its content, before any of it is on disk: base images are not pulled, and
imported caches not fetched, as long as only their names are needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wherry.digest import ChainID, DiffID
from wherry.spec.image import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeLayer:
    chain: ChainID
    diff_id: DiffID
    size: int = -1  # bytes of the files in it; -1 = not known yet
    blob: Descriptor | None = None  # in the content store, or where `Providers` can bring it from
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Layers, base first; none is the empty tree."""

    layers: tuple[TreeLayer, ...] = ()

    @property
    def chain(self) -> ChainID | None:
        return self.layers[-1].chain if self.layers else None

    @property
    def identity(self) -> str:
        """What it is known by in cache keys."""
        return self.chain or "scratch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Files as a client, git or a web server gave them, owned by 0:0. Never written to by a step."""

    path: Path
    identity: str  # a name for exactly this content; "" when it must be computed for the part that is used
    checksums: Mapping[str, str] = field(default_factory=dict)  # of files known already: relative path -> digest
    newest: int = -1  # ns; the youngest file's time, -1 = not known


Result = Tree | Directory

SCRATCH = Tree()
