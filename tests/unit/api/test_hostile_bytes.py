"""What no honest client sends: every time an answer or a closed connection, and a server that goes on."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from wirekit import ask, connected, get, post, served

from wherry.api.call import Call
from wherry.api.server import Server


async def ok(call: Call) -> web.StreamResponse:
    return call.reply({"body": len(await call.body())})


@asynccontextmanager
async def plain(path: Path, *, idle: float = 60) -> AsyncIterator[Server]:
    async with served(path, {("GET", "/ok"): ok, ("POST", "/ok"): ok}, idle=idle) as server:
        yield server
        status, _, _ = await ask(path, get("/ok"))
        assert status == 200  # still there


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 100 + b"\r\n\r\n",  # a TLS hello
        b"GET\r\n\r\n",
        b"GET /ok HTTP/9.9\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nHost d\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nHost: d\r\nX: a\x00b\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nHost: d\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /ok?x=" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nHost: d\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(1000)) + b"\r\n",
        b"POST /ok HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nHost: d\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /ok HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: gzip, chunkedd\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_a_400_and_the_end_of_the_connection(path: Path, request_bytes: bytes):
    async with plain(path), connected(path) as client:
        await client.send(request_bytes)
        status, headers, body = await client.answer()
        assert status == 400
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["message"]
        assert await client.rest() == b""


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n", b"-1\r\n", b"3\r\nabcXX", b"ffffffffffffffffff\r\n", b"\r\n\r\n"])
async def test_a_bad_chunk_ends_the_request_with_an_error(path: Path, chunk: bytes):
    async with plain(path), connected(path) as client:
        await client.send(b"POST /ok HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + chunk)
        assert (await client.answer())[0] == 400
        assert await client.rest() == b""


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n", b"3\r\nabcXX", b"ffffffffffffffffff\r\n"])
async def test_a_bad_chunk_in_the_middle_of_reading_is_the_clients_fault(path: Path, chunk: bytes):
    reading = asyncio.Event()

    async def read(call: Call) -> web.StreamResponse:
        reading.set()
        return call.reply(len(await call.body()))

    async with served(path, {("POST", "/read"): read}), connected(path) as client:
        await client.send(b"POST /read HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await reading.wait()
        await client.send(chunk)
        status, _, body = await client.answer()
        assert status == 400
        assert "body" in json.loads(body)["message"]
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_order(path: Path):
    async with plain(path), connected(path) as client:
        await client.send(b"".join(post("/ok", b"x" * n) for n in range(200)))
        for n in range(200):
            assert json.loads((await client.answer())[2]) == {"body": n}


async def test_requests_one_byte_at_a_time_are_understood(path: Path):
    async with plain(path), connected(path) as client:
        for byte in post("/ok", b"abc"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert json.loads((await client.answer())[2]) == {"body": 3}


@pytest.mark.parametrize("sent", [b"", b"GET /ok HT", b"GET /ok HTTP/1.1\r\nHost: d\r\nX: "])
async def test_a_client_that_never_completes_its_request_is_dropped(path: Path, sent: bytes):
    async with plain(path, idle=0.2) as server, connected(path) as client:
        await client.send(sent)
        assert await client.rest() == b""
        await asyncio.sleep(0)
        assert not server.connections


async def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(path: Path):
    gone = asyncio.Event()

    async def read(call: Call) -> web.StreamResponse:
        try:
            return call.reply(len(await call.body()))
        finally:
            gone.set()

    async with served(path, {("POST", "/read"): read}) as server:
        async with connected(path) as client:
            await client.send(b"POST /read HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\nabc")
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await gone.wait()
            while server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_client_that_only_half_closes_still_gets_all_its_answers(path: Path):
    async with plain(path), connected(path) as client:
        await client.send(post("/ok", b"a") + post("/ok", b"ab"))
        client.writer.write_eof()
        assert json.loads((await client.answer())[2]) == {"body": 1}
        assert json.loads((await client.answer())[2]) == {"body": 2}
        assert await client.rest() == b""


async def test_noise_never_stops_the_server(path: Path):
    source = random.Random(7)
    parts = [b"GET /ok HTTP/1.1\r\n", b"Host: d\r\n", b"\r\n", b"Upgrade: tcp\r\n", b"Content-Length: 5\r\n", b"abc"]
    parts += [b"POST /ok HTTP/1.1\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: Upgrade\r\n", b"\xff\x00\n"]
    async with plain(path):
        for _ in range(200):
            async with connected(path) as client:
                await client.send(b"".join(source.choices(parts, k=source.randint(1, 12))))
                client.writer.write_eof()
                await client.rest()


async def test_names_that_are_no_text_are_refused_not_swallowed(path: Path):
    async with plain(path):
        status, _, body = await ask(path, b"GET /nowhere/\xff\xfe%ff HTTP/1.1\r\nHost: d\r\n\r\n")
        assert status in (400, 404)
        assert json.loads(body)["message"]
