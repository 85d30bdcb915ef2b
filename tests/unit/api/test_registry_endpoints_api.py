"""/auth, /images/search, /distribution and /info's part, over registries in process."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from api_world import World
from wirekit import ask, get, post

from imagekit.making import digest, index, make
from imagekit.registry import FakeRegistry, serve
from wherry.api import listeners
from wherry.api.routes import build
from wherry.distribution.config import HostConfig, RegistryConfig
from wherry.distribution.proxy import Proxies


@asynccontextmanager
async def daemon(root: Path, registry: RegistryConfig | None = None) -> AsyncIterator[Path]:
    """The path of the socket of a daemon with these registries."""
    world = World(root, registry)
    listening = await listeners.serve(build(world.services), [listeners.parse(f"unix://{root}/s")])
    yield root / "s"
    await listening.stop(grace=2)
    await world.containers.background.close()


async def asked(path: Path, target: str, *headers: str) -> tuple[int, object]:
    status, _, body = await ask(path, get(target, *headers))
    return status, json.loads(body)


async def logged_in(path: Path, **auth: str) -> tuple[int, object]:
    message = post("/auth", json.dumps(auth).encode(), "Content-Type: application/json")
    status, _, body = await ask(path, message)
    return status, json.loads(body)


def header(**auth: str) -> str:
    return "X-Registry-Auth: " + base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


# --- login ------------------------------------------------------------------------------------------------------------


async def test_login_answers_the_identity_token(tmp_path, registry):
    registry.auth, registry.identity = "token", "identity"
    async with daemon(tmp_path) as path:
        answer = await logged_in(path, username="ann", password="secret", serveraddress=registry.host)
        assert answer == (200, {"IdentityToken": "identity", "Status": "Login Succeeded"})


async def test_a_refused_login_is_401(tmp_path, registry):
    registry.auth = "basic"
    async with daemon(tmp_path) as path:
        status, answer = await logged_in(path, username="ann", password="wrong", serveraddress=registry.host)
    assert status == 401
    assert answer == {"message": f'Get "{registry.base}/v2/": unauthorized: authentication required'}


# --- search -----------------------------------------------------------------------------------------------------------

FOUND = [
    {"name": "alpine", "description": "small", "star_count": 9000, "is_official": True},
    {"name": "ann/alpine", "description": "", "star_count": 3, "is_official": False},
]


@asynccontextmanager
async def searchable(seen: list[web.Request]) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"results": FOUND})

    app = web.Application()
    app.router.add_get("/v1/search", answer)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


def wanted(**filters: list[str]) -> str:
    return f"filters={quote(json.dumps(filters))}"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["alpine", "ann/alpine"]),
        (wanted(stars=["4"]), ["alpine"]),
        (wanted(**{"is-official": ["false"]}), ["ann/alpine"]),
        (wanted(**{"is-automated": ["true"]}), []),
        (wanted(**{"is-automated": ["false"]}), ["alpine", "ann/alpine"]),
    ],
)
async def test_search_answers_in_dockers_shape(tmp_path, query, names):
    seen: list[web.Request] = []
    async with searchable(seen) as address, daemon(tmp_path) as path:
        status, found = await asked(path, f"/images/search?term={address}/alpine&limit=9&{query}")
    assert status == 200
    assert [each["name"] for each in found] == names
    assert all(
        each.keys() == {"name", "description", "star_count", "is_official", "is_automated"} and not each["is_automated"]
        for each in found
    )
    assert dict(seen[0].query) == {"q": "alpine", "n": "9"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("term=x&limit=101", "limit 101 is outside the range of [1, 100]"),
        ("term=x&limit=0", "limit 0 is outside the range of [1, 100]"),
        ("term=x&" + wanted(stars=["many"]), "invalid filter 'stars=[many]'"),
        ("term=x&" + wanted(colour=["red"]), "invalid filter 'colour'"),
        ("term=x&" + wanted(**{"is-official": ["perhaps"]}), "invalid filter 'is-official=[perhaps]'"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_in_dockers_words(tmp_path, query, words):
    async with daemon(tmp_path) as path:
        assert await asked(path, f"/images/search?{query}") == (400, {"message": words})


# --- distribution -----------------------------------------------------------------------------------------------------


async def test_distribution_tells_descriptor_and_platforms(tmp_path, registry):
    raw, media_type = index(
        [
            (make([]), {"os": "linux", "architecture": "amd64"}),
            (make([{"a": b"1"}]), {"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ]
    )
    registry.put("team/x", "1", raw, media_type)
    async with daemon(tmp_path) as path:
        assert await asked(path, f"/distribution/{registry.host}/team/x:1/json") == (
            200,
            {
                "Descriptor": {"mediaType": media_type, "digest": digest(raw), "size": len(raw)},
                "Platforms": [
                    {"architecture": "amd64", "os": "linux"},
                    {"architecture": "arm64", "os": "linux", "variant": "v8"},
                ],
            },
        )


async def test_distribution_uses_the_credentials_that_are_sent(tmp_path, registry):
    registry.auth = "basic"
    registry.add("x", "1", make([]))
    target = f"/distribution/{registry.host}/x:1/json"
    async with daemon(tmp_path) as path:
        assert (await asked(path, target, header(username="ann", password="secret")))[0] == 200
        assert (await asked(path, target, header(username="ann", password="wrong")))[0] == 401
        assert (await asked(path, target))[0] == 401


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("{host}/x:2", 404, "manifest unknown"),
        ("a" * 64, 400, "unknown image reference format"),
        ("UPPER", 400, "must be lowercase"),
    ],
)
async def test_distribution_says_what_is_wrong(tmp_path, registry, name, status, words):
    registry.add("x", "1", make([]))
    async with daemon(tmp_path) as path:
        found, answer = await asked(path, f"/distribution/{name.format(host=registry.host)}/json")
    assert found == status
    assert words in answer["message"]


# --- info -------------------------------------------------------------------------------------------------------------


async def test_info_tells_of_mirrors_insecure_registries_and_proxies_without_passwords(tmp_path):
    config = RegistryConfig(
        mirrors=["https://hub-mirror.test/"],
        insecure=["10.0.0.0/8", "old.test:5000"],
        hosts={
            "quay.io": HostConfig(mirrors=["https://quay-mirror.test"]),
            "plain.test": HostConfig(insecure=True),
        },
        proxies=Proxies(http="http://ann:secret@proxy.test:3128", https="http://proxy.test:3128", no="10.0.0.0/8"),
    )
    async with daemon(tmp_path, config) as path:
        _, found = await asked(path, "/info")
    registries = found["RegistryConfig"]
    assert registries["Mirrors"] == ["https://hub-mirror.test/"]
    assert registries["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8", "10.0.0.0/8"]
    assert registries["IndexConfigs"] == {
        "docker.io": {
            "Name": "docker.io",
            "Mirrors": ["https://hub-mirror.test/"],
            "Secure": True,
            "Official": True,
        },
        "old.test:5000": {"Name": "old.test:5000", "Mirrors": [], "Secure": False, "Official": False},
        "plain.test": {"Name": "plain.test", "Mirrors": [], "Secure": False, "Official": False},
        "quay.io": {"Name": "quay.io", "Mirrors": ["https://quay-mirror.test"], "Secure": True, "Official": False},
    }
    assert found["HttpProxy"] == "http://xxxxx:xxxxx@proxy.test:3128"
    assert found["HttpsProxy"] == "http://proxy.test:3128"
    assert found["NoProxy"] == "10.0.0.0/8"
