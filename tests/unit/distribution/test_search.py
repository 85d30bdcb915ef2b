"""search and look against registries in process."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from imagekit.making import digest, encode, index, make
from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import RegistryConfig
from wherry.distribution.look import look
from wherry.distribution.search import Wish, search
from wherry.errors import Failed, Forbidden, InvalidParameter, NotFound, Unauthorized, WherryError
from wherry.reference import parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import Platform

RESULTS = [
    {"name": "alpine", "description": "small", "star_count": 9000, "is_official": True, "is_automated": False},
    {"name": "ann/alpine", "description": "", "star_count": 3, "is_official": False, "is_automated": True, "more": 1},
]
NAMES = sorted(f"team/{word}-{number}" for word in ("tool", "alpine") for number in range(30))


class Index:
    """A registry that can be searched in the first way, in the second, or not."""

    def __init__(self, *, v1: bool, catalog: bool = False) -> None:
        self.asked: list[str] = []
        app = web.Application()
        if v1:
            app.router.add_get("/v1/search", self._search)
        if catalog:
            app.router.add_get("/v2/_catalog", self._catalog)
        app.router.add_get("/v2/", self._ping)
        self.app = app

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _search(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return web.json_response({"query": request.query["q"], "num_results": 2, "results": RESULTS})

    async def _catalog(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        rest = [name for name in NAMES if name > request.query.get("last", "")]
        page = rest[:25]
        link = {"Link": f'</v2/_catalog?last={page[-1]}&n=25>; rel="next"'} if page != rest else {}
        return web.json_response({"repositories": page}, headers=link)


async def ask(found: Index, words: str, wish: Wish = Wish()) -> list[str]:  # noqa: B008 - frozen
    async with TestServer(found.app) as server:
        term = f"127.0.0.1:{server.port}/{words}"
        return [result.name for result in await search(RegistryConfig(), term, wish, ANONYMOUS)]


async def test_a_registry_is_searched_as_docker_does():
    found = Index(v1=True)
    assert await ask(found, "al pine&x", Wish(limit=7)) == ["alpine", "ann/alpine"]
    assert found.asked == ["/v1/search?q=al%20pine%26x&n=7"]


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        (Wish(official=True), ["alpine"]),
        (Wish(official=False), ["ann/alpine"]),
        (Wish(stars=4), ["alpine"]),
        (Wish(stars=9001), []),
    ],
)
async def test_results_are_filtered(wish, names):
    assert await ask(Index(v1=True), "alpine", wish) == names


async def test_a_registry_without_a_search_is_looked_through_by_its_catalog():
    found = Index(v1=False, catalog=True)
    assert await ask(found, "TOOL", Wish(limit=100)) == [name for name in NAMES if "tool" in name]
    assert len(found.asked) == 3


async def test_no_more_of_a_catalog_is_read_than_is_needed():
    found = Index(v1=False, catalog=True)
    assert await ask(found, "alpine", Wish(limit=5)) == NAMES[:5]
    assert len(found.asked) == 1


async def test_a_registry_that_cannot_be_searched_says_so():
    with pytest.raises(Failed, match="cannot be searched: it has neither"):
        await ask(Index(v1=False), "x")


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("", "Search term is empty"),
        ("https://localhost/x", "should not have a scheme"),
        ("a@b.test/x", "invalid registry address"),
    ],
)
async def test_a_term_that_is_none_is_refused(term, words):
    with pytest.raises(InvalidParameter, match=words):
        await search(RegistryConfig(), term, Wish(), ANONYMOUS)


@pytest.mark.parametrize("limit", [0, -1, 101])
async def test_a_limit_out_of_range_is_refused_in_dockers_words(limit):
    with pytest.raises(InvalidParameter, match=rf"limit {limit} is outside the range of \[1, 100\]"):
        await search(RegistryConfig(), "x", Wish(limit=limit), ANONYMOUS)


async def test_a_registry_that_is_down_is_named():
    with pytest.raises(Failed, match=r"127\.0\.0\.1:1.*connection refused"):
        await search(RegistryConfig(), "127.0.0.1:1/x", Wish(), ANONYMOUS)


# --- look -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


async def test_of_an_index_all_platforms_are_told(registry):
    arm = {"os": "linux", "architecture": "arm", "variant": "v7"}
    raw, media_type = index([(make([]), {"os": "linux", "architecture": "amd64"}), (make([{"a": b"1"}]), arm)])
    registry.put("x", "1", raw, media_type)
    descriptor, platforms = await look(RegistryConfig(), parse(f"{registry.host}/x:1"), ANONYMOUS)
    assert (descriptor.media_type, descriptor.digest, descriptor.size) == (media_type, digest(raw), len(raw))
    assert platforms == [
        Platform(os="linux", architecture="amd64"),
        Platform(os="linux", architecture="arm", variant="v7"),
    ]
    assert registry.asked("/blobs/") == []


@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_of_an_image_its_own_platform_is_told(registry, form):
    made = make([{"a": b"1"}], form=form, architecture="arm64", variant="v8")
    registry.add("x", "latest", made)
    descriptor, platforms = await look(RegistryConfig(), parse(f"{registry.host}/x"), ANONYMOUS)
    assert (descriptor.media_type, descriptor.digest) == (made.media_type, made.digest)
    assert platforms == [Platform(os="linux", architecture="arm64", variant="v8")]


async def test_of_an_artifact_there_are_no_platforms(registry):
    made = make([])
    raw = made.manifest.replace(b"application/vnd.oci.image.config.v1+json", b"application/vnd.test+json")
    registry.put("x", "1", raw, made.media_type)
    descriptor, platforms = await look(RegistryConfig(), parse(f"{registry.host}/x@{digest(raw)}"), ANONYMOUS)
    assert descriptor.digest == digest(raw)
    assert platforms == []


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("UNAUTHORIZED", 401, Unauthorized),
        ("DENIED", 403, Forbidden),
        ("MANIFEST_UNKNOWN", 404, NotFound),
        ("UNKNOWN", 400, Failed),
    ],
)
async def test_a_refusal_keeps_its_kind_and_words(registry, code, status, kind: type[WherryError]):
    registry.failures["/v2/x/manifests/1"] = [status, status]
    registry.error_body = encode({"errors": [{"code": code, "message": "because"}]})
    with pytest.raises(kind, match="because"):
        await look(RegistryConfig(), parse(f"{registry.host}/x:1"), Auth(username="a", password="b"))
