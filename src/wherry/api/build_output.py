"""What a build tells, for those who asked by HTTP: events as JSON documents, and the classic builder's lines.

An event's document has one key, its kind (what has its default value is left out):

    {"vertex": {"key", "name", "inputs", "started", "completed", "cached", "error", "why", "slot"}}
    {"status": {"vertex", "id", "current", "total", "started", "completed", "at"}}
    {"log": {"vertex", "stream", "text" or (when it is no UTF-8) "data" in base64, "at"}}
    {"warning": {"vertex", "rule", "short", "detail", "url", "filename", "lines": [[first, last]]}}

Times are nanoseconds since the epoch.
"""

import base64
import codecs
import enum
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wherry.builder.log import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.ids import SHORT, short

Line = dict[str, object]
Document = dict[str, dict[str, object]]

REMARK = "[Warning] "  # begins what the classic builder says, too
RED, PLAIN = "\x1b[91m", "\x1b[0m"  # around what a step writes to its standard error

_FAILED = re.compile(r'process "(.*)" did not complete successfully: exit code: (\d+)(.*)', re.DOTALL)
_LAYER = re.compile(r"(extracting )?sha256:([0-9a-f]{12})[0-9a-f]*\Z")  # a status of a base image
_MISSING = re.compile(r'"/?(.*)": not found', re.DOTALL)
_TRIGGER = re.compile(r"\A(.*)/on\d+\Z")
_PINNED = re.compile(r"@sha256:([0-9a-f]{12})")


def document(event: Event) -> Document:
    match event:
        case VertexEvent():
            fields: dict[str, object] = {
                "key": event.key,
                "name": event.name,
                "inputs": list(event.inputs),
                "started": event.started,
                "completed": event.completed,
                "cached": event.cached,
                "error": event.error,
                "why": event.why,
                "slot": event.slot,
            }
            return {"vertex": _given(fields)}
        case StatusEvent():
            fields = {
                "vertex": event.vertex,
                "id": event.id,
                "current": event.current,
                "total": event.total,
                "started": event.started,
                "completed": event.completed,
                "at": event.at,
            }
            return {"status": _given(fields)}
        case LogEvent():
            fields = {"vertex": event.vertex, "stream": event.stream, **_content(event.data), "at": event.at}
            return {"log": fields}
        case WarningEvent():
            place = event.location
            fields = {
                "vertex": event.vertex,
                "rule": event.rule,
                "short": event.short,
                "detail": list(event.detail),
                "url": event.url,
                "filename": place.filename if place else "",
                "lines": [[each.start, each.end] for each in place.ranges] if place else [],
            }
            return {"warning": _given(fields)}


def _given(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value}


def _content(data: bytes) -> dict[str, object]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode()}


# --- the classic builder ----------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    GLOBAL = enum.auto()  # ARG before the first FROM
    BASE = enum.auto()  # FROM an image or a stage
    SCRATCH = enum.auto()  # FROM scratch
    RUN = enum.auto()
    FILES = enum.auto()  # COPY, ADD, WORKDIR
    CONFIG = enum.auto()  # what only changes the image's config


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of the Dockerfile, in the order the classic builder runs them."""

    kind: Kind
    text: str  # as it stands in the file, on one line
    slot: str = ""  # of the vertices it has become
    image: str = ""  # short ID of the image that a base is, when known


def failure_line(message: str) -> Line:
    """The failure of the build as the stream's last line."""
    if match := _FAILED.search(message):
        text = f"The command '{match[1]}' returned a non-zero code: {match[2]}{match[3]}"
        return {"errorDetail": {"code": int(match[2]), "message": text}, "error": text}
    return {"errorDetail": {"message": message}, "error": message}


class Classic:
    """Turns events into the lines dockerd's own builder would have written.

    Steps are told in the order of the file whatever the order they are done in: what comes ahead of its turn waits.
    The short names of steps before the last name nothing that could be run: there are no images of them.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._at = 0  # the step whose turn it is
        self._announced = False
        self._running = ""  # short name of its container, once that has been told
        self._name = ""  # short name of what the step before resulted in
        self._slots: dict[str, str] = {}  # vertex -> slot
        self._vertices: dict[str, VertexEvent] = {}  # slot -> its newest state
        self._waiting: dict[str, list[Line]] = {}  # slot -> what it said, not told yet
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._remarks: list[str] = []

    def tell(self, event: Event) -> Iterator[Line]:
        """Lines that can be told now that this has happened."""
        match event:
            case VertexEvent():
                if (trigger := _TRIGGER.search(event.slot)) is not None:
                    self._triggered(event, trigger[1])
                elif event.slot:
                    self._slots[event.key] = event.slot
                    self._vertices[event.slot] = event
            case LogEvent():
                self._hear(event.vertex, self._printed(event))
            case StatusEvent():
                self._hear(event.vertex, _pulled(event))
            case WarningEvent():
                if event.short.startswith(REMARK):  # not what the linter finds: the classic builder has none
                    self._remarks.append(event.short)
        yield from self._advance()

    def end(self, image_id: str, names: Sequence[str]) -> Iterator[Line]:
        """The build has succeeded: what is left to tell."""
        yield from self._advance(last=short(image_id))
        yield {"aux": {"ID": image_id}}
        for remark in self._remarks:
            yield {"stream": f"{remark}\n"}
        yield {"stream": f"Successfully built {short(image_id)}\n"}
        for name in names:
            yield {"stream": f"Successfully tagged {name}\n"}

    def fail(self, message: str, *, removed: bool) -> Iterator[Line]:
        """The build has failed. `removed`: say that the container of the failed step is gone."""
        if self._at < len(self._steps):
            yield from self._heard(self._steps[self._at].slot)
        if removed and self._running:
            yield {"stream": f"Removing intermediate container {self._running}\n"}
        step = self._steps[self._at] if self._at < len(self._steps) else None
        if step is not None and step.kind is Kind.FILES and (missing := _MISSING.fullmatch(message)):
            message = (
                f"{step.text.split()[0].upper()} failed: file not found in build context or excluded by "
                f".dockerignore: stat {missing[1]}: file does not exist"
            )
        yield failure_line(message)

    def _triggered(self, event: VertexEvent, stage: str) -> None:
        """A step that a base image brings with it (ONBUILD) is told under the first of the stage's own."""
        slots = [step.slot for step in self._steps if step.slot.rpartition("/")[0] == stage]
        if slots and event.key not in self._slots:
            self._slots[event.key] = slots[min(1, len(slots) - 1)]
            self._hear(event.key, {"stream": f"# Executing build trigger: {event.name}\n"})

    def _hear(self, vertex: str, line: Line | None) -> None:
        slot = self._slots.get(vertex)
        if slot is not None and line is not None:
            self._waiting.setdefault(slot, []).append(line)

    def _heard(self, slot: str) -> list[Line]:
        return self._waiting.pop(slot, [])

    def _printed(self, event: LogEvent) -> Line | None:
        key = event.vertex, event.stream
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(event.data)
        if not text:
            return None
        return {"stream": f"{RED}{text}{PLAIN}" if event.stream == 2 else text}

    def _advance(self, last: str = "") -> Iterator[Line]:
        """Tell what has its turn. `last`: the build is over, and this is the short name of its image."""
        while self._at < len(self._steps):
            step = self._steps[self._at]
            if not self._announced:
                yield {"stream": f"Step {self._at + 1}/{len(self._steps)} : {step.text}"}
                yield {"stream": "\n"}
                self._announced = True
            done = self._state(step)
            yield from self._progress(step)
            if not (done or last):
                return
            yield from self._done(step, last if self._at == len(self._steps) - 1 else "")
            self._at += 1
            self._announced, self._running = False, ""

    def _state(self, step: Step) -> bool:
        """Is it done?"""
        if step.kind in (Kind.GLOBAL, Kind.SCRATCH):
            return True
        own = self._vertices.get(step.slot)
        if own is not None:
            return bool(own.completed) and not own.error
        return self._next() is not None

    def _next(self) -> VertexEvent | None:
        """The first step after the present one that has begun, in the same stage."""
        stage = self._steps[self._at].slot.rpartition("/")[0]
        for step in self._steps[self._at + 1 :]:
            if step.slot.rpartition("/")[0] != stage:
                return None
            event = self._vertices.get(step.slot)
            if event is not None and (event.started or event.completed):
                return event
        return None

    def _before(self, step: Step) -> VertexEvent | None:
        """The last step before that has done something, in the same stage: behind it only the config changes."""
        stage = step.slot.rpartition("/")[0]
        for other in reversed(self._steps[: self._at]):
            event = self._vertices.get(other.slot)
            if other.kind is Kind.BASE or other.slot.rpartition("/")[0] != stage:
                return None
            if event is not None:
                return event
        return None

    def _progress(self, step: Step) -> Iterator[Line]:
        own = self._vertices.get(step.slot)
        if step.kind is Kind.RUN and own is not None and own.started and not own.cached and not self._running:
            self._running = _digits(f"{own.key} {own.started}")
            yield {"stream": f" ---> Running in {self._running}\n"}
        yield from self._heard(step.slot)

    def _done(self, step: Step, last: str) -> Iterator[Line]:
        if step.kind is Kind.GLOBAL:
            return
        if step.kind is Kind.SCRATCH:
            self._name = ""
            yield {"stream": " ---> \n"}
            return
        own = self._vertices.get(step.slot) or self._next() or self._before(step)
        if self._running:
            yield {"stream": f"Removing intermediate container {self._running}\n"}
        if step.kind is not Kind.BASE and own is not None and own.cached:
            yield {"stream": " ---> Using cache\n"}
        self._name = last or self._short(step)
        yield {"stream": f" ---> {self._name}\n"}

    def _short(self, step: Step) -> str:
        """The same in every build of these instructions; of a base image, its digest's beginning."""
        if step.image:
            return step.image
        own = self._vertices.get(step.slot)
        pinned = _PINNED.search(own.name) if own is not None and step.kind is Kind.BASE else None
        return pinned[1] if pinned else _digits(f"{self._name} {step.text}")


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:SHORT]


def _pulled(event: StatusEvent) -> Line | None:
    """A layer on its way, as `docker pull` tells it; other statuses have no place in the classic output."""
    match = _LAYER.match(event.id)
    if match is None:
        return None
    extracting, layer = match.groups()
    if event.completed:
        done = "Pull complete" if extracting else "Download complete"
        return {"status": done, "progressDetail": {}, "id": layer}
    detail = {"current": event.current, "total": event.total}
    return {"status": "Extracting" if extracting else "Downloading", "progressDetail": detail, "id": layer}
