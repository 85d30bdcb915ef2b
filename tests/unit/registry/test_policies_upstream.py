"""The pull-through cache: brought once, kept, served while upstream is away, and never wrong."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.descriptors import descriptors
from imagekit.making import digest, index, make
from imagekit.pushing import Pusher
from wherry.aio import Background, settle
from wherry.distribution.config import RegistryConfig
from wherry.errors import InvalidParameter
from wherry.registry.cache.relay import Connections
from wherry.registry.cache.upstream import UpstreamConfig, check
from wherry.registry.cache.upstream import make as make_upstream
from wherry.registry.catalog import put_tag
from wherry.registry.config import Config
from wherry.registry.folder import FolderStore, open_folder
from wherry.registry.policies import open_policies
from wherry.registry.server import build_app

ONE = make([{"a": b"1" * 3_000_000}, {"b": b"2"}])
TWO = make([{"c": b"3"}])
INDEX = index([(ONE, {"os": "linux", "architecture": "amd64"}), (TWO, {"os": "linux", "architecture": "s390x"})])


@dataclass
class Origin:
    """The other registry: counts what it is asked, and can be away, slow or wrong."""

    store: FolderStore
    away: bool = False
    wrong: bytes | None = None  # sent instead of any blob
    hold: asyncio.Event | None = None
    asked: Counter[str] = field(default_factory=Counter)

    @web.middleware
    async def __call__(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self.away:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        kind = next((kind for kind in ("manifests", "blobs", "tags") if f"/{kind}/" in request.path), "ping")
        self.asked[f"{request.method} {kind}"] += 1
        if kind == "blobs" and request.method == "GET":
            if self.hold is not None:
                await self.hold.wait()
            if self.wrong is not None:
                return web.Response(body=self.wrong)
        return await handler(request)


@dataclass
class World:
    origin: Origin
    upstream: Pusher  # pushes to the origin
    cache: Pusher  # asks the cache
    store: FolderStore  # of the cache
    background: Background  # likewise


@asynccontextmanager
async def caching(root: Path, *, name: str = "hub", auth: object = None, **upstream: object) -> AsyncIterator[World]:
    there = await settle(open_folder, root / "origin")
    origin = Origin(there)
    app = build_app(there)
    app.middlewares.append(origin.__call__)
    here = await settle(open_folder, root / "cache")
    background = Background()
    async with TestServer(app) as origin_server, aiohttp.ClientSession() as session:
        url = str(origin_server.make_url("")).rstrip("/")
        document = {"root": str(root / "cache"), "auth": auth, "upstreams": {name: {"url": url, **upstream}}}
        policies = await open_policies(msgspec.convert(document, Config), here, here, background)
        hooks = policies.hooks()
        front = build_app(here, hooks=hooks)
        policies.add_to(front, hooks)
        async with TestServer(front) as server:
            cache = Pusher(session, str(server.make_url("")).rstrip("/"))
            yield World(origin, Pusher(session, url), cache, here, background)
    await background.close()
    await here.close()
    await there.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with caching(tmp_path) as made:
        yield made


async def settled(world: World) -> None:
    """Until nothing is on its way any more."""
    for _ in range(500):
        if not world.store.open_uploads:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a download does not end")


async def test_an_image_is_brought_once_and_kept(world: World):
    await world.upstream.image("lib/x", ONE, tag="t")
    world.origin.asked.clear()
    for _ in range(2):
        assert await world.cache.get("hub/lib/x/manifests/t") == (200, ONE.manifest)
        for name, data in ONE.blobs.items():
            assert await world.cache.get(f"hub/lib/x/blobs/{name}") == (200, data)
    await settled(world)
    assert world.origin.asked["GET manifests"] == 1
    assert world.origin.asked["GET blobs"] == 3


async def test_what_is_kept_serves_while_upstream_is_away(world: World):
    await world.upstream.image("lib/x", TWO, tag="t")
    assert await world.cache.get("hub/lib/x/manifests/t") == (200, TWO.manifest)
    layer = digest(TWO.layers[0])
    assert await world.cache.get(f"hub/lib/x/blobs/{layer}") == (200, TWO.layers[0])
    await settled(world)
    world.origin.away = True
    assert await world.cache.get("hub/lib/x/manifests/t") == (200, TWO.manifest)
    assert await world.cache.get(f"hub/lib/x/blobs/{layer}") == (200, TWO.layers[0])
    status, body = await world.cache.get("hub/lib/x/manifests/other")
    assert status == 503
    assert b"hub cannot be asked for hub/lib/x" in body


async def test_a_tag_is_asked_for_again_after_its_time_and_followed(tmp_path: Path):
    async with caching(tmp_path, ttl=0) as world:
        await world.upstream.image("x", ONE, tag="t")
        assert await world.cache.get("hub/x/manifests/t") == (200, ONE.manifest)
        world.origin.asked.clear()
        assert await world.cache.get("hub/x/manifests/t") == (200, ONE.manifest)
        assert (world.origin.asked["HEAD manifests"], world.origin.asked["GET manifests"]) == (1, 0)
        await world.upstream.image("x", TWO, tag="t")
        assert await world.cache.get("hub/x/manifests/t") == (200, TWO.manifest)
        world.origin.away = True
        async with world.cache.session.get(f"{world.cache.base}/v2/hub/x/manifests/t") as answer:
            assert (answer.status, await answer.read()) == (200, TWO.manifest)  # stale is better than nothing
            assert answer.headers["Warning"].startswith("110 ")


async def test_an_upstream_that_is_away_is_not_waited_for_again_at_once(tmp_path: Path):
    async with caching(tmp_path, ttl=0) as world:
        await world.upstream.image("x", ONE, tag="t")
        await world.cache.get("hub/x/manifests/t")
        world.origin.away = True
        await world.cache.get("hub/x/manifests/t")
        world.origin.away = False
        world.origin.asked.clear()
        assert await world.cache.get("hub/x/manifests/t") == (200, ONE.manifest)
        assert not world.origin.asked
        assert (await world.cache.get("hub/x/manifests/other"))[0] == 404, "what is not here is asked for all the same"


async def test_a_tag_that_is_gone_at_upstream_goes_here(tmp_path: Path):
    async with caching(tmp_path, ttl=0) as world:
        await world.upstream.image("x", ONE, tag="t")
        await world.cache.get("hub/x/manifests/t")
        assert await world.upstream.delete("x/manifests/t") == 202
        assert (await world.cache.get("hub/x/manifests/t"))[0] == 404
        assert await world.cache.get(f"hub/x/manifests/{ONE.digest}") == (200, ONE.manifest)


async def test_the_tags_listed_are_upstreams_and_while_it_is_away_those_that_are_here(tmp_path: Path):
    async with caching(tmp_path, ttl=0) as world:
        for tag in ("a", "b", "c"):
            await world.upstream.image("x", TWO, tag=tag)
        await world.cache.get("hub/x/manifests/b")
        assert await tags(world, "hub/x/tags/list") == ["a", "b", "c"]
        assert await tags(world, "hub/x/tags/list?n=1&last=a") == ["b"]
        world.origin.away = True
        assert await tags(world, "hub/x/tags/list") == ["b"]


async def tags(world: World, path: str) -> list[str]:
    status, body = await world.cache.get(path)
    assert status == 200
    return list(msgspec.json.decode(body)["tags"])


async def test_an_image_needs_one_connection(world: World):
    await world.upstream.image("x", ONE, tag="t")
    world.origin.asked.clear()
    await world.cache.get("hub/x/manifests/t")
    for name in ONE.blobs:
        await world.cache.get(f"hub/x/blobs/{name}")
    assert world.origin.asked["GET ping"] == 1


async def test_a_blob_is_not_taken_from_repositories_that_were_pushed_here(world: World):
    await world.cache.image("private/x", ONE, tag="t")
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    world.origin.asked.clear()
    for name in ONE.blobs:
        assert (await world.cache.get(f"hub/x/blobs/{name}"))[0] == 200
    assert world.origin.asked["GET blobs"] == 3, "who can name a digest upstream must not get what was pushed here"


async def test_a_blob_of_the_same_upstream_comes_once_for_all_its_repositories(world: World):
    for name in ("x", "y"):
        await world.upstream.image(name, ONE, tag="t")
        await world.cache.get(f"hub/{name}/manifests/t")
    world.origin.asked.clear()
    for name in ONE.blobs:
        assert (await world.cache.get(f"hub/x/blobs/{name}"))[0] == 200
        await settled(world)
        assert (await world.cache.get(f"hub/y/blobs/{name}"))[0] == 200
    assert world.origin.asked["GET blobs"] == 3


async def test_what_is_used_counts_as_pushed_anew_once_a_day(world: World):
    day = 24 * 3600 * 10**9
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    pushed = world.store.catalog.tag("hub/x", "t").pushed
    await world.cache.get("hub/x/manifests/t")
    assert world.store.catalog.tag("hub/x", "t").pushed == pushed
    await world.store.write(put_tag("hub/x", "t", digest=ONE.digest, pushed=pushed - 2 * day))  # type: ignore[arg-type]
    await world.cache.get("hub/x/manifests/t")
    assert world.store.catalog.tag("hub/x", "t").pushed >= pushed


async def test_how_the_cache_does_can_be_measured(world: World):
    await world.upstream.image("x", ONE, tag="t")
    for _ in range(3):
        await world.cache.get("hub/x/manifests/t")
    async with world.cache.session.get(f"{world.cache.base}/metrics") as answer:
        text = await answer.text()
    assert 'wherry_registry_cache_requests_total{result="hit"} 2\n' in text
    assert 'wherry_registry_cache_requests_total{result="miss"} 1\n' in text
    assert 'wherry_registry_happenings_total{action="pull"} 3\n' in text
    await world.cache.get(f"hub/x/blobs/{digest(ONE.config)}")
    async with world.cache.session.get(f"{world.cache.base}/metrics") as answer:
        text = await answer.text()
    assert 'wherry_registry_cache_requests_total{result="miss"} 2\n' in text
    assert 'wherry_registry_happenings_total{action="pull"} 4\n' in text


async def test_docker_hubs_own_images_are_kept_under_one_name(tmp_path: Path):
    async with caching(tmp_path, name="docker.io", default=True) as world:
        await world.upstream.image("library/x", TWO, tag="t")
        for path in ("docker.io/x", "docker.io/library/x", "library/x", "x"):
            assert await world.cache.get(f"{path}/manifests/t") == (200, TWO.manifest)
        for path in ("x/manifests/t?ns=docker.io", "docker.io/library/x/manifests/t?ns=docker.io"):
            assert await world.cache.get(path) == (200, TWO.manifest)
        assert [name for name, _ in world.store.catalog] == ["docker.io/library/x"]


async def test_a_digest_is_never_asked_for_again(tmp_path: Path):
    async with caching(tmp_path, ttl=0) as world:
        await world.upstream.image("x", ONE, tag="t")
        for _ in range(3):
            assert await world.cache.get(f"hub/x/manifests/{ONE.digest}") == (200, ONE.manifest)
        assert world.origin.asked["GET manifests"] == 1
        assert world.origin.asked["HEAD manifests"] == 0


async def test_what_is_nowhere_is_not_asked_for_again_at_once(world: World):
    for _ in range(3):
        assert (await world.cache.get("hub/x/manifests/none"))[0] == 404
    assert world.origin.asked["GET manifests"] == 1


async def test_an_index_comes_without_its_images_and_they_when_wanted(world: World):
    for made in (ONE, TWO):
        await world.upstream.image("x", made)
    assert (await world.upstream.manifest("x", "multi", *INDEX))[0] == 201
    assert await world.cache.get("hub/x/manifests/multi") == (200, INDEX[0])
    assert await world.cache.get(f"hub/x/manifests/{TWO.digest}") == (200, TWO.manifest)
    assert set(world.store.catalog.get("hub/x").manifests) == {digest(INDEX[0]), TWO.digest}


async def test_a_mirror_is_asked_by_namespace_and_by_plain_name(tmp_path: Path):
    async with caching(tmp_path, default=True) as world:
        await world.upstream.image("library/x", TWO, tag="t")
        await world.cache.image("mine/y", ONE, tag="t")
        assert await world.cache.get("library/x/manifests/t?ns=hub") == (200, TWO.manifest)
        assert await world.cache.get("library/x/manifests/t") == (200, TWO.manifest)
        assert await world.cache.get(f"library/x/blobs/{digest(TWO.config)}") == (200, TWO.config)
        assert await world.cache.get("mine/y/manifests/t") == (200, ONE.manifest)
        assert [name for name, _ in world.store.catalog] == ["mine/y", "hub/library/x"]


async def test_a_first_push_beside_a_default_upstream_is_a_push_as_any_other(tmp_path: Path):
    async with caching(tmp_path, default=True) as world:
        base, session = world.cache.base, world.cache.session
        for name, data in ONE.blobs.items():
            async with session.head(f"{base}/v2/own/x/blobs/{name}") as answer:
                assert answer.status == 404
            async with session.post(f"{base}/v2/own/x/blobs/uploads/") as answer:
                place = f"{base}{answer.headers['Location']}"
            async with session.get(place) as answer:
                assert answer.status == 204
            async with session.put(f"{place}?digest={name}", data=data) as answer:
                assert answer.status == 201
            async with session.head(f"{base}/v2/own/x/blobs/{name}") as answer:
                assert answer.status == 200
        assert not world.origin.asked
        assert (await world.cache.manifest("own/x", "t", ONE.manifest, ONE.media_type))[0] == 201
        assert [name for name, _ in world.store.catalog] == ["own/x"]


async def test_who_may_not_read_upstreams_is_not_told_of_them_by_a_plain_name(tmp_path: Path):
    (tmp_path / "htpasswd").write_text("")
    auth = {"htpasswd": str(tmp_path / "htpasswd"), "tokens": False}
    auth["rules"] = [{"users": ["anonymous"], "repositories": ["own/*"], "actions": ["pull", "push"]}]
    async with caching(tmp_path, default=True, auth=auth) as world:
        await world.upstream.image("own/x", ONE, tag="t")
        world.origin.asked.clear()
        assert (await world.cache.get("own/x/manifests/t"))[0] == 404
        await world.cache.image("own/x", TWO, tag="t")
        assert await world.cache.get("own/x/manifests/t") == (200, TWO.manifest)
        assert not world.origin.asked


async def test_a_token_for_the_name_a_mirror_is_asked_by_opens_what_the_rules_allow(tmp_path: Path):
    (tmp_path / "htpasswd").write_text("")
    rules = [{"users": ["anonymous"], "repositories": ["hub/open/*", "open/*", "shut/*"]}]
    auth = {"htpasswd": str(tmp_path / "htpasswd"), "rules": rules}
    async with caching(tmp_path, default=True, auth=auth) as world:
        for path in ("open/x", "shut/x"):
            await world.upstream.image(path, ONE, tag="t")
        for path, status in (("open/x", 200), ("shut/x", 404)):
            async with world.cache.session.get(f"{world.cache.base}/token?scope=repository:{path}:pull") as answer:
                bearer = {"Authorization": f"Bearer {(await answer.json())['token']}"}
            assert (await world.cache.get(f"{path}/manifests/t", bearer))[0] == status, path
            assert (await world.cache.get(f"hub/{path}/manifests/t", bearer))[0] == 401, path


async def test_nobody_writes_to_a_copy(world: World):
    assert await world.cache.blob("hub/x", b"x") == 403
    status, text = await world.cache.manifest("hub/x", "t", ONE.manifest, ONE.media_type)
    assert status == 403
    assert "is a copy of one of hub: push there" in text
    assert await world.cache.delete(f"hub/x/manifests/{ONE.digest}") == 403
    assert await world.cache.blob("own/x", b"x") == 201


async def test_many_clients_share_one_download(world: World):
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    world.origin.asked.clear()
    world.origin.hold = asyncio.Event()
    name = digest(ONE.layers[0])
    clients = [asyncio.create_task(world.cache.get(f"hub/x/blobs/{name}")) for _ in range(8)]
    while world.origin.asked["GET blobs"] == 0:  # noqa: ASYNC110 - the other side's counter
        await asyncio.sleep(0.01)
    world.origin.hold.set()
    assert set(await asyncio.gather(*clients)) == {(200, ONE.layers[0])}
    assert world.origin.asked["GET blobs"] == 1


async def test_a_part_of_a_blob_is_answered_too(world: World):
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    name = digest(ONE.layers[0])
    status, data = await world.cache.get(f"hub/x/blobs/{name}", {"Range": "bytes=10-19"})
    assert (status, data) == (206, ONE.layers[0][10:20])


async def test_a_head_brings_nothing(world: World):
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    world.origin.asked.clear()
    url = f"{world.cache.base}/v2/hub/x/blobs/{digest(ONE.layers[0])}"
    async with world.cache.session.head(url) as answer:
        assert (answer.status, answer.content_length) == (200, len(ONE.layers[0]))
    assert not world.origin.asked


async def test_wrong_content_never_arrives_whole_and_is_not_kept(world: World):
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    right = ONE.layers[0]
    world.origin.wrong = bytes(len(right))
    with pytest.raises(aiohttp.ClientError):
        await world.cache.get(f"hub/x/blobs/{digest(right)}")
    await settled(world)
    assert digest(right) not in world.store.catalog.get("hub/x").blobs
    assert not list((world.store.content.path(digest(right)).parent).glob(digest(right)[7:]))  # type: ignore[arg-type]
    world.origin.wrong = None
    assert await world.cache.get(f"hub/x/blobs/{digest(right)}") == (200, right)


async def test_a_blob_no_manifest_names_is_not_fetched(world: World):
    await world.upstream.image("x", ONE, tag="t")
    world.origin.asked.clear()
    assert (await world.cache.get(f"hub/x/blobs/{digest(ONE.layers[0])}"))[0] == 404
    assert not world.origin.asked


async def test_a_client_that_leaves_does_not_stop_the_download_for_others(world: World):
    await world.upstream.image("x", ONE, tag="t")
    await world.cache.get("hub/x/manifests/t")
    world.origin.hold = asyncio.Event()
    name = digest(ONE.layers[0])
    first = asyncio.create_task(world.cache.get(f"hub/x/blobs/{name}"))
    second = asyncio.create_task(world.cache.get(f"hub/x/blobs/{name}"))
    await asyncio.sleep(0.1)
    first.cancel()
    world.origin.hold.set()
    assert await second == (200, ONE.layers[0])


async def test_a_connection_in_use_is_closed_by_its_last_user(world: World):
    upstream = make_upstream("hub", UpstreamConfig(url=world.upstream.base), RegistryConfig())
    connections = Connections()
    before = descriptors()
    async with connections.use(upstream, "x"):
        await connections.close(idle=60)
        async with connections.use(upstream, "x"):
            await connections.close()
        assert descriptors() - before
    await connections.close(idle=60)
    assert not descriptors() - before


async def test_stopping_in_the_middle_of_a_download_leaves_nothing_open(tmp_path: Path):
    before = descriptors()
    async with caching(tmp_path) as world:
        await world.upstream.image("x", ONE, tag="t")
        await world.cache.get("hub/x/manifests/t")
        world.origin.hold = asyncio.Event()
        client = asyncio.create_task(world.cache.get(f"hub/x/blobs/{digest(ONE.layers[0])}"))
        while world.origin.asked["GET blobs"] == 0:  # noqa: ASYNC110 - the other side's counter
            await asyncio.sleep(0.01)
        await world.background.close()
        status, body = await client
        assert status == 503
        assert b"the registry stops" in body
        world.origin.hold.set()
    assert not list((tmp_path / "cache/uploads").iterdir())
    assert not descriptors() - before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"a": {"url": "ftp://x"}}, "a: invalid url 'ftp://x'"),
        ({"a": {"username": "u"}}, "a: username and password-file go together"),
        ({"a": {"ttl": -1}}, "a: ttl cannot be negative"),
        ({"a": {"default": True}, "b": {"default": True}}, "only one can be the default"),
    ],
)
def test_an_upstream_that_can_never_work_is_refused(config: dict[str, object], words: str):
    with pytest.raises(InvalidParameter, match=words):
        check(msgspec.convert(config, dict[str, UpstreamConfig]))
