"""The log of a build on disk."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.graph import Location, Range
from wherry.builder.log import LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.builder.records.logfile import LogWriter, decode, encode, read

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.integers(0, 1 << 62)
EVENTS = st.one_of(
    st.builds(VertexEvent, key=NAMES, name=NAMES, inputs=st.tuples(NAMES), started=TIMES, error=NAMES, why=NAMES),
    st.builds(StatusEvent, vertex=NAMES, id=NAMES, current=TIMES, total=TIMES, at=TIMES),
    st.builds(LogEvent, vertex=NAMES, stream=st.sampled_from([1, 2]), data=st.binary(max_size=50), at=TIMES),
    st.builds(
        WarningEvent,
        vertex=NAMES,
        rule=NAMES,
        short=NAMES,
        detail=st.tuples(NAMES),
        location=st.just(Location("Dockerfile", b"\xff", (Range(1, 2, 3),))),
    ),
)


@given(EVENTS)
def test_an_event_comes_back_as_it_was(event):
    line = encode(event)
    assert line.count(b"\n") == 1
    assert decode(line) == event


@given(st.binary(max_size=100))
def test_a_line_that_is_none_is_passed_over(line):
    decode(line)


def test_output_can_be_read_with_the_eye(tmp_path: Path):
    assert "grüße".encode() in encode(LogEvent(vertex="x", stream=1, data="grüße\n".encode()))


def test_lines_are_on_disk_when_the_log_is_closed(tmp_path: Path):
    events = [LogEvent(vertex="x", stream=1, data=b"%d" % n, at=n) for n in range(10)]
    writer = LogWriter(tmp_path / "a" / "log")
    for event in events:
        writer.add(event)
    writer.close()
    assert writer.complete
    assert list(read(tmp_path / "a" / "log")) == events


def test_much_output_does_not_wait_in_memory(tmp_path: Path):
    writer = LogWriter(tmp_path / "log")
    writer.add(LogEvent(vertex="x", stream=1, data=b"x" * 100_000, at=1))
    assert (tmp_path / "log").stat().st_size > 100_000
    writer.close()


def test_without_a_log_there_are_no_events(tmp_path: Path):
    assert list(read(tmp_path / "log")) == []
