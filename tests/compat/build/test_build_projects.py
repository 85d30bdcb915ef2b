"""Real projects: built by buildx with packages from this machine's own registries, run, and asked by HTTP.

    flask    Python: apt, pip, a virtual environment copied from stage to stage
    node     JavaScript: pip brings node, npm the dependencies
    c        apt brings a compiler; of three stages only the program goes into an image from scratch

Cache mounts keep what was downloaded; the stage that two of them begin with is built once.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_with_plugins
from harness.debian import debian
from harness.engine import Cli, Engine
from harness.outside import authorities, way_out

PROJECTS = Path(__file__).parent / "projects"
BUILD_TIMEOUT = 300  # s

pytestmark = [pytest.mark.not_dockerd("needs the RUN --mount of a newer one"), pytest.mark.timeout(BUILD_TIMEOUT + 60)]


@dataclass(frozen=True)
class Site:
    engine: Engine
    docker: Cli
    proxy: str
    work: Path

    def build(self, project: str, *options: str, tag: str = "") -> str:
        """The progress."""
        secrets = {"authorities": authorities(), "pip": self.work / "pip.conf", "npm": self.work / "npmrc"}
        argv = ["buildx", "build", "--network", "host", "-t", tag or project]
        for name in ("http_proxy", "https_proxy"):
            argv += ["--build-arg", f"{name}={self.proxy}"]
        for name, path in secrets.items():
            argv += ["--secret", f"id={name},src={path}"]
        return self.docker(*argv, *options, str(PROJECTS / project), timeout=BUILD_TIMEOUT).err

    def ask(self, port: int) -> object:
        """The JSON document at the root, once the server listens."""
        until = time.monotonic() + 20
        while True:
            try:
                return json.loads(self.engine.box.run("busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/"))
            except AssertionError:
                assert time.monotonic() < until, f"no answer:\n{self.docker('logs', 'server').err}"
                time.sleep(0.05)

    @contextlib.contextmanager
    def running(self, image: str, port: int) -> Iterator[None]:
        self.docker("run", "-d", "--name", "server", "-p", f"{port}:8000", image)
        try:
            yield
        finally:
            self.docker("rm", "-f", "server")


def said_by(*command: str) -> str:
    """Standard output; "" when there is no such program, or it says nothing."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    work = tmp_path_factory.mktemp("projects")
    index = os.environ.get("PIP_INDEX_URL") or said_by("pip", "config", "get", "global.index-url")
    (work / "pip.conf").write_text("[global]\n" + (f"index-url = {index}\n" if index else ""))
    registry = said_by("npm", "config", "get", "registry")
    (work / "npmrc").write_text(f"registry={registry}\n" if registry.startswith("http") else "")
    archive = images.docker_archive([debian("debian:test")])
    with building_engine(archive) as engine, way_out(engine.box) as proxy:
        yield Site(engine, docker_with_plugins(engine), proxy, work)


def test_a_flask_application(site: Site) -> None:
    site.build("flask")
    with site.running("flask", 18091):
        assert site.ask(18091) == {"hello": "flask", "user": "app"}
    assert "proxy" not in json.dumps(site.engine.api.get("/images/flask/json")).lower()
    history = json.dumps(site.engine.api.get("/images/flask/history"))
    assert site.proxy not in history


def test_a_node_application(site: Site) -> None:
    site.build("node", "--build-arg", "GREETING=first")
    with site.running("node", 18092):
        assert site.ask(18092) == {"hello": "first"}
        site.engine.docker("stop", "server")
        assert site.engine.state("server")["ExitCode"] == 0
    again = site.build("node", "--build-arg", "GREETING=second")
    ran = [line for line in again.splitlines() if "] RUN " in line]
    assert ran
    with site.running("node", 18092):
        assert site.ask(18092) == {"hello": "second"}


def test_a_program_in_c(site: Site) -> None:
    site.build("c")
    image = site.engine.api.get("/images/c/json")
    assert len(image["RootFS"]["Layers"]) == 1
    assert image["Size"] < 3_000_000
    with site.running("c", 18093):
        assert site.ask(18093) == {"hello": "c"}
    site.build("c", "--target", "test", tag="tested")


def test_a_second_build_runs_nothing(site: Site) -> None:
    first = site.engine.api.get("/images/c/json")["Id"]
    progress = site.build("c")
    steps = {line.split()[0] for line in progress.splitlines() if "] RUN " in line or "] COPY " in line}
    cached = {line.split()[0] for line in progress.splitlines() if line.endswith(" CACHED")}
    assert steps
    assert steps <= cached, progress
    assert site.engine.api.get("/images/c/json")["Id"] == first
