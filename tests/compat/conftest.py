"""One daemon per test session, in a box; after every test its containers go, and at the end nothing may be left."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.box import Box
from harness.engine import MIRROR, WHERRY, Cli, Engine, remove_root, short_root
from harness.engines import EngineMaker, new_engine
from harness.leaks import Before, Witness
from harness.needs import ENGINE, missing, require_programs
from harness.registry import Registry

HERE = Path(__file__).parent
MODEL = 28  # major version of the docker CLI that `wherry` is compared with
FD_SLACK = 8  # descriptors a daemon may have more at the end than after its first container


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    path = short_root()
    yield path
    remove_root(path)


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    with Box() as made:
        yield made


@pytest.fixture(scope="session")
def session_engine(box: Box, root: Path) -> Iterator[Engine]:
    """The daemon of the session, with `busybox`, `layered` and `configured` loaded."""
    before = Before(box)
    engine = new_engine(box, root, args=["--registry-mirror", MIRROR])
    engine.start()
    witness = Witness(engine)
    engine.load(images.docker_archive([images.busybox(), images.layered(), images.configured()]))
    engine.docker("run", "--rm", "busybox", "true")
    files = engine.open_files()
    yield engine
    engine.remove_all_containers()
    grown = engine.open_files() - files
    witness.stop()
    engine.stop()
    leaks = before.leaks(engine, witness.containers)
    if grown > FD_SLACK and not engine.is_dockerd:
        leaks.append(f"{grown} file descriptors of the daemon")
    assert not leaks, "left behind:\n  " + "\n  ".join(leaks) + f"\nend of the daemon's log:\n{engine.log_tail()}"


@pytest.fixture
def engine(session_engine: Engine) -> Iterator[Engine]:
    """The session's daemon; what the test leaves in it is removed, and the base images must still be there."""
    yield session_engine
    for client in (session_engine.docker, session_engine.wherry):
        client.end_started()
    if not session_engine.answers():
        pytest.fail(f"the daemon is gone; the end of its log:\n{session_engine.log_tail()}", pytrace=False)
    session_engine.remove_all_containers()
    for volume in session_engine.api.get("/volumes")["Volumes"] or []:
        session_engine.api.request("DELETE", f"/volumes/{volume['Name']}?force=1")


@pytest.fixture
def docker(engine: Engine) -> Cli:
    """The stock docker CLI."""
    return engine.docker


@pytest.fixture(params=["docker", "wherry"])
def cli(request: pytest.FixtureRequest, engine: Engine) -> Cli:
    """Both command line clients in turn."""
    if request.param == "docker":
        return engine.docker
    if not WHERRY.exists():
        missing(str(WHERRY), "`make install` makes it")
    return engine.wherry


@pytest.fixture
def py(engine: Engine) -> Iterator[Any]:
    """docker-py."""
    import docker

    client = docker.DockerClient(base_url=engine.host)
    yield client
    client.close()


@pytest.fixture
def own_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineMaker]:
    """`own_engine(args=[…])` starts a daemon for one test in a box of its own, checked for leaks at the end."""
    with contextlib.ExitStack() as stack:

        def make(**kwargs: Any) -> Engine:
            box = kwargs.pop("box", None) or stack.enter_context(Box())
            root = short_root()
            stack.callback(remove_root, root)
            before = Before(box)
            engine = new_engine(box, root, **kwargs)
            engine.start()
            witness = Witness(engine)

            def end() -> None:
                if not engine.answers():
                    engine.kill()
                    pytest.fail(f"the daemon is gone; the end of its log:\n{engine.log_tail()}", pytrace=False)
                engine.remove_all_containers()
                witness.stop()
                engine.stop()
                leaks = before.leaks(engine, witness.containers)
                assert not leaks, "left behind:\n  " + "\n  ".join(leaks) + f"\n{engine.log_tail()}"

            stack.callback(end)
            engine.load(images.docker_archive([images.busybox()]))
            return engine

        yield make


@pytest.fixture(scope="session")
def registry(box: Box, root: Path) -> Iterator[Registry]:
    """Debian's registry on 127.0.0.1:5000 of the session's box; also the daemon's mirror of Docker Hub."""
    require_programs("docker-registry", "skopeo")
    with Registry(box, root / "registry", 5000, private=False).running() as running:
        archive = root / "archive.tar"
        archive.write_bytes(images.docker_archive([images.busybox(), images.layered()]))
        running.push(f"docker-archive:{archive}:busybox:latest", "library/busybox:latest")
        running.push(f"docker-archive:{archive}:layered:latest", "library/layered:latest")
        yield running


@pytest.fixture(scope="session")
def private_registry(box: Box, root: Path) -> Iterator[Registry]:
    """A registry that wants a user and a password, on 127.0.0.1:5001."""
    require_programs("docker-registry", "skopeo")
    with Registry(box, root / "private", 5001, private=True).running() as running:
        archive = root / "private.tar"
        archive.write_bytes(images.docker_archive([images.busybox()]))
        running.push(f"docker-archive:{archive}:busybox:latest", "team/busybox:latest")
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`wherry` has the words and columns of docker's CLI 28: an older one is no model for it."""
    beside = [item for item in items if item.path.name.startswith("test_cli_") and item.path.parent == HERE]
    if beside and (found := docker_version()) < MODEL:
        reason = f"missing: docker CLI {MODEL} or newer as the model (this is {found or 'none'})"
        for item in beside:
            item.add_marker(pytest.mark.skip(reason))


def docker_version() -> int:
    """Major version of the stock CLI; 0 when there is none."""
    with contextlib.suppress(OSError):
        shown = subprocess.run(["docker", "--version"], capture_output=True, text=True, check=False).stdout
        if found := re.search(r"version (\d+)\.", shown):
            return int(found[1])
    return 0


def pytest_report_header() -> str:
    return f"engine under test: {ENGINE}" + (
        f", {os.environ['WHERRY_TEST_HOST']}" if "WHERRY_TEST_HOST" in os.environ else ""
    )
