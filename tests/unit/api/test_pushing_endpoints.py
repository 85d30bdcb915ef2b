"""Push and convert over the wire: parameters, words, and the stream of messages."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from api_world import World as ApiWorld
from wirekit import ask, post

from imagekit.making import index, make
from imagekit.push_registry import PushRegistry, serve
from imagekit.world import MemorySnapshots, World
from wherry.api.listeners import parse
from wherry.api.listeners import serve as listen
from wherry.api.routes import build

ONE = make([{"one": b"1"}])
OTHER = make([{"other": b"2"}], architecture="s390x")
INDEX = index([(ONE, {"os": "linux", "architecture": "amd64"}), (OTHER, {"os": "linux", "architecture": "s390x"})])


class Daemon:
    def __init__(self, path: Path, images: World) -> None:
        self.path, self.images = path, images

    async def post(self, target: str, *headers: str) -> tuple[int, list[dict[str, object]]]:
        status, _, body = await ask(self.path, post(target, b"", *headers))
        return status, [json.loads(line) for line in body.splitlines()]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    for folder in ("api", "images"):
        (tmp_path / folder).mkdir()
    images = World(tmp_path / "images", MemorySnapshots())  # type: ignore[arg-type]
    services = replace(ApiWorld(tmp_path / "api").services, images=images.deps)
    listening = await listen(build(services), [parse(f"unix://{tmp_path}/s")])
    yield Daemon(tmp_path / "s", images)
    await listening.stop(grace=2)


@pytest.fixture
async def registry() -> AsyncIterator[PushRegistry]:
    async with serve(PushRegistry()) as found:
        yield found


async def test_push_streams_what_happens(daemon: Daemon, registry: PushRegistry):
    await daemon.images.put(ONE, f"{registry.host}/x/y:1")
    status, lines = await daemon.post(f"/images/{registry.host}/x/y/push?tag=1", "X-Registry-Auth: !nonsense!")
    assert status == 200
    assert lines[0] == {"status": f"The push refers to repository [{registry.host}/x/y]"}
    assert lines[-1]["aux"] == {"Tag": "1", "Digest": ONE.digest, "Size": len(ONE.manifest)}
    assert registry.manifests["x/y", "1"][0] == ONE.manifest


@pytest.mark.parametrize(
    ("version", "platform", "document"),
    [
        ("", '{"os": "linux", "architecture": "s390x"}', OTHER.manifest),
        ("/v1.46", '{"os": "linux", "architecture": "s390x"}', OTHER.manifest),
        ("", "linux/s390x", OTHER.manifest),
        ("/v1.45", '{"os": "linux", "architecture": "s390x"}', INDEX[0]),  # came with 1.46
        ("", "", INDEX[0]),
    ],
)
async def test_a_platform_is_pushed_alone(
    daemon: Daemon, registry: PushRegistry, version: str, platform: str, document: bytes
):
    for made in (ONE, OTHER):
        await daemon.images.put(made, f"{registry.host}/x:1", index=INDEX)
    status, _ = await daemon.post(f"{version}/images/{registry.host}/x/push?tag=1&platform={quote(platform)}")
    assert status == 200
    assert registry.manifests["x", "1"][0] == document


async def test_compression_is_passed_on(daemon: Daemon, registry: PushRegistry):
    await daemon.images.put(ONE, f"{registry.host}/x:1")
    status, _ = await daemon.post(f"/images/{registry.host}/x/push?tag=1&compression=zstd")
    assert status == 200
    assert b"tar+zstd" in registry.manifests["x", "1"][0]


async def test_what_fails_after_the_first_line_is_its_last(daemon: Daemon, registry: PushRegistry):
    status, lines = await daemon.post(f"/images/{registry.host}/x/push?tag=1")
    message = f"An image does not exist locally with the tag: {registry.host}/x"
    assert status == 200
    assert lines[1:] == [{"errorDetail": {"message": message}, "error": message}]


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("/images/x@sha256:" + "0" * 64 + "/push", 400, "cannot push a digest reference"),
        ("/images/x/push?tag=a%20b", 400, "invalid tag format"),
        ("/images/x/push?platform={nonsense", 400, "platform is not valid JSON"),
        ("/images/x/push?compression=rar", 400, "unknown compression 'rar': want one of gzip, zstd, none"),
        ("/images/x/convert", 400, "converting an image needs `to`, a reference, and `compression`"),
        ("/images/x/convert?to=y", 400, "converting an image needs `to`, a reference, and `compression`"),
        ("/images/x/convert?to=y&compression=gzip&format=rpm", 400, "unknown format 'rpm': want one of oci, docker"),
        ("/images/x/convert?to=Y&compression=gzip", 400, "invalid reference format"),
        ("/images/none/convert?to=y&compression=gzip", 404, "No such image: none:latest"),
    ],
)
async def test_what_can_never_be_done_is_an_error_in_words(daemon: Daemon, target: str, status: int, words: str):
    await daemon.images.put(ONE, "x:latest")
    found, lines = await daemon.post(target)
    assert found == status
    assert str(lines[0]["message"]).startswith(words)


async def test_convert_names_the_image_anew(daemon: Daemon):
    await daemon.images.put(ONE, "x:latest")
    status, lines = await daemon.post("/images/x/convert?to=y:2&compression=zstd&format=oci")
    assert status == 200
    assert str(lines[-1]["status"]).startswith("y:2: digest: sha256:")
    assert daemon.images.deps.store.get("y:2").id == ONE.id
