"""Real layers, real overlay directories; registries on loopback."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from imagekit.registry import FakeRegistry, serve
from imagekit.world import World
from wherry.storage.overlay import OverlaySnapshotter

CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: 127.0.0.1:{port}
"""


def open_world(root: Path) -> World:
    root.mkdir(exist_ok=True)
    return World(root, OverlaySnapshotter(root))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = open_world(tmp_path / "world")
    yield made
    made.snapshots.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[World]:
    """Another machine."""
    made = open_world(tmp_path / "other")
    yield made
    made.snapshots.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., None]) -> Iterator[str]:
    """Debian's registry on a loopback port of its own; its address."""
    require("docker-registry", "skopeo")
    root = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = root / "config.yml"
    config.write_text(CONFIG.format(root=root / "data", port=port))
    program = shutil.which("docker-registry")
    assert program is not None
    with open(root / "log", "wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(config)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        until = time.monotonic() + 30
        while True:
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < until, "docker-registry does not answer"
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
