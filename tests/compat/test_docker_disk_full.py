"""The data root is full: every request says so, nothing half-made can be seen, what frees space works, and then all."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from harness import images
from harness.engine import Engine, Result

SIZE = 48  # MiB of the data root's file system
FULL = re.compile(r"[Nn]o space left on device|disk is full")
FOLDERS = ("ingest", "rw", "containers", "layers", "work", "blobs/sha256")

pytestmark = pytest.mark.not_dockerd("looks at files of another program")


@pytest.fixture
def small(own_engine: Any) -> Iterator[Engine]:
    """An engine on a small tmpfs, seen in its box only."""
    engine: Engine = own_engine()
    engine.stop()
    engine.box.run("mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(engine.data_root))
    engine.start()
    engine.load(images.docker_archive([images.busybox()]))
    yield engine
    free(engine)
    if not engine.answers():
        engine.start()
    engine.remove_all_containers()
    engine.stop()
    engine.box.run("umount", str(engine.data_root))
    engine.start()


def fill(engine: Engine) -> None:
    engine.box.run("sh", "-c", f"cat /dev/zero > {engine.data_root}/filler", check=False)


def free(engine: Engine) -> None:
    engine.box.run("rm", "-f", f"{engine.data_root}/filler")


def files(engine: Engine) -> set[str]:
    root = engine.box.path(engine.data_root)
    return {f"{folder}/{path.name}" for folder in FOLDERS for path in (root / folder).glob("*")}


def refused(done: Result) -> None:
    assert done.code != 0
    assert FULL.search(done.err), done.err
    assert "Traceback" not in done.err


def test_an_image_that_does_not_fit_is_not_there(small: Engine) -> None:
    before, listed = files(small), small.docker("images", "-a").out
    entries = [images.Entry(name="big", data=os.urandom(SIZE << 20))]
    archive = images.docker_archive([images.Image(tags=["big:latest"], layers=[images.tar(entries)])])
    refused(small.docker("load", input=archive, check=False))
    assert (files(small), small.docker("images", "-a").out) == (before, listed)
    small.docker("run", "--rm", "busybox", "true")


@pytest.mark.parametrize(
    "args",
    [
        ("run", "--rm", "busybox", "true"),
        ("run", "-d", "--name", "half", "-p", "18088:80", "-v", "/data", "busybox", "sleep", "600"),
        ("create", "--name", "half", "busybox"),
        ("start", "made"),
        ("commit", "ended", "half"),
        ("import", "ARCHIVE", "half"),
        ("cp", "/etc/services", "made:/tmp/"),
    ],
    ids=lambda args: args[0] + args[1],
)
def test_what_needs_space_is_refused_and_leaves_nothing(small: Engine, args: tuple[str, ...]) -> None:
    small.docker("create", "--name", "made", "busybox", "echo", "works")
    small.docker("run", "--name", "ended", "busybox", "sh", "-c", "head -c 1000000 /dev/urandom > /file")
    archive = small.root / "archive.tar"
    archive.write_bytes(images.tar([images.Entry(name="big", data=os.urandom(1 << 20))]))
    args = tuple(str(archive) if word == "ARCHIVE" else word for word in args)
    fill(small)
    before = files(small)
    listed = small.docker("ps", "-a", "--format", "{{.Names}}").out, small.docker("images", "-a").out
    refused(small.docker(*args, check=False))
    assert files(small) == before
    assert (small.docker("ps", "-a", "--format", "{{.Names}}").out, small.docker("images", "-a").out) == listed
    free(small)
    small.docker(*args)
    small.docker("start", "-a", "made")
    assert small.docker("logs", "made").lines[-1] == "works"


def test_what_frees_space_works_on_a_full_disk(small: Engine) -> None:
    for name in ("ended", "more"):
        small.docker("run", "--name", name, "busybox", "sh", "-c", "head -c 3000000 /dev/urandom > /file")
    small.docker("run", "-d", "--name", "runs", "busybox", "sleep", "600")
    small.docker("run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "600")
    small.load(images.docker_archive([images.layered()]))
    fill(small)
    small.docker("rmi", "layered")
    fill(small)
    small.docker("stop", "-t", "0", "runs", "gone")
    assert small.state("runs")["ExitCode"] == 137
    small.docker("rm", "ended")
    small.docker("rm", "-f", "runs")
    fill(small)
    small.docker("container", "prune", "-f")
    assert small.docker("ps", "-aq").out == ""
    small.docker("run", "--rm", "busybox", "true")  # in what the containers had


def test_a_running_container_goes_on_and_loses_only_what_did_not_fit(small: Engine) -> None:
    script = "i=0; while [ ! -e /dev/shm/enough ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end; exit 9"
    small.docker("run", "-d", "--name", "talks", "busybox", "sh", "-c", script)
    fill(small)
    assert small.docker("exec", "talks", "sh", "-c", "sleep 0.3; echo here").out == "here\n"
    small.kill()
    small.start()
    assert small.state("talks")["Running"]
    free(small)
    small.docker("exec", "talks", "sh", "-c", "sleep 0.1; touch /dev/shm/enough; sleep 0.1", check=False)
    small.wait_for("talks", "exited")
    assert small.state("talks")["ExitCode"] == 9
    *numbers, last = small.docker("logs", "talks").lines
    assert last == "end"
    assert sorted(set(map(int, numbers))) == list(map(int, numbers)), "a line came twice, or is broken"
