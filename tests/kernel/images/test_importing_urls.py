"""Import of what a URL names."""

import bz2
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from imagekit.making import digest, tar
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.errors import Failed, InvalidParameter, NotFound
from wherry.images.making.import_ import import_
from wherry.images.views.inspect import inspect

pytestmark = pytest.mark.kernel

TREE = {"etc": None, "etc/x": b"1" * 100_000}


async def never() -> AsyncIterator[bytes]:
    raise AssertionError("the body is not read")
    yield b""


async def plain(request: web.Request) -> web.StreamResponse:
    return web.Response(body=tar(TREE))


async def packed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(bz2.compress(tar(TREE)))
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100000"})
    await response.prepare(request)
    await response.write(tar(TREE)[:20_000])
    assert request.transport is not None
    request.transport.close()
    return response


async def text(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>sign in</html>" * 100)


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    app = web.Application()
    for name, handler in {"plain.tar": plain, "packed.tar.bz2": packed, "cut": cut, "text": text}.items():
        app.router.add_get(f"/{name}", handler)
    async with TestServer(app, host="127.0.0.1") as made:
        yield made


async def read_in(world: World, server: TestServer, name: str, **more: object):
    url = str(server.make_url(f"/{name}"))
    return url, await import_(world.deps, never(), source=url, progress=world.tell, **more)


async def test_what_a_url_names_becomes_an_image(world: World, server: TestServer):
    url, image = await read_in(world, server, "plain.tar", repository="made/x", changes=["CMD sh"])
    assert files(world, image) == TREE
    assert image.layers[0].digest == digest(tar(TREE))
    assert inspect(world.deps, "made/x")["Comment"] == f"Imported from {url}"
    assert world.messages[0] == {"status": f"Downloading from {url}"}
    assert world.messages[-1] == {"status": image.id}
    bars = world.messages[1:-1]
    assert {message["status"] for message in bars} == {"Importing"}
    assert bars[-1]["progressDetail"] == {"current": len(tar(TREE)), "total": len(tar(TREE))}
    assert not any("id" in message for message in bars)


async def test_a_file_of_unknown_length_and_another_compression_is_imported(world: World, server: TestServer):
    _, image = await read_in(world, server, "packed.tar.bz2")
    assert files(world, image) == TREE
    assert world.messages[1]["progressDetail"] == {"current": len(bz2.compress(tar(TREE)))}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nothing", NotFound, "404 Not Found"),
        ("cut", Failed, "unexpected EOF"),
        ("text", InvalidParameter, "no tar archive"),
    ],
)
async def test_what_is_no_archive_is_refused_and_leaves_nothing(world: World, server: TestServer, name, kind, words):
    with pytest.raises(kind, match=words):
        await read_in(world, server, name)
    assert world.held() == NOTHING
