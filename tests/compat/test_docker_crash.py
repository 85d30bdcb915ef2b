"""The daemon is killed again and again while clients work: nothing is lost, nothing is left, every exit code is right.

WHERRY_TEST_CRASHES sets how many times (8 by default, 50 for a release), WHERRY_TEST_SEED repeats a sequence of random
choices (as far as two runs can be alike: the moments differ).
"""

import contextlib
import os
import random
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.engine import Engine, Result

CRASHES = int(os.environ.get("WHERRY_TEST_CRASHES", "8"))
SEED = int(os.environ.get("WHERRY_TEST_SEED") or random.SystemRandom().randrange(10**6))
PORTS = (18081, 18082)  # published by the containers of the client with that number
STOPPED = 143  # what a container of ours ends with when it is told to stop
EARLY_DEATH = 0.25  # share of starts of the daemon that are killed before it answers
FD_SLACK = 4
QUIET = 15  # s for what happens by itself after the answer
LOST = re.compile(r"Cannot connect|cannot connect|EOF|connection re(set|fused)|broken pipe|error during connect|hijack")

OURS = pytest.mark.not_dockerd("its containers do not outlive it")


def script(code: int, rest: float) -> str:
    """Says 1 to 9, then `end`, and ends with `code`; told to stop, it says `stopped` and ends with STOPPED."""
    return (
        f"trap 'echo stopped; exit {STOPPED}' TERM; "
        "i=0; while [ $i -lt 9 ]; do i=$((i+1)); echo $i; done; "
        f"sleep {rest:.2f} & wait $!; echo end; exit {code}"
    )


COUNT = [str(number) for number in range(1, 10)]
WHOLE = [*COUNT, "end"]


def plausible(lines: list[str]) -> bool:
    """What a container that was stopped, or a stream that was cut off, may have said."""
    said = lines[:-1] if lines[-1:] == ["stopped"] else lines
    return said == WHOLE[: len(said)]


@dataclass
class Fate:
    """What is certain of one container, and what has been tried."""

    code: int  # its script ends with
    created: bool = False  # acknowledged
    started: bool = False  # acknowledged
    stopping: bool = False  # a stop was asked for
    killing: bool = False  # rm -f was asked for
    removing: bool = False  # a removal was asked for, or it was run with --rm
    removed: bool = False  # acknowledged


@dataclass
class Book:
    """What the clients know."""

    fates: dict[str, Fate] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)  # by kind of work, how often it went through
    broken: int = 0  # requests cut off by a crash


class Client(threading.Thread):
    """Does one kind of work over and over, noting every certain answer that is wrong."""

    def __init__(self, engine: Engine, book: Book, enough: threading.Event, kind: str, number: int) -> None:
        super().__init__(name=f"{kind}{number}")
        self.engine, self.book, self.kind, self.number = engine, book, kind, number
        self._enough = enough
        self._choose = random.Random(f"{SEED} {kind} {number}")
        self._mine: dict[str, Fate] = {}
        self._rounds = 0
        self._work: Callable[[], bool] = getattr(self, f"_{kind}")

    def run(self) -> None:
        while not self._enough.is_set():
            self._rounds += 1
            try:
                if self._work():
                    self.book.finished[self.kind] = self.book.finished.get(self.kind, 0) + 1
            except Exception as exc:
                self.book.wrong.append(f"{self.name}: {exc!r}")
            while not self._enough.is_set() and not self.engine.answers():
                self._enough.wait(0.05)

    def _fate(self) -> tuple[str, Fate, str]:
        code = self._choose.randrange(2, 100)  # 1 is what the CLI itself ends with
        name = f"{self.kind}{self.number}-{self._rounds}"
        fate = self.book.fates[name] = self._mine[name] = Fate(code)
        return name, fate, script(code, self._choose.choice((0, 0.1, 0.4)))

    def _ask(self, *args: str, expect: int = 0, also: str = "") -> Result | None:
        """None when a crash cut the request off; then nothing is certain. `also`: words that are no mistake either."""
        done = self.engine.docker(*args, check=False, timeout=120)
        if done.code == expect and not LOST.search(done.err):
            return done
        if LOST.search(done.err):
            self.book.broken += 1
        elif not (also and re.search(also, done.err)):
            self.book.wrong.append(f"docker {' '.join(args)}: {done} instead of {expect}")
        return None

    def _run(self) -> bool:
        """run, logs -f, rm."""
        name, fate, text = self._fate()
        done = self._ask("run", "--name", name, "busybox", "sh", "-c", text, expect=fate.code)
        if done is None:
            return False
        fate.created = fate.started = True
        self._compare(name, done.lines)
        logs = self._ask("logs", "-f", name)
        if logs is not None:
            self._compare(f"logs of {name}", logs.lines)
        fate.removing = True
        if self._ask("rm", name) is None:
            return False
        fate.removed = True
        return True

    def _compare(self, what: str, lines: list[str]) -> None:
        if lines != WHOLE:
            self.book.wrong.append(f"{what}: {lines}")

    def _run_rm(self) -> bool:
        """run --rm, with an anonymous volume."""
        name, fate, text = self._fate()
        fate.removing = True
        done = self._ask("run", "--rm", "-v", "/data", "--name", name, "busybox", "sh", "-c", text, expect=fate.code)
        if done is None:
            return False
        self._compare(name, done.lines)
        fate.created = fate.started = fate.removed = True
        return True

    def _run_d(self) -> bool:
        """run -d with a published port; logs -f while it is stopped; rm -f."""
        name, fate, text = self._fate()
        port = f"{PORTS[self.number]}:80"
        # the container before may be there still, its removal cut off
        done = self._ask("run", "-d", "-p", port, "--name", name, "busybox", "sh", "-c", text, also="already allocated")
        if done is None:
            self._clear()
            return False
        fate.created = fate.started = True
        with self.engine.docker.start("logs", "-f", name, stderr=subprocess.DEVNULL) as following:
            fate.stopping = True
            self._ask("stop", name)
            lines = following.communicate()[0].decode().splitlines()
        if not plausible(lines):
            self.book.wrong.append(f"logs -f {name}: {lines}")
        return self._clear()

    def _clear(self) -> bool:
        """rm -f whatever of this client is there."""
        for name, fate in self._mine.items():
            if fate.removed:
                continue
            fate.killing = fate.removing = True
            if self._ask("rm", "-f", name) is None:
                return False
            fate.removed = True
        return True

    def _create(self) -> bool:
        """create, start, wait, rm: each by itself."""
        name, fate, text = self._fate()
        if self._ask("create", "--name", name, "busybox", "sh", "-c", text) is None:
            return False
        fate.created = True
        if self._ask("start", name) is None:
            return False
        fate.started = True
        waited = self._ask("wait", name)
        if waited is None:
            return False
        if waited.text != str(fate.code):
            self.book.wrong.append(f"wait {name}: {waited} instead of {fate.code}")
        fate.removing = True
        fate.removed = self._ask("rm", name) is not None
        return fate.removed

    def _exec(self) -> bool:
        """exec in a container that never ends. 255 without a word is the CLI's way to say that the daemon is gone."""
        code = self._choose.randrange(2, 100)  # 1 is what the CLI itself ends with
        done = self.engine.docker("exec", "anchor", "sh", "-c", f"echo here; exit {code}", check=False)
        if done.code == code:
            if done.out != "here\n":
                self.book.wrong.append(f"exec: {done}")
            return True
        if (done.code == 255 and not done.err) or LOST.search(done.err) or "No such exec instance" in done.err:
            self.book.broken += 1
        else:
            self.book.wrong.append(f"exec: {done} instead of {code}")
        return False

    def _follow(self) -> bool:
        """logs -f of a container that never ends, until the daemon does."""
        with self.engine.docker.start("logs", "-f", "anchor", stderr=subprocess.DEVNULL) as following:
            lines = following.communicate()[0].decode().splitlines()
        # the last line may have been cut off
        if lines[:-1] != [str(number) for number in range(1, len(lines))]:
            self.book.wrong.append(f"logs -f anchor, a gap or a repeat: {lines}")
        return bool(lines)


def crash(engine: Engine, choose: random.Random) -> None:
    """Kill the daemon and start it again; sometimes it is killed while it starts, too."""
    time.sleep(choose.uniform(0.02, 1.5))
    engine.kill()
    while choose.random() < EARLY_DEATH:
        engine.launch()
        time.sleep(choose.uniform(0.1, 0.8))
        engine.kill()
    engine.start()


@contextlib.contextmanager
def crowd(engine: Engine, book: Book) -> Iterator[None]:
    """Clients at work; on leaving they have ended."""
    enough = threading.Event()
    kinds = [("run", 0), ("run_rm", 0), ("run_d", 0), ("run_d", 1), ("create", 0), ("exec", 0), ("follow", 0)]
    clients = [Client(engine, book, enough, kind, number) for kind, number in kinds]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        enough.set()
        for client in clients:
            if client.kind != "follow":
                client.join(120)
        engine.docker("kill", "anchor")
        for client in clients:
            client.join(30)
    assert not [client.name for client in clients if client.is_alive()], "a client hangs"


@pytest.fixture
def cgroup_parent() -> Iterator[str]:
    """A cgroup for one daemon's containers, which all must be gone in the end."""
    name = f"wherry-crash-{os.getpid()}"
    yield f"/{name}"
    for parent in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        parent.rmdir()


@OURS
@pytest.mark.timeout(120 + CRASHES * 20)
def test_killing_the_daemon_at_any_moment_loses_and_leaks_nothing(cgroup_parent: str, own_engine: Any) -> None:
    engine: Engine = own_engine(args=["--cgroup-parent", cgroup_parent])
    print(f"WHERRY_TEST_SEED={SEED}")
    before = Baseline(engine, cgroup_parent)
    counting = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    engine.docker("run", "-d", "-p", "18080:80", "--name", "anchor", "busybox", "sh", "-c", counting)
    anchor = engine.inspect("anchor")
    book, choose = Book(), random.Random(SEED)
    with crowd(engine, book):
        for _ in range(CRASHES):
            crash(engine, choose)
        assert engine.state("anchor")["Pid"] == anchor["State"]["Pid"]
    print(f"went through: {book.finished}; cut off: {book.broken}")
    assert not book.wrong, "\n".join(book.wrong)
    lines = engine.docker("logs", "anchor").lines
    assert lines == [str(number) for number in range(1, len(lines) + 1)], "the log has a gap or a repeat"
    every_container_tells_the_truth(engine, book)
    engine.remove_all_containers()
    before.settle()
    for port in (18080, *PORTS):
        engine.docker("run", "--rm", "-p", f"{port}:80", "busybox", "true")


@OURS
@pytest.mark.timeout(180)
def test_a_zygote_that_is_killed_is_replaced_and_costs_no_container(own_engine: Any) -> None:
    engine: Engine = own_engine()
    before = Baseline(engine)
    engine.docker("run", "-d", "--name", "stays", "busybox", "sleep", "600")
    pid = engine.state("stays")["Pid"]
    choose = random.Random(SEED)
    print(f"WHERRY_TEST_SEED={SEED}")
    for code in range(1, 21):
        runs = [
            engine.docker.start("run", "--rm", "busybox", "sh", "-c", f"echo {code}; exit {code}") for _ in range(2)
        ]
        time.sleep(choose.uniform(0, 0.2))  # a random moment is what is wanted
        for victim in zygotes(engine):
            engine.box.kill(victim)
        answers = []
        for run in runs:
            with run:
                answers.append((*run.communicate(timeout=60), run.returncode))
        for answer in answers:
            assert answer == (b"%d\n" % code, b"", code), answer
    assert engine.state("stays")["Pid"] == pid
    engine.remove_all_containers()
    engine.docker("run", "--rm", "busybox", "true")
    before.settle()


def zygotes(engine: Engine) -> Iterator[int]:
    """Of the processes with its command line the one that the daemon made; none when its successor is still to come."""
    for pid, words in engine.box.processes().items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = (engine.box.proc(pid) / "stat").read_text().rpartition(")")[2].split()
            if "zygote" in words and int(stat[1]) == engine.pid:
                yield pid


def parent_of(engine: Engine, pid: int) -> int:
    return int((engine.box.proc(pid) / "stat").read_text().rpartition(")")[2].split()[1])


@OURS
@pytest.mark.timeout(180)
def test_shims_killed_with_the_daemon_leave_nothing(own_engine: Any) -> None:
    engine: Engine = own_engine()
    before = Baseline(engine)
    for name, options in (("one", []), ("two", ["-p", "18081:80"]), ("gone", ["--rm", "-v", "/data"])):
        engine.docker("run", "-d", *options, "--name", name, "busybox", "sh", "-c", "echo line; sleep 600")
    engine.docker("run", "-d", "--restart", "always", "--name", "again", "busybox", "sleep", "600")
    names = ("one", "two", "gone", "again")
    pids = {name: engine.state(name)["Pid"] for name in names}
    shims = {name: parent_of(engine, pid) for name, pid in pids.items()}
    engine.kill()
    for name in names:
        engine.box.kill(shims[name])
    engine.start()
    for name in names:
        wait_until(lambda pid=pids[name]: not engine.box.alive(pid), f"the process of {name} goes on")  # type: ignore[misc]
    for name in ("one", "two"):
        engine.wait_for(name, "exited")
        assert engine.state(name)["ExitCode"] == 137
        assert engine.docker("logs", name).out == "line\n"
    wait_until(lambda: engine.api.request("GET", "/containers/gone/json").status == 404, "--rm is forgotten")
    engine.wait_for("again", "running")
    assert engine.state("again")["Pid"] != pids["again"]
    engine.docker("start", "two")
    engine.docker("run", "--rm", "busybox", "true")
    engine.remove_all_containers()
    before.settle()


def every_container_tells_the_truth(engine: Engine, book: Book) -> None:
    """What was acknowledged is there, what was removed is gone; every exit code is right, and every line there once."""
    wait_until(lambda: not engine.docker("ps", "-q").lines, "containers still run")
    names = set(engine.docker("ps", "-a", "--format", "{{.Names}}").lines) - {"anchor"}
    assert names <= set(book.fates), "containers nobody asked for"
    for name, fate in book.fates.items():
        if name not in names:
            assert fate.removing or not fate.created, f"{name} is lost: {fate}"
            continue
        assert not fate.removed, f"{name} came back: {fate}"
        state = engine.state(name)
        if state["Status"] == "created":
            assert not fate.started, f"{name} was never started: {fate}"
            continue
        assert not name.startswith("run_rm"), f"{name} has ended and is still there: {state}"
        lines, code = engine.docker("logs", name).lines, state["ExitCode"]
        told = [STOPPED, 137] if fate.stopping else []
        told += [137] if fate.killing else []
        assert state["Status"] == "exited", (name, state, fate)
        assert code in (fate.code, *told), (name, state, fate, lines)
        assert lines == WHOLE if code == fate.code else plausible(lines), (name, state, fate, lines)


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + QUIET
    while not true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.1)


class Baseline:
    """What an engine without containers has: to be compared with while it runs."""

    def __init__(self, engine: Engine, cgroup_parent: str = "") -> None:
        self._engine = engine
        self._cgroup_parent = cgroup_parent
        engine.docker("run", "--rm", "-p", "18080:80", "-v", "/data", "busybox", "true")
        self._files, self._links, self._mounts = engine.open_files(), engine.box.links(), engine.box.mounts()

    def settle(self) -> None:
        """Wait until there is no more than before; fails with the list of what is."""
        until = time.monotonic() + QUIET
        while found := self.leaks():
            assert time.monotonic() < until, "left behind:\n  " + "\n  ".join(found) + f"\n{self._engine.log_tail()}"
            time.sleep(0.1)

    def leaks(self) -> list[str]:
        engine, box = self._engine, self._engine.box
        found = [f"process {pid}: {words}" for pid, words in box.processes().items() if "wherry daemon" not in words]
        found = [each for each in found if "zygote" not in each]
        found += [f"interface {link}" for link in box.links() - self._links]
        found += [f"mount {mount}" for mount in box.mounts() if mount not in self._mounts]
        rules = box.run("nft", "-j", "list", "ruleset", net_only=True)
        found += [f"port {port} in the firewall" for port in (18080, *PORTS) if str(port) in rules]
        found += [f"file {path}" for path in (engine.exec_root / "shims").glob("*")]
        for folder in ("containers", "rw", "volumes", "ingest", "work"):
            found += [f"file {path}" for path in (engine.data_root / folder).glob("*")]
        with contextlib.closing(sqlite3.connect(f"file:{engine.data_root}/state.db?mode=ro", uri=True)) as state:
            for table in ("containers", "names", "endpoints", "volumes", "leases"):
                found += [f"row {table} {key}" for (key,) in state.execute(f"SELECT key FROM {table}")]
        for hierarchy in Path("/sys/fs/cgroup").iterdir() if self._cgroup_parent else ():
            found += [f"cgroup {path}" for path in hierarchy.glob(f"{self._cgroup_parent.strip('/')}/*/")]
        files = engine.open_files()
        if files > self._files + FD_SLACK:
            found.append(f"{files - self._files} file descriptors")
        return found
