"""Containers that come and go on one network, and a daemon that dies while others talk: nothing leaks, nothing stops.

WHERRY_TEST_CONTAINERS=300 .venv/bin/pytest -s tests/compat/test_network_chaos.py      the long form, with its times
"""

import os
import re
import time

from harness.engine import Engine
from harness.engines import EngineMaker
from harness.leaks import settle

CONTAINERS = int(os.environ.get("WHERRY_TEST_CONTAINERS", "24"))
BATCH = 8  # containers that run at the same time
NETWORK = {"Name": "crowd", "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "10.77.0.0/28"}]}}
TALK = "while :; do date +%s%N; sleep 0.05; done"


def come_and_go(engine: Engine, first: int) -> list[float]:
    """A batch of containers with an address and a port each; ms that each took from create to start."""
    taken, names = [], [f"one-{first + number}" for number in range(BATCH)]
    for number, name in enumerate(names):
        started = time.perf_counter()
        host = {"NetworkMode": "crowd", "PortBindings": {"80/tcp": [{"HostPort": str(18200 + number)}]}}
        body = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}
        engine.api.post(f"/containers/create?name={name}", body, status=201)
        engine.api.post(f"/containers/{name}/start", None, status=204)
        taken.append((time.perf_counter() - started) * 1000)
    for name in names:
        assert engine.api.request("DELETE", f"/containers/{name}?force=1").status == 204
    return taken


def held(engine: Engine) -> list[str]:
    """What the host has for containers: interfaces, addresses of the engine's rules, neighbours."""
    links = [f"interface {name}" for name in sorted(engine.box.links())]
    rules = engine.box.run("nft", "list", "ruleset", net_only=True)
    addresses = [f"address {found}" for found in sorted(set(re.findall(r"10\.77\.0\.\d+|18\d\d\d", rules)))]
    return links + addresses


def test_containers_come_and_go_and_leave_nothing(own_engine: EngineMaker) -> None:
    """The network has 13 addresses: one that is not given back is missed soon."""
    engine = own_engine()
    links = engine.box.links()
    engine.api.post("/networks/create", NETWORK, status=201)
    come_and_go(engine, 0)
    before = held(engine)
    files = engine.open_files()
    batches = []
    for first in range(BATCH, CONTAINERS + BATCH, BATCH):
        taken = come_and_go(engine, first)
        batches.append(sum(taken) / len(taken))
    assert settle(lambda: [each for each in held(engine) if each not in before]) == []
    assert settle(lambda: ["descriptor"] * max(0, engine.open_files() - files)) == []
    print(f"\n{CONTAINERS} containers, ms for each by batch: {' '.join(f'{each:.0f}' for each in batches)}")
    assert engine.api.request("DELETE", "/networks/crowd").status == 204
    assert settle(lambda: sorted(engine.box.links() - links)) == []


def test_containers_talk_on_while_the_daemon_is_killed(own_engine: EngineMaker) -> None:
    engine = own_engine()
    run = engine.docker
    run("network", "create", "talk")
    server = f"nc -l -p 7000 -e sh -c '{TALK}' & while :; do nc -l -p 80 -e echo hello; done"
    run("run", "-d", "--name", "server", "--network", "talk", "-p", "18300:80", "busybox", "sh", "-c", server)
    client = "until nc -w 60 server 7000 >/tmp/heard; [ -s /tmp/heard ]; do sleep 0.05; done; echo cut >/tmp/cut"
    run("run", "-d", "--name", "client", "--network", "talk", "busybox", "sh", "-c", client)
    grown_from(engine, 0)
    heard = lines_heard(engine)
    engine.kill()
    engine.start()
    grown_from(engine, max(heard, lines_heard(engine)))
    assert run("exec", "client", "test", "-e", "/tmp/cut", check=False).code == 1
    assert run("exec", "client", "nc", "-w", "5", "server", "80").text == "hello"
    assert run("exec", "client", "nslookup", "client").code == 0
    assert said_at(engine, 18300) == "hello"
    run("run", "--rm", "--network", "talk", "busybox", "nc", "-w", "5", "server", "80")
    run("rm", "-f", "server", "client")
    run("network", "rm", "talk")


def lines_heard(engine: Engine) -> int:
    return int(engine.docker("exec", "client", "wc", "-l", "/tmp/heard").text.split()[0])


def grown_from(engine: Engine, lines: int) -> None:
    """Wait until the client has heard more lines."""
    until = time.monotonic() + 20
    while engine.docker("exec", "client", "test", "-e", "/tmp/heard", check=False).code or lines_heard(engine) <= lines:
        assert time.monotonic() < until, f"the client heard nothing after line {lines}"
        time.sleep(0.05)


def said_at(engine: Engine, port: int) -> str:
    code = (
        "import socket, sys\n"
        "with socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5) as s: print(s.recv(99).decode())"
    )
    return engine.box.run("python3", "-c", code, str(port), net_only=True).strip()
