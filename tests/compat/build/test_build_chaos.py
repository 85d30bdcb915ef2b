"""Builds that end badly: the daemon is killed, the client gives up, the disk is full. Nothing of them is left.

What is right is known: a build gives the same image every time, so after any accident the next one must give the ID
that an undisturbed one gave. That no mount, process, cgroup, layer or blob is left is looked for by `building_engine`.

WHERRY_TEST_CRASHES sets how many accidents there are (3 by default), WHERRY_TEST_SEED repeats a sequence of them.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import images
from harness.buildx import building_engine, docker_classic, docker_with_plugins
from harness.engine import Cli, Engine, Result
from harness.leaks import settle

CRASHES = int(os.environ.get("WHERRY_TEST_CRASHES", "3"))
SEED = int(os.environ.get("WHERRY_TEST_SEED") or random.SystemRandom().randrange(10**6))
LENGTH = 1.2  # s that a build takes at most, when nothing is cached
ENDS = 20  # s in which a client that was told to stop has stopped
SPACE = 96  # MiB of a small disk
FULL = re.compile(r"[Nn]o space left on device|disk is full")

DOCKERFILE = """\
FROM busybox AS base
COPY . /src
RUN sleep 0.1; cat /src/* | sha256sum > /sum

FROM base AS left
RUN --mount=type=cache,target=/cache for i in $(seq 40); do echo $i > /cache/$i; cp /cache/$i /left$i; done
RUN sleep 0.2; rm -r /src; ln /left1 /hard; mkdir -m 700 /closed

FROM base AS right
RUN --mount=type=tmpfs,target=/t head -c 3000000 /dev/zero > /t/zeros; sleep 0.2; md5sum < /t/zeros > /right
RUN --mount=from=left,target=/left cat /left/left* | md5sum >> /right

FROM base
COPY --from=left --chown=7:8 /left1 /hard /closed /both/
COPY --link --from=right /right /both/
RUN --network=none cat /both/* > /result; rm /both/hard
"""

pytestmark = pytest.mark.not_dockerd("its builds are other ones each time")


@dataclass(frozen=True)
class Site:
    engine: Engine
    context: Path
    buildx: Cli

    def command(self, door: str) -> tuple[Cli, list[str]]:
        client = {"buildx": self.buildx, "classic": docker_classic(self.engine), "wherry": self.engine.wherry}[door]
        return client, [*(["buildx"] if door == "buildx" else []), "build", "-t", "chaos", str(self.context)]

    def build(self, door: str = "buildx", *, check: bool = True) -> Result:
        client, argv = self.command(door)
        return client(*argv, check=check, timeout=120)

    def start(self, door: str) -> "subprocess.Popen[bytes]":
        client, argv = self.command(door)
        return client.start(*argv)

    def image(self) -> str:
        return str(self.engine.api.get("/images/chaos/json")["Id"])

    def write(self, dockerfile: str) -> None:
        """The epoch is the newest file's time: it must not be now."""
        path = self.context / "Dockerfile"
        path.write_text(dockerfile)
        os.utime(path, (images.MTIME, images.MTIME))

    def forget(self) -> None:
        """The image and all cache go."""
        self.engine.docker("rmi", "-f", "chaos", check=False)
        self.engine.docker("builder", "prune", "-af")

    def quiet(self) -> None:
        """No step runs any more, and nothing of one is there."""
        left = settle(lambda: [*steps(self.engine), *mounts(self.engine)])
        assert not left, f"left by builds (seed {SEED}): {left}\n{self.engine.log_tail()}"


def steps(engine: Engine) -> list[str]:
    """Processes in the box that are a step's: the client's and the daemon's have other names."""
    return [
        f"{pid} {words}" for pid, words in engine.box.processes().items() if words.startswith(("/bin/sh -c", "sleep"))
    ]


def mounts(engine: Engine) -> list[str]:
    return [mount for mount in engine.box.mounts() if "/build/" in mount or "/build-" in mount]


def write_context(context: Path) -> None:
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    for number in range(100):
        (context / f"file{number}").write_text(f"{number}\n" * number)
    for path in context.iterdir():
        os.utime(path, (images.MTIME, images.MTIME))


def made_site(engine: Engine, folder: Path) -> Site:
    write_context(folder / "context")
    return Site(engine, folder / "context", docker_with_plugins(engine))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with building_engine(images.docker_archive([images.busybox()])) as engine:
        yield made_site(engine, tmp_path_factory.mktemp("chaos"))


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """An engine that has busybox and nothing cached."""
    yield shared
    for client in (shared.buildx, shared.engine.wherry):
        client.end_started()
    shared.quiet()
    shared.forget()


def test_the_daemon_is_killed_again_and_again(site: Site) -> None:
    choose = random.Random(SEED)
    site.build()
    right = site.image()
    cut = 0
    for number in range(CRASHES):
        if number % 2 == 0:
            site.forget()  # else the next one goes on with what the one before has finished
        client = site.start(choose.choice(("buildx", "wherry")))
        time.sleep(choose.uniform(0.1, LENGTH))
        cut += client.poll() is None
        site.engine.kill()
        out, err = client.communicate(timeout=ENDS)
        assert b"Traceback" not in out + err
        site.engine.start()
        site.quiet()
        if choose.random() < 0.5:
            site.build()
            assert site.image() == right, f"seed {SEED}"
    site.build()
    assert site.image() == right, f"seed {SEED}"
    assert cut, "no build was going on when the daemon was killed"


@pytest.mark.parametrize("door", ["buildx", "wherry", "classic"])
def test_the_client_gives_up_again_and_again(site: Site, door: str) -> None:
    choose = random.Random(f"{SEED} {door}")
    site.build(door)
    right = site.image()
    cut = 0
    for _ in range(CRASHES):
        site.forget()
        client = site.start(door)
        time.sleep(choose.uniform(0.1, LENGTH))
        cut += client.poll() is None
        client.send_signal(choose.choice((signal.SIGINT, signal.SIGINT, signal.SIGKILL)))
        client.communicate(timeout=ENDS)
        site.quiet()
    site.build(door)
    assert site.image() == right, f"seed {SEED}"
    assert cut, "no build was going on when the client gave up"


def test_two_builds_of_the_same_thing_and_one_gives_up(site: Site) -> None:
    site.build()
    right = site.image()
    site.forget()
    stays, goes = site.start("buildx"), site.start("wherry")
    time.sleep(0.4)
    goes.send_signal(signal.SIGINT)
    goes.communicate(timeout=ENDS)
    _, err = stays.communicate(timeout=60)
    assert stays.returncode == 0, err.decode()
    assert site.image() == right


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The data root is on a small tmpfs, seen in the box only."""
    with building_engine(images.docker_archive([images.busybox()])) as engine:
        engine.stop()
        engine.box.run("mount", "-t", "tmpfs", "-o", f"size={SPACE}m", "tmpfs", str(engine.data_root))
        engine.start()
        engine.load(images.docker_archive([images.busybox()]))
        yield made_site(engine, tmp_path_factory.mktemp("tight"))
        engine.docker("rmi", "-f", "busybox")
        engine.stop()
        engine.box.run("umount", str(engine.data_root))
        engine.start()


@pytest.fixture
def small(tight: Site) -> Iterator[Site]:
    yield tight
    tight.engine.box.run("rm", "-f", f"{tight.engine.data_root}/filler")
    tight.quiet()
    tight.forget()
    tight.write(DOCKERFILE)


def refused(done: Result) -> None:
    assert done.code != 0
    assert FULL.search(done.err), done.err
    assert "Traceback" not in done.err


def test_a_step_that_needs_more_than_there_is_fails_and_leaves_nothing(small: Site) -> None:
    small.build()
    right, used = small.image(), space(small)
    small.write(DOCKERFILE + f"RUN dd if=/dev/zero of=/big bs=1M count={SPACE}\n")
    refused(small.build(check=False))
    assert space(small) - used < 2 << 20
    small.write(DOCKERFILE)
    small.build()
    assert small.image() == right


def test_a_context_that_does_not_fit_fails_and_leaves_nothing(small: Site) -> None:
    small.build()
    right = small.image()
    big = small.context / "zz-big"
    with big.open("wb") as file:
        for _ in range(SPACE + 1):
            file.write(os.urandom(1 << 20))
    refused(small.build(check=False))
    big.unlink()
    small.build()
    assert small.image() == right


def test_on_a_full_disk_a_build_says_so_and_afterwards_works(small: Site) -> None:
    small.build()
    right = small.image()
    small.forget()
    small.engine.box.run("sh", "-c", f"cat /dev/zero > {small.engine.data_root}/filler", check=False)
    refused(small.build(check=False))
    small.engine.box.run("rm", "-f", f"{small.engine.data_root}/filler")
    small.build()
    assert small.image() == right


def space(site: Site) -> int:
    """Bytes in use on the disk of the data root."""
    shown = site.engine.box.run("stat", "-f", "-c", "%S %b %f", str(site.engine.data_root)).split()
    size, total, free = map(int, shown)
    return size * (total - free)
