"""Reading logs: order, tail, times, damage, rotation and following."""

import asyncio
import gc
import os

import pytest

from harness.descriptors import descriptors
from wherry.logs import follow as following
from wherry.logs.json_file import JSONFileLog, timestamp
from wherry.logs.reader import Clock, LogReader, read

SECOND = 10**9


def write(path, lines, *, first=0, stream="stdout"):
    with open(path, "ab") as file:
        for number, line in enumerate(lines, first):
            when = timestamp((1000 + number) * SECOND)
            file.write(b'{"log":"%s\\n","stream":"%s","time":"%s"}\n' % (line, stream.encode(), when.encode()))


def texts(batches):
    return [entry.data for batch in batches for entry in batch]


def test_an_entry_has_all_its_parts(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"), attrs={"label": "x"})
    log.write("stderr", "grün\n".encode())
    log.close()
    ((entry,),) = list(read(str(tmp_path / "log")))
    assert (entry.stream, entry.data, dict(entry.attrs)) == ("stderr", "grün\n".encode(), {"label": "x"})
    assert entry.time > 1_700_000_000 * SECOND


def test_a_log_that_does_not_exist_is_empty(tmp_path):
    assert list(read(str(tmp_path / "log"))) == []


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:01Z", SECOND),
        ("1970-01-01T00:00:01.5Z", SECOND * 3 // 2),
        ("1970-01-01T00:00:01.123456789Z", SECOND + 123456789),
        ("1970-01-01T02:00:01.1+02:00", SECOND + 100_000_000),
        ("1969-12-31T22:30:01-01:30", SECOND),
    ],
)
def test_times_are_read_to_the_nanosecond(text, nanoseconds):
    assert Clock().parse(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "yesterday", "1970-01-01T00:00:01", "1970-01-01T00:00:01X"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError):
        Clock().parse(text)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 10, 11, 1000])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_tail_is_the_last_lines_across_files(tmp_path, count, rotated):
    lines = [b"line %d" % number for number in range(10)]
    if rotated:
        write(tmp_path / "log.2", lines[:3])
        write(tmp_path / "log.1", lines[3:7], first=3)
        write(tmp_path / "log", lines[7:], first=7)
    else:
        write(tmp_path / "log", lines)
    expected = [line + b"\n" for line in (lines[-count:] if count else [])]
    assert texts(read(str(tmp_path / "log"), tail=count)) == expected


def test_the_tail_of_a_large_log_is_found_across_blocks(tmp_path):
    lines = [b"x" * 3000 + b"%d" % number for number in range(200)]
    write(tmp_path / "log", lines)
    assert texts(read(str(tmp_path / "log"), tail=150)) == [line + b"\n" for line in lines[-150:]]


def test_times_limit_what_is_read_and_both_ends_belong_to_it(tmp_path):
    write(tmp_path / "log", [b"%d" % number for number in range(10)])
    found = texts(read(str(tmp_path / "log"), since=1003 * SECOND, until=1006 * SECOND))
    assert found == [b"3\n", b"4\n", b"5\n", b"6\n"]


def test_the_tail_is_taken_before_times_are_looked_at(tmp_path):
    write(tmp_path / "log", [b"%d" % number for number in range(10)])
    assert texts(read(str(tmp_path / "log"), tail=2, until=1008 * SECOND)) == [b"8\n"]


def test_damaged_lines_are_passed_over(tmp_path):
    path = tmp_path / "log"
    write(path, [b"one"])
    with open(path, "ab") as file:
        file.write(b"not json\n\0\0\0\0\n[]\n{}\n" + b'{"log":"no time\\n","stream":"stdout","time":""}\n')
        file.write(b"x" * (3 << 20) + b"\n")
    write(path, [b"two"], first=1)
    with open(path, "ab") as file:
        file.write(b'{"log":"being writ')
    assert texts(read(str(path))) == [b"one\n", b"two\n"]


def test_a_reader_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "log"
    write(path, [b"one"])
    reader = LogReader(str(path))
    assert [entry.data for entry in reader.read()] == [b"one\n"]
    assert reader.read() == []
    with open(path, "ab") as file:
        file.write(b'{"log":"two\\n","stream":"stdout",')
    assert reader.read() == []
    with open(path, "ab") as file:
        file.write(b'"time":"2026-01-01T00:00:00Z"}\n')
    assert [entry.data for entry in reader.read()] == [b"two\n"]
    reader.close()


@pytest.mark.parametrize("max_file", [2, 3, 50])
@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_reader_follows_through_rotations(tmp_path, max_file, every):
    """Nothing is missed as long as the reader is less than the kept files behind, and nothing comes twice."""
    log = JSONFileLog(str(tmp_path / "log"), max_size=200, max_file=max_file)
    reader = LogReader(str(tmp_path / "log"))
    found = []
    for number in range(60):
        log.write("stdout", b"%d\n" % number)
        if number % every == 0:
            while entries := reader.read():
                found += [int(entry.data) for entry in entries]
    while entries := reader.read():
        found += [int(entry.data) for entry in entries]
    reader.close()
    log.close()
    assert found == sorted(set(found))
    assert found[-1] == 59
    if every * 80 < 200 * (max_file - 1):
        assert found == list(range(60))


def test_a_reader_notices_a_log_that_begins_anew_in_place(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"), max_size=300, max_file=1)
    reader = LogReader(str(tmp_path / "log"))
    found = []
    for number in range(30):
        log.write("stdout", b"%d\n" % number)
        found += [int(entry.data) for entry in reader.read()]
    log.close()
    reader.close()
    assert found == list(range(30))


async def collect(batches):
    return [entry.data async for batch in batches for entry in batch]


async def test_following_yields_what_comes_and_stops_after_the_end_with_everything(tmp_path):
    path, ended = tmp_path / "log", asyncio.Event()
    log = JSONFileLog(str(path), max_size=500, max_file=5)
    log.write("stdout", b"before\n")
    seen = asyncio.Queue()

    async def consume():
        async for batch in following.follow(str(path), ended=ended):
            for entry in batch:
                seen.put_nowait(entry.data)

    task = asyncio.create_task(consume())
    async with asyncio.timeout(10):
        assert await seen.get() == b"before\n"
        for number in range(40):
            log.write("stdout", b"%d\n" % number)
            assert await seen.get() == b"%d\n" % number
        log.write("stdout", b"last\n")
        log.close()
        ended.set()
        await task
    assert [seen.get_nowait() for _ in range(seen.qsize())] == [b"last\n"]


async def test_following_an_ended_container_reads_and_stops(tmp_path):
    write(tmp_path / "log", [b"one", b"two"])
    ended = asyncio.Event()
    ended.set()
    async with asyncio.timeout(10):
        assert await collect(following.follow(str(tmp_path / "log"), ended=ended, tail=1)) == [b"two\n"]


async def test_following_waits_for_a_log_that_does_not_exist_yet(tmp_path):
    ended = asyncio.Event()
    task = asyncio.create_task(collect(following.follow(str(tmp_path / "log"), ended=ended)))
    await asyncio.sleep(0)
    write(tmp_path / "log", [b"one"])
    ended.set()
    async with asyncio.timeout(10):
        assert await task == [b"one\n"]


async def test_following_stops_when_until_has_passed(tmp_path):
    write(tmp_path / "log", [b"one"])
    async with asyncio.timeout(10):
        batches = following.follow(str(tmp_path / "log"), ended=asyncio.Event(), until=1000 * SECOND)
        assert await collect(batches) == [b"one\n"]


async def test_a_follower_that_leaves_holds_nothing(tmp_path):
    write(tmp_path / "log", [b"one"])
    before = descriptors()
    for _ in range(5):
        batches = following.follow(str(tmp_path / "log"), ended=asyncio.Event())
        async for _ in batches:
            break
        await batches.aclose()
    assert not descriptors() - before


@pytest.mark.parametrize("steps", range(4))
async def test_a_follower_that_leaves_while_the_log_is_opened_holds_nothing(tmp_path, steps):
    path = tmp_path / "log"
    write(path, [b"one"])
    gc.disable()  # what only the collector closes is a leak
    try:
        for make in (lambda: following.follow(str(path), ended=asyncio.Event()), lambda: following.read(str(path))):
            task = asyncio.ensure_future(anext(make()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert str(path) not in [os.readlink(f"/proc/self/fd/{fd}") for fd in open_files()]
    finally:
        gc.enable()


def open_files():
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


async def test_reading_without_following_ends(tmp_path):
    write(tmp_path / "log", [b"one", b"two"])
    assert await collect(following.read(str(tmp_path / "log"))) == [b"one\n", b"two\n"]
