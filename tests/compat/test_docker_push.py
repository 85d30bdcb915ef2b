"""`push` to Debian's registry with the stock clients, told as dockerd tells it; skopeo reads what arrived."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.engine import Cli, Engine
from harness.registry import PASSWORD, USER, Registry


@pytest.fixture(autouse=True)
def no_image_of_the_test_stays(engine: Engine) -> Iterator[None]:
    yield
    engine.remove_all_containers()
    base = {images.busybox().id, images.layered().id, images.configured().id}
    for image in engine.api.get("/images/json?all=1"):
        names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
        for name in names:
            if name.startswith("127.0.0.1"):
                engine.api.request("DELETE", f"/images/{name}?force=1")
        if image["Id"] not in base:
            engine.api.request("DELETE", f"/images/{image['Id']}?force=1")


def pushed(engine: Engine, name: str, **query: str) -> list[dict[str, Any]]:
    """The messages of a push, as the API sends them."""
    parameters = "&".join(f"{key}={value}" for key, value in query.items())
    answer = engine.api.request("POST", f"/images/{name}/push?{parameters}", headers={"X-Registry-Auth": "e30="})
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def raw(registry: Registry, name: str) -> str:
    """The manifest that skopeo finds there, as it is."""
    credentials = ["--creds", f"{USER}:{PASSWORD}"] if registry.private else []
    return registry.box.run(
        *("skopeo", "inspect", "--raw", "--tls-verify=false", *credentials, f"docker://{registry.address}/{name}"),
        net_only=True,
    )


def manifest_of(registry: Registry, name: str) -> Any:
    return json.loads(raw(registry, name))


def blobs(registry: Registry) -> set[str]:
    return {path.name for path in (registry.root / "blobs" / "docker/registry/v2/blobs/sha256").glob("*/*")}


def diff_ids(image: images.Image) -> list[str]:
    """Layers as a push shows them, the top first."""
    return [images.digest(layer)[7:19] for layer in reversed(image.layers)]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_push_tells_what_dockerd_tells(engine: Engine, docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/told/layered"
    docker("tag", "layered", f"{name}:1")
    top, middle, base = diff_ids(images.layered())
    messages = pushed(engine, name, tag="1")
    assert messages[0] == {"status": f"The push refers to repository [{name}]"}
    assert messages[1:4] == [
        {"status": "Preparing", "progressDetail": {}, "id": layer} for layer in (top, middle, base)
    ]
    digest = registry.digest("told/layered:1")
    size = len(raw(registry, "told/layered:1"))
    assert messages[-2] == {"status": f"1: digest: {digest} size: {size}"}
    assert messages[-1] == {"progressDetail": {}, "aux": {"Tag": "1", "Digest": digest, "Size": size}}
    per_layer: dict[str, list[str]] = {}
    for message in messages[1:-2]:
        per_layer.setdefault(message["id"], []).append(message["status"])
    assert set(per_layer) == {top, middle, base}
    for steps in per_layer.values():
        assert steps[0] == "Preparing"
        assert set(steps) <= {"Preparing", "Converting", "Waiting", "Pushing", "Pushed"}
        assert steps[-1] == "Pushed"
    assert f"{name}@{digest}" in engine.api.get(f"/images/{name}:1/json")["RepoDigests"]


def test_the_cli_shows_the_same_lines_as_with_dockerd(engine: Engine, docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/shown/busybox"
    image = images.Image(tags=[f"{name}:1"], layers=[images.tar([images.Entry(name="shown", data=b"once\n")])])
    engine.load(images.docker_archive([image]))
    (layer,) = diff_ids(image)
    lines = docker("push", f"{name}:1").lines
    digest = registry.digest("shown/busybox:1")
    assert lines[:2] == [f"The push refers to repository [{name}]", f"{layer}: Preparing"]
    assert lines[-2:] == [f"{layer}: Pushed", lines[-1]]
    assert lines[-1].startswith(f"1: digest: {digest} size: ")
    assert docker("push", f"{name}:1").lines == [
        f"The push refers to repository [{name}]",
        f"{layer}: Preparing",
        f"{layer}: Layer already exists",
        lines[-1],
    ]
    assert docker("push", "-q", f"{name}:1").text == f"{name}:1"
    docker("tag", f"{name}:1", f"{registry.address}/shown/other:2")
    before = blobs(registry)
    mounted = docker("push", f"{registry.address}/shown/other:2").lines
    assert mounted[2].startswith(f"{layer}: Mounted from ")
    linked = registry.root / "blobs/docker/registry/v2/repositories/shown/other/_layers/sha256"
    assert {path.name for path in linked.iterdir()} <= before  # by the registry's own books


@pytest.mark.parametrize(
    ("name", "query", "words"),
    [
        ("nothing", {"tag": "1"}, "An image does not exist locally with the tag: {here}/nothing"),
        ("nothing", {}, "An image does not exist locally with the tag: {here}/nothing"),
        ("there", {"tag": "no"}, "tag does not exist: {here}/there:no"),
        ("there:no", {}, "tag does not exist: {here}/there:no"),
    ],
)
def test_what_is_not_there_is_told_in_the_stream(
    engine: Engine, docker: Cli, registry: Registry, name: str, query: dict[str, str], words: str
) -> None:
    docker("tag", "busybox", f"{registry.address}/there:1")
    first, last = pushed(engine, f"{registry.address}/{name}", **query)
    repository = f"{registry.address}/{name.partition(':')[0]}"
    assert first == {"status": f"The push refers to repository [{repository}]"}
    message = words.format(here=registry.address)
    assert last == {"errorDetail": {"message": message}, "error": message}


def test_no_registry_is_an_error_that_names_its_address(engine: Engine, docker: Cli) -> None:
    docker("tag", "busybox", "127.0.0.1:5999/x:1")
    done = docker("push", "127.0.0.1:5999/x:1", check=False)
    assert done.code == 1
    assert 'Get "http://127.0.0.1:5999/v2/": dial tcp 127.0.0.1:5999: connect: connection refused' in done.err


# -- what arrives ------------------------------------------------------------------------------------------------------


def test_what_was_pushed_is_pulled_again_and_runs(engine: Engine, docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/again/layered:1"
    docker("tag", "layered", name)
    docker("push", name)
    docker("rmi", name)
    docker("pull", name)
    assert engine.api.get(f"/images/{name}/json")["Id"] == images.layered().id
    assert docker("run", "--rm", name, "cat", "/data/kept").out == "kept\n"


@pytest.mark.not_dockerd("writes schema 2, and other bytes")
def test_plain_layers_are_pushed_as_gzip_of_the_same_digest_always(
    engine: Engine, docker: Cli, registry: Registry
) -> None:
    name = f"{registry.address}/gzip/busybox:1"
    docker("tag", "busybox", name)
    docker("push", name)
    manifest = manifest_of(registry, "gzip/busybox:1")
    assert [layer["mediaType"] for layer in manifest["layers"]] == [images.OCI_LAYER + "+gzip"]
    assert manifest["config"]["digest"] == images.busybox().id
    before = blobs(registry)
    docker("push", name)
    docker("tag", name, f"{name}-again")
    docker("push", f"{name}-again")
    assert blobs(registry) == before


def test_a_committed_container_is_pushed(engine: Engine, docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/made/here:1"
    docker("run", "--name", "maker", "busybox", "sh", "-c", "echo made > /made")
    docker("commit", "maker", name)
    docker("push", name)
    docker("rmi", name)
    assert docker("run", "--rm", name, "cat", "/made").out == "made\n"


def test_all_tags_are_pushed(engine: Engine, docker: Cli, registry: Registry) -> None:
    name = f"{registry.address}/all/tags"
    for tag in ("one", "two"):
        docker("tag", "busybox", f"{name}:{tag}")
    docker("tag", "busybox", f"{name}/below:three")
    lines = docker("push", "-a", name).lines
    assert [line.partition(":")[0] for line in lines if ": digest: " in line] == ["one", "two"]
    assert registry.digest("all/tags:one") == registry.digest("all/tags:two")


def test_a_private_registry_wants_the_right_password(docker: Cli, private_registry: Registry, tmp_path: Path) -> None:
    name = f"{private_registry.address}/team/pushed:1"
    config = {"DOCKER_CONFIG": str(tmp_path)}
    docker("tag", "busybox", name)
    done = docker("push", name, check=False, env=config)
    assert done.code == 1
    assert done.err.strip().endswith("no basic auth credentials")
    docker("login", "-u", USER, "--password-stdin", private_registry.address, input=PASSWORD, env=config)
    docker("push", name, env=config)
    assert manifest_of(private_registry, "team/pushed:1")["config"]["digest"] == images.busybox().id


def test_docker_py_pushes(engine: Engine, py: Any, registry: Registry) -> None:
    name = f"{registry.address}/py/busybox"
    py.images.get("busybox").tag(name, "1")
    lines = list(py.images.push(name, tag="1", stream=True, decode=True))
    assert lines[-1]["aux"]["Digest"] == registry.digest("py/busybox:1")
    assert "Pushed" in py.images.push(name, tag="1") or "already exists" in py.images.push(name, tag="1")
    failed = list(py.images.push(f"{registry.address}/py/none", stream=True, decode=True))
    assert "An image does not exist locally" in failed[-1]["error"]


# -- several platforms -------------------------------------------------------------------------------------------------


def two_platforms(registry: Registry, tmp_path: Path, name: str) -> tuple[str, str]:
    """An index of two platforms in the registry: its name and digest."""
    made = [
        images.Image(tags=[], layers=[images.busybox_layer(), images.tar([images.Entry(name=kind)])], architecture=kind)
        for kind in ("amd64", "s390x")
    ]
    digest = images.oci_layout(tmp_path / "layout", made, nested=True)
    registry.push(f"oci:{tmp_path}/layout", name, "--all", "--preserve-digests")
    assert registry.digest(name) == digest
    return f"{registry.address}/{name}", digest


@pytest.mark.not_dockerd("keeps one platform")
def test_an_index_goes_from_registry_to_registry_byte_for_byte(
    engine: Engine, docker: Cli, registry: Registry, private_registry: Registry, tmp_path: Path
) -> None:
    source, digest = two_platforms(registry, tmp_path, "two/platforms:1")
    with engine.api.stream("POST", f"/images/create?fromImage={source}&platform=all", timeout=60) as answer:
        assert "Digest: " + digest in answer.read().decode()
    name = f"{private_registry.address}/two/platforms:1"
    config = {"DOCKER_CONFIG": str(tmp_path / "config")}
    docker("tag", source, name)
    docker("login", "-u", USER, "--password-stdin", private_registry.address, input=PASSWORD, env=config)
    docker("push", name, env=config)
    assert private_registry.digest("two/platforms:1") == digest
    single = f"{private_registry.address}/two/single:1"
    docker("tag", source, single)
    docker("push", "--platform", "linux/s390x", single, env=config)
    pushed_one = manifest_of(private_registry, "two/single:1")
    child = next(
        e for e in manifest_of(registry, "two/platforms:1")["manifests"] if e["platform"]["architecture"] == "s390x"
    )
    assert private_registry.digest("two/single:1") == child["digest"]
    assert "config" in pushed_one
    done = docker("push", "--platform", "linux/riscv64", single, check=False, env=config)
    assert done.code == 1
    assert "does not provide the specified platform (linux/riscv64)" in done.err


@pytest.mark.not_dockerd("keeps one platform")
def test_the_cli_notes_that_one_image_went_instead_of_the_index(
    docker: Cli, registry: Registry, tmp_path: Path
) -> None:
    source, _ = two_platforms(registry, tmp_path, "two/half:1")
    docker("pull", source)
    name = f"{registry.address}/two/elsewhere:1"
    docker("tag", source, name)
    done = docker("push", name)
    assert "Not all multiplatform-content is present" in done.out + done.err
    assert "config" in manifest_of(registry, "two/elsewhere:1")
    docker("push", source)  # where the rest is already, the index stays
    assert "manifests" in manifest_of(registry, "two/half:1")


@pytest.mark.not_dockerd("is our own")
def test_layers_are_compressed_another_way_by_push_and_by_convert(
    engine: Engine, docker: Cli, registry: Registry
) -> None:
    name = f"{registry.address}/zstd/layered"
    docker("tag", "layered", f"{name}:1")
    messages = pushed(engine, name, tag="1", compression="zstd")
    assert "Converting" in {message.get("status") for message in messages}
    manifest = manifest_of(registry, "zstd/layered:1")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {images.OCI_LAYER + "+zstd"}
    with engine.api.stream(
        "POST", f"/images/layered/convert?to={name}:2&compression=zstd&format=oci", timeout=60
    ) as answer:
        assert answer.status == 200, answer.read()
        answer.read()
    assert engine.api.get(f"/images/{name}:2/json")["Id"] == images.layered().id
    docker("push", f"{name}:2")
    assert registry.digest("zstd/layered:2") == registry.digest("zstd/layered:1")
    refused = engine.api.request("POST", f"/images/layered/convert?to={name}:3&compression=brotli")
    assert refused.status == 400
    assert b"unknown compression 'brotli': want one of gzip, zstd, none" in refused.body
