"""The docker CLI with buildx and Compose: its `build`, `buildx` and `compose` speak gRPC to the engine.

The plugins are those of scripts/real-clients. They live in a configuration of their own: beside a CLI without them,
whose `docker build` is the classic one.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .box import Box
from .engine import REPOSITORY, Cli, Engine, remove_root, short_root
from .engines import new_engine
from .leaks import Before, settle
from .needs import missing

PLUGINS = REPOSITORY / ".tools/newer/cli-plugins"


def docker_with_plugins(engine: Engine) -> Cli:
    """The stock `docker` that has buildx and Compose; bound to this engine's own builder."""
    for name in ("docker-buildx", "docker-compose"):
        if not (PLUGINS / name).exists():
            missing(name, "`scripts/real-clients` brings it")
    config = engine.root / "cli-plugins-config"
    config.mkdir(exist_ok=True)
    link = config / "cli-plugins"
    if not link.is_symlink():
        link.symlink_to(PLUGINS)
    cli = Cli("docker", engine.host, config)
    cli.env |= {"BUILDKIT_PROGRESS": "plain", "COMPOSE_STATUS_STDOUT": "1"}
    return cli


def docker_classic(engine: Engine) -> Cli:
    """The stock `docker` whose `docker build` is `POST /build`."""
    cli = Cli("docker", engine.host, engine.root / "cli")
    cli.env |= {"DOCKER_BUILDKIT": "0"}
    return cli


@contextlib.contextmanager
def building_engine(archive: bytes, *, args: Sequence[str] = ()) -> Iterator[Engine]:
    """A daemon for builds in a box of its own, with the images of `archive`.

    In the end everything it made goes, build cache too, and then nothing may be left: neither what `Before` looks for
    nor cgroups of steps, nor anything in the data root.
    """
    with Box() as box:
        root = short_root()
        parent = f"/wherry-build-{box.holder}"
        before = Before(box)
        engine = new_engine(box, root, args=["--cgroup-parent", parent, *args])
        try:
            engine.start()
            try:
                engine.load(archive)
            except BaseException:
                engine.kill()
                raise
            yield engine
            if not engine.answers():
                pytest.fail(f"the daemon is gone; the end of its log:\n{engine.log_tail()}", pytrace=False)
            engine.remove_all_containers()
            engine.docker("builder", "prune", "-af", timeout=120)
            engine.docker("image", "prune", "-af", timeout=120)
            engine.stop()
            leaks = before.leaks(engine, ()) + settle(lambda: steps_left(parent)) + trees_left(engine)
            assert not leaks, "left behind:\n  " + "\n  ".join(leaks) + f"\nend of the log:\n{engine.log_tail()}"
        finally:
            remove_cgroups(parent)
            remove_root(root)


def _hierarchies() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]


def steps_left(parent: str) -> list[str]:
    """Cgroups of steps below `parent`, in every hierarchy."""
    found: set[Path] = set()
    for hierarchy in _hierarchies():
        found |= {path for path in (hierarchy / parent.strip("/")).glob("*") if path.is_dir()}
    return [f"cgroup {path}" for path in sorted(found)]


def remove_cgroups(parent: str) -> None:
    for hierarchy in _hierarchies():
        with contextlib.suppress(OSError):
            (hierarchy / parent.strip("/")).rmdir()


EMPTY = (  # folders of the data root when neither an image nor the cache has anything; records of builds stay
    *("layers", "blobs/sha256", "work", "rw", "ingest", "uploads", "removed"),
    *(f"build/{name}" for name in ("contexts", "caches", "scratch", "git/mirrors", "git/checkouts", "http")),
)


def trees_left(engine: Engine) -> list[str]:
    """What is in the data root of a stopped daemon from which all was removed."""
    found = [f"file {path}" for folder in EMPTY for path in sorted((engine.data_root / folder).glob("*"))]
    if not engine.is_dockerd:
        with contextlib.closing(sqlite3.connect(engine.data_root / "state.db")) as state:
            for table in ("leases", "endpoints", "build_cache"):
                count = state.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                found += [f"{count} rows of {table}"] if count else []
    return found
