"""The classic way to build, with the stock CLI (DOCKER_BUILDKIT=0), docker-py and by hand."""

import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.api import UnixConnection
from harness.buildx import building_engine, docker_classic
from harness.engine import Cli, Engine
from harness.registry import PASSWORD, USER, Registry
from harness.web import web_server

pytestmark = pytest.mark.not_dockerd("looks at what only this engine has")

TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with building_engine(images.docker_archive([images.busybox()])) as engine:
        yield engine


@pytest.fixture
def docker(engine: Engine) -> Cli:
    return docker_classic(engine)


@pytest.fixture
def py(engine: Engine) -> Iterator[Any]:
    import docker

    client = docker.DockerClient(base_url=engine.host)
    yield client
    client.close()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("A")
    (root / "sub/secret").write_text("not for the image")
    return root


def build(engine: Engine, body: bytes, query: str = "") -> list[Any]:
    answer = engine.api.request("POST", f"/build?{query}", body, headers=TAR)
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def text(lines: list[Any]) -> str:
    return "".join(line.get("stream", line.get("error", "")) for line in lines)


def image_id(lines: list[Any]) -> str:
    found = [line["aux"]["ID"] for line in lines if "aux" in line]
    assert len(found) == 1, text(lines)
    return str(found[0])


def files_of(engine: Engine, image: str) -> dict[str, bytes]:
    """Of all its layers, by name."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(engine.api.request("GET", f"/images/{image}/get").body)) as archive:
        manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        for name in manifest[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                for member in layer:
                    found[member.name] = (layer.extractfile(member) or io.BytesIO()).read() if member.isreg() else b""
    return found


def test_the_stock_client_builds_and_runs(docker: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nARG V\nRUN echo $V > /v\nCOPY . /src\nCMD cat /v /src/a.txt\n")
    (context / ".dockerignore").write_text("sub\n")
    done = docker("build", "-t", "classic", "--build-arg", "V=1", str(context))
    assert "Successfully tagged classic:latest" in done.out
    assert docker("run", "--rm", "classic").out == "1\nA"
    assert "sub" not in docker("run", "--rm", "classic", "ls", "/src").out
    quiet = docker("build", "-q", "--build-arg", "V=1", str(context)).text
    assert quiet == docker("inspect", "-f", "{{.Id}}", "classic").text


def test_a_failed_build_has_the_exit_code_of_its_step(docker: Cli) -> None:
    done = docker("build", "-", input="FROM busybox\nRUN exit 7\n", check=False)
    assert done.code == 7
    assert "The command '/bin/sh -c exit 7' returned a non-zero code: 7" in done.err


def test_what_the_client_should_have_left_out_is_left_out(engine: Engine) -> None:
    body = images.tar(
        [
            images.Entry(name="Dockerfile", data=b"FROM scratch\nCOPY . /\n"),
            images.Entry(name=".dockerignore", data=b"*.md\n!keep.md\nout\nDockerfile\n"),
            images.Entry(name="no.md"),
            images.Entry(name="keep.md"),
            images.directory("out"),
            images.Entry(name="out/x"),
            images.Entry(name="in"),
        ]
    )
    found = files_of(engine, image_id(build(engine, body)))
    assert sorted(name for name in found if name) == [".dockerignore", "in", "keep.md"]


def test_a_dockerfile_that_comes_alone_is_enough(engine: Engine) -> None:
    assert image_id(build(engine, b"FROM scratch\nLABEL a=b\n"))


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_contexts_may_be_compressed(engine: Engine, compression: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as archive:
        for name, data in (("Dockerfile", b"FROM scratch\nCOPY a /\n"), ("a", b"data")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert files_of(engine, image_id(build(engine, out.getvalue())))["a"] == b"data"


def test_squash_makes_one_layer_of_all(engine: Engine) -> None:
    body = b"FROM busybox\nRUN echo 1 > /one\nRUN echo 2 > /two; rm /one\n"
    apart, together = (engine.api.get(f"/images/{image_id(build(engine, body, q))}/json") for q in ("", "squash=1"))
    assert len(apart["RootFS"]["Layers"]) == len(together["RootFS"]["Layers"]) + 1
    files = files_of(engine, together["Id"])
    assert files["two"] == b"2\n"
    assert "one" not in files


def test_the_same_context_gives_the_same_image(engine: Engine) -> None:
    dockerfile = b"FROM busybox\nRUN date > /d; touch /x\nCOPY f /\n"
    body = images.tar([images.Entry(name="Dockerfile", data=dockerfile), images.Entry(name="f")])
    first = image_id(build(engine, body))
    assert image_id(build(engine, body)) == first
    assert engine.api.get(f"/images/{first}/json")["Created"].startswith("2023-11-14")  # of the newest file


def test_contexts_are_fetched_from_the_web_and_from_git(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "web"
    root.mkdir()
    (root / "alone").write_text("FROM scratch\nLABEL from=alone\n")
    (root / "context.tar").write_bytes(
        images.tar([images.Entry(name="Dockerfile", data=b"FROM scratch\nCOPY a /\n"), images.Entry(name="a")])
    )
    work, bare = tmp_path / "work", root / "repository.git"
    (work / "sub").mkdir(parents=True)
    (work / "sub/Dockerfile").write_text("FROM scratch\nCOPY a /\n")
    (work / "sub/a").write_text("from git")
    for argv in (
        ["git", "init", "-q", "-b", "main", str(work)],
        ["git", "-C", str(work), "add", "."],
        ["git", "-C", str(work), "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"],
        ["git", "clone", "-q", "--bare", str(work), str(bare)],
        ["git", "-C", str(bare), "update-server-info"],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    with web_server(engine.box, root) as url:
        alone = build(engine, b"", f"remote={url}/alone")
        assert engine.api.get(f"/images/{image_id(alone)}/json")["Config"]["Labels"] == {"from": "alone"}
        assert "a" in files_of(engine, image_id(build(engine, b"", f"remote={url}/context.tar")))
        from_git = build(engine, b"", f"remote={url}/repository.git%23main:sub")
        assert files_of(engine, image_id(from_git))["a"] == b"from git"
        refused = engine.api.request("POST", f"/build?remote={url}/nothing")
        assert refused.status >= 400
        assert "404" in refused.message


def test_credentials_of_the_request_open_a_private_registry(engine: Engine, docker: Cli, tmp_path: Path) -> None:
    (tmp_path / "busybox.tar").write_bytes(images.docker_archive([images.busybox()]))
    with Registry(engine.box, tmp_path / "registry", 5001, private=True).running() as registry:
        base = registry.push(f"docker-archive:{tmp_path}/busybox.tar:busybox:latest", "team/base:1")
        dockerfile = f"FROM {base}\nRUN echo private > /p\n"
        refused = docker("build", "-", input=dockerfile, check=False)
        assert refused.code == 1
        assert "no basic auth credentials" in refused.err
        docker("login", "-u", USER, "--password-stdin", registry.address, input=PASSWORD)
        try:
            for client in (docker, engine.wherry):
                client("build", "--no-cache", "-t", "from-private", "-", input=dockerfile)
                assert docker("run", "--rm", "from-private", "cat", "/p").out == "private\n"
            engine.wherry("build", "-t", f"{registry.address}/team/made:1", "--push", "-", input=dockerfile)
            assert registry.digest("team/made:1")
        finally:
            docker("logout", registry.address)


def test_a_client_that_goes_away_ends_its_build(engine: Engine) -> None:
    connection = UnixConnection(engine.socket, 20)
    connection.request("POST", "/build?buildid=left-alone", b"FROM busybox\nRUN echo begun; sleep 1000\n", TAR)
    answer = connection.getresponse()
    seen = b""
    while b"begun" not in seen:
        seen += answer.read1(1000)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    until = time.monotonic() + 20
    while (status := engine.api.get("/builds/left-alone")["Status"]) == "running":
        assert time.monotonic() < until, "the build goes on"
        time.sleep(0.05)
    assert status == "canceled"
    assert not any("sleep 1000" in " ".join(words) for words in engine.box.processes().values())


def test_a_build_is_cancelled_by_its_id(engine: Engine) -> None:
    lines: list[bytes] = []
    begun = threading.Event()

    def run() -> None:
        connection = UnixConnection(engine.socket, 30)
        connection.request("POST", "/build?buildid=cancel-me", b"FROM busybox\nRUN echo begun; sleep 1000\n", TAR)
        answer = connection.getresponse()
        while line := answer.readline():
            lines.append(line)
            if b"begun\\n" in line and b"Step" not in line:
                begun.set()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(20)
    assert engine.api.request("POST", "/build/cancel?id=cancel-me").status == 200
    thread.join(20)
    assert json.loads(lines[-1])["error"] == "the build was cancelled"
    assert engine.api.request("POST", "/build/cancel?id=cancel-me").status == 200, "it is over: nothing to do"
    assert engine.api.request("POST", "/build/cancel").status == 400


def test_what_builds_keep_is_listed_and_pruned(engine: Engine, docker: Cli) -> None:
    build(engine, b"FROM busybox\nRUN echo pruned > /p\n", "nocache=1")
    docker("image", "prune", "-f")
    listed = engine.api.get("/system/df?type=build-cache")["BuildCache"]
    mine = next(each for each in listed if "pruned" in each["Description"])
    assert mine["Type"] == "regular"
    assert mine["Size"] > 0
    assert mine["ID"][:12] in docker("system", "df", "-v").out
    kept = engine.api.request("POST", '/build/prune?filters={"until":["1h"]}').json()
    assert kept == {"CachesDeleted": None, "SpaceReclaimed": 0}, "nothing is that old"
    gone = engine.api.request("POST", f'/build/prune?filters={{"id":["{mine["ID"]}"]}}').json()
    assert gone["CachesDeleted"] == [mine["ID"]]
    assert gone["SpaceReclaimed"] == mine["Size"]
    refused = engine.api.request("POST", '/build/prune?filters={"what":["x"]}')
    assert (refused.status, refused.message) == (400, "failed to prune build cache: Invalid filter 'what'")


def test_builds_are_recorded_and_explained(engine: Engine) -> None:
    for version in ("1", "2"):
        build(
            engine,
            b"FROM busybox\nARG V\nRUN echo $V\n",
            f't=told&buildid=told-{version}&buildargs={{"V":"{version}"}}',
        )
    record = engine.api.get("/builds/told-2")
    assert (record["Status"], record["Names"]) == ("completed", ["docker.io/library/told:latest"])
    assert record["Attributes"]["build-arg:V"] == "2"
    reasons = {each["Name"]: each["Why"] for each in engine.api.get("/builds/told-2/explain")}
    assert reasons["[2/2] RUN echo 2"] == "ARG V 1→2"
    log = engine.api.request("GET", "/builds/told-2/logs").body
    assert any(json.loads(line).get("log", {}).get("text") == "2\n" for line in log.splitlines())
    assert [each["Id"] for each in engine.api.get("/builds?limit=1")] == ["told-2"]
    assert engine.api.request("DELETE", "/builds/told-2").status == 204
    assert engine.api.request("GET", "/builds/told-2").status == 404


def test_docker_py_builds_and_finds_the_image(py: Any, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nARG V=0\nCOPY a.txt /\nRUN echo $V >> /a.txt\n")
    image, log = py.images.build(path=str(context), tag="from-py:1", buildargs={"V": "9"}, labels={"k": "v"}, rm=True)
    assert image.tags == ["from-py:1"]
    assert image.labels == {"k": "v"}
    assert any("Successfully built" in line.get("stream", "") for line in log)
    assert py.containers.run("from-py:1", "cat /a.txt", remove=True) == b"A9\n"


def test_docker_py_raises_what_went_wrong(py: Any) -> None:
    import docker.errors

    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 4"):
        py.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 4\n"), rm=True)
    with pytest.raises(docker.errors.APIError, match="did you mean FROM"):
        py.images.build(fileobj=io.BytesIO(b"FORM busybox\n"))


@pytest.mark.parametrize("body", [b"\x1f\x8b" + os.urandom(2000), b"\0" * 1024, os.urandom(2000)])
def test_a_body_that_is_no_context_is_refused(engine: Engine, body: bytes) -> None:
    answer = engine.api.request("POST", "/build", body, headers=TAR)
    assert answer.status == 400, answer.body
    assert answer.message


def test_nothing_of_a_context_leads_outside(engine: Engine) -> None:
    evil = images.tar(
        [
            images.symlink("Dockerfile", "/etc/passwd"),
            images.Entry(name="a", data=b"a"),
        ]
    )
    answer = engine.api.request("POST", "/build", evil, headers=TAR)
    assert answer.status == 400
    assert "root:" not in answer.message, "the host's file was read"
    dockerfile = images.Entry(name="Dockerfile", data=b"FROM scratch\nLABEL a=b")
    out = images.tar([images.Entry(name="../../../outside", data=b"x"), dockerfile])
    engine.api.request("POST", "/build", out, headers=TAR)
    assert not list(engine.data_root.rglob("outside"))
