"""From bytes to handlers and back: versions, routes, headers, errors."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from wirekit import ask, connected, connected_later, get, post, served

from wherry import errors
from wherry.api.call import Call
from wherry.spec.engine import ExecStart


async def hello(call: Call) -> web.StreamResponse:
    return call.reply({"version": list(call.version), **call.path, "flag": call.flag("flag"), "n": call.number("n")})


def refuse(error: Exception) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    async def handler(call: Call) -> web.StreamResponse:
        raise error

    return handler


async def read_document(call: Call) -> web.StreamResponse:
    return call.reply({"tty": (await call.document(ExecStart)).tty})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_every_answer_says_who_gives_it(path: Path):
    async with served(path, {("GET", "/x"): hello}):
        for target in ("/x", "/nowhere"):
            _, headers, _ = await ask(path, get(target))
            assert headers["api-version"] == "1.51"
            assert headers["ostype"] == "linux"
            assert headers["docker-experimental"] == "false"
            assert headers["server"] == "Docker/9.9 (linux)"
            assert headers["content-type"] == "application/json"  # to the letter: the CLI compares


async def test_a_path_without_version_means_the_newest_one(path: Path):
    async with served(path, {("GET", "/x"): hello}):
        assert json.loads((await ask(path, get("/x")))[2])["version"] == [1, 51]
        assert json.loads((await ask(path, get("/v1.24/x")))[2])["version"] == [1, 24]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (
            "1.10",
            "client version 1.10 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.51"),
        ("2", "client version 2 is too new. Maximum supported API version is 1.51"),
    ],
)
async def test_versions_we_do_not_speak_are_refused_in_dockers_words(path: Path, version: str, words: str):
    async with served(path, {("GET", "/x"): hello}):
        status, _, body = await ask(path, get(f"/v{version}/x"))
        assert status == 400
        assert json.loads(body) == {"message": words}


async def test_what_podman_and_skopeo_ask_an_engine_for_is_answered_by_the_version_they_speak(path: Path):
    async with served(path, {("GET", "/images/get"): hello, ("GET", "/images/json"): hello}):
        assert json.loads((await ask(path, get("/v1.22/images/get?names=x")))[2])["version"] == [1, 22]
        for target in ("/v1.21/images/get?names=x", "/v1.22/images/json"):
            assert (await ask(path, get(target)))[0] == 400


@pytest.mark.parametrize("target", ["/nothing", "/v1.40/nothing", "/vabc/x", "//x", "/x/", "/"])
async def test_an_unknown_path_is_page_not_found(path: Path, target: str):
    async with served(path, {("GET", "/x"): hello}):
        status, _, body = await ask(path, get(target))
        assert status == 404
        assert json.loads(body) == {"message": "page not found"}


async def test_a_wrong_method_is_page_not_found_as_in_docker(path: Path):
    async with served(path, {("GET", "/x"): hello}):
        status, _, body = await ask(path, post("/x"))
        assert (status, json.loads(body)) == (404, {"message": "page not found"})


async def test_names_may_hold_slashes_and_be_encoded(path: Path):
    async with served(path, {("GET", "/images/{name}/json"): hello, ("GET", "/images/{name}/{verb}"): hello}):
        _, _, body = await ask(path, get("/v1.41/images/docker.io%2Flibrary%2Fdebian:12/json"))
        assert json.loads(body)["name"] == "docker.io/library/debian:12"
        _, _, body = await ask(path, get("/images/a/b/history"))
        assert json.loads(body)["name"] == "a/b"


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, True) for text in ("1", "true", "yes", "x")]
    + [(text, False) for text in ("0", "no", "False", "none", "", "%20")],
)
async def test_booleans_are_read_as_docker_reads_them(path: Path, text: str, value: bool):
    async with served(path, {("GET", "/x"): hello}):
        assert json.loads((await ask(path, get(f"/x?flag={text}")))[2])["flag"] is value


@pytest.mark.parametrize("text", ["abc", "1.5", "0x10", "%D9%A1", "1e3", "9" * 30])
async def test_a_number_that_is_none_is_refused(path: Path, text: str):
    async with served(path, {("GET", "/x"): hello}):
        status, _, body = await ask(path, get(f"/x?n={text}"))
        assert status == 400
        assert json.loads(body)["message"].startswith("strconv.Atoi: parsing")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidParameter("why"), 400),
        (errors.Unauthorized("why"), 401),
        (errors.Forbidden("why"), 403),
        (errors.NotFound("why"), 404),
        (errors.Conflict("why"), 409),
        (errors.NotSupported("why"), 501),
        (errors.Unavailable("why"), 503),
        (errors.Failed("why"), 500),
        (errors.Corrupt("why"), 500),
    ],
)
async def test_each_kind_of_error_has_its_status(path: Path, error: Exception, status: int):
    async with served(path, {("GET", "/x"): refuse(error)}):
        got, headers, body = await ask(path, get("/x"))
        assert (got, json.loads(body)) == (status, {"message": "why"})
        assert headers["content-type"] == "application/json"


async def test_not_modified_has_no_body(path: Path):
    async with served(path, {("POST", "/x"): refuse(errors.NotModified("runs already"))}), connected(path) as client:
        for _ in range(2):  # the second one would meet a body of the first
            await client.send(post("/x"))
            status, headers = await client.head()
            assert status == 304
            assert "content-length" not in headers


async def test_an_unforeseen_error_is_logged_and_the_daemon_goes_on(path: Path, caplog: pytest.LogCaptureFixture):
    async with served(path, {("GET", "/x"): refuse(KeyError("oops")), ("GET", "/y"): hello}), connected(path) as client:
        await client.send(get("/x"))
        status, _, body = await client.answer()
        assert status == 500
        assert json.loads(body) == {"message": "internal error: KeyError: 'oops'"}
        assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
        await client.send(get("/y"))
        assert (await client.answer())[0] == 200


async def test_a_connection_error_of_a_peer_is_not_taken_for_the_clients_going_away(path: Path):
    async with served(path, {("GET", "/x"): refuse(ConnectionRefusedError("the shim"))}):
        status, _, body = await ask(path, get("/x"))
        assert status == 500
        assert "the shim" in json.loads(body)["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", None, 200, None),
        (b"", "application/json", 200, None),
        (b'{"Tty":true}', "application/json", 200, None),
        (b'{"Tty":true}', "application/json; charset=utf-8", 200, None),
        (b'{"Tty":null,"Other":[1]}', "application/json", 200, None),
        (b"null", "application/json", 200, None),
        (b"{}", None, 400, "malformed Content-Type header (): mime: no media type"),
        (b"{}", "text/plain", 400, "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"", "text/plain", 400, "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b'{"Tty":', "application/json", 400, "invalid JSON: "),
        (b'{"Tty":"yes"}', "application/json", 400, "invalid JSON: "),
        (b"[]", "application/json", 400, "invalid JSON: "),
        (b"\xff\xfe", "application/json", 400, "invalid JSON: "),
        (b"[" * 100_000, "application/json", 400, "invalid JSON: "),
    ],
)
async def test_bodies_are_read_as_docker_reads_them(path: Path, body: bytes, kind: str | None, status: int, words: str):
    async with served(path, {("POST", "/x"): read_document}):
        got, _, answer = await ask(path, post("/x", body, *([f"Content-Type: {kind}"] if kind else [])))
        assert got == status, answer
        if words:
            assert json.loads(answer)["message"].startswith(words)


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(path: Path):
    async with served(path, {("POST", "/x"): read_document}), connected(path) as client:
        await client.send(b"POST /x HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n")
        await client.send(b"Content-Length: 99999999999\r\n\r\n{")
        status, _, body = await client.answer()
        assert (status, json.loads(body)) == (400, {"message": "http: request body too large"})


async def test_a_chunked_body_beyond_the_limit_is_refused_on_the_way(path: Path):
    async with served(path, {("POST", "/x"): read_document}), connected(path) as client:
        await client.send(b"POST /x HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n")
        await client.send(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"

        async def flood() -> None:
            while True:
                await client.send(chunk)

        flooding = asyncio.ensure_future(flood())
        status, _, body = await client.answer()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        assert (status, json.loads(body)) == (400, {"message": "http: request body too large"})


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(path: Path):
    async with served(path, {("POST", "/x"): read_document}), connected(path) as client:
        head = "POST /x HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 12\r\n"
        await client.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b'{"Tty":true}')
        assert (await client.answer())[2] == b'{"tty":true}\n'


async def test_http_1_0_is_answered_and_closed(path: Path):
    async with served(path, {("GET", "/x"): hello}), connected(path) as client:
        await client.send(b"GET /x HTTP/1.0\r\n\r\n")
        status, _, body = await client.answer()
        assert status == 200
        assert json.loads(body)["version"] == [1, 51]
        assert await client.rest() == b""


async def test_an_empty_host_header_is_fine(path: Path):
    async with served(path, {("GET", "/x"): hello}):
        assert (await ask(path, b"GET /x HTTP/1.1\r\nHost:\r\n\r\n"))[0] == 200


async def test_stopping_lets_running_requests_finish(path: Path):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return call.reply("done")

    async with connected_later(path) as connect, served(path, {("GET", "/x"): slow}) as server:
        client = await connect()
        await client.send(get("/x"))
        await begun.wait()
        stopping = asyncio.ensure_future(server.stop(grace=10))
        go_on.set()
        assert (await client.answer())[2] == b'"done"\n'
        await stopping


async def test_stopping_ends_endless_answers_at_once(path: Path):
    async def endless(call: Call) -> web.StreamResponse:
        await call.stream("application/json")
        await asyncio.Event().wait()
        raise AssertionError

    async with connected_later(path) as connect, served(path, {("GET", "/x"): endless}) as server:
        client = await connect()
        await client.send(get("/x"))
        await client.head()
        async with asyncio.timeout(5):
            await server.stop(grace=60)
        assert await client.rest() == b""
