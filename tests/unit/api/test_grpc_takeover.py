"""POST /grpc and /session leave HTTP/1.1; what is spoken then is another room's."""

import asyncio
from types import SimpleNamespace

import pytest
from wirekit import FACTS, Client, served

from wherry.api import grpc

UPGRADE = "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n"


class Echo(asyncio.Protocol):
    """Says hello, sends everything back, and notes how it ends."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(b"hello ")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc) -> None:
        self.lost.set()


class Taken:
    def __init__(self) -> None:
        self.protocol = Echo()
        self.over = asyncio.Event()

    async def run(self) -> None:
        try:
            await self.protocol.lost.wait()
        finally:
            self.over.set()


class FakeDoors:
    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.told: dict[str, str] = {}
        self.methods: list[str] = []

    def grpc(self) -> Taken:
        self.taken.append(Taken())
        return self.taken[-1]

    def session(self, headers, methods) -> Taken:
        self.told, self.methods = dict(headers), list(methods)
        return self.grpc()


def routes():
    return {("POST", "/grpc"): grpc.grpc, ("POST", "/session"): grpc.session}


@pytest.fixture
async def doors():
    return FakeDoors()


@pytest.fixture
async def client(tmp_path, doors):
    path = tmp_path / "s"
    async with served(path, routes(), services=SimpleNamespace(facts=FACTS, buildkit=lambda: doors)):
        reader, writer = await asyncio.open_unix_connection(path)
        yield Client(reader, writer)
        writer.close()


async def test_the_connection_is_handed_over_behind_the_head(client, doors):
    await client.send(f"POST /grpc HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode())
    status, headers = await client.head()
    assert (status, headers["upgrade"], headers["connection"]) == (101, "h2c", "Upgrade")
    assert "api-version" in headers
    assert await client.reader.readexactly(6) == b"hello "
    await client.send(b"PRI * HTTP/2.0\r\n\r\n")
    assert await client.reader.readexactly(18) == b"PRI * HTTP/2.0\r\n\r\n"
    client.writer.close()
    await asyncio.wait_for(doors.taken[0].over.wait(), 10)


async def test_what_is_sent_right_behind_the_request_is_not_lost(client):
    await client.send(f"POST /grpc HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\nearly".encode())
    assert (await client.head())[0] == 101
    assert await client.reader.readexactly(11) == b"hello early"


async def test_a_session_says_who_it_is_and_what_it_offers(client, doors):
    lines = "".join(
        f"X-Docker-Expose-Session-{name}: {value}\r\n"
        for name, value in [("Uuid", "u1"), ("Name", ""), ("Sharedkey", "d:n"), ("Grpc-Method", "/a/B")]
    )
    lines += "x-docker-expose-session-grpc-method: /c/D\r\n"
    await client.send(f"POST /session HTTP/1.1\r\nHost: x\r\n{UPGRADE}{lines}\r\n".encode())
    assert (await client.head())[0] == 101
    assert doors.told == {"uuid": "u1", "name": "", "sharedkey": "d:n"}
    assert doors.methods == ["/a/B", "/c/D"]


async def test_without_an_upgrade_the_answer_is_an_ordinary_error(client, doors):
    await client.send(b"POST /grpc HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    status, _, body = await client.answer()
    assert status == 400
    assert b"h2c" in body
    assert doors.taken == []


async def test_an_engine_that_does_not_build_says_so(tmp_path):
    path = tmp_path / "s"
    async with served(path, routes(), services=SimpleNamespace(facts=FACTS, buildkit=None)):
        reader, writer = await asyncio.open_unix_connection(path)
        client = Client(reader, writer)
        await client.send(f"POST /grpc HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode())
        assert (await client.answer())[0] == 501
        writer.close()


async def test_stopping_the_server_ends_what_was_handed_over(tmp_path, doors):
    path = tmp_path / "s"
    async with served(path, routes(), services=SimpleNamespace(facts=FACTS, buildkit=lambda: doors)):
        reader, writer = await asyncio.open_unix_connection(path)
        client = Client(reader, writer)
        await client.send(f"POST /grpc HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode())
        await client.head()
    assert doors.taken[0].over.is_set()
    writer.close()
