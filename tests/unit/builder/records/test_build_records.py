"""Records of builds: begun, ended, found again, and gone when there are too many."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.builder.graph import Location, Range
from wherry.builder.log import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent
from wherry.builder.records.record import Exporter, Failure, Input, InputKind, Status, explain
from wherry.builder.records.store import Kind, Records
from wherry.errors import Conflict, InvalidParameter, NotFound
from wherry.state import State

STEP = VertexEvent(key="sha256:1", name="[1/2] FROM x", slot="0/0", started=10, completed=20, cached=True)
RUN = VertexEvent(
    key="sha256:2", name="[2/2] RUN make", inputs=("sha256:1",), slot="0/1", started=30, why="`a` changed"
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.db")


@pytest.fixture
def records(state: State, tmp_path: Path) -> Iterator[Records]:
    found = Records(state, tmp_path / "records")
    yield found
    found.close()


async def gathered(records: Records, ref: str) -> list[Event]:
    return [event async for batch in records.events(ref) for event in batch]


async def test_a_build_that_has_ended_is_found_with_all_it_did(records, state, tmp_path):
    build = await records.begin("abc", attributes={"build-arg:V": "1"}, exporters=[Exporter(type="moby")])
    said = [
        STEP,
        RUN,
        StatusEvent(vertex="sha256:2", id="transferring", current=1, at=31),
        LogEvent(vertex="sha256:2", stream=1, data="grüße\n".encode(), at=32),
        LogEvent(vertex="sha256:2", stream=2, data=b"\xff\x00", at=33),
        WarningEvent(
            vertex="sha256:1",
            rule="StageNameCasing",
            short="Stage name 'A' should be lowercase",
            location=Location("Dockerfile", b"FROM x AS A\n", (Range(1, 1),)),
        ),
        replace(RUN, completed=40),
    ]
    for event in said:
        build.log.add(event)
    base = Input(kind=InputKind.IMAGE, name="docker.io/library/x:latest", digest="sha256:b")
    await records.end(build, Status.COMPLETED, response={"image.name": "x"}, inputs=[base])

    again = Records(state, tmp_path / "records")
    await again.recover()
    record = again.get("abc")
    assert record.status is Status.COMPLETED
    assert (record.total_steps, record.cached_steps, record.completed_steps) == (2, 1, 2)
    assert record.attributes == {"build-arg:V": "1"}
    assert record.exporters == [Exporter(type="moby")]
    assert record.response == {"image.name": "x"}
    assert record.inputs == [base]
    assert record.warnings[0].line == 1
    assert record.duration > 0
    assert await gathered(again, "abc") == said
    assert [(step.name, why) for step, why in explain(record)] == [
        ("[1/2] FROM x", "cached: nothing that it is made from changed"),
        ("[2/2] RUN make", "`a` changed"),
    ]


async def test_a_running_build_shows_how_far_it_is(records):
    build = await records.begin("abc")
    build.log.add(STEP)
    assert records.get("abc").status is Status.RUNNING
    assert records.get("abc").cached_steps == 1
    assert [record.ref for record in records.history(active_only=True)] == ["abc"]

    listening = asyncio.ensure_future(gathered(records, "abc"))
    await asyncio.sleep(0)
    build.log.add(RUN)
    await records.end(build, Status.ERROR, error=Failure(message="no"))
    assert await listening == [STEP, RUN]
    assert records.history(active_only=True) == []


async def test_a_build_the_daemon_died_in_is_marked_with_the_steps_it_had(records, state, tmp_path):
    build = await records.begin("abc")
    build.log.add(STEP)
    build.log.add(RUN)
    build._writer.flush()
    with open(records.log_path("abc"), "ab") as log:
        log.write(b'{"log":{"vertex":"sha256:2","stre')  # as it was cut off

    again = Records(state, tmp_path / "records")
    await again.recover()
    record = again.get("abc")
    assert record.status is Status.INTERRUPTED
    assert record.error is not None
    assert "the daemon ended" in record.error.message
    assert [step.name for step in record.steps] == [STEP.name, RUN.name]
    assert record.completed
    assert await gathered(again, "abc") == [STEP, RUN]
    third = Records(state, tmp_path / "records")
    await third.recover()
    assert third.get("abc") == record


async def test_a_log_without_a_record_goes_at_start(records, state, tmp_path):
    await records.end(await records.begin("kept"), Status.COMPLETED)
    (tmp_path / "records" / "lost").mkdir()
    await Records(state, tmp_path / "records").recover()
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["kept"]


async def test_a_record_that_cannot_be_read_is_dropped(records, state, tmp_path, caplog):
    from wherry.state import Put

    state.write(Put("builds", "bad", b"{"))
    again = Records(state, tmp_path / "records")
    await again.recover()
    assert "bad" in caplog.text
    assert not state.rows("builds")


async def test_passwords_in_urls_are_not_kept(records, state):
    await records.begin(
        "abc",
        attributes={"context": "https://me:secret@git.example/x.git"},
        exporters=[Exporter(type="image", attributes={"name": "https://u:secret@h/x"})],
    )
    assert b"secret" not in state.rows("builds")["abc"]
    assert b"git.example" in state.rows("builds")["abc"]


@pytest.mark.parametrize("ref", ["", "../x", "a/b", ".", "x" * 129, "a\n", "-x"])
async def test_a_ref_that_is_no_name_is_refused(records, ref):
    with pytest.raises(InvalidParameter, match="invalid build ref"):
        await records.begin(ref)


async def test_a_ref_in_use_is_refused_and_one_that_ended_is_used_again(records):
    first = await records.begin("abc")
    first.log.add(STEP)
    with pytest.raises(Conflict):
        await records.begin("abc")
    with pytest.raises(Conflict, match="cancel it first"):
        await records.remove("abc")
    await records.end(first, Status.COMPLETED)
    second = await records.begin("abc")
    await records.end(second, Status.COMPLETED)
    assert await gathered(records, "abc") == []


async def test_a_record_is_found_by_a_unique_beginning_of_its_ref(records):
    for ref in ("abcd1", "abcd2", "xyz12"):
        await records.end(await records.begin(ref), Status.COMPLETED)
    assert records.get("xyz").ref == "xyz12"
    with pytest.raises(InvalidParameter, match="several builds"):
        records.get("abcd")
    with pytest.raises(NotFound, match="no record found for ref 'nope'"):
        records.get("nope")


async def test_removing_takes_the_log_along(records, tmp_path):
    await records.end(await records.begin("abc"), Status.COMPLETED)
    await records.remove("abc")
    assert not (tmp_path / "records" / "abc").exists()
    with pytest.raises(NotFound):
        await records.remove("abc")


async def test_the_oldest_go_when_there_are_too_many_but_not_the_pinned(state, tmp_path):
    records = Records(state, tmp_path / "records", max_records=2)
    for ref in ("one", "two", "three", "four"):
        build = await records.begin(ref)
        if ref == "one":
            await records.pin("one", pinned=True)
        await records.end(build, Status.COMPLETED)
    assert [record.ref for record in records.history()] == ["four", "three", "one"]
    assert records.get("one").pinned
    await records.pin("one", pinned=False)
    await records.expire()
    assert [record.ref for record in records.history()] == ["four", "three"]


async def test_the_old_go_by_age(state, tmp_path):
    records = Records(state, tmp_path / "records", max_age=-1)
    await records.end(await records.begin("abc"), Status.COMPLETED)
    assert records.history() == []


async def test_a_watcher_hears_of_every_change(records):
    with records.watch() as ear:
        heard = aiter(ear)
        build = await records.begin("abc")
        await records.pin("abc", pinned=True)
        await records.end(build, Status.COMPLETED)
        await records.remove("abc")
        kinds = [(await anext(heard))[0] for _ in range(4)]
    assert kinds == [Kind.STARTED, Kind.CHANGED, Kind.ENDED, Kind.REMOVED]


async def test_a_full_disk_does_not_end_the_build(records, tmp_path):
    (tmp_path / "records").write_text("no directory")
    build = await records.begin("abc")
    build.log.add(STEP)
    record = await records.end(build, Status.COMPLETED)
    assert not record.log_complete
    assert record.steps


async def test_history_is_filtered_and_limited(records):
    for ref, status in (("one", Status.COMPLETED), ("two", Status.ERROR), ("three", Status.CANCELED)):
        await records.end(await records.begin(ref), status)
    assert [record.ref for record in records.history(["status=error", "status=canceled"])] == ["three", "two"]
    assert [record.ref for record in records.history(limit=1)] == ["three"]
    assert [record.ref for record in records.history(ref="one")] == ["one"]
