"""Pulling documents and blobs from a registry that behaves, and from one that does not."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from imagekit.making import digest, encode, make
from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import Endpoint, RegistryConfig
from wherry.distribution.endpoint import connect
from wherry.distribution.errors import Refused, Unreachable, translate
from wherry.distribution.fetch import ATTEMPTS, fetch
from wherry.distribution.source import open_source
from wherry.errors import Corrupt, Failed, NotFound, WherryError
from wherry.reference import Reference, parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import MAX_DOCUMENT, OCI_MANIFEST, Descriptor, Raw

ANN = Auth(username="ann", password="secret")
DATA = bytes(range(256)) * 5000


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


def named(registry: FakeRegistry, text: str = "x:1") -> Reference:
    return parse(f"{registry.host}/{text}")


async def manifest(registry: FakeRegistry, text: str = "x:1", auth: Auth = ANONYMOUS) -> Raw:
    reference = named(registry, text)
    try:
        async with open_source(RegistryConfig(), reference, auth) as source:
            return await source.manifest(reference.digest or reference.tag or "latest")
    except WherryError as exc:
        raise translate(exc, reference) from exc


class Memory:
    """A sink."""

    def __init__(self) -> None:
        self.data = b""
        self.restarts = 0

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes) -> None:
        self.data += data

    async def restart(self) -> None:
        self.data = b""
        self.restarts += 1


async def download(registry: FakeRegistry, data: bytes = DATA, *, size: int | None = None, auth: Auth = ANONYMOUS):
    """Fetch a blob without waiting between attempts: (sink, seconds that would have been waited)."""
    sink, pauses = Memory(), []

    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    descriptor = Descriptor(digest=digest(data), size=len(data) if size is None else size)  # type: ignore[arg-type]
    async with open_source(RegistryConfig(), named(registry), auth) as source:
        await fetch(source, descriptor, sink, received=lambda _: None, pausing=pauses.append, sleep=no_sleep)
    return sink, pauses


# --- manifests --------------------------------------------------------------------------------------------------------


async def test_a_manifest_is_got_by_tag_and_by_digest_as_the_very_bytes(registry):
    made = make([{"a": b"1"}])
    registry.add("x", "1", made)
    for text in ("x:1", f"x@{made.digest}"):
        raw = await manifest(registry, text)
        assert raw.data == made.manifest
        assert raw.digest == made.digest
        assert raw.media_type == OCI_MANIFEST


async def test_a_manifest_that_is_not_what_its_digest_says_is_refused(registry):
    made = make([{"a": b"1"}])
    registry.manifests["x", made.digest] = (made.manifest + b" ", made.media_type)
    with pytest.raises(Corrupt, match=f"manifest verification failed for digest {made.digest}"):
        await manifest(registry, f"x@{made.digest}")


async def test_a_manifest_that_contradicts_its_own_header_is_refused(registry):
    registry.add("x", "1", make([{"a": b"1"}]))
    registry.headers["Docker-Content-Digest"] = digest(b"other")
    with pytest.raises(Corrupt, match="manifest verification failed"):
        await manifest(registry)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_manifest_of_100_mb_is_refused_without_being_read(announced):
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if announced:
            response.content_length = 100 << 20
        await response.prepare(request)
        for _ in range(1600):
            await response.write(bytes(1 << 16))
            sent += 1 << 16
        return response

    async def ping(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/v2/", ping)
    app.router.add_get("/v2/x/manifests/1", endless)
    async with TestServer(app) as server:
        reference = parse(f"127.0.0.1:{server.port}/x:1")
        async with open_source(RegistryConfig(), reference, ANONYMOUS) as source:
            with pytest.raises(Failed, match=f"the limit {'is' if announced else 'of'} {MAX_DOCUMENT}"):
                await source.manifest("1")
    assert sent < 40 << 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x:2", "manifest for {}/x:2 not found: manifest unknown: manifest unknown"),
        ("y:1", "repository {}/y not found: name unknown: repository name not known to registry"),
    ],
)
async def test_what_is_not_there_is_said_in_dockers_words(registry, text, words):
    registry.add("x", "1", make([{"a": b"1"}]))
    with pytest.raises(NotFound) as caught:
        await manifest(registry, text)
    assert caught.value.message == words.format(registry.host)


async def test_an_answer_that_is_no_registrys_is_passed_on(registry):
    registry.failures["/v2/x/manifests/1"] = [503]
    registry.error_body = b"<html>down for maintenance</html>"
    with pytest.raises(Failed) as caught:
        await manifest(registry)
    assert f"GET request to {registry.base}/v2/x/manifests/1: 503 Service Unavailable" in caught.value.message
    assert "down for maintenance" in caught.value.message


async def test_a_bare_404_is_not_found(registry):
    registry.failures["/v2/x/manifests/1"] = [404]
    with pytest.raises(NotFound, match=r"manifest for .*/x:1 not found"):
        await manifest(registry)


async def test_too_many_requests_are_reported_with_the_registrys_words(registry):
    registry.failures["/v2/x/manifests/1"] = [429]
    registry.error_body = encode({"errors": [{"code": "TOOMANYREQUESTS", "message": "pull rate limit"}]})
    with pytest.raises(Failed, match=r"^toomanyrequests: pull rate limit$"):
        await manifest(registry)


async def test_all_pages_of_tags_are_read(registry):
    for tag in ("1", "2", "3", "4", "5"):
        registry.add("x", tag, make([{"a": b"1"}]))
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        assert await source.tags() == ["1", "2", "3", "4", "5"]


# --- authorization ----------------------------------------------------------------------------------------------------


async def test_basic_credentials_are_sent_when_asked_for(registry):
    registry.auth = "basic"
    registry.add("x", "1", make([{"a": b"1"}]))
    await manifest(registry, auth=ANN)
    assert registry.log[-1].authorization == registry.basic()


async def test_without_credentials_basic_fails_in_dockers_words(registry):
    registry.auth = "basic"
    with pytest.raises(Failed) as caught:
        await manifest(registry)
    assert caught.value.message == f'Head "{registry.base}/v2/x/manifests/1": no basic auth credentials'


async def test_wrong_basic_credentials_are_unauthorized(registry):
    registry.auth = "basic"
    with pytest.raises(Failed, match=r"^unauthorized: authentication required$"):
        await manifest(registry, auth=Auth(username="ann", password="wrong"))


async def test_an_anonymous_token_is_got_and_used(registry):
    registry.auth = "token"
    registry.add("x", "1", make([{"a": b"1"}]))
    await manifest(registry)
    assert registry.asked("/token")[0].query == {"service": "fake", "scope": "repository:x:pull"}
    assert registry.log[-1].authorization == "Bearer token-pull-1"


async def test_one_token_serves_a_whole_pull(registry):
    registry.auth = "token"
    made = make([{"a": b"1"}, {"b": b"2"}])
    registry.add("x", "1", made)
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        await source.manifest("1")
        for data in made.blobs.values():
            await source.document(Descriptor(digest=digest(data), size=len(data)))  # type: ignore[arg-type]
    assert registry.tokens == 1


async def test_an_expired_token_is_replaced_within_the_request(registry):
    registry.auth = "token"
    registry.add("x", "1", make([{"a": b"1"}]))
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        await source.manifest("1")
        registry.expired.add("token-pull-1")
        await source.manifest("1")
    assert registry.log[-1].authorization == "Bearer token-pull-2"


async def test_a_private_repository_is_denied_in_dockers_words(registry):
    registry.auth = "token"
    registry.add("private/x", "1", make([{"a": b"1"}]))
    with pytest.raises(NotFound) as caught:
        await manifest(registry, "private/x:1")
    assert caught.value.message == (
        f"pull access denied for {registry.host}/private/x, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )
    assert (await manifest(registry, "private/x:1", ANN)).data


async def test_a_wrong_password_at_the_token_server_is_reported(registry):
    registry.auth = "token"
    with pytest.raises(Failed, match=r"^unauthorized: incorrect username or password$"):
        await manifest(registry, auth=Auth(username="ann", password="wrong"))


async def test_requests_at_once_share_one_token(registry):
    registry.auth = "token"
    registry.add("x", "1", make([{"a": b"1"}]))
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        await asyncio.gather(*(source.manifest("1") for _ in range(5)))
    assert registry.tokens == 1


async def test_an_identity_token_is_exchanged(registry):
    registry.auth = "token"
    registry.add("private/x", "1", make([{"a": b"1"}]))
    assert (await manifest(registry, "private/x:1", Auth(identitytoken="identity"))).data


@pytest.mark.parametrize("times", [1, 2])
async def test_a_short_question_is_asked_again_when_the_connection_breaks(registry, times):
    data = b'{"os":"linux"}'
    registry.blobs[digest(data)] = data
    registry.cuts[digest(data)] = [3] * times
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        assert await source.document(Descriptor(digest=digest(data), size=len(data))) == data  # type: ignore[arg-type]
    assert len(registry.asked("/blobs/")) == times + 1


async def test_a_short_question_is_not_asked_for_ever(registry):
    data = b'{"os":"linux"}'
    registry.blobs[digest(data)] = data
    registry.cuts[digest(data)] = [3] * 100
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        with pytest.raises(Unreachable, match="unexpected EOF"):
            await source.document(Descriptor(digest=digest(data), size=len(data)))  # type: ignore[arg-type]
    assert len(registry.asked("/blobs/")) == 3


# --- endpoints --------------------------------------------------------------------------------------------------------


async def test_nobody_listening_is_said_as_docker_says_it():
    with pytest.raises(Unreachable) as caught:
        async with open_source(RegistryConfig(), parse("127.0.0.1:1/x"), ANONYMOUS):
            pass
    assert caught.value.message == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'


async def test_an_unknown_host_is_said_as_docker_says_it():
    with pytest.raises(Unreachable) as caught:
        async with open_source(RegistryConfig(), parse("no-such-host.invalid/x"), ANONYMOUS):
            pass
    assert caught.value.message == (
        'Get "https://no-such-host.invalid/v2/": dial tcp: lookup no-such-host.invalid: no such host'
    )


async def test_a_secure_registry_without_tls_is_said_as_docker_says_it(registry):
    endpoint = Endpoint(base=f"https://{registry.host}", host=registry.host)
    async with connect(RegistryConfig(), endpoint, ANONYMOUS) as connection:
        with pytest.raises(Unreachable, match="http: server gave HTTP response to HTTPS client"):
            await connection.ping()


async def test_a_mirror_serves_docker_io_and_gets_no_credentials(registry):
    made = make([{"a": b"1"}])
    registry.add("library/x", "latest", made)
    registry.auth = "token"
    config = RegistryConfig(mirrors=[registry.base])
    async with open_source(config, parse("x"), ANN) as source:
        assert (await source.manifest("latest")).data == made.manifest
    assert {request.authorization for request in registry.log} == {None, "Bearer token-pull-1"}


async def test_a_mirror_without_the_image_is_passed_over_for_the_next(registry):
    made = make([{"a": b"1"}])
    registry.add("library/x", "latest", made)
    async with serve(FakeRegistry()) as empty:
        config = RegistryConfig(mirrors=["http://127.0.0.1:1", empty.base, registry.base])
        async with open_source(config, parse("x"), ANONYMOUS) as source:
            assert (await source.manifest("latest")).data == made.manifest
        assert empty.asked("/manifests/")


# --- blobs ------------------------------------------------------------------------------------------------------------


async def test_a_blob_comes_whole(registry):
    registry.blobs[digest(DATA)] = DATA
    sink, pauses = await download(registry)
    assert sink.data == DATA
    assert pauses == []


async def test_a_cut_download_goes_on_where_it_broke_off(registry):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [300_000, 200_000]
    sink, _ = await download(registry)
    assert sink.data == DATA
    assert sink.restarts == 0
    ranges = [request.range for request in registry.asked("/blobs/")]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]


async def test_a_registry_without_ranges_is_started_over(registry):
    registry.ranges = False
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [300_000]
    sink, _ = await download(registry)
    assert sink.data == DATA
    assert sink.restarts == 1


@pytest.mark.parametrize(
    "said",
    ["", "bytes 299999-1279999/1280000", "bytes 300000-1279999/1280001", "bytes */1280000", "lines 1-2/3"],
)
async def test_a_part_that_is_not_the_one_asked_for_is_thrown_away_and_all_asked_for_anew(registry, said):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [300_000]
    registry.content_ranges = [said]
    sink, _ = await download(registry)
    assert sink.data == DATA
    assert sink.restarts == 1
    assert [request.range for request in registry.asked("/blobs/")] == [None, "bytes=300000-", None]


async def test_a_range_of_unknown_total_is_taken(registry):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [300_000]
    registry.content_ranges = [f"bytes 300000-{len(DATA) - 1}/*"]
    sink, _ = await download(registry)
    assert sink.data == DATA
    assert sink.restarts == 0


async def test_a_range_beyond_the_end_starts_over(registry):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [300_000]
    path = f"/v2/x/blobs/{digest(DATA)}"

    async def then_416(name: str) -> None:
        if len(registry.asked("/blobs/")) == 1:
            registry.failures[path] = [416]

    registry.before_blob = then_416
    sink, _ = await download(registry)
    assert sink.data == DATA
    assert sink.restarts == 1


async def test_pauses_grow_and_are_told_in_whole_seconds(registry):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [0] * 100
    pauses: list[int] = []
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        wanted = Descriptor(digest=digest(DATA), size=len(DATA))  # type: ignore[arg-type]
        with pytest.raises(Unreachable):
            await fetch(source, wanted, Memory(), received=lambda _: None, pausing=pauses.append, sleep=sleep)
    assert pauses[-1] == 1
    assert 12 <= max(pauses) <= 18  # 15 seconds, give or take a fifth
    assert all(0 < seconds <= 1 for seconds in slept)
    assert 0.8 * 31 <= sum(slept) <= 1.2 * 31  # 1 + 5 + 10 + 15


async def test_a_pull_limit_of_hours_is_told_at_once(registry):
    registry.failures[f"/v2/x/blobs/{digest(DATA)}"] = [429]
    registry.error_headers = {"Retry-After": "21600"}
    registry.error_body = encode({"errors": [{"code": "TOOMANYREQUESTS", "message": "pull rate limit"}]})
    with pytest.raises(Refused, match="pull rate limit"):
        await download(registry)
    assert len(registry.asked("/blobs/")) == 1


async def test_what_the_sink_says_of_a_full_disk_ends_the_download(registry):
    class Full(Memory):
        async def write(self, data: bytes | bytearray) -> None:
            raise Failed("cannot store: No space left on device")

    registry.blobs[digest(DATA)] = DATA
    wanted = Descriptor(digest=digest(DATA), size=len(DATA))  # type: ignore[arg-type]
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        with pytest.raises(Failed, match="No space left"):
            await fetch(source, wanted, Full(), received=lambda _: None, pausing=lambda _: None)
    assert len(registry.asked("/blobs/")) == 1


async def test_a_download_without_progress_is_given_up(registry):
    registry.blobs[digest(DATA)] = DATA
    registry.cuts[digest(DATA)] = [0] * 100
    with pytest.raises(Unreachable, match="unexpected EOF"):
        await download(registry)
    assert len(registry.asked("/blobs/")) == ATTEMPTS


async def test_a_failing_server_is_tried_again_and_a_refusing_one_is_not(registry):
    path = f"/v2/x/blobs/{digest(DATA)}"
    registry.blobs[digest(DATA)] = DATA
    registry.failures[path] = [500, 503]
    sink, pauses = await download(registry)
    assert sink.data == DATA
    assert pauses[0] > 0
    registry.failures[path] = [403]
    with pytest.raises(Refused, match="denied"):
        await download(registry)


async def test_more_bytes_than_announced_are_refused(registry):
    registry.blobs[digest(DATA)] = DATA
    with pytest.raises(Corrupt, match="is longer than the 1000 bytes"):
        await download(registry, size=1000)


async def test_fewer_bytes_than_announced_are_refused(registry):
    registry.blobs[digest(DATA)] = DATA
    with pytest.raises((Unreachable, Refused)):
        await download(registry, size=len(DATA) + 1)


async def test_a_redirected_blob_is_asked_for_without_the_credentials(registry):
    registry.auth = "basic"
    registry.add("x", "1", make([{"a": b"1"}]))
    async with serve(FakeRegistry()) as store:
        store.blobs[digest(DATA)] = DATA
        registry.redirect = store.base
        sink, _ = await download(registry, auth=ANN)
        assert sink.data == DATA
        assert [request.authorization for request in store.log] == [None]
    assert registry.asked("/blobs/")[0].authorization == registry.basic()


async def test_a_redirect_in_a_circle_ends(registry):
    registry.redirect = registry.base
    with pytest.raises(Failed, match="stopped after 10 redirects"):
        await download(registry)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/"])
async def test_a_redirect_out_of_the_web_is_refused(registry, target):
    registry.redirect = target
    with pytest.raises(Failed, match="neither http nor https"):
        await download(registry)


async def test_a_small_document_is_checked_against_digest_and_size(registry):
    data = b'{"os":"linux"}'
    registry.blobs[digest(data)] = data
    registry.blobs[digest(b"asked")] = b"given"
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        assert await source.document(Descriptor(digest=digest(data), size=len(data))) == data  # type: ignore[arg-type]
        with pytest.raises(Failed, match="the manifest says 3"):
            await source.document(Descriptor(digest=digest(data), size=3))  # type: ignore[arg-type]
        with pytest.raises(Corrupt, match="blob verification failed"):
            await source.document(Descriptor(digest=digest(b"asked"), size=5))  # type: ignore[arg-type]
        with pytest.raises(Failed, match="the limit is"):
            await source.document(Descriptor(digest=digest(data), size=MAX_DOCUMENT + 1))  # type: ignore[arg-type]


# --- nonsense where a URL should be -----------------------------------------------------------------------------------

BAD_URLS = ["http://[::1", "http://x:port/", "http://x:99999999/", "http://", "//", "http://\udcff/", "http://a b/"]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_redirect_to_nonsense_is_an_error_in_words(registry, url):
    registry.redirect = url.encode("utf-8", "replace").decode()
    wanted = Descriptor(digest=digest(DATA), size=10)  # type: ignore[arg-type]
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        with pytest.raises(WherryError):
            await source.document(wanted)


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_token_server_that_is_nonsense_is_an_error_in_words(registry, url):
    registry.auth = "basic"
    registry.challenge = f'Bearer realm="{url.encode("utf-8", "replace").decode()}",service="s"'
    with pytest.raises(WherryError):
        await manifest(registry, auth=ANN)


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_layers_address_that_is_nonsense_is_an_error_in_words(registry, url):
    wanted = Descriptor(digest=digest(DATA), size=len(DATA), urls=[url])  # type: ignore[arg-type]
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        with pytest.raises(WherryError):
            await fetch(source, wanted, Memory(), received=lambda _: None, pausing=lambda _: None, sleep=no_sleep)


async def no_sleep(seconds: float) -> None:
    pass


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_next_page_that_is_nonsense_ends_the_list(registry, url):
    registry.add("x", "1", make([]))
    registry.next_page = url.encode("utf-8", "replace").decode()
    async with open_source(RegistryConfig(), named(registry), ANONYMOUS) as source:
        assert await source.tags() == ["1"]
