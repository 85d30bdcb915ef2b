"""Progress as lines of JSON: errors before and after the first line, slow clients, clients that go."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from wirekit import ask, connected, post, served

from wherry.api.call import Call
from wherry.api.progress import Report, follow
from wherry.api.router import Handler
from wherry.errors import NotFound


def route(work: Callable[[Report], Awaitable[object]]) -> dict[tuple[str, str], Handler]:
    async def handler(call: Call) -> web.StreamResponse:
        return await follow(call, work)

    return {("POST", "/pull"): handler}


def lines(body: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in body.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_an_error_before_the_first_line_is_an_http_error(path: Path):
    async def work(report: Report) -> None:
        await asyncio.sleep(0)
        raise NotFound("manifest for x:y not found")

    async with served(path, route(work)):
        status, _, body = await ask(path, post("/pull"))
        assert (status, json.loads(body)) == (404, {"message": "manifest for x:y not found"})


async def test_an_error_after_the_first_line_is_the_last_line(path: Path):
    async def work(report: Report) -> None:
        report({"status": "Pulling from library/x", "id": "y"})
        raise NotFound("unexpected EOF")

    async with served(path, route(work)):
        status, headers, body = await ask(path, post("/pull"))
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert lines(body) == [
            {"status": "Pulling from library/x", "id": "y"},
            {"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"},
        ]


async def test_each_line_is_sent_when_it_is_known(path: Path):
    seen = asyncio.Event()

    async def work(report: Report) -> None:
        report({"status": "first"})
        await seen.wait()
        report({"status": "second"})

    async with served(path, route(work)), connected(path) as client:
        await client.send(post("/pull"))
        await client.head()
        assert b"first" in await client.reader.readuntil(b"}")
        seen.set()
        assert b"second" in await client.reader.readuntil(b"0\r\n\r\n")


async def test_work_without_words_is_an_empty_answer(path: Path):
    async def work(report: Report) -> None:
        await asyncio.sleep(0)

    async with served(path, route(work)):
        assert (await ask(path, post("/pull")))[::2] == (200, b"")


async def test_numbers_about_one_layer_are_merged_and_nothing_else_is(path: Path):
    async def work(report: Report) -> None:
        for n in range(1000):
            report({"status": "Downloading", "id": "a", "progressDetail": {"current": n}})
            report({"status": "Downloading", "id": "b", "progressDetail": {"current": n}})
        report({"status": "Download complete", "id": "a", "progressDetail": {}})
        report({"status": "Downloading", "id": "b", "progressDetail": {"current": 1000}})
        report({"status": "Extracting", "id": "a", "progressDetail": {"current": 1}})

    async with served(path, route(work)):
        _, _, body = await ask(path, post("/pull"))
        assert [(line["status"], line["id"], line["progressDetail"]) for line in lines(body)] == [
            ("Downloading", "a", {"current": 999}),
            ("Downloading", "b", {"current": 1000}),
            ("Download complete", "a", {}),
            ("Extracting", "a", {"current": 1}),
        ]


async def test_a_client_that_does_not_read_does_not_hold_up_the_work(path: Path):
    done = asyncio.Event()

    async def work(report: Report) -> None:
        for n in range(20_000):
            report({"status": "Downloading", "id": "a", "progressDetail": {"current": n, "total": 20_000}})
            if n % 100 == 0:
                await asyncio.sleep(0)
        done.set()

    async with served(path, route(work)), connected(path) as client:
        client.writer.transport.pause_reading()
        await client.send(post("/pull"))
        await done.wait()


@pytest.mark.parametrize("half", [False, True])
async def test_the_work_is_cancelled_and_awaited_when_the_client_goes(path: Path, half: bool):
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def work(report: Report) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    async with served(path, route(work)):
        async with connected(path) as client:
            await client.send(post("/pull"))
            await begun.wait()
            if half:
                client.writer.write_eof()
                await cleaned.wait()
        async with asyncio.timeout(5):
            await cleaned.wait()
