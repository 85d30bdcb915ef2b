"""The daemon is killed again and again while clients work: nothing is lost, nothing is left, every exit code is right.

WHERRY_TEST_CRASHES sets how many times (8 by default, 50 for a release).
"""

import os
import random
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.engine import Engine

CRASHES = int(os.environ.get("WHERRY_TEST_CRASHES", "8"))
WORKERS = 3


@dataclass
class Book:
    """What the clients know for certain."""

    started: dict[str, int] = field(default_factory=dict)  # name → the exit code its script ends with
    removed: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0


def lost(done: "subprocess.CompletedProcess[bytes] | Any") -> bool:
    """The client lost the daemon, and cannot know what became of its request."""
    words = (
        "Cannot connect",
        "cannot connect",
        "EOF",
        "connection reset",
        "broken pipe",
        "connection refused",
        "error during connect",
    )
    return any(word in done.err for word in words)


def work(engine: Engine, number: int, book: Book, stop: threading.Event) -> None:
    """One client: run, exec, logs -f, rm, over and over, noting every answer that was certain and wrong."""
    count = 0
    while not stop.is_set():
        count += 1
        code = random.randrange(1, 100)
        name = f"w{number}-{count}"
        script = f"echo start; sleep 0.{random.randrange(0, 4)}; echo end; exit {code}"
        done = engine.docker("run", "--name", name, "busybox", "sh", "-c", script, check=False)
        if lost(done) or done.code == 125:
            book.started[name] = code  # perhaps: looked at in the end
            engine_is_back(engine, stop)
            continue
        book.started[name] = code
        if done.code != code or done.out != "start\nend\n":
            # A CLI that loses its attach or wait stream tells so on standard error.
            if not done.err:
                book.wrong.append(f"run {name}: {done} instead of {code}")
            engine_is_back(engine, stop)
            continue
        logs = engine.docker("logs", "-f", name, check=False)
        if logs.code == 0 and logs.out != "start\nend\n":
            book.wrong.append(f"logs {name}: {logs.out!r}")
        removal = engine.docker("rm", name, check=False)
        if removal.code == 0:
            book.removed.add(name)
        elif not lost(removal):
            book.wrong.append(f"rm {name}: {removal.err}")
        book.rounds += 1


def execs(engine: Engine, book: Book, stop: threading.Event) -> None:
    """One client that only execs into a container that never ends."""
    while not stop.is_set():
        code = random.randrange(1, 100)
        done = engine.docker("exec", "anchor", "sh", "-c", f"echo here; exit {code}", check=False)
        if done.code == 0 or (done.out == "here\n" and done.code not in (code, 1) and not done.err):
            book.wrong.append(f"exec: {done} instead of {code}")
        if lost(done):
            engine_is_back(engine, stop)


def engine_is_back(engine: Engine, stop: threading.Event) -> None:
    while not stop.is_set() and not engine.answers():
        stop.wait(0.05)


@pytest.mark.timeout(60 + CRASHES * 20)
@pytest.mark.not_dockerd("its containers do not outlive it")
def test_killing_the_daemon_at_any_moment_loses_and_leaks_nothing(own_engine: Any) -> None:
    engine: Engine = own_engine()
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    engine.docker("run", "-d", "--name", "anchor", "busybox", "sh", "-c", script)
    anchor = engine.state("anchor")["Pid"]
    book, stop = Book(), threading.Event()
    clients = [threading.Thread(target=work, args=(engine, number, book, stop)) for number in range(WORKERS)]
    clients.append(threading.Thread(target=execs, args=(engine, book, stop)))
    for client in clients:
        client.start()
    try:
        for _ in range(CRASHES):
            time.sleep(random.uniform(0.05, 1.5))  # a random moment is what is wanted
            engine.kill()
            engine.start()
    finally:
        stop.set()
        for client in clients:
            client.join(60)
    assert not [client for client in clients if client.is_alive()], "a client hangs"
    assert not book.wrong, "\n".join(book.wrong)
    assert engine.state("anchor")["Pid"] == anchor
    engine.docker("kill", "anchor")
    lines = engine.docker("logs", "anchor").lines
    assert lines == [str(number) for number in range(1, len(lines) + 1)], "the log has a gap or a repeat"
    every_container_tells_the_truth(engine, book)
    ids = [container["Id"] for container in engine.api.get("/containers/json?all=1")]
    engine.remove_all_containers()
    settle(engine)
    assert engine.docker("ps", "-aq").out == ""
    for folder in ("containers", "rw"):
        assert not list((engine.data_root / folder).glob("*")), folder
    assert not list((engine.exec_root / "shims").glob("*"))
    from harness.leaks import cgroups_of

    assert cgroups_of(ids) == []


def every_container_tells_the_truth(engine: Engine, book: Book) -> None:
    """What is still there has ended with its own code, or was never started; what was removed is gone."""
    for container in engine.api.get("/containers/json?all=1"):
        name = container["Names"][0][1:]
        if name == "anchor":
            continue
        assert name not in book.removed, f"{name} came back"
        if container["State"] in ("running", "restarting"):
            engine.wait_for(name, "exited")
        state = engine.state(name)
        if state["Status"] == "created":
            continue  # killed between create and start
        assert state["Status"] == "exited", (name, state)
        assert state["ExitCode"] == book.started[name], (name, state)
        assert engine.docker("logs", name).out == "start\nend\n"


def settle(engine: Engine) -> None:
    """Until only the daemon, its zygote and the box's holder are left."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        names = engine.box.processes()
        if len(names) <= 2 and not list((engine.exec_root / "shims").glob("*")):
            return
        time.sleep(0.1)
