"""Registries as people have them: with token servers, mirrors, a search; and pulls that a crash interrupts."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import evil_registry, images, token_server
from harness.box import Box
from harness.engine import Cli, Engine
from harness.engines import EngineMaker
from harness.needs import require_programs
from harness.registry import PASSWORD, USER, Registry

TOKENS = 5003
MD5_OF_BIG = hashlib.md5(bytes(range(256)) * (evil_registry.STUCK // 256)).hexdigest()
pytestmark = pytest.mark.not_dockerd("of these things Debian's has some, and other words")


@pytest.fixture(autouse=True)
def no_pulled_image_stays(session_engine: Engine) -> Iterator[None]:
    yield
    for image in session_engine.api.get("/images/json?all=1"):
        for tag in [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]:
            if tag.startswith("127.0.0.1"):
                session_engine.api.request("DELETE", f"/images/{tag}?force=1")


def spawned(box: Box, argv: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """A server that says when it is ready."""
    server = box.spawn([sys.executable, *argv], log=log, net_only=True)
    while "ready" not in log.read_text():
        assert server.poll() is None, log.read_text()
        time.sleep(0.02)
    return server


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(box: Box, root: Path) -> Iterator[Registry]:
    """A registry on 127.0.0.1:5004 that takes the tokens of a server on 5003; `library/busybox` is for everybody."""
    require_programs("docker-registry", "skopeo", "openssl")
    folder = root / "tokens"
    token_server.make_keys(folder)
    server = spawned(box, [token_server.__file__, str(TOKENS), str(folder)], root / "tokens.log")
    auth = token_server.config(TOKENS, folder)
    try:
        with Registry(box, root / "guarded", 5004, private=True, auth=auth).running() as running:
            archive = root / "guarded.tar"
            archive.write_bytes(images.docker_archive([images.busybox()]))
            for name in ("team/secret:1", "library/busybox:1"):
                running.push(f"docker-archive:{archive}:busybox:latest", name)
            yield running
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def asked(root: Path, guarded: Registry) -> Path:
    """The token server's log of this test."""
    log = root / "tokens" / "requests"
    log.write_text("")
    return log


def test_docker_login_keeps_an_identity_token_and_pulls_with_it(
    engine: Engine, guarded: Registry, asked: Path, tmp_path: Path
) -> None:
    docker, env = engine.docker, {"DOCKER_CONFIG": str(tmp_path)}
    wrong = docker("login", "-u", USER, "--password-stdin", guarded.address, input="wrong", check=False, env=env)
    assert wrong.code == 1
    assert "incorrect username or password" in wrong.err
    docker("login", "-u", USER, "--password-stdin", guarded.address, input=PASSWORD, env=env)
    kept = json.loads((tmp_path / "config.json").read_text())["auths"][guarded.address]
    assert kept["identitytoken"] == token_server.REFRESH
    asked.write_text("")
    docker("pull", f"{guarded.address}/team/secret:1", env=env)
    assert asked.read_text() == "POST refresh_token repository:team/secret:pull\n"


def test_who_is_nobody_gets_what_is_public_and_no_more(engine: Engine, guarded: Registry, asked: Path) -> None:
    engine.docker("pull", f"{guarded.address}/library/busybox:1")
    assert asked.read_text() == "GET  repository:library/busybox:pull\n"
    done = engine.docker("pull", f"{guarded.address}/team/secret:1", check=False)
    assert done.code == 1
    assert (
        f"pull access denied for {guarded.address}/team/secret, repository does not exist or may require 'docker login'"
    ) in done.err


def test_docker_py_sends_its_password_along(py: Any, guarded: Registry, asked: Path) -> None:
    image = py.images.pull(
        f"{guarded.address}/team/secret", tag="1", auth_config={"username": USER, "password": PASSWORD}
    )
    assert image.id == images.busybox().id
    assert asked.read_text() == "GET  repository:team/secret:pull\n"


# -- search, distribution ----------------------------------------------------------------------------------------------


def test_docker_search_finds_repositories_of_a_registry(docker: Cli, registry: Registry) -> None:
    done = docker("search", "--format", "{{.Name}}", f"{registry.address}/layer")
    assert "library/layered" in done.lines  # the session's registry: others push to it, too
    assert all("layer" in line for line in done.lines)
    done = docker("search", "--limit", "200", f"{registry.address}/x", check=False)
    assert "limit 200 is outside the range of [1, 100]" in done.err
    assert docker("search", "--filter", "stars=3", "--format", "{{.Name}}", f"{registry.address}/layer").lines == []


def test_docker_py_looks_into_a_registry(py: Any, registry: Registry) -> None:
    found = py.images.get_registry_data(f"{registry.address}/library/layered")
    assert found.id == registry.digest("library/layered:latest")
    assert found.attrs["Descriptor"]["size"] > 0
    assert found.attrs["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
    assert found.has_platform("linux/amd64")
    found.pull()


# -- platforms ---------------------------------------------------------------------------------------------------------


def test_two_platforms_of_a_name_are_held_side_by_side(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    parts = {name: images.tar([images.Entry(name="arch", data=name.encode())]) for name in ("amd64", "s390x")}
    both = [
        images.Image(tags=[], layers=[images.busybox_layer(), part], architecture=name) for name, part in parts.items()
    ]
    images.oci_layout(tmp_path / "layout", both, nested=True)
    name = registry.push(f"oci:{tmp_path}/layout", "side/by-side:1", "--all", "--preserve-digests")
    for image in both:
        engine.docker("pull", "--platform", f"linux/{image.architecture}", name)
    assert engine.api.get(f"/images/{name}/json")["Id"] == both[0].id
    assert engine.docker("run", "--rm", name, "cat", "/arch").out == "amd64"
    again = engine.docker("pull", "--platform", "linux/s390x", name)
    assert f"Status: Image is up to date for {name}" in again.lines


def test_all_platforms_can_be_asked_for_by_the_stock_client(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    both = [
        images.Image(tags=[], layers=[images.tar([images.Entry(name="all", data=name.encode())])], architecture=name)
        for name in ("s390x", "amd64")
    ]
    images.oci_layout(tmp_path / "layout", both, nested=True)
    name = registry.push(f"oci:{tmp_path}/layout", "side/all:1", "--all", "--preserve-digests")
    engine.docker("pull", "--platform", "all", name)
    assert engine.api.get(f"/images/{name}/json")["Id"] == both[1].id
    held = {image["Id"] for image in engine.api.get("/images/json?all=1")}
    manifests = engine.api.get(f"/v1.48/images/{name}/json?manifests=1").get("Manifests") or []
    assert both[0].id in held or len([each for each in manifests if each["Available"]]) == 2
    assert f"Digest: {registry.digest('side/all:1')}" in engine.docker("pull", "--platform", "all", name).lines


# -- mirrors -----------------------------------------------------------------------------------------------------------


def test_mirrors_of_any_registry_come_from_daemon_json(
    own_engine: EngineMaker, box: Box, registry: Registry, tmp_path: Path
) -> None:
    config = tmp_path / "daemon.json"
    mirrors = ["http://127.0.0.1:1", f"http://{registry.address}"]
    config.write_text(json.dumps({"registries": {"quay.test": {"mirrors": mirrors}}}))
    engine = own_engine(box=box, bip="172.31.7.1/24", args=["--config-file", str(config)])
    done = engine.docker("pull", "quay.test/library/layered")
    assert f"Digest: {registry.digest('library/layered:latest')}" in done.lines
    assert engine.docker("run", "--rm", "quay.test/library/layered", "cat", "/data/kept").out == "kept\n"
    known = engine.api.get("/info")["RegistryConfig"]["IndexConfigs"]
    assert known["quay.test"] == {"Name": "quay.test", "Mirrors": mirrors, "Secure": True, "Official": False}
    missing = engine.docker("pull", "quay.test/no/such", check=False)
    assert missing.code == 1
    assert "quay.test" in missing.err


# -- a crash in the middle ---------------------------------------------------------------------------------------------


def test_a_pull_goes_on_after_the_daemon_was_killed(own_engine: EngineMaker, tmp_path: Path) -> None:
    engine = own_engine()
    log = tmp_path / "evil.log"
    server = spawned(engine.box, [evil_registry.__file__, "5002"], log)
    try:
        name = "127.0.0.1:5002/stuck-once"
        puller = engine.docker.start("pull", name)
        held = evil_registry.STUCK // 2 - (1 << 20)  # the last piece may not have reached the disk
        until = time.monotonic() + 30
        while sum(path.stat().st_size for path in (engine.data_root / "ingest").glob("partial-*")) < held:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        engine.kill()
        puller.communicate(timeout=30)
        engine.start()
        engine.docker("pull", name)
        assert engine.docker("run", "--rm", name, "md5sum", "/big").text.split()[0] == MD5_OF_BIG
    finally:
        server.kill()
        server.wait()
    layer = evil_registry.repository("stuck-once").last
    blobs = [line.split() for line in log.read_text().splitlines() if line.startswith("stuck-once ")]
    first, second = [wanted for _, digest, wanted in blobs if digest == layer]
    assert first == "all"
    assert int(second.removeprefix("bytes=").rstrip("-")) >= held
    base = images.digest(images.busybox_layer())
    assert [digest for _, digest, _ in blobs].count(base) <= 1  # what had come whole was not asked for again
