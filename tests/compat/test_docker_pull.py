"""`pull` from Debian's registry, and from one that lies."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import evil_registry, images
from harness.box import Box
from harness.engine import Cli, Engine
from harness.registry import PASSWORD, USER, Registry

EVIL = "127.0.0.1:5002"


@pytest.fixture(autouse=True)
def no_pulled_image_stays(engine: Engine) -> Any:
    yield
    engine.remove_all_containers()
    base = {images.busybox().id, images.layered().id, images.configured().id}
    for image in engine.api.get("/images/json?all=1"):
        for tag in image["RepoTags"] or []:
            if tag.startswith("127.0.0.1"):
                engine.api.request("DELETE", f"/images/{tag}?force=1")
        if image["Id"] not in base:
            engine.api.request("DELETE", f"/images/{image['Id']}?force=1")


def small(name: str, architecture: str = "amd64") -> images.Image:
    """An image of its own with three layers, so that a pull has something to do."""
    parts = [images.tar([images.Entry(name=f"{name}-{number}", data=name.encode() * 9999)]) for number in range(2)]
    return images.Image(tags=[], layers=[images.busybox_layer(), *parts], architecture=architecture)


def pulled(engine: Engine, name: str) -> list[dict[str, Any]]:
    """The messages of a pull, as the API sends them."""
    repository, _, tag = name.rpartition(":")
    with engine.api.stream("POST", f"/images/create?fromImage={repository}&tag={tag}", timeout=60) as answer:
        assert answer.status == 200, answer.read()
        return [json.loads(line) for line in answer]


# -- every form an image comes in --------------------------------------------------------------------------------------


def test_pull_shows_its_progress_layer_by_layer(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    image = small("progress")
    images.oci_layout(tmp_path / "layout", [image])
    name = registry.push(f"oci:{tmp_path}/layout", "team/progress:1", "--preserve-digests")
    messages = pulled(engine, name)
    assert messages[0] == {"status": "Pulling from team/progress", "id": "1"}
    per_layer: dict[str, list[str]] = {}
    for message in messages[1:]:
        if len(message.get("id", "")) == 12:
            per_layer.setdefault(message["id"], []).append(message["status"])
    assert len(per_layer) == 3
    for steps in per_layer.values():
        assert steps[0] in ("Pulling fs layer", "Already exists")
        assert steps[-1] in ("Pull complete", "Already exists")
    assert sum("Pull complete" in steps for steps in per_layer.values()) >= 2
    digest = registry.digest("team/progress:1")
    assert [message["status"] for message in messages[-2:]] == [
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {name}",
    ]
    found = engine.api.get(f"/images/{name}/json")
    assert found["Id"] == image.id
    assert found["RepoDigests"] == [f"{registry.address}/team/progress@{digest}"]


def test_a_second_pull_finds_it_up_to_date(cli: Cli, registry: Registry) -> None:
    name = f"{registry.address}/library/busybox:latest"
    cli("pull", name)
    lines = cli("pull", name).lines
    assert f"Status: Image is up to date for {name}" in lines
    assert cli("pull", "-q", name).text == name


@pytest.mark.parametrize(
    "compression", ["gzip", pytest.param("zstd", marks=pytest.mark.not_dockerd("too old")), "plain"]
)
def test_oci_layers_of_every_compression(engine: Engine, registry: Registry, tmp_path: Path, compression: str) -> None:
    image = small(compression)
    images.oci_layout(tmp_path / "layout", [image], compression=compression)
    name = registry.push(f"oci:{tmp_path}/layout", f"oci/{compression}:1", "--preserve-digests")
    engine.docker("pull", name)
    assert engine.api.get(f"/images/{name}/json")["Id"] == image.id
    assert engine.docker("run", "--rm", name, "wc", "-c", f"/{compression}-1").text.split()[0] == str(
        len(compression) * 9999
    )


def test_docker_schema_2(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    images.oci_layout(tmp_path / "layout", [small("schema2")])
    name = registry.push(f"oci:{tmp_path}/layout", "docker/schema2:1", "--format", "v2s2")
    engine.docker("pull", name)
    assert engine.docker("run", "--rm", name, "ls", "/schema2-1").text == "/schema2-1"


def test_an_index_gives_this_machines_platform(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[subprocess.check_output(["uname", "-m"], text=True).strip()]
    other = "arm64" if machine == "amd64" else "amd64"
    mine = small("mine", machine)
    images.oci_layout(tmp_path / "layout", [small("foreign", other), mine], nested=True)
    name = registry.push(f"oci:{tmp_path}/layout", "many/platforms:1", "--all", "--preserve-digests")
    engine.docker("pull", name)
    assert engine.api.get(f"/images/{name}/json")["Id"] == mine.id
    assert engine.docker("run", "--rm", name, "ls", "/mine-1").text == "/mine-1"


@pytest.mark.not_dockerd("--platform is experimental in it")
def test_another_platform_can_be_asked_for(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    foreign = small("foreign", "s390x")
    images.oci_layout(tmp_path / "layout", [foreign, small("mine")], nested=True)
    name = registry.push(f"oci:{tmp_path}/layout", "many/chosen:1", "--all", "--preserve-digests")
    engine.docker("pull", "--platform", "linux/s390x", name)
    assert engine.api.get(f"/images/{name}/json")["Architecture"] == "s390x"
    done = engine.docker("pull", "--platform", "linux/riscv64", name, check=False)
    assert done.code == 1
    assert "no matching manifest for linux/riscv64" in done.err


def test_pull_by_digest(engine: Engine, registry: Registry) -> None:
    digest = registry.digest("library/layered:latest")
    name = f"{registry.address}/library/layered@{digest}"
    engine.docker("pull", name)
    found = engine.api.get(f"/images/{name}/json")
    assert name in found["RepoDigests"]
    assert engine.docker("run", "--rm", name, "cat", "/data/kept").out == "kept\n"
    wrong = name[:-4] + ("0000" if not name.endswith("0000") else "1111")
    done = engine.docker("pull", wrong, check=False)
    assert done.code == 1
    assert "not found" in done.err or "manifest unknown" in done.err


def test_all_tags(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    images.oci_layout(tmp_path / "layout", [small("tags")])
    for tag in ("one", "two"):
        name = registry.push(f"oci:{tmp_path}/layout", f"team/tags:{tag}", "--preserve-digests")
    engine.docker("pull", "-a", name.rpartition(":")[0])
    assert set(engine.docker("images", "--format", "{{.Tag}}", name.rpartition(":")[0]).lines) == {"one", "two"}


def test_layers_shared_with_an_image_that_was_pulled_are_not_fetched(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        images.oci_layout(tmp_path / name, [small(name)])
        pushed = registry.push(f"oci:{tmp_path}/{name}", f"team/{name}:1", "--preserve-digests")
        messages = pulled(engine, pushed)
    shared = next(message["id"] for message in messages if len(message.get("id", "")) == 12)
    assert [message["status"] for message in messages if message.get("id") == shared] == ["Already exists"]


def test_run_pulls_what_is_missing_and_no_more(cli: Cli, engine: Engine, registry: Registry) -> None:
    name = f"{registry.address}/library/busybox"
    done = cli("run", "--rm", name, "echo", "ran")
    assert done.out == "ran\n"
    assert f"Unable to find image '{name}:latest' locally" in done.err
    assert "Pulling from library/busybox" in done.err
    done = cli("run", "--rm", name, "echo", "again")
    assert (done.out, done.err) == ("again\n", "")
    done = cli("run", "--rm", "--pull", "never", f"{registry.address}/no/such", "true", check=False)
    assert done.code == 125
    assert "o such image" in done.err


def test_the_mirror_serves_short_names(engine: Engine, registry: Registry) -> None:
    engine.docker("rmi", "-f", "layered")
    try:
        done = engine.docker("run", "--rm", "layered", "cat", "/data/kept")
        assert done.out == "kept\n"
        assert "latest: Pulling from library/layered" in done.err
    finally:
        engine.load(images.docker_archive([images.layered()]))


def test_two_pulls_of_the_same_at_once_both_succeed(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    images.oci_layout(tmp_path / "layout", [small("twice")])
    name = registry.push(f"oci:{tmp_path}/layout", "team/twice:1", "--preserve-digests")
    both = [engine.docker.start("pull", name) for _ in range(2)]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    assert engine.docker("run", "--rm", name, "ls", "/twice-1").text == "/twice-1"


# -- who may -----------------------------------------------------------------------------------------------------------


def test_a_private_registry_wants_the_right_password(
    engine: Engine, cli: Cli, private_registry: Registry, tmp_path: Path
) -> None:
    name = f"{private_registry.address}/team/busybox:latest"
    config = {"DOCKER_CONFIG": str(tmp_path)}
    done = cli("pull", name, check=False, env=config)
    assert done.code == 1
    assert "no basic auth credentials" in done.err or "access to the resource is denied" in done.err
    done = cli(
        "login", "-u", USER, "--password-stdin", private_registry.address, input="wrong", check=False, env=config
    )
    assert done.code == 1
    assert "unauthorized" in done.err.lower()
    done = cli("login", "-u", USER, "--password-stdin", private_registry.address, input=PASSWORD, env=config)
    assert "Login Succeeded" in done.out
    cli("pull", name, env=config)
    cli("logout", private_registry.address, env=config)
    cli("rmi", name)
    assert cli("pull", name, check=False, env=config).code == 1


def test_what_is_not_there_is_named(cli: Cli, registry: Registry) -> None:
    done = cli("pull", f"{registry.address}/library/busybox:no-such-tag", check=False)
    assert done.code == 1
    assert f"manifest for {registry.address}/library/busybox:no-such-tag not found: manifest unknown" in done.err
    done = cli("pull", f"{registry.address}/no/such", check=False)
    assert done.code == 1
    assert "not found" in done.err
    done = cli("run", "--rm", f"{registry.address}/no/such", "true", check=False)
    assert done.code == 125


def test_a_registry_that_is_not_there_is_named(cli: Cli) -> None:
    done = cli("pull", "127.0.0.1:5999/x/y", check=False)
    assert done.code == 1
    assert "127.0.0.1:5999" in done.err
    assert "connection refused" in done.err


# -- a registry that lies ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil(box: Box, root: Path) -> Iterator[str]:
    log = root / "evil.log"
    server = box.spawn([sys.executable, evil_registry.__file__, EVIL.rpartition(":")[2]], log=log, net_only=True)
    try:
        while "ready" not in log.read_text():
            assert server.poll() is None, log.read_text()
        yield EVIL
    finally:
        server.kill()
        server.wait()


def leftovers(engine: Engine) -> set[str]:
    """Layers and half-written files on disk, by name; broken-off downloads, kept for the next pull, are none."""
    found = set()
    for folder in ("layers", "rw", "ingest", "overlay2", "tmp"):
        found |= {f"{folder}/{path.name}" for path in (engine.data_root / folder).glob("*") if path.name != "l"}
    return {name for name in found if not name.startswith("ingest/partial-")}


def test_the_evil_registry_can_also_be_good(engine: Engine, evil: str) -> None:
    engine.docker("pull", f"{evil}/good")
    assert engine.docker("run", "--rm", f"{evil}/good", "wc", "-c", "/extra").text.split()[0] == "300000"


def test_a_cut_connection_is_resumed(engine: Engine, evil: str) -> None:
    engine.docker("pull", f"{evil}/cut-once", timeout=90)
    assert engine.docker("run", "--rm", f"{evil}/cut-once", "wc", "-c", "/extra").text.split()[0] == "300000"


OLD = pytest.mark.not_dockerd
LIES = [
    ("wrong-layer", ["filesystem layer verification failed", "digest"]),
    ("wrong-config", ["config", "digest", "verification failed"]),
    (
        "wrong-diffid",
        ["does not match the image's configuration", "layers from manifest don't match image configuration"],
    ),
    pytest.param("huge", ["too large", "bytes", "limit"], marks=OLD("takes manifests of any size")),
    ("not-json", ["invalid character", "JSON", "manifest"]),
    ("schema1", ["schema", "v1", "signature key"]),
    pytest.param("bomb", ["compression bomb"], marks=OLD("would write it all")),
    ("no-layer", ["unknown blob", "blob unknown", "not found"]),
    ("other-arch", ["no matching manifest for linux/"]),
    pytest.param("opaque-xattr", ["trusted.overlay"], marks=OLD("believes it")),
    pytest.param("dotdot", ["../"], marks=OLD("answers with the path on the host")),
    ("hardlink-out", ["hardlink", "link", "breakout"]),
]


@pytest.mark.timeout(300)
@pytest.mark.not_dockerd("does not look at the size")
def test_a_layer_that_never_comes_whole_is_given_up_after_some_tries(engine: Engine, evil: str) -> None:
    """As in Docker there are five tries, with pauses that grow: half a minute, so both lies are told at once."""
    before = leftovers(engine)
    lies = [engine.docker.start("pull", f"{evil}/{lie}") for lie in ("wrong-size", "truncated")]
    for lie in lies:
        _, error = lie.communicate(timeout=250)
        assert lie.returncode == 1
        assert b"bytes" in error or b"unexpected EOF" in error
    assert leftovers(engine) <= before | {f"layers/{images.digest(images.busybox_layer())[7:]}"}


@pytest.mark.parametrize(("lie", "words"), LIES)
def test_a_lie_is_refused_in_words_and_leaves_nothing(engine: Engine, evil: str, lie: str, words: list[str]) -> None:
    before = leftovers(engine)
    done = engine.docker("pull", f"{evil}/{lie}", check=False, timeout=110)
    assert done.code == 1, done
    assert [word for word in words if word in done.err + done.out], done.err
    assert engine.docker("images", "-q", f"{evil}/{lie}").out == ""
    assert leftovers(engine) <= before | {f"layers/{images.digest(images.busybox_layer())[7:]}"}
    assert engine.answers()
    assert not Path("/tmp/wherry-escaped").exists()
    assert not engine.box.path("/tmp/wherry-escaped").exists()
    assert engine.docker("run", "--rm", "busybox", "true").code == 0


def test_paths_that_look_outside_are_kept_inside(engine: Engine, evil: str) -> None:
    engine.docker("pull", f"{evil}/absolute")
    assert engine.docker("run", "--rm", f"{evil}/absolute", "cat", "/absolute-escaped").out == "x"
    assert not Path("/absolute-escaped").exists()
    done = engine.docker("pull", f"{evil}/through-link", check=False)
    assert not Path("/tmp/wherry-escaped").exists()
    if done.code == 0:  # following the link inside the image is right, refusing it too
        shown = engine.docker("run", "--rm", f"{evil}/through-link", "cat", "/tmp/wherry-escaped")
        assert shown.out == "x"


def test_a_device_node_in_a_layer_is_data_that_nobody_may_open(engine: Engine, evil: str) -> None:
    engine.docker("pull", f"{evil}/device")
    done = engine.docker(
        "run", "--rm", f"{evil}/device", "sh", "-c", "stat -c '%t %T' /disk; head -c 1 /disk", check=False
    )
    assert done.lines == ["fe 0"]
    assert "not permitted" in done.err


def test_a_client_that_leaves_a_pull_leaves_nothing_half_done(engine: Engine, evil: str) -> None:
    before = leftovers(engine)
    puller = engine.docker.start("pull", f"{evil}/good")
    puller.kill()
    puller.communicate()
    engine.docker("pull", f"{evil}/good")
    assert engine.docker("run", "--rm", f"{evil}/good", "wc", "-c", "/extra").text.split()[0] == "300000"
    engine.docker("rmi", f"{evil}/good")
    assert not {name for name in leftovers(engine) - before if name.startswith(("rw/", "ingest/"))}
