"""`docker compose build` and `up` of a project of three services, two of them with networks of the host or none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_with_plugins
from harness.engine import Cli, Engine, Result

THREE = Path(__file__).parent / "projects/three"

pytestmark = pytest.mark.not_dockerd("Compose asks for a newer API")


class Project:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.docker = engine, docker_with_plugins(engine)

    def compose(self, *args: str, title: str = "three") -> Result:
        command = ["compose", "--ansi", "never", "--project-directory", str(THREE), *args]
        return self.docker(*command, env={"TITLE": title}, timeout=120)

    def get(self, url: str) -> str:
        return self.engine.box.run("busybox", "wget", "-qO-", url).strip()

    def image(self, name: str) -> str:
        return str(self.engine.api.get(f"/images/{name}/json")["Id"])


@pytest.fixture
def project() -> Iterator[Project]:
    with building_engine(images.docker_archive([images.busybox()])) as engine:
        made = Project(engine)
        yield made
        made.compose("down", "--rmi", "all", "-t", "0")


def docker_ps(docker: Cli, *filters: str) -> list[str]:
    options = [word for each in filters for word in ("--filter", each)]
    return sorted(docker("ps", "-a", "--format", "{{.Names}} {{.State}}", *options).lines)


def test_three_services_are_built_and_started(project: Project) -> None:
    project.compose("build")
    api = project.engine.api.get("/images/three-api/json")
    assert api["Config"]["Labels"]["org.example.part"] == "api"
    project.compose("up", "-d", "--wait")
    running = docker_ps(project.docker, "label=com.docker.compose.project=three")
    assert running == ["three-api-1 running", "three-web-1 running", "three-worker-1 running"]
    assert project.get("http://127.0.0.1:18100/") == "<title>three</title>"
    assert project.get("http://127.0.0.1:18101/data.json") == '{"made":"in a stage"}'
    assert "from an additional context" in project.compose("logs", "worker").out


def test_up_builds_again_only_what_changed(project: Project) -> None:
    project.compose("up", "-d", "--wait", "--build")
    web, api = project.image("three-web"), project.image("three-api")
    started = {name: project.engine.state(name)["StartedAt"] for name in ("three-web-1", "three-api-1")}
    project.compose("up", "-d", "--wait", "--build", title="changed")
    assert project.image("three-web") != web
    assert project.image("three-api") == api
    assert project.get("http://127.0.0.1:18100/") == "<title>changed</title>"
    again = {name: project.engine.state(name)["StartedAt"] for name in started}
    assert again["three-api-1"] == started["three-api-1"]
    assert again["three-web-1"] != started["three-web-1"]
