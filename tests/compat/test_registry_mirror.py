"""Our registry between an engine and where its images come from: a mirror of docker.io, alone and in the engine."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import images
from harness.box import Box
from harness.engine import WHERRY, remove_root, short_root
from harness.engines import new_engine
from harness.leaks import Before, Witness
from harness.needs import require_programs
from harness.our_registry import ENGINE, Harbour, Kind
from harness.registry import Registry

pytestmark = pytest.mark.not_dockerd("the mirror under test is ours")

CACHE = Kind(name="cache", port=5031)
HUB_PORT = 5032
HUB = {"docker.io": {"url": f"http://127.0.0.1:{HUB_PORT}", "default": True, "ttl": 0}}


@pytest.fixture(scope="module")
def harbour() -> Iterator[Harbour]:
    """An engine that knows docker.io by our mirror only; its own registry is a cache of the same, too."""
    require_programs("skopeo", "docker", "docker-registry", "openssl")
    with contextlib.ExitStack() as stack:
        root = short_root("mirror")
        stack.callback(remove_root, root)
        made = Harbour(stack.enter_context(Box()), root)
        keys = {
            "registry": {"listen": [ENGINE.listens], "upstreams": HUB},
            "registry-mirrors": [f"http://{CACHE.address}"],
        }
        made.config.write_text(json.dumps(keys))
        before = Before(made.box)
        engine = new_engine(made.box, root, bip="172.31.8.1/24", args=["--config-file", str(made.config)])
        engine.start()
        witness = Witness(engine)
        try:
            with caching(made):
                yield made
        finally:
            witness.stop()
            engine.stop()
        leaks = before.leaks(engine, witness.containers)
        assert not leaks, "left behind:\n  " + "\n  ".join(leaks) + f"\n{engine.log_tail()}"


@contextlib.contextmanager
def caching(harbour: Harbour) -> Iterator[None]:
    """The mirror, on its own."""
    home = harbour.root / CACHE.name
    home.mkdir()
    keys = {"root": str(home / "data"), "listen": [CACHE.listens], "upstreams": HUB}
    (home / "registry.json").write_text(json.dumps(keys))
    argv = [str(WHERRY), "registry", "serve", "--config", str(home / "registry.json")]
    process = harbour.box.spawn(argv, log=home / "log", net_only=True)
    try:
        harbour._wait(CACHE, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Image:
    """In the hub's library, with the tag 1."""

    name: str
    digest: str
    hub: contextlib.ExitStack  # `close` ends it


@pytest.fixture
def image(harbour: Harbour, tmp_path: Path) -> Iterator[Image]:
    name = f"x{tmp_path.name[-8:].replace('_', '')}".lower()
    layers = [images.tar([images.Entry(name=layer, data=f"{name} {layer}".encode())]) for layer in ("one", "two")]
    digest = images.oci_layout(tmp_path / "image", [images.Image(tags=[], layers=layers)])
    with contextlib.ExitStack() as hub:
        hub.enter_context(Registry(harbour.box, tmp_path / "hub", HUB_PORT, private=False).running())
        target = f"docker://127.0.0.1:{HUB_PORT}/library/{name}:1"
        harbour.skopeo("copy", "--quiet", "--dest-tls-verify=false", f"oci:{tmp_path / 'image'}", target)
        yield Image(name, digest, hub)


def test_an_engine_pulls_docker_hubs_images_through_the_mirror_also_while_the_hub_is_away(
    harbour: Harbour, image: Image
) -> None:
    name, digest = image.name, image.digest
    assert digest in harbour.docker("pull", f"{name}:1").out
    image.hub.close()
    harbour.docker("rmi", f"{name}:1")
    assert digest in harbour.docker("pull", f"{name}:1").out
    said = harbour.docker("image", "inspect", "--format", "{{json .RepoTags}} {{json .RepoDigests}}", f"{name}:1").out
    assert said == f'["{name}:1"] ["{name}@{digest}"]\n'
    harbour.docker("rmi", f"{name}:1")
    place = f"{CACHE.address}/docker.io/library/{name}"
    inspected = harbour.skopeo("inspect", "--tls-verify=false", f"docker://{place}:1").out
    assert json.loads(inspected)["Digest"] == digest
    assert json.loads(inspected)["RepoTags"] == ["1"]


def test_the_mirror_is_pushed_to_as_any_other_registry_and_its_copies_are_not(harbour: Harbour, image: Image) -> None:
    name, digest = image.name, image.digest
    harbour.docker("pull", f"{name}:1")
    own, copy = f"{CACHE.address}/own/{name}:1", f"{CACHE.address}/docker.io/library/{name}:1"
    for target in (own, copy):
        harbour.docker("tag", f"{name}:1", target)
    assert digest in harbour.docker("push", own).out
    refused = harbour.docker.refused("push", copy)
    assert f"repository docker.io/library/{name} is a copy of one of docker.io: push there instead" in refused
    harbour.docker("rmi", f"{name}:1", own, copy)
    assert digest in harbour.docker("pull", own).out
    harbour.docker("rmi", own)


def test_the_engines_own_registry_caches_beside_its_images(harbour: Harbour, image: Image, tmp_path: Path) -> None:
    name, digest = image.name, image.digest
    place = f"{ENGINE.address}/docker.io/library/{name}:1"
    copy = ("copy", "--quiet", "--src-tls-verify=false", f"docker://{place}")
    harbour.skopeo(*copy, f"dir:{tmp_path / 'first'}")
    image.hub.close()
    harbour.skopeo(*copy, f"dir:{tmp_path / 'second'}")
    for folder in ("first", "second"):
        assert images.digest((tmp_path / folder / "manifest.json").read_bytes()) == digest
    assert name not in harbour.docker("images").out, "a copy is no image of the engine"
    harbour.wherry("system", "prune", "-f")
    harbour.skopeo(*copy, f"dir:{tmp_path / 'third'}")

    tidy = ("registry", "gc", "--root", str(harbour.root / "data/registry"), "--grace", "0", "--delete-untagged")
    assert "0 untagged manifests and 0 unneeded blobs would be forgotten" in harbour.wherry(*tidy, "--dry-run").out
    assert "were forgotten" in harbour.wherry(*tidy).out
    harbour.skopeo(*copy, f"dir:{tmp_path / 'fourth'}")
