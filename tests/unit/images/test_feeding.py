"""The pipe between an upload and blocking code: nothing lost, nothing hanging, whoever stops first."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

import pytest

from harness.descriptors import descriptors
from wherry.images.feed import consume
from wherry.images.progress import Bar, bar, human_size


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def read_all(file: BinaryIO) -> bytes:
    return b"".join(iter(lambda: file.read(1 << 16), b""))


async def test_all_bytes_arrive_in_order():
    parts = [os.urandom(300_000) for _ in range(20)] + [b"", b"x"]
    assert await consume(chunks(*parts), read_all) == b"".join(parts)


async def test_a_reader_that_has_enough_ends_the_stream():
    before = descriptors()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    assert await consume(endless(), lambda file: file.read(10)) == bytes(10)
    assert not descriptors() - before


async def test_a_readers_error_is_raised():
    def fail(file: BinaryIO) -> None:
        raise KeyError("bad archive")

    with pytest.raises(KeyError, match="bad archive"):
        await consume(chunks(bytes(1 << 22)), fail)


async def test_the_senders_error_comes_before_what_the_reader_makes_of_it():
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionResetError("client went away")

    def read(file: BinaryIO) -> None:
        read_all(file)
        raise ValueError("truncated")

    with pytest.raises(ConnectionResetError):
        await consume(broken(), read)


async def test_cancelled_it_ends_although_the_sender_is_silent():
    before = descriptors()
    started = asyncio.Event()
    ended: list[bytes] = []

    async def silent() -> AsyncIterator[bytes]:
        yield b"begin"
        started.set()
        await asyncio.Event().wait()

    def read(file: BinaryIO) -> None:
        ended.append(read_all(file))

    task = asyncio.create_task(consume(silent(), read))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [b"begin"]
    assert not descriptors() - before


# --- progress lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1536, "1.536kB"), (123456789, "123.5MB"), (10**12, "1TB")],
)
def test_sizes_are_written_as_docker_does(size, text):
    assert human_size(size) == text


def test_bars_are_drawn_as_docker_does():
    assert bar(0, 100) == "[>" + " " * 50 + "]       0B/100B"
    assert bar(50, 100) == "[" + "=" * 25 + ">" + " " * 25 + "]      50B/100B"
    assert bar(100, 100) == "[" + "=" * 50 + ">]     100B/100B"
    assert bar(5, 0) == "      5B"


def test_a_bar_is_not_told_for_every_chunk_but_always_when_complete():
    told: list[dict[str, object]] = []
    line = Bar(told.append, "abc")
    for current in range(1, 1001):
        line.show("Downloading", current, 1000)
    line.show("Downloading", 1000, 1000)
    assert len(told) < 50
    assert told[-1]["progressDetail"] == {"current": 1000, "total": 1000}
    assert sum(message["progressDetail"] == {"current": 1000, "total": 1000} for message in told) == 1
