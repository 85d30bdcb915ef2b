"""Taking over a connection: heads, half-close in each direction, back-pressure, the ways a client can go."""

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from wirekit import Client, connected, get, post, served

from wherry.api.call import Call
from wherry.api.hijack import Session, Stream, hijack
from wherry.api.router import Handler
from wherry.errors import Conflict

UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")


class Talk:
    """A session made of the test's own conversation."""

    def __init__(self, *, tty: bool = True) -> None:
        self.tty = tty
        self.ended = asyncio.Event()
        self.cancelled = False

    async def run(self, stream: Stream) -> None:
        try:
            await self.talk(stream)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()

    async def talk(self, stream: Stream) -> None:
        """Repeat what the client says until it is done, then say goodbye."""
        while data := await stream.read():
            await stream.write(data)
        await stream.write(b"bye")


class Deaf(Talk):
    """Never reads, and has nothing to say."""

    async def talk(self, stream: Stream) -> None:
        await asyncio.Event().wait()


def attach(session: Session) -> dict[tuple[str, str], Handler]:
    async def handler(call: Call) -> web.StreamResponse:
        await call.json()
        return await hijack(call, session)

    return {("POST", "/attach"): handler, ("GET", "/ok"): lambda call: _ok(call)}


async def _ok(call: Call) -> web.StreamResponse:
    return call.reply("ok")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def raw_head(client: Client) -> list[str]:
    return (await client.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")


@pytest.mark.parametrize(
    ("version", "tty", "kind"),
    [
        ("1.51", False, "multiplexed"),
        ("1.42", False, "multiplexed"),
        ("1.41", False, "raw"),
        ("1.51", True, "raw"),
        ("1.41", True, "raw"),
    ],
)
async def test_the_head_names_what_follows(path: Path, version: str, tty: bool, kind: str):
    async with served(path, attach(Talk(tty=tty))), connected(path) as client:
        await client.send(post(f"/v{version}/attach", b"", *UPGRADE))
        first, *lines = await raw_head(client)
        assert first == "HTTP/1.1 101 UPGRADED"
        assert f"Content-Type: application/vnd.docker.{kind}-stream" in lines
        assert "Connection: Upgrade" in lines
        assert "Upgrade: tcp" in lines
        assert not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines)


async def test_without_upgrade_the_answer_is_a_body_that_ends_with_the_connection(path: Path):
    async with served(path, attach(Talk(tty=False))), connected(path) as client:
        await client.send(post("/attach"))
        first, *lines = await raw_head(client)
        assert first == "HTTP/1.1 200 OK"
        assert "Content-Type: application/vnd.docker.raw-stream" in lines
        await client.send(b"hi")
        client.writer.write_eof()
        assert await client.rest() == b"hibye"


async def test_the_client_may_end_its_sending_and_still_hear_the_rest(path: Path):
    async with served(path, attach(Talk())), connected(path) as client:
        await client.send(post("/attach", b"", *UPGRADE))
        await client.head()
        await client.send(b"a" * 300_000)
        client.writer.write_eof()
        assert await client.rest() == b"a" * 300_000 + b"bye"


async def test_the_engine_may_end_its_sending_and_still_hear_the_rest(path: Path):
    heard: list[bytes] = []

    class Backwards(Talk):
        async def talk(self, stream: Stream) -> None:
            await stream.write(b"that is all")
            stream.write_eof()
            while data := await stream.read():
                heard.append(data)

    session = Backwards()
    async with served(path, attach(session)), connected(path) as client:
        await client.send(post("/attach", b"", *UPGRADE))
        await client.head()
        assert await client.rest() == b"that is all"
        await client.send(b"but listen")
        client.writer.write_eof()
        await session.ended.wait()
        assert b"".join(heard) == b"but listen"


@pytest.mark.parametrize("body", [b"", b'{"Detach":false}'])
async def test_bytes_sent_right_behind_the_request_are_heard(path: Path, body: bytes):
    async with served(path, attach(Talk())), connected(path) as client:
        request = post("/attach", body, *UPGRADE, "Content-Type: application/json")
        await client.send(request + b"early ")
        await client.send(b"bird")
        await client.head()
        client.writer.write_eof()
        assert await client.rest() == b"early birdbye"


async def test_a_request_whose_body_comes_later_keeps_body_and_stream_apart(path: Path):
    async with served(path, attach(Talk())), connected(path) as client:
        request = post("/attach", b'{"Detach":false}', *UPGRADE, "Content-Type: application/json")
        head_end = request.index(b"{")
        await client.send(request[:head_end])
        await asyncio.sleep(0)
        await client.send(request[head_end : head_end + 5])
        await asyncio.sleep(0)
        await client.send(request[head_end + 5 :] + b"GET /ok HTTP/1.1\r\n\r\n")
        await client.head()
        client.writer.write_eof()
        assert await client.rest() == b"GET /ok HTTP/1.1\r\n\r\nbye"


async def test_a_client_that_ends_its_sending_with_the_request_gets_its_output(path: Path):
    async with served(path, attach(Talk())), connected(path) as client:
        await client.send(post("/attach", b"", *UPGRADE))
        client.writer.write_eof()
        await client.head()
        assert await client.rest() == b"bye"


async def test_a_refusal_is_an_ordinary_answer_and_the_connection_lives_on(path: Path):
    async def refuse(call: Call) -> web.StreamResponse:
        raise Conflict("Container x is not running")

    async with served(path, {**attach(Talk()), ("POST", "/refuse"): refuse}), connected(path) as client:
        await client.send(post("/refuse", b"", *UPGRADE))
        status, _, body = await client.answer()
        assert (status, json.loads(body)) == (409, {"message": "Container x is not running"})
        await client.send(get("/ok"))
        assert (await client.answer())[0] == 200


async def test_bytes_behind_a_refused_upgrade_are_never_taken_for_a_request(path: Path):
    async def refuse(call: Call) -> web.StreamResponse:
        raise Conflict("no")

    async with served(path, {**attach(Talk()), ("POST", "/refuse"): refuse}), connected(path) as client:
        await client.send(post("/refuse", b"", *UPGRADE) + get("/ok"))
        assert (await client.answer())[0] == 409
        assert await client.rest() == b""


async def test_a_session_ends_when_its_client_vanishes(path: Path):
    session = Deaf()
    async with served(path, attach(session)):
        async with connected(path) as client:
            await client.send(post("/attach", b"", *UPGRADE))
            await client.head()
            client.writer.write_eof()  # as the CLI does at once without -i
            await asyncio.sleep(0.05)
            assert not session.ended.is_set()
        async with asyncio.timeout(5):
            await session.ended.wait()
        assert session.cancelled


async def test_a_client_that_does_not_read_holds_up_its_session_only(path: Path):
    written = 0

    class Flood(Talk):
        async def talk(self, stream: Stream) -> None:
            nonlocal written
            while True:
                await stream.write(b"x" * 65536)
                written += 65536

    session = Flood()
    async with served(path, attach(session)):
        async with connected(path) as lazy:
            await lazy.send(post("/attach", b"", *UPGRADE))
            await lazy.head()
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.05)
            assert 0 < written < 8 << 20
            async with connected(path) as other:
                await other.send(get("/ok"))
                assert (await other.answer())[0] == 200
        async with asyncio.timeout(5):
            await session.ended.wait()


async def test_a_session_that_does_not_read_holds_up_its_client_only(path: Path):
    async with served(path, attach(Deaf())), connected(path) as client:
        await client.send(post("/attach", b"", *UPGRADE))
        await client.head()
        unsent = client.writer.transport.get_write_buffer_size
        sent = 0
        while not unsent():
            client.writer.write(b"x" * 65536)
            sent += 65536
            await asyncio.sleep(0.01)  # the server had its turn: what is left, it does not want
        assert 0 < sent < 8 << 20
        client.writer.transport.abort()


async def test_an_error_within_a_session_ends_the_connection_and_nothing_else(path: Path):
    class Broken(Talk):
        async def talk(self, stream: Stream) -> None:
            await stream.write(b"so far")
            raise RuntimeError("broken")

    async with served(path, attach(Broken())):
        async with connected(path) as client:
            await client.send(post("/attach", b"", *UPGRADE))
            await client.head()
            assert await client.rest() == b"so far"
        async with connected(path) as client:
            await client.send(get("/ok"))
            assert (await client.answer())[0] == 200
