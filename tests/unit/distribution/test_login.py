"""login against a registry in process."""

import base64
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import RegistryConfig
from wherry.distribution.login import domain_of, login
from wherry.errors import Failed, InvalidParameter, Unauthorized
from wherry.spec.distribution import Auth

GOOD = "Basic " + base64.b64encode(b"jane:secret").decode()


@pytest.fixture
async def address(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async def v2(asked: web.Request) -> web.Response:
        if asked.headers.get("Authorization") == GOOD:
            return web.json_response({})
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
            status=401,
            headers={"WWW-Authenticate": 'Basic realm="test"'},
        )

    app = web.Application()
    app.router.add_get("/v2/", v2)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("localhost:5000", "localhost:5000"),
        ("https://registry.test/v2/", "registry.test"),
    ],
)
def test_addresses_as_clients_write_them(text: str, domain: str):
    assert domain_of(text) == domain


async def test_good_credentials_are_taken(address: str):
    await login(RegistryConfig(), Auth(username="jane", password="secret", serveraddress=address))


@pytest.mark.parametrize("auth", [Auth(username="jane", password="wrong"), Auth()])
async def test_bad_credentials_are_refused_in_words(address: str, auth: Auth):
    with pytest.raises(Unauthorized, match=r"authentication required|no basic auth credentials"):
        await login(
            RegistryConfig(),
            Auth(username=auth.username, password=auth.password, serveraddress=f"http://{address}/v2/"),
        )


async def test_a_registry_that_is_not_there_is_named():
    with pytest.raises(Failed, match=r"127\.0\.0\.1:1"):
        await login(RegistryConfig(), Auth(username="a", password="b", serveraddress="127.0.0.1:1"))


async def test_an_address_that_is_none_is_refused():
    with pytest.raises(InvalidParameter, match="invalid registry address"):
        await login(RegistryConfig(), Auth(username="a", password="b", serveraddress="x y"))


# --- token servers ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry(auth="token", identity="identity")) as found:
        yield found


async def log_in(registry: FakeRegistry, password: str = "secret") -> str:
    return await login(RegistryConfig(), Auth(username="ann", password=password, serveraddress=registry.host))


async def test_the_identity_token_of_a_token_server_is_handed_on(registry):
    assert await log_in(registry) == "identity"
    assert [request.method for request in registry.asked("/token")] == ["POST"]


@pytest.mark.parametrize("status", [400, 401, 404, 405])
async def test_a_token_server_that_knows_only_the_older_way_is_asked_so(registry, status):
    registry.token_posts = status
    assert await log_in(registry) == "identity"
    first, second = registry.asked("/token")
    assert (first.method, second.method) == ("POST", "GET")
    assert second.query["offline_token"] == "true"
    assert second.query["account"] == "ann"


async def test_a_token_server_without_identity_tokens_is_fine(registry):
    registry.identity = ""
    assert await log_in(registry) == ""


async def test_a_wrong_password_is_told_in_the_token_servers_words(registry):
    with pytest.raises(Unauthorized, match=r"unauthorized: incorrect username or password"):
        await log_in(registry, "wrong")


async def test_a_token_server_that_is_down_does_not_get_the_password_a_second_way(registry):
    registry.token_posts = 503
    with pytest.raises(Failed, match="503"):
        await log_in(registry)
    assert len(registry.asked("/token")) == 1


async def test_an_identity_token_is_checked_like_a_password(registry):
    auth = Auth(identitytoken="identity", serveraddress=registry.host)
    assert await login(RegistryConfig(), auth) == ""
    assert [request.method for request in registry.asked("/token")] == ["POST"]
