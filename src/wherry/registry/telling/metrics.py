"""Metrics in Prometheus' text format: `GET /metrics`.

Everything is counted in this process since it started; what is a state (storage, uploads, queues) is looked at when
somebody asks. Names begin with `wherry_registry_`; labels come from small fixed sets, never from what clients send.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from wherry.errors import WherryError
from wherry.registry.hooks import Happening
from wherry.registry.server import HANDLERS, parse_path

MEDIA_TYPE = "text/plain; version=0.0.4"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)  # seconds
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]  # suffix of the name, labels, value
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its label values, as it stands now."""

    name: str
    kind: str  # counter, gauge, histogram
    help: str
    samples: list[Sample]


Look = Callable[[], Awaitable[Iterable[Family]]]


@dataclass(slots=True)
class _Histogram:
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        if (place := bisect_left(BUCKETS, value)) < len(BUCKETS):
            self.buckets[place] += 1
        self.count += 1
        self.total += value

    def samples(self, labels: Labels) -> Iterator[Sample]:
        below = 0
        for limit, number in zip(BUCKETS, self.buckets, strict=True):
            below += number
            yield "_bucket", (*labels, ("le", f"{limit:g}")), below
        yield "_bucket", (*labels, ("le", "+Inf")), self.count
        yield "_sum", labels, self.total
        yield "_count", labels, self.count


class Metrics:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: Counter[Labels] = Counter()
        self._happenings: Counter[str] = Counter()
        self._durations: dict[Labels, _Histogram] = {}
        self._received = self._sent = self._running = 0
        self._looks: list[Look] = []

    def look_at(self, look: Look) -> None:
        """Ask `look`, too, whenever somebody reads the metrics."""
        self._looks.append(look)

    def happened(self, happening: Happening) -> None:
        """Count a push, pull, mount or delete."""
        self._happenings[happening.action] += 1

    @web.middleware
    async def measure(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request: a middleware of the application."""
        started = self._clock()
        self._running += 1
        status = 500
        sent = 0
        try:
            answer = await handler(request)
            status = answer.status
            sent = answer.body_length or (request.method != "HEAD" and answer.content_length) or 0
            return answer
        except web.HTTPException as exc:
            status = exc.status
            raise
        finally:
            self._running -= 1
            method = request.method if request.method in METHODS else "other"
            what: Labels = (("method", method), ("endpoint", endpoint_of(request.path)))
            self._requests[*what, ("status", str(status))] += 1
            self._durations.setdefault(what, _Histogram()).add(self._clock() - started)
            self._received += request.content.total_bytes
            self._sent += max(sent, request.writer.output_size)

    async def get(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(body=(await self.text()).encode(), headers={"Content-Type": MEDIA_TYPE})

    async def text(self) -> str:
        families = list(self._own())
        for look in self._looks:
            families += await look()
        return "".join(line for family in families for line in _lines(family))

    def _own(self) -> Iterator[Family]:
        requests: list[Sample] = [("", labels, number) for labels, number in self._requests.items()]
        yield Family("requests_total", "counter", "Requests answered.", requests)
        durations = [sample for labels, histogram in self._durations.items() for sample in histogram.samples(labels)]
        yield Family(
            "request_duration_seconds", "histogram", "From a request's head to the end of its answer.", durations
        )
        yield labelled("happenings_total", "Pulls, pushes, mounts and deletes done.", "action", self._happenings)
        yield gauge("requests_running", "Requests being answered.", self._running)
        yield counter("received_bytes_total", "Bytes of the bodies of requests.", self._received)
        yield counter("sent_bytes_total", "Bytes of answers.", self._sent)


def endpoint_of(path: str) -> str:
    """What a request is about, by a name of a small set."""
    if path != "/v2" and not path.startswith("/v2/"):
        return {"/token": "token", "/metrics": "metrics", "/": "page"}.get(path, "other")
    try:
        kind = parse_path(path).kind
    except WherryError:
        return "other"
    return kind if kind in HANDLERS else "other"


def gauge(name: str, help: str, value: float) -> Family:
    return Family(name, "gauge", help, [("", (), value)])


def counter(name: str, help: str, value: float) -> Family:
    return Family(name, "counter", help, [("", (), value)])


def labelled(name: str, help: str, label: str, values: Mapping[str, float], *, kind: str = "counter") -> Family:
    """By one label."""
    return Family(name, kind, help, [("", ((label, key),), value) for key, value in values.items()])


def _lines(family: Family) -> Iterator[str]:
    name = f"wherry_registry_{family.name}"
    yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"
    for suffix, labels, value in family.samples:
        said = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
        yield f"{name}{suffix}{{{said}}} {value:.16g}\n" if said else f"{name}{suffix} {value:.16g}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
