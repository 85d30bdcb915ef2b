"""The record of a build: an immutable value, replaced when it changes.

Row in state table `builds`, key the build's ref: `Record` as JSON. The log is beside it on disk (`logfile.py`).
Secrets never come here: of a secret a build knows the id alone, and passwords in URLs are masked.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from wherry.builder.log import VertexEvent, WarningEvent
from wherry.distribution.proxy import masked


class Status(enum.StrEnum):
    """With BuildKit's words, and one of our own."""

    RUNNING = "running"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"  # the daemon ended in the middle of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    key: str
    name: str
    started: int = 0  # ns since the epoch; 0 = never
    completed: int = 0
    cached: bool = False
    error: str = ""
    why: str = ""  # it ran, and was not taken from the cache
    slot: str = ""
    inputs: list[str] = field(default_factory=list)  # keys

    @classmethod
    def of(cls, event: VertexEvent) -> "Step":
        return cls(
            key=event.key,
            name=event.name,
            started=event.started,
            completed=event.completed,
            cached=event.cached,
            error=event.error,
            why=event.why,
            slot=event.slot,
            inputs=list(event.inputs),
        )


class InputKind(enum.StrEnum):
    IMAGE = "image"
    GIT = "git"
    HTTP = "http"
    LOCAL = "local"
    LAYOUT = "oci-layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What came from outside, by exactly what it was."""

    kind: InputKind
    name: str  # full reference, URL, or name of a local directory
    digest: str = ""  # sha256:… of a manifest or a file, the commit of a git repository; "" of a directory
    platform: str = ""  # os/arch


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    type: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What the build resulted in, of one platform."""

    platform: str = ""
    digest: str = ""  # of the manifest
    image_id: str = ""
    names: list[str] = field(default_factory=list)
    attestations: list[str] = field(default_factory=list)  # digests of the statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What the linter found."""

    rule: str
    short: str
    line: int = 0  # from 1; 0 = unknown
    url: str = ""

    @classmethod
    def of(cls, event: WarningEvent) -> "Problem":
        ranges = event.location.ranges if event.location else ()
        return cls(rule=event.rule, short=event.short, line=ranges[0].start if ranges else 0, url=event.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no result."""

    message: str
    code: int = 2  # of gRPC; 2 = unknown
    filename: str = ""
    line: int = 0  # from 1; 0 = unknown
    end: int = 0
    excerpt: str = ""  # of the Dockerfile, with line numbers, as it was shown
    vertex: str = ""  # key of the step that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    ref: str
    status: Status = Status.RUNNING
    frontend: str = "dockerfile.v0"
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the frontend, as the client sent them
    exporters: list[Exporter] = field(default_factory=list)
    created: int = 0  # ns since the epoch
    completed: int = 0
    generation: int = 1  # changes of the record
    pinned: bool = False
    total_steps: int = 0
    cached_steps: int = 0
    completed_steps: int = 0
    steps: list[Step] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    results: list[Produced] = field(default_factory=list)
    response: Mapping[str, str] = field(default_factory=dict)  # the exporters' answer
    error: Failure | None = None
    log_complete: bool = True  # False: the disk refused some of it

    @property
    def duration(self) -> int:
        """ns; of one that runs 0."""
        return max(0, self.completed - self.created) if self.completed else 0


def encode(record: Record) -> bytes:
    return msgspec.json.encode(record)


def decode(raw: bytes) -> Record:
    """Raises msgspec.MsgspecError for a row that is none."""
    return msgspec.json.decode(raw, type=Record)


def explain(record: Record) -> list[tuple[Step, str]]:
    """Each step that belongs to an instruction, in the order of their beginning, and why it ran or did not."""
    steps = [step for step in record.steps if step.slot or step.why]
    return [(step, _said(step)) for step in sorted(steps, key=lambda step: step.started or 1 << 63)]


def _said(step: Step) -> str:
    if step.cached:
        return "cached: nothing that it is made from changed"
    if not step.started:
        return "not run: the build ended before"
    return step.why or "ran"


def without_passwords(attributes: Mapping[str, str]) -> dict[str, str]:
    """As they may be kept and shown."""
    return {key: masked(value) if "://" in value and "\n" not in value else value for key, value in attributes.items()}


def count(events: Iterable[VertexEvent]) -> tuple[int, int, int]:
    """Of the last event of each vertex: all, cached, completed."""
    listed = list(events)
    return len(listed), sum(event.cached for event in listed), sum(bool(event.completed) for event in listed)
