"""What remains of a build, asked for with stock buildx and with our own CLI: the same digests every time, statements
about them, records that explain, and what they say after the daemon was killed.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_with_plugins
from harness.engine import Cli, Engine
from harness.leaks import settle

pytestmark = pytest.mark.not_dockerd("its BuildKit is older than buildx's defaults")

DOCKERFILE = """\
FROM busybox
ARG VERSION=1
COPY status /var/lib/dpkg/status
RUN mkdir /made && echo $VERSION > /made/version
"""
STATUS = "Package: hello\nStatus: install ok installed\nVersion: 2.10-3\nArchitecture: amd64\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with building_engine(images.docker_archive([images.busybox()])) as made:
        yield made


@pytest.fixture(scope="module")
def docker(engine: Engine) -> Cli:
    return docker_with_plugins(engine)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    root.mkdir()
    (root / "Dockerfile").write_text(DOCKERFILE)
    (root / "status").write_text(STATUS)
    for path in root.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return root


def digest(docker: Cli, context: Path, *args: str) -> str:
    """Of the index or manifest that a build resulted in."""
    file = context.parent / "metadata"
    docker("buildx", "build", "-q", f"--metadata-file={file}", *args, str(context))
    return str(json.loads(file.read_text())["containerimage.digest"])


def test_a_build_without_cache_has_the_digests_of_the_first_one(docker: Cli, context: Path, engine: Engine) -> None:
    first = digest(docker, context, "-t", "same:1")
    assert digest(docker, context, "-t", "same:1", "--no-cache") == first
    image = engine.api.get("/images/same:1/json")
    assert image["Created"] == "2020-09-13T12:26:40Z"
    assert engine.wherry("build", "--verify", "-q", str(context)).out.strip() == image["Id"]


def test_statements_lie_beside_the_image_in_its_index(docker: Cli, context: Path, tmp_path: Path) -> None:
    wanted = [
        "--sbom=true",
        "--provenance=mode=max",
        "--build-arg=VERSION=7",
        "-o",
        f"type=oci,dest={tmp_path}/oci.tar",
    ]
    docker("buildx", "build", "-q", *wanted, str(context))
    with tarfile.open(tmp_path / "oci.tar") as archive:

        def read(digest: str) -> dict:
            return json.load(archive.extractfile(f"blobs/sha256/{digest[7:]}"))

        (top,) = json.load(archive.extractfile("index.json"))["manifests"]
        image, attestation = read(top["digest"])["manifests"]
        statements = {each["predicateType"]: each for each in map(read, layers(read(attestation["digest"])))}
    about = {"sha256": image["digest"].removeprefix("sha256:")}
    assert all(subject["digest"] == about for each in statements.values() for subject in each["subject"])
    packages = statements["https://spdx.dev/Document"]["predicate"]["packages"]
    assert "pkg:deb/linux/hello@2.10-3?arch=amd64" in json.dumps(packages)
    made = statements["https://slsa.dev/provenance/v0.2"]["predicate"]
    assert made["invocation"]["parameters"]["args"]["build-arg:VERSION"] == "7"
    assert any(material["uri"].startswith("pkg:docker/busybox@latest") for material in made["materials"])


def layers(manifest: dict) -> list[str]:
    return [layer["digest"] for layer in manifest["layers"]]


def test_files_come_with_statements_only_when_asked(docker: Cli, context: Path, tmp_path: Path) -> None:
    docker("buildx", "build", "-q", "-o", str(tmp_path / "plain"), str(context))
    assert not list((tmp_path / "plain").glob("*.json"))
    docker("buildx", "build", "-q", "--provenance=mode=max", "-o", str(tmp_path / "told"), str(context))
    assert json.loads((tmp_path / "told/provenance.json").read_text())["predicateType"].startswith("https://slsa.dev")


def test_a_record_says_why_steps_ran(docker: Cli, context: Path, engine: Engine) -> None:
    for version in ("1", "2"):
        docker("buildx", "build", "-q", "-t", "explained", f"--build-arg=VERSION={version}", str(context))
    newest = engine.wherry("builds", "ls", "-q").out.split()[0]
    said = engine.wherry("builds", "explain", newest).out
    assert "ARG VERSION 1→2" in said
    assert "cached" in said


def test_a_verified_build_shows_what_differs(context: Path, engine: Engine) -> None:
    with (context / "Dockerfile").open("a") as file:
        file.write("RUN cat /proc/sys/kernel/random/uuid > /made/uuid\n")
    result = engine.wherry("build", "--verify", "-q", str(context), check=False)
    assert result.code == 1
    assert "/made/uuid: line 1 is" in result.out + result.err
    assert "time of change" not in result.out + result.err


def logs(engine: Engine) -> list[Path]:
    return list(engine.root.glob("**/build/records/*/log"))


def written(log: Path) -> bool:
    return '"text":"begun' in log.read_text()


def test_a_build_that_the_daemon_was_killed_in_is_recorded_so(docker: Cli, context: Path, engine: Engine) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo begun; sleep 60\n")
    docker.start("buildx", "build", "--no-cache", str(context))
    assert settle(lambda: [] if any(map(written, logs(engine))) else ["the step prints nothing"]) == []
    engine.kill()
    docker.end_started()
    engine.start()
    assert "interrupted" in engine.wherry("builds", "ls").out.splitlines()[1]
    newest = engine.wherry("builds", "ls", "-q").out.split()[0]
    assert "begun" in engine.wherry("builds", "logs", newest).out
