"""Whole builds whose parts come from elsewhere: registries, git, the web, caches of other machines."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from gitkit import WHEN, Repository, Served
from gitkit import serve as serve_git

from builderkit.site import Finished, Site, load_busybox, open_site
from imagekit.making import make
from imagekit.registry import FakeRegistry
from registrykit.servers import ours, running
from wherry.builder.graph import NetworkMode, ResolveMode
from wherry.builder.options import CacheTransfer, Export, Options
from wherry.reference import parse

IMAGE = Export(type="image", attributes={"name": "made:1"})
NO_NETWORK: dict[str, Any] = {"network": NetworkMode.NONE}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "site") as found:
        yield found


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "served").mkdir()
    return Repository(tmp_path / "served", "app")


@pytest.fixture
def served(repository: Repository) -> Iterator[Served]:
    with serve_git(repository.root) as found:
        yield found


async def test_a_base_keeps_its_blobs_digest_in_an_image_made_of_it_later(site: Site, registry: FakeRegistry) -> None:
    base = make([{"etc/": None, "etc/base": b"b"}])
    registry.add("base", "latest", base)
    dockerfile = f"FROM {registry.host}/base\nCOPY a.txt /a\n"
    site.write(a_txt="1")
    await site.build(dockerfile)
    assert not set(base.layer_digests) & set(site.world.deps.content.walk()), "nothing needs the blob any more"
    done = await site.build(dockerfile, exports=(IMAGE,))
    assert done.ran == []
    image = site.world.deps.store.get("made:1")
    assert image.layers[0].digest == base.layer_digests[0]
    assert image.repo_tags == ("made:1",)
    assert site.world.deps.store.target(parse(f"{registry.host}/base:latest")) is None, "a base is not tagged"


async def test_a_base_of_which_nothing_is_needed_is_not_downloaded(site: Site, registry: FakeRegistry) -> None:
    base = make([{"base": b"b"}])
    registry.add("base", "latest", base)
    site.write(a_txt="1")
    done = await site.build(f"FROM {registry.host}/base AS unused\nFROM scratch\nCOPY a.txt /a\n")
    assert done.read("a") == b"1"
    assert not registry.log
    await site.build(f"FROM {registry.host}/base\nLABEL a=b\n")
    assert not registry.asked(base.layer_digests[0])


async def test_a_repository_as_the_context(site: Site, served: Served, repository: Repository) -> None:
    repository.commit({"docker/Dockerfile": "FROM scratch\nCOPY . /all\n", "docker/file": "f", "top": "t"})
    context = f"{served.url(repository)}?branch=main&subdir=docker"
    done = await site.build("", context=context)
    assert done.read("all/file") == b"f"
    assert not done.has("all/top")
    assert done.stat("all/file").st_mtime == WHEN
    assert (await site.build("", context=context)).tree == done.tree


async def test_a_repository_and_a_file_that_are_added(site: Site, served: Served, repository: Repository) -> None:
    commit = repository.commit({"file": "f", "dir/inner": "i"})

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"from the web", headers={"ETag": '"1"'})

    app = web.Application()
    app.router.add_get("/name.txt", answer)
    async with TestServer(app) as server:
        url = server.make_url("/name.txt")
        dockerfile = f"FROM scratch\nADD --checksum={commit} {served.url(repository)}#main /src/\nADD {url} /web/\n"
        done = await site.build(dockerfile)
        assert done.read("src/dir/inner") == b"i"
        assert not done.has("src/.git")
        assert done.read("web/name.txt") == b"from the web"
        again = await site.build(dockerfile)
        assert (again.tree, again.ran) == (done.tree, [])


async def test_an_archive_from_the_web_as_the_context(site: Site) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in (("Dockerfile", b"FROM scratch\nCOPY f /f\n"), ("f", b"in the archive")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid = len(content), 1000
            archive.addfile(entry, io.BytesIO(content))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=out.getvalue() if request.path == "/c.tar.gz" else b"FROM scratch\nLABEL alone=1\n")

    app = web.Application()
    app.router.add_get("/{path}", answer)
    async with TestServer(app) as server:
        done = await site.build("", context=str(server.make_url("/c.tar.gz")))
        assert done.read("f") == b"in the archive"
        assert done.stat("f").st_uid == 0
        alone = await site.build("", context=str(server.make_url("/Dockerfile")), exports=(IMAGE,))
        assert alone.tree.layers == ()
        assert site.world.deps.store.get("made:1").config.config.labels == {"alone": "1"}


# --- caches -----------------------------------------------------------------------------------------------------------

STAGES = """\
FROM busybox AS build
COPY a.txt /src/a
RUN --mount=type=cache,id=tools,target=/tools test -e /tools/x || echo made > /tools/x; cat /src/a /tools/x > /out
FROM scratch
COPY --from=build /out /out
COPY b.txt /b
"""


async def cached(site: Site, where: CacheTransfer, *, to: bool, exports: tuple[Export, ...] = ()) -> Finished:
    (site.client.path / "Dockerfile").write_text(STAGES)
    job = await site.begin()
    options = Options(resolve=ResolveMode.LOCAL, cache_imports=() if to else (where,), **NO_NETWORK)
    built = await job.frontend(options)
    response = await job.export(built, exports, (where,) if to else ())
    await job.end(response=response)
    return Finished(site, job, built, response)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    async with AsyncExitStack() as opened:
        found = [await opened.enter_async_context(open_site(tmp_path / name)) for name in ("one", "two")]
        for site in found:
            await load_busybox(site)
            site.write(a_txt="a", b_txt="b")
        yield found[0], found[1]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "registry").mkdir()
    with running(ours(tmp_path / "registry")) as server:
        yield server.address


@pytest.mark.parametrize("mode", ["min", "max"])
async def test_another_machine_runs_nothing_that_a_cache_knows(
    sites: tuple[Site, Site], address: str, mode: str
) -> None:
    one, two = sites
    attributes = {"ref": f"{address}/cache", "mode": mode, "cache-mounts": "true"}
    where = CacheTransfer(type="registry", attributes=attributes)
    first = await cached(one, where, to=True)
    assert len(first.ran) == 4
    second = await cached(two, where, to=False, exports=(IMAGE,))
    assert second.ran == [], "also a copy from a stage whose files nobody has is found"
    assert second.tree.chain == first.tree.chain
    image = two.world.deps.store.get("made:1")
    assert second.read("out") == b"amade\n"
    assert [layer.chain for layer in image.layers] == [layer.chain for layer in first.tree.layers]


async def test_what_changed_is_built_on_what_the_cache_knows(sites: tuple[Site, Site], address: str) -> None:
    one, two = sites
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/cache", "cache-mounts": "true"})
    await cached(one, where, to=True)
    two.write(b_txt="changed")
    second = await cached(two, where, to=False)
    assert len(second.ran) == 1
    assert second.read("b") == b"changed"
    two.write(a_txt="changed, too")
    third = await cached(two, where, to=False)
    assert third.read("out") == b"changed, toomade\n", "its cache mount came along"


async def test_an_image_carries_its_cache_to_another_machine(sites: tuple[Site, Site], address: str) -> None:
    one, two = sites
    image = Export(type="image", attributes={"name": f"{address}/app:1", "push": "true"})
    first = await cached(one, CacheTransfer(type="inline"), to=True, exports=(image,))
    where = CacheTransfer(type="registry", attributes={"ref": f"{address}/app:1"})
    second = await cached(two, where, to=False)
    assert second.ran == []
    assert second.tree.chain == first.tree.chain
    two.write(b_txt="changed")
    assert len((await cached(two, where, to=False)).ran) == 1


async def test_a_cache_that_cannot_be_had_does_not_stop_a_build(site: Site) -> None:
    await load_busybox(site)
    site.write(a_txt="a", b_txt="b")
    where = CacheTransfer(type="registry", attributes={"ref": "127.0.0.1:9/cache"})
    done = await cached(site, where, to=False)
    assert done.read("out") == b"amade\n"
    shown = json.dumps([str(event) for event in done.job.log.events])
    assert "importing cache manifest from 127.0.0.1:9/cache" in shown
    assert "connection refused" in shown
