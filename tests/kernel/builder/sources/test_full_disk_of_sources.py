"""What is fetched onto a disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from gitkit import Repository, serve

from wherry.builder.graph import GitSource, HttpSource
from wherry.builder.sources.git import GitStore
from wherry.builder.sources.http import HttpStore
from wherry.distribution.config import RegistryConfig
from wherry.errors import Failed


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_download_says_so_and_leaves_nothing(small: Path) -> None:
    size = 3 << 20

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * size)

    app = web.Application()
    app.router.add_get("/f", answer)
    store = HttpStore(small / "http", RegistryConfig())
    async with TestServer(app) as server:
        source = HttpSource(url=str(server.make_url("/f")))
        with pytest.raises(Failed, match=r"No space left on device in .*: make room"):
            async with store.fetch(source):
                pass
        assert not list((small / "http").iterdir())
        size = 1000
        async with store.fetch(source) as found:
            assert (found.path / "f").stat().st_size == 1000


async def test_git_says_so_and_works_when_there_is_room(small: Path, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    repository = Repository(tmp_path / "served", "app")
    repository.commit({"small": "s"})
    store = GitStore(small / "git")
    (small / "ballast").write_bytes(b"x" * (900 << 10))
    with serve(tmp_path / "served") as served:
        source = GitSource(remote=served.url(repository))
        (repository.tree / "large").write_bytes(os.urandom(400 << 10))
        repository.commit({})
        with pytest.raises(Failed, match=r"No space left on device|unable to write"):
            async with store.fetch(source):
                pass
        assert not [entry for entry in store.entries() if not entry.name.startswith("mirror-")]
        (small / "ballast").unlink()
        async with store.fetch(source) as found:
            assert (found.path / "large").stat().st_size == 400 << 10
