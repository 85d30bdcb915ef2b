"""Stock buildx: build caches in registries, images and directories, base images from OCI layouts, what they share."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_with_plugins
from harness.engine import WHERRY, Cli, Engine, Result

pytestmark = pytest.mark.not_dockerd("its BuildKit is older than buildx's defaults")

REGISTRY = "127.0.0.1:5077"
DOCKERFILE = """\
FROM busybox AS tool
RUN --mount=type=cache,id=tools,target=/tools echo made >> /tools/made; cp /tools/made /out
FROM busybox
COPY --from=tool /out /out
COPY file /file
RUN cat /out /file > /both
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("registry")
    with building_engine(images.docker_archive([images.busybox()])) as made:
        serve = [str(WHERRY), "registry", "serve", "--root", str(root / "data"), "--listen", REGISTRY]
        server = made.box.spawn(serve, log=root / "log", net_only=True)
        try:
            until = time.monotonic() + 30
            while "listens on" not in (root / "log").read_text():
                assert server.poll() is None, (root / "log").read_text()
                assert time.monotonic() < until, "the registry does not listen"
                time.sleep(0.05)
            yield made
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def docker(engine: Engine) -> Cli:
    return docker_with_plugins(engine)


@pytest.fixture
def project(tmp_path: Path, docker: Cli) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "project/file").write_text("of the context\n")
    forget(docker)
    return tmp_path / "project"


def forget(docker: Cli) -> None:
    """As on another machine: of builds nothing is left here."""
    docker("buildx", "prune", "-af")


def ends(result: Result) -> set[str]:
    """How the steps of the Dockerfile ended."""
    names = set(re.findall(r"^#(\d+) \[[^\]]*\d/\d\] (?:COPY|RUN)", result.err, re.MULTILINE))
    found = re.findall(r"^#(\d+) (CACHED|DONE|ERROR)", result.err, re.MULTILINE)
    return {how for number, how in found if number in names}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_registry_brings_the_cache_to_another_machine(docker: Cli, project: Path, mode: str) -> None:
    ref = f"{REGISTRY}/cache:{mode}"
    first = docker("buildx", "build", "--cache-to", f"type=registry,ref={ref},mode={mode}", str(project))
    assert ends(first) == {"DONE"}
    assert "exporting cache to registry" in first.err
    forget(docker)
    second = docker("buildx", "build", "--cache-from", ref, "-t", "from-cache", str(project))
    assert ends(second) == {"CACHED"}
    assert f"importing cache manifest from {ref}" in second.err
    run = docker("run", "--rm", "from-cache", "cat", "/both")
    assert run.out == "made\nof the context\n"


def test_a_directory_brings_the_cache_to_another_machine(docker: Cli, project: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    docker("buildx", "build", "--cache-to", f"type=local,dest={place},mode=max", str(project))
    (entry,) = json.loads((place / "index.json").read_text())["manifests"]
    manifest = json.loads((place / "blobs/sha256" / entry["digest"][7:]).read_text())
    assert manifest["config"]["mediaType"] == "application/vnd.wherry.buildcache.v1+json"
    assert all((place / "blobs/sha256" / layer["digest"][7:]).exists() for layer in manifest["layers"])
    forget(docker)
    options = ("--cache-from", f"type=local,src={place}", "-o", str(tmp_path / "out"))
    second = docker("buildx", "build", *options, str(project))
    assert ends(second) == {"CACHED"}
    assert (tmp_path / "out/both").read_text() == "made\nof the context\n"


def test_an_image_brings_its_cache_to_another_machine(docker: Cli, project: Path) -> None:
    name = f"{REGISTRY}/app:1"
    docker("buildx", "build", "--cache-to", "type=inline", "--push", "-t", name, str(project))
    docker("rmi", name)
    forget(docker)
    second = docker("buildx", "build", "--cache-from", name, str(project))
    assert ends(second) == {"CACHED"}
    (project / "file").write_text("changed\n")
    third = docker("buildx", "build", "--cache-from", name, str(project))
    assert ends(third) == {"CACHED", "DONE"}


def test_cache_mounts_come_along_when_asked(docker: Cli, project: Path) -> None:
    ref = f"{REGISTRY}/mounts"
    docker("buildx", "build", "--cache-to", f"type=registry,ref={ref},cache-mounts=true", str(project))
    forget(docker)
    options = ("--cache-from", ref, "--no-cache-filter", "tool", "--load", "-t", "twice")
    docker("buildx", "build", *options, str(project))
    assert docker("run", "--rm", "twice", "cat", "/out").out == "made\nmade\n"


def test_a_cache_that_cannot_be_had_or_kept_is_told(docker: Cli, project: Path) -> None:
    missing = docker("buildx", "build", "--cache-from", f"{REGISTRY}/nosuch", str(project))
    assert re.search(r"not used: .*nosuch", missing.err)
    nowhere = "type=registry,ref=127.0.0.1:9/cache"
    refused = docker("buildx", "build", "--cache-to", nowhere, str(project), check=False)
    assert refused.code
    assert "connect: connection refused" in refused.err
    passed = docker("buildx", "build", "--cache-to", f"{nowhere},ignore-error=true", str(project))
    assert re.search(r"not exported: .*connect: connection refused", passed.err)


def test_an_oci_layout_is_a_base_image(docker: Cli, project: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    docker("buildx", "build", "-o", f"type=oci,tar=false,dest={layout},name=base:1", str(project))
    (project / "Dockerfile").write_text("FROM base\nRUN cat /both > /again\n")
    option = f"base=oci-layout://{layout}:1"
    forget(docker)
    docker("buildx", "build", "--build-context", option, "-o", str(tmp_path / "out"), str(project))
    assert (tmp_path / "out/again").read_text() == "made\nof the context\n"
