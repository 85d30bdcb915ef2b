"""Results go to registries: Debian's, which knows no referrers, and our own."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from imagekit.push_registry import PushRegistry, serve
from wherry.aio import settle
from wherry.builder.export.outputs import export
from wherry.builder.export.work import Statement
from wherry.builder.options import Export
from wherry.errors import InvalidParameter, WherryError
from wherry.registry.folder import open_folder
from wherry.registry.server import build_app
from wherry.spec.image import ACCEPT

SAID = Statement(predicate_type="https://spdx.dev/Document", predicate={"x": 1}, name="sbom.json", referrer=True)


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[str]:
    store = await settle(open_folder, tmp_path / "registry")
    async with TestServer(build_app(store)) as server:
        yield f"127.0.0.1:{server.port}"
    await store.close()


@pytest.fixture
async def old() -> AsyncIterator[PushRegistry]:
    """One that knows no referrers."""
    async with serve(PushRegistry()) as registry:
        yield registry


async def get(host: str, path: str) -> dict:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{host}/v2/{path}", headers={"Accept": ", ".join(ACCEPT)}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return json.loads(await answer.read())


async def test_a_result_is_pushed_with_its_attestations_and_referrers(bench, ours):
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[SAID]))
    wanted = Export(type="image", attributes={"name": f"{ours}/app:1", "push": "true"})
    outcome = await export(work, wanted, 0)
    index = await get(ours, "app/manifests/1")
    image, attestation = index["manifests"]
    assert (await get(ours, f"app/manifests/{attestation['digest']}"))["layers"]
    (referrer,) = (await get(ours, f"app/referrers/{image['digest']}"))["manifests"]
    assert referrer["artifactType"] == "application/vnd.in-toto+json"
    assert referrer["annotations"] == {"in-toto.io/predicate-type": SAID.predicate_type}
    stored = bench.deps.images.store.get(f"{ours}/app:1")
    assert stored.repo_digests == (f"{ours}/app@{outcome.response['containerimage.digest']}",)
    assert "pushing layers" in bench.lines
    assert f"pushing manifest for {ours}/app:1@{outcome.response['containerimage.digest']}" in bench.lines


async def test_a_registry_without_referrers_is_told_by_a_tag(bench, old):
    work = bench.work(bench.variant(await bench.files(a="1"), statements=[SAID]))
    wanted = Export(type="image", attributes={"name": f"{old.host}/app:1", "push": "true"})
    for _ in range(2):
        await export(work, wanted, 0)
    index, _ = old.manifests["app", "1"]
    image = json.loads(index)["manifests"][0]["digest"]
    listed, _ = old.manifests["app", image.replace(":", "-")]
    (referrer,) = json.loads(listed)["manifests"]
    assert ("app", referrer["digest"]) in old.manifests


async def test_a_push_by_digest_gives_no_tag(bench, ours):
    work = bench.work(bench.variant(await bench.files(a="1")))
    attributes = {"name": f"{ours}/app", "push": "true", "push-by-digest": "true", "name-canonical": "true"}
    outcome = await export(work, Export(type="image", attributes=attributes), 0)
    digest = outcome.response["containerimage.digest"]
    assert (await get(ours, f"app/manifests/{digest}"))["layers"]
    assert (await get(ours, "app/tags/list"))["tags"] in ([], None)
    (image,) = bench.deps.images.store.all()
    assert image.repo_tags == ()
    assert image.repo_digests == (f"{ours}/app@{digest}",)


async def test_what_is_not_stored_is_pushed_all_the_same(bench, ours):
    work = bench.work(bench.variant(await bench.files(a="1")))
    attributes = {"name": f"{ours}/app", "push": "true", "store": "false", "compression": "uncompressed"}
    await export(work, Export(type="image", attributes=attributes), 0)
    manifest = await get(ours, "app/manifests/latest")
    assert manifest["layers"][0]["mediaType"].endswith(".tar")
    assert bench.deps.images.store.all() == []


async def test_a_push_that_is_refused_names_the_cause_and_leaves_the_image(bench, old):
    old.failures["PUT"] = [403] * 20
    work = bench.work(bench.variant(await bench.files(a=os.urandom(4).hex())))
    with pytest.raises(WherryError):
        await export(work, Export(type="image", attributes={"name": f"{old.host}/app", "push": "true"}), 0)
    assert bench.vertices[-1].error
    assert bench.deps.images.store.get(f"{old.host}/app")


async def test_an_image_without_a_name_cannot_be_pushed(bench):
    work = bench.work(bench.variant(await bench.files(a="1")))
    with pytest.raises(InvalidParameter, match="without a name"):
        await export(work, Export(type="image", attributes={"push": "true"}), 0)
