"""What a URL names, as a stream."""

import base64
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wherry.distribution.config import HostConfig, RegistryConfig
from wherry.distribution.download import complete, open_download
from wherry.distribution.proxy import Proxies
from wherry.errors import Failed, Forbidden, InvalidParameter, NotFound, Unauthorized, WherryError

CONTENT = bytes(range(256)) * 1000


async def file(request: web.Request) -> web.StreamResponse:
    return web.Response(body=CONTENT)


async def unknown_length(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for start in range(0, len(CONTENT), 50_000):
        await response.write(CONTENT[start : start + 50_000])
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(CONTENT))})
    await response.prepare(request)
    await response.write(CONTENT[:1000])
    assert request.transport is not None
    request.transport.close()
    return response


async def status(request: web.Request) -> web.StreamResponse:
    return web.Response(status=int(request.match_info["status"]), text="  the server's words \n")


async def redirect(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": request.query["to"]})


async def guarded(request: web.Request) -> web.StreamResponse:
    wanted = "Basic " + base64.b64encode(b"ann:secret").decode()
    return web.Response(body=CONTENT if request.headers.get("Authorization") == wanted else b"")


def application() -> web.Application:
    made = web.Application()
    made.router.add_get("/file.tar", file)
    made.router.add_get("/unknown-length", unknown_length)
    made.router.add_get("/cut", cut)
    made.router.add_get("/status/{status}", status)
    made.router.add_get("/redirect", redirect)
    made.router.add_get("/guarded", guarded)
    return made


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async with TestServer(application(), host="127.0.0.1") as made:
        yield made


async def fetch(url: str, config: RegistryConfig | None = None) -> tuple[bytes, int | None]:
    async with open_download(config or RegistryConfig(), complete(url)) as download:
        return b"".join([chunk async for chunk in download.chunks]), download.size


async def test_a_file_comes_whole_and_its_size_is_told(server: TestServer):
    assert await fetch(str(server.make_url("/file.tar#part"))) == (CONTENT, len(CONTENT))
    assert await fetch(f"{server.host}:{server.port}/file.tar") == (CONTENT, len(CONTENT)), "http:// may be left out"


async def test_a_file_of_unknown_length_comes_whole(server: TestServer):
    assert await fetch(str(server.make_url("/unknown-length"))) == (CONTENT, None)


async def test_redirects_are_followed_to_their_end(server: TestServer):
    inner = server.make_url("/redirect").with_query(to="/file.tar")
    found, _ = await fetch(str(server.make_url("/redirect").with_query(to=str(inner))))
    assert found == CONTENT
    with pytest.raises(NotFound, match=r"failed to GET .* with status 404 Not Found"):
        await fetch(str(server.make_url("/redirect?to=/nothing")))


async def test_redirects_in_a_circle_end():
    async def around(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/"})

    app = web.Application()
    app.router.add_get("/", around)
    async with TestServer(app, host="127.0.0.1") as server:
        with pytest.raises(Failed, match="stopped after 10 redirects"):
            await fetch(str(server.make_url("/")))


async def test_a_redirect_to_another_scheme_is_refused(server: TestServer):
    with pytest.raises(InvalidParameter, match='unsupported protocol scheme "file"'):
        await fetch(str(server.make_url("/redirect").with_query(to="file://localhost/etc/passwd")))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (400, InvalidParameter, "400 Bad Request"),
        (401, Unauthorized, "401 Unauthorized"),
        (403, Forbidden, "403 Forbidden"),
        (404, NotFound, "404 Not Found"),
        (410, InvalidParameter, "410 Gone"),
        (500, Failed, "500 Internal Server Error"),
        (599, Failed, "599"),
    ],
)
async def test_a_refusal_is_passed_on_in_full(server: TestServer, code, kind, words):
    url = str(server.make_url(f"/status/{code}"))
    with pytest.raises(WherryError) as caught:
        await fetch(url)
    assert type(caught.value) is kind
    assert caught.value.message == f"failed to GET {url} with status {words}: the server's words"


async def test_an_answer_without_a_file_is_no_file(server: TestServer):
    with pytest.raises(Failed, match="answered 206 Partial Content instead of a file"):
        await fetch(str(server.make_url("/status/206")))


async def test_a_connection_that_breaks_off_is_an_error(server: TestServer):
    with pytest.raises(Failed, match="unexpected EOF"):
        await fetch(str(server.make_url("/cut")))


async def test_a_server_that_is_not_there_is_an_error(server: TestServer):
    url = str(server.make_url("/file.tar"))
    await server.close()
    with pytest.raises(Failed, match="connection refused"):
        await fetch(url)


async def test_user_and_password_of_the_url_are_sent_and_never_shown(server: TestServer):
    url = str(server.make_url("/guarded").with_user("ann").with_password("secret"))
    assert (await fetch(url))[0] == CONTENT
    with pytest.raises(NotFound) as caught:
        await fetch(url.replace("/guarded", "/nothing"))
    assert "secret" not in caught.value.message
    assert "xxxxx:xxxxx@127.0.0.1" in caught.value.message


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "http://", "http:///x", "http://h:x/", "://x"])
def test_what_cannot_be_fetched_is_refused_at_once(url):
    with pytest.raises(InvalidParameter):
        complete(url)


async def test_a_proxy_is_asked_where_one_is_configured(server: TestServer):
    config = RegistryConfig(proxies=Proxies(http=str(server.make_url("/"))))
    found, _ = await fetch("http://archives.test/file.tar", config)
    assert found == CONTENT


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """`crt` and `key` of 127.0.0.1, signed by nobody."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    name = ("-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "crt")
    subprocess.run(["openssl", "req", "-x509", *curve, *name], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


async def test_certificates_are_those_of_the_registries_configuration(certificate: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    server = TestServer(application(), host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    try:
        url = f"https://127.0.0.1:{server.port}/file.tar"
        with pytest.raises(Failed, match="certificate signed by unknown authority"):
            await fetch(url)
        trusting = RegistryConfig(hosts={f"127.0.0.1:{server.port}": HostConfig(ca=certificate / "crt")})
        assert (await fetch(url, trusting))[0] == CONTENT
    finally:
        await server.close()
