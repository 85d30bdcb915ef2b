"""Bodies of unknown length: what fails before the first byte, what fails later, clients that go; frames taken out."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from wirekit import ask, connected, connected_later, get, post, served

from wherry.api.call import Call
from wherry.api.hijack import Stream, hijack
from wherry.api.sessions import Unframer
from wherry.errors import Corrupt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def sending(*chunks: bytes | Exception):
    async def produce() -> AsyncIterator[bytes]:
        for chunk in chunks:
            await asyncio.sleep(0)
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def handler(call: Call) -> web.StreamResponse:
        return await call.send(produce(), "application/x-tar", headers={"X-Stat": "s"})

    return {("GET", "/tar"): handler}


async def test_a_body_is_sent_as_it_comes(path: Path):
    async with served(path, sending(b"one", b"two")):
        status, headers, body = await ask(path, get("/tar"))
        assert (status, body) == (200, b"onetwo")
        assert headers["content-type"] == "application/x-tar"
        assert headers["x-stat"] == "s"


async def test_an_empty_body_is_an_answer_too(path: Path):
    async with served(path, sending()):
        assert (await ask(path, get("/tar")))[::2] == (200, b"")


async def test_what_fails_before_the_first_byte_is_an_http_error(path: Path):
    async with served(path, sending(Corrupt("blob is damaged"))):
        status, _, body = await ask(path, get("/tar"))
        assert (status, json.loads(body)) == (500, {"message": "blob is damaged"})


async def test_a_body_that_breaks_off_is_never_taken_for_a_whole_one(path: Path):
    async with served(path, sending(b"half", Corrupt("blob is damaged"))), connected(path) as client:
        await client.send(get("/tar"))
        assert (await client.head())[0] == 200
        rest = await client.rest()
        assert b"half" in rest
        assert not rest.endswith(b"0\r\n\r\n")  # the end of a whole chunked body


async def test_a_producer_is_closed_when_its_client_goes(path: Path):
    closed = asyncio.Event()

    async def produce() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    async def handler(call: Call) -> web.StreamResponse:
        return await call.send(produce(), "application/x-tar")

    async with served(path, {("GET", "/tar"): handler}):
        async with connected(path) as client:
            await client.send(get("/tar"))
            await client.head()
        async with asyncio.timeout(5):
            await closed.wait()


async def test_stopping_ends_taken_over_connections_at_once(path: Path):
    class Endless:
        tty = True

        async def run(self, stream: Stream) -> None:
            await stream.write(b"so far")
            await asyncio.Event().wait()

    async def handler(call: Call) -> web.StreamResponse:
        return await hijack(call, Endless())

    async with connected_later(path) as connect, served(path, {("POST", "/attach"): handler}) as server:
        client = await connect()
        await client.send(post("/attach", b"", "Connection: Upgrade", "Upgrade: tcp"))
        await client.head()
        async with asyncio.timeout(5):
            await server.stop(grace=60)
        assert await client.rest() == b"so far"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=50))),
    st.lists(st.integers(1, 20), min_size=1),
)
def test_frames_cut_anywhere_are_taken_out(frames: list[tuple[int, bytes]], cuts: list[int]):
    data = b"".join(struct.pack(">BxxxI", stream, len(payload)) + payload for stream, payload in frames)
    unframer, out, turn = Unframer(), b"", 0
    while data:
        size = cuts[turn % len(cuts)]
        out += unframer.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert out == b"".join(payload for _, payload in frames)
