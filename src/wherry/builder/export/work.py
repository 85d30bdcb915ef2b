"""What every exporter is given: the results, where to tell, and the hands it works with."""

import contextlib
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wherry.builder.client import Client
from wherry.builder.deps import Deps
from wherry.builder.log import BuildLog, Event, StatusEvent, VertexEvent
from wherry.builder.trees import SCRATCH, Tree
from wherry.errors import WherryError
from wherry.images.leases import Lease
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, Platform

Bring = Callable[[Tree], Awaitable[Tree]]  # the tree with all its layers committed; blobs that have a name are here


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is said of a result, before it is known by what name the result goes."""

    predicate_type: str
    predicate: Mapping[str, object]
    name: str  # of its file in an export of files: provenance.json
    inline_only: bool = False  # not as a file
    referrer: bool = False  # attached to the image as an OCI referrer as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The result for one platform."""

    platform: Platform
    tree: Tree
    config: ContainerConfig
    history: Sequence[History] = ()  # entries without a time are of this build
    author: str = ""
    base: Tree = SCRATCH  # the image it begins from: what squashing leaves as it is
    parent: str = ""  # ID of the image it was made from; "" for none that is shown
    cache: bytes = b""  # what an inline cache adds to the config
    statements: Sequence[Statement] = ()

    @property
    def directory(self) -> str:
        """Its name where each platform has a directory: `linux_arm64`."""
        return str(self.platform).replace("/", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    deps: Deps
    lease: Lease  # protects all layers of the variants
    client: Client
    log: BuildLog
    variants: Sequence[Variant]
    bring: Bring
    epoch: int  # ns: the time of everything that is made
    indexed: bool = False  # an index even of a single platform

    def with_variants(self, variants: Sequence[Variant]) -> "Work":
        return replace(self, variants=variants)


@dataclass(slots=True)
class Telling:
    """A vertex of an export in the log; its lines."""

    key: str
    _add: Callable[[Event], None]

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A line that takes a while."""
        started = time.time_ns()
        self._add(StatusEvent(vertex=self.key, id=text, started=started))
        yield
        self._add(StatusEvent(vertex=self.key, id=text, started=started, completed=time.time_ns()))

    def done(self, text: str) -> None:
        """A line of what took no time."""
        now = time.time_ns()
        self._add(StatusEvent(vertex=self.key, id=text, started=now, completed=now))

    def progress(self, text: str, current: int, total: int, *, started: int, completed: bool = False) -> None:
        end = time.time_ns() if completed else 0
        self._add(StatusEvent(vertex=self.key, id=text, current=current, total=total, started=started, completed=end))


@contextlib.contextmanager
def telling(log: BuildLog, name: str) -> Iterator[Telling]:
    """Log that a vertex of that name starts, and how it ends."""
    event = VertexEvent(key=f"sha256:{hashlib.sha256(os.urandom(32)).hexdigest()}", name=name, started=time.time_ns())
    log.add(event)
    try:
        yield Telling(event.key, log.add)
    except BaseException as exc:
        if isinstance(exc, WherryError):
            said = exc.message
        else:
            said = str(exc) if isinstance(exc, Exception) else "context canceled"
        log.add(replace(event, completed=time.time_ns(), error=said or type(exc).__name__))
        raise
    log.add(replace(event, completed=time.time_ns()))
