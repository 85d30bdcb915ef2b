"""The conformance suite of the OCI distribution specification 1.1, over ours on a folder ("wherry"), ours inside
the engine ("engine"), and Debian's docker-registry.

Tests are named by the end-point of the specification's table that they are about, and cite the sentence they hold a
registry to. What is optional there (MAY, SHOULD) is either shown to be there or to be refused in the permitted way.
Where docker-registry 2.8.2 does otherwise, `differences` says how; the test must then fail with it.
"""

import http.client
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from differences import DIFFERENCES

from registrykit.client import Client
from registrykit.engine import EngineServer
from registrykit.servers import Server, docker_registry, ours, running

HERE = Path(__file__).parent
DOCKER = "docker-registry"
_numbers = itertools.count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        metafunc.parametrize("server", ["wherry", "engine", DOCKER], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == HERE and f"[{DOCKER}" in item.name:
            case = item.name.replace(f"[{DOCKER}-", "[").replace(f"[{DOCKER}]", "")
            if reason := DIFFERENCES.get(case) or DIFFERENCES.get(item.originalname):
                raises = (AssertionError, http.client.HTTPException)
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=raises))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | EngineServer]:
    root: Path = tmp_path_factory.mktemp(request.param)
    make = {"wherry": ours, "engine": EngineServer, DOCKER: docker_registry}[request.param]
    with running(make(root)) as server:
        yield server


@pytest.fixture
def client(server: Server | EngineServer) -> Iterator[Client]:
    client = server.client()
    yield client
    client.close()


@pytest.fixture
def repo() -> str:
    """A repository nothing was pushed to yet."""
    return f"conformance/r{next(_numbers)}"
