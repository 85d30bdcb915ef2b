"""Requests with a body, what a registry may ask of their sender, and tokens for several scopes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wherry.distribution.config import Endpoint, RegistryConfig
from wherry.distribution.endpoint import PATIENCE, Body, connect, retry_after
from wherry.distribution.errors import Refused
from wherry.distribution.repository import Repository, open_repository
from wherry.errors import Failed
from wherry.reference import parse
from wherry.spec.distribution import Auth

ANN = Auth(username="ann", password="secret")
DATA = b"0123456789" * 50_000


@dataclass
class Uploads:
    """Takes everything; a token is good for `token_uses` requests."""

    answers: list[web.Response] = field(default_factory=list)  # given instead, in order
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    scopes: list[list[str]] = field(default_factory=list)
    base: str = ""
    tokens: bool = False
    token_uses: int = 100
    _left: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=10 << 20)
        app.router.add_get("/token", self._token)
        app.router.add_route("*", "/{path:.*}", self._take)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        self.scopes.append(request.query.getall("scope", []))
        self._left = self.token_uses
        return web.json_response({"token": "t"})

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.tokens and request.path != "/elsewhere":
            challenge = {"WWW-Authenticate": f'Bearer realm="{self.base}/token",service="s"'}
            if request.headers.get("Authorization") != "Bearer t" or not self._left:
                return web.Response(status=401, headers=challenge)
            self._left -= 1
        if request.path == "/v2/":
            return web.Response()
        self.requests.append(f"{request.method} {request.path_qs}")
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return self.answers.pop(0) if self.answers else web.Response(status=201)


@asynccontextmanager
async def serving(uploads: Uploads) -> AsyncIterator[Uploads]:
    async with TestServer(uploads.app()) as server:
        uploads.base = str(server.make_url("")).rstrip("/")
        yield uploads


@pytest.fixture
async def uploads() -> AsyncIterator[Uploads]:
    async with serving(Uploads()) as found:
        yield found


@asynccontextmanager
async def pushing(uploads: Uploads) -> AsyncIterator[Repository]:
    reference = parse(f"{uploads.base.partition('://')[2]}/x:1")
    async with open_repository(RegistryConfig(), reference, ANN, push=True) as repository:
        yield repository


class Source:
    """A body that counts how often it is asked for."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.opened = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        self.opened += 1
        for start in range(0, len(self.data), 100_000):
            yield self.data[start : start + 100_000]

    @property
    def body(self) -> Body:
        return Body(len(self.data), self.chunks)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_body_is_sent_with_its_length(uploads, method):
    source = Source()
    async with pushing(uploads) as repository, repository.request(method, "blobs/uploads/", data=source.body):
        pass
    assert uploads.requests == [f"{method} /v2/x/blobs/uploads/"]
    assert uploads.bodies == [DATA]
    assert uploads.headers[0]["Content-Length"] == str(len(DATA))
    assert "Transfer-Encoding" not in uploads.headers[0]
    assert uploads.headers[0]["Content-Type"] == "application/octet-stream"


async def test_bytes_are_a_body_too_and_its_type_may_be_given(uploads):
    async with (
        pushing(uploads) as repository,
        repository.request("PUT", "manifests/1", headers={"Content-Type": "x/y"}, data=b"{}"),
        repository.request("POST", "blobs/uploads/", data=b""),
    ):
        pass
    assert uploads.bodies == [b"{}", b""]
    assert [headers["Content-Length"] for headers in uploads.headers] == ["2", "0"]
    assert uploads.headers[0]["Content-Type"] == "x/y"


async def test_authorization_is_sought_before_a_body_is_sent(uploads):
    uploads.tokens = True
    source = Source()
    async with pushing(uploads) as repository, repository.request("PUT", "blobs/uploads/1", data=source.body):
        pass
    assert source.opened == 1
    assert uploads.scopes == [["repository:x:pull,push"]]


async def test_a_token_that_expired_meanwhile_is_replaced_and_the_body_sent_again(uploads):
    uploads.tokens, uploads.token_uses = True, 1
    source = Source()
    async with pushing(uploads) as repository:
        for _ in range(2):
            async with repository.request("PUT", "blobs/uploads/1", data=source.body):
                pass
    assert source.opened == 3
    assert uploads.bodies == [DATA, DATA]


async def test_a_mount_asks_for_both_repositories_at_once(uploads):
    uploads.tokens = True
    async with (
        pushing(uploads) as repository,
        repository.request("POST", "blobs/uploads/?mount=d&from=other", scopes=["repository:other:pull"]),
    ):
        pass
    assert uploads.scopes == [["repository:x:pull,push", "repository:other:pull"]]


@pytest.mark.parametrize(
    "location", ["/v2/x/blobs/uploads/7?state=a%2Fb", "7?state=a%2Fb", "{base}/v2/x/blobs/uploads/7?state=a%2Fb"]
)
async def test_a_location_is_followed_as_the_registry_wrote_it(uploads, location):
    uploads.answers = [web.Response(status=202, headers={"Location": location.format(base=uploads.base)})]
    async with pushing(uploads) as repository:
        async with repository.request("POST", "blobs/uploads/") as response:
            url = repository.connection.location(response)
        async with repository.request("PUT", url, data=b"1"):
            pass
    assert uploads.requests[1] == "PUT /v2/x/blobs/uploads/7?state=a%2Fb"


async def test_another_host_gets_the_bytes_and_no_credentials(uploads):
    uploads.tokens = True
    async with serving(Uploads()) as other, pushing(uploads) as repository:
        async with repository.request("PUT", f"{other.base}/elsewhere", data=b"1"):
            pass
        assert other.bodies == [b"1"]
        assert "Authorization" not in other.headers[0]


async def test_an_answer_without_a_location_is_an_error(uploads):
    async with pushing(uploads) as repository, repository.request("POST", "blobs/uploads/") as response:
        with pytest.raises(Failed, match="sent no Location"):
            repository.connection.location(response)


async def test_a_temporary_redirect_takes_the_body_along(uploads):
    async with serving(Uploads()) as other:
        uploads.answers = [web.Response(status=307, headers={"Location": f"{other.base}/elsewhere"})]
        source = Source()
        async with pushing(uploads) as repository, repository.request("PUT", "blobs/uploads/1", data=source.body):
            pass
        assert other.bodies == [DATA]


async def test_a_redirect_that_would_change_the_request_is_not_followed(uploads):
    uploads.answers = [web.Response(status=302, headers={"Location": "/elsewhere"})]
    async with pushing(uploads) as repository:
        with pytest.raises(Refused, match="302 Found"):
            async with repository.request("PUT", "blobs/uploads/1", data=b"1"):
                pass


async def test_an_error_of_the_sender_is_told_and_not_the_networks(uploads):
    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise Failed("cannot read the layer")

    async with pushing(uploads) as repository:
        with pytest.raises(Failed, match=r"^cannot read the layer$"):
            async with repository.request("PUT", "blobs/uploads/1", data=Body(10, broken)):
                pass


async def test_an_answer_that_comes_before_all_was_sent_is_heard():
    """The server refuses after the head and reads no further; what does not fit into buffers is never sent."""
    asked = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            await writer.drain()
            await asked.wait()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint(base=f"http://127.0.0.1:{port}", host=f"127.0.0.1:{port}")
    source = Source(bytes(50 << 20))
    async with connect(RegistryConfig(), endpoint, ANN) as connection:
        with pytest.raises(Refused, match=r"413 .*: too large"):
            async with connection.request("PUT", "/v2/x/blobs/uploads/1", data=source.body):
                pass
    asked.set()
    server.close()
    await server.wait_closed()


async def test_a_refused_upload_is_told_in_full(uploads):
    errors = [{"code": "DENIED", "message": f"reason {number}: quota"} for number in (1, 2)]
    uploads.answers = [web.json_response({"errors": errors}, status=403)]
    async with pushing(uploads) as repository:
        with pytest.raises(Refused) as caught:
            async with repository.request("PUT", "manifests/1", data=b"{}"):
                pass
    assert caught.value.message == "errors:\ndenied: reason 1: quota\ndenied: reason 2: quota\n"


# --- too many requests ------------------------------------------------------------------------------------------------

LIMIT = "You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://x"


def busy(after: str) -> web.Response:
    body = {"errors": [{"code": "TOOMANYREQUESTS", "message": LIMIT}]}
    return web.json_response(body, status=429, headers={"Retry-After": after} if after else {})


async def test_a_registry_that_asks_for_a_short_pause_gets_it(uploads):
    uploads.answers = [busy("0"), busy("0")]
    source = Source()
    async with pushing(uploads) as repository, repository.request("PUT", "blobs/uploads/1", data=source.body):
        pass
    assert source.opened == 3


@pytest.mark.parametrize("after", ["", str(PATIENCE + 1), "soon", "99999999999999999999"])
async def test_one_that_asks_for_a_long_pause_or_none_is_told_of_in_full(uploads, after):
    uploads.answers = [busy(after)]
    async with pushing(uploads) as repository:
        with pytest.raises(Refused) as caught:
            async with repository.request("GET", "manifests/1"):
                pass
    assert caught.value.message == f"toomanyrequests: {LIMIT}"
    assert len(uploads.requests) == 1


async def test_one_that_is_never_content_is_given_up(uploads):
    uploads.answers = [busy("0") for _ in range(50)]
    async with pushing(uploads) as repository:
        with pytest.raises(Refused, match="pull rate limit"):
            async with repository.request("GET", "manifests/1"):
                pass
    assert len(uploads.requests) < 10


def test_retry_after_is_a_number_or_a_date():
    now = "Fri, 31 Dec 1999 23:59:30 GMT"
    assert retry_after("7", "") == 7
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now) == 29
    assert retry_after("Fri, 31 Dec 1999 23:00:00 GMT", now) == 0
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT", "") is None
    assert retry_after("-1", now) is None
    assert retry_after("", now) is None
