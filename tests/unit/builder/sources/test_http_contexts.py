"""Files from the web."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wherry.builder.graph import HttpSource
from wherry.builder.sources.http import HttpStore, file_name
from wherry.digest import Digest, of
from wherry.distribution.config import RegistryConfig
from wherry.errors import Failed, InvalidParameter, NotFound, Unauthorized, WherryError

MODIFIED = "Wed, 01 May 2024 10:00:00 GMT"
MODIFIED_NS = 1_714_557_600 * 10**9


@dataclass
class Site:
    content: bytes = b"content"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    conditional: bool = True  # it answers If-None-Match
    authorization: str = ""  # wanted
    log: list[str] = field(default_factory=list)
    base: str = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.log.append(request.method)
        if self.authorization and request.headers.get("Authorization") != self.authorization:
            return web.Response(status=401)
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": "/real/name.txt"})
        asked = request.headers.get("If-None-Match", "").split(", ")
        since = request.headers.get("If-Modified-Since")
        etag, modified = self.headers.get("ETag"), self.headers.get("Last-Modified")
        same = etag in asked if etag else (since is not None and since == modified)
        if self.conditional and same:
            return web.Response(status=304, headers=self.headers)
        if request.path == "/cut":
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(status=self.status, body=self.content, headers=self.headers)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.serve)
    server = TestServer(app)
    await server.start_server()
    made.base = str(server.make_url("")).rstrip("/")
    yield made
    await server.close()


@pytest.fixture
def store(tmp_path: Path) -> HttpStore:
    return HttpStore(tmp_path / "http", RegistryConfig())


async def read(store: HttpStore, source: HttpSource, **more: object) -> tuple[dict[str, bytes], str]:
    async with store.fetch(source, **more) as found:  # type: ignore[arg-type]
        return {path.name: path.read_bytes() for path in found.path.iterdir()}, found.identity


async def test_a_file_with_the_servers_time_and_nobody_elses_access(store: HttpStore, site: Site) -> None:
    site.headers = {"Last-Modified": MODIFIED}
    async with store.fetch(HttpSource(url=f"{site.base}/dir/file.txt?x=1")) as found:
        file = found.path / "file.txt"
        assert file.read_bytes() == b"content"
        assert (file.stat().st_mode & 0o7777, file.stat().st_mtime_ns) == (0o600, MODIFIED_NS)
        assert found.checksums == {"file.txt": of(b"content")}
        assert found.identity.startswith("http:")


async def test_a_file_whose_age_nobody_knows_is_old(store: HttpStore, site: Site) -> None:
    async with store.fetch(HttpSource(url=f"{site.base}/f", mode=0o644, filename="named")) as found:
        status = (found.path / "named").stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o644, 0)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"ETag": 'W/"1"'}, {"Last-Modified": MODIFIED}])
async def test_what_did_not_change_is_not_downloaded_again(
    store: HttpStore, site: Site, headers: dict[str, str], conditional: bool
) -> None:
    site.headers, site.conditional = headers, conditional
    first = await read(store, HttpSource(url=f"{site.base}/f"))
    assert await read(store, HttpSource(url=f"{site.base}/f")) == first
    assert site.log == ["GET", "HEAD"]


async def test_what_changed_is_downloaded_and_what_comes_back_is_still_there(store: HttpStore, site: Site) -> None:
    source = HttpSource(url=f"{site.base}/f")
    site.headers = {"ETag": '"1"'}
    first = await read(store, source)
    site.headers, site.content = {"ETag": '"2"'}, b"new"
    async with store.fetch(source) as found:
        assert (found.path / "f").read_bytes() == b"new"
        assert found.identity != first[1]
    site.headers, site.content = {"ETag": '"1"'}, b"content"
    assert await read(store, source) == first
    assert site.log == ["GET", "HEAD", "GET", "HEAD"]
    assert len(store.files.entries()) == 2


async def test_without_etag_and_time_it_is_always_downloaded(store: HttpStore, site: Site) -> None:
    first = await read(store, HttpSource(url=f"{site.base}/f"))
    assert await read(store, HttpSource(url=f"{site.base}/f")) == first
    assert site.log == ["GET", "GET"]
    assert len(store.files.entries()) == 1


async def test_a_checksum_that_is_held_asks_nobody(store: HttpStore, site: Site) -> None:
    source = HttpSource(url=f"{site.base}/f", checksum=of(b"content"))
    first = await read(store, source)
    site.status = 500
    assert await read(store, source) == first
    assert site.log == ["GET"]


async def test_another_checksum_is_an_error_that_names_both(store: HttpStore, site: Site) -> None:
    wanted = Digest("sha256:" + "0" * 64)
    with pytest.raises(InvalidParameter) as refused:
        await read(store, HttpSource(url=f"{site.base}/f", checksum=wanted))
    assert refused.value.message == f"digest mismatch for {site.base}/f: {of(b'content')} (expected: {wanted})"
    assert not list((store.files._root).iterdir())


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (403, Unauthorized), (500, Failed), (304, Failed)])
async def test_a_refusal_tells_its_status(store: HttpStore, site: Site, status: int, kind: type[WherryError]) -> None:
    site.status = status
    with pytest.raises(kind, match=f"invalid response status {status}: {site.base}/f"):
        await read(store, HttpSource(url=f"{site.base}/f"))


async def test_redirects_are_followed_and_the_name_is_of_what_was_asked(store: HttpStore, site: Site) -> None:
    files, _ = await read(store, HttpSource(url=f"{site.base}/moved"))
    assert files == {"moved": b"content"}


async def test_what_breaks_off_is_an_error_and_leaves_nothing(store: HttpStore, site: Site, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="unexpected EOF"):
        await read(store, HttpSource(url=f"{site.base}/cut"))
    assert not list((tmp_path / "http").iterdir())


async def test_a_file_that_is_too_large_is_refused(store: HttpStore, site: Site) -> None:
    with pytest.raises(InvalidParameter, match="too large: more than 3 bytes"):
        await read(store, HttpSource(url=f"{site.base}/f"), limit=3)


def secrets(**have: str) -> Callable[[str], Awaitable[bytes | None]]:
    async def secret(name: str) -> bytes | None:
        return have[name].encode() if name in have else None

    return secret


async def test_secrets_authorize(store: HttpStore, site: Site) -> None:
    site.authorization = "Bearer t0ken"
    host = site.base.partition("//")[2]
    url = f"{site.base}/f"
    with pytest.raises(Unauthorized, match="status 401"):
        await read(store, HttpSource(url=url))
    for source, secret in (
        (HttpSource(url=url, auth_header_secret="mine"), secrets(mine="Bearer t0ken\n")),
        (HttpSource(url=url), secrets(**{f"HTTP_AUTH_HEADER_{host}": "Bearer t0ken"})),
        (HttpSource(url=url), secrets(**{f"HTTP_AUTH_TOKEN_{host}": "t0ken"})),
    ):
        assert (await read(store, source, secret=secret))[0] == {"f": b"content"}
    with pytest.raises(NotFound, match="secret mine: not found"):
        await read(store, HttpSource(url=url, auth_header_secret="mine"))
    with pytest.raises(InvalidParameter, match="several lines"):
        await read(store, HttpSource(url=url, auth_header_secret="mine"), secret=secrets(mine="a\r\nHost: b"))


async def test_progress_is_told(store: HttpStore, site: Site) -> None:
    told: list[tuple[int, int]] = []
    await read(store, HttpSource(url=f"{site.base}/f"), transferred=lambda *each: told.append(each))
    assert told[-1] == (7, 7)


async def test_what_is_in_use_stays(store: HttpStore, site: Site) -> None:
    async with store.fetch(HttpSource(url=f"{site.base}/f")) as found:
        (entry,) = store.files.entries()
        assert (entry.size, entry.in_use, entry.description) == (7, True, f"http url {site.base}/f")
        assert await store.files.remove(entry.name) == 0
        assert (found.path / "f").exists()
    assert await store.files.remove(entry.name) == 7
    assert not found.path.exists()


async def test_downloads_of_the_same_at_once_end_up_as_one(store: HttpStore, site: Site) -> None:
    results = await asyncio.gather(*(read(store, HttpSource(url=f"{site.base}/f")) for _ in range(5)))
    assert len({identity for _, identity in results}) == 1
    assert len(store.files.entries()) == 1


async def test_what_an_earlier_boot_left_is_made_anew(store: HttpStore, site: Site, tmp_path: Path) -> None:
    site.headers = {"ETag": '"1"'}
    await read(store, HttpSource(url=f"{site.base}/f"))
    store.files._boot = "another"
    (entry,) = store.files.entries()
    (tmp_path / "http" / entry.name / "files" / "f").write_bytes(b"torn")
    assert (await read(store, HttpSource(url=f"{site.base}/f")))[0] == {"f": b"content"}


async def test_a_daemon_that_starts_drops_what_was_being_made(tmp_path: Path) -> None:
    (tmp_path / "http/.half/files").mkdir(parents=True)
    HttpStore(tmp_path / "http", RegistryConfig())
    assert not os.listdir(tmp_path / "http")


@pytest.mark.parametrize(
    ("url", "disposition", "name"),
    [
        ("http://h/a/b.tar", "", "b.tar"),
        ("http://h/a/b%20c", "", "b c"),
        ("http://h/", "", "download"),
        ("http://h", "", "download"),
        ("http://h/x/..", "", "download"),
        ("http://h/%2e%2e", "", "download"),
        ("http://h/x%2fy", "", "y"),
        ("http://h/x", 'attachment; filename="real.tgz"', "real.tgz"),
        ("http://h/x", "attachment; filename=../../etc/passwd", "passwd"),
        ("http://h/x", 'attachment; filename=".."', "x"),
        ("http://h/x", "attachment; filename*=UTF-8''na%C3%AFve", "naïve"),
        ("http://h/x", "inline", "x"),
        ("http://h/" + "n" * 300, "", "download"),
    ],
)
def test_names_of_files(url: str, disposition: str, name: str) -> None:
    assert file_name(url, {"Content-Disposition": disposition}) == name


def test_a_digest_is_of_the_bytes() -> None:
    assert of(b"content") == "sha256:" + hashlib.sha256(b"content").hexdigest()
