from wherry.builder.graph import Location, Range
from wherry.builder.log import LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.builder.records.reasons import FIRST
from wherry.buildkit.progress import MAX_EVENTS, MAX_LOG, responses

S = 1_000_000_000


def vertex(**fields) -> VertexEvent:
    return VertexEvent(key="sha256:1", name="[2/3] RUN make", **fields)


def test_a_vertex_is_told_with_its_times_and_its_end():
    (response,) = responses([vertex(inputs=("sha256:0",), started=5 * S + 1, completed=7 * S, error="exit code: 1")])
    (found,) = response.vertexes
    assert (found.digest, found.name, list(found.inputs)) == ("sha256:1", "[2/3] RUN make", ["sha256:0"])
    assert (found.started.seconds, found.started.nanos, found.completed.seconds) == (5, 1, 7)
    assert found.error == "exit code: 1"


def test_what_has_not_begun_has_no_time():
    (response,) = responses([vertex()])
    assert not response.vertexes[0].HasField("started")
    assert not response.vertexes[0].HasField("completed")


def test_why_a_step_runs_is_a_line_below_it_once():
    why = "`requirements.txt` changed"
    (response,) = responses([vertex(started=S, why=why), vertex(started=S, completed=2 * S, why=why)])
    (line,) = response.statuses
    assert (line.id, line.vertex) == (f"not cached: {why}", "sha256:1")
    assert line.HasField("completed")


def test_a_first_build_is_not_explained():
    (response,) = responses([vertex(started=S, why=FIRST)])
    assert list(response.statuses) == []


def test_statuses_and_logs_keep_their_figures():
    events = [
        StatusEvent(vertex="sha256:1", id="transferring context:", current=3, total=9, started=S, at=2 * S),
        LogEvent(vertex="sha256:1", stream=2, data=b"oops\n", at=3 * S),
    ]
    (response,) = responses(events)
    status, log = response.statuses[0], response.logs[0]
    assert (status.id, status.current, status.total, status.timestamp.seconds) == ("transferring context:", 3, 9, 2)
    assert (log.stream, log.msg, log.timestamp.seconds) == (2, b"oops\n", 3)


def test_a_warning_brings_the_place_in_the_file():
    location = Location("Dockerfile", b"from x\n", (Range(1, 1, 3),))
    event = WarningEvent(
        vertex="v", rule="Casing", short="Casing: from", detail=("d",), url="https://u", location=location
    )
    (response,) = responses([event])
    (warning,) = response.warnings
    assert (warning.short, list(warning.detail), warning.url, warning.level) == (
        b"Casing: from",
        [b"d"],
        "https://u",
        1,
    )
    assert (warning.info.filename, warning.info.data) == ("Dockerfile", b"from x\n")
    assert (warning.ranges[0].start.line, warning.ranges[0].start.character) == (1, 2)


def test_nothing_is_told_of_nothing():
    assert list(responses([])) == []


def test_no_message_is_too_large_and_no_byte_is_lost():
    logs = [LogEvent(vertex="v", stream=1, data=bytes([65 + n]) * (MAX_LOG // 2 + n)) for n in range(5)]
    logs.append(LogEvent(vertex="v", stream=1, data=b"x" * (3 * MAX_LOG + 5)))
    found = list(responses(logs))
    assert all(len(each.SerializeToString()) < MAX_LOG + 1000 for each in found)
    assert b"".join(log.msg for each in found for log in each.logs) == b"".join(log.data for log in logs)


def test_many_events_come_in_several_messages():
    found = list(responses([StatusEvent(vertex="v", id=str(n)) for n in range(2 * MAX_EVENTS + 1)]))
    assert [len(each.statuses) for each in found] == [MAX_EVENTS, MAX_EVENTS, 1]
