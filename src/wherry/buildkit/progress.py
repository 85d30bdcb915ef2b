"""A build's events as BuildKit's clients want them: StatusResponses. Pure.

Why a step was not taken from the cache has no place in BuildKit's protocol; it is told as a line below the step.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from wherry.builder.log import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.builder.records.reasons import FIRST
from wherry.buildkit import bk_pb2 as pb

MAX_EVENTS = 1000  # in one message
MAX_LOG = 1 << 20  # bytes of output in one message; clients take 4 MiB at least


def moment(ns: int) -> Timestamp | None:
    """None for 0, which is "not yet"."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000) if ns else None


def responses(events: Iterable[Event]) -> Iterator[pb.StatusResponse]:
    """The events in as many messages as it takes."""
    response, count, size = pb.StatusResponse(), 0, 0
    for event in events:
        match event:
            case VertexEvent():
                response.vertexes.append(_vertex(event))
                if (why := _why(event)) is not None:
                    response.statuses.append(why)
            case StatusEvent():
                response.statuses.append(_status(event))
            case LogEvent():
                for at in range(0, len(event.data), MAX_LOG):
                    piece = event.data[at : at + MAX_LOG]
                    if size + len(piece) > MAX_LOG:
                        yield response
                        response, count, size = pb.StatusResponse(), 0, 0
                    size += len(piece)
                    response.logs.append(
                        pb.VertexLog(vertex=event.vertex, stream=event.stream, msg=piece, timestamp=moment(event.at))
                    )
            case WarningEvent():
                response.warnings.append(_warning(event))
        count += 1
        if count >= MAX_EVENTS:
            yield response
            response, count, size = pb.StatusResponse(), 0, 0
    if count:
        yield response


def _vertex(event: VertexEvent) -> pb.Vertex:
    return pb.Vertex(
        digest=event.key,
        inputs=event.inputs,
        name=event.name,
        cached=event.cached,
        started=moment(event.started),
        completed=moment(event.completed),
        error=event.error,
    )


def _why(event: VertexEvent) -> pb.VertexStatus | None:
    if not event.why or event.why == FIRST or not event.started or event.completed:
        return None
    at = moment(event.started)
    return pb.VertexStatus(id=f"not cached: {event.why}", vertex=event.key, timestamp=at, started=at, completed=at)


def _status(event: StatusEvent) -> pb.VertexStatus:
    return pb.VertexStatus(
        id=event.id,
        vertex=event.vertex,
        current=event.current,
        total=event.total,
        timestamp=moment(event.at),
        started=moment(event.started),
        completed=moment(event.completed),
    )


def _warning(event: WarningEvent) -> pb.VertexWarning:
    found = pb.VertexWarning(
        vertex=event.vertex,
        level=1,
        short=event.short.encode(),
        detail=[line.encode() for line in event.detail],
        url=event.url,
    )
    if event.location is not None:
        found.info.CopyFrom(
            pb.SourceInfo(filename=event.location.filename, data=event.location.data, language="Dockerfile")
        )
        for each in event.location.ranges:
            found.ranges.append(
                pb.Range(
                    start=pb.Position(line=each.start, character=max(0, each.column - 1)),
                    end=pb.Position(line=each.end),
                )
            )
    return found
