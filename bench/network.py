"""What a network costs: throughput, latency, connections, names; Wherry against dockerd and a bare wire, in one run.

    make bench-network                       print the table
    make bench-network BENCH="--save"        … and write it to bench/results/network.md
    make bench-network BENCH="--rounds 5"    3 by default

Each daemon lives in namespaces of its own; rounds alternate. The two ends are one small Python program (peer.py), run
in the network namespaces of two containers on a network of their own and in that of the host. The bare wire is a pair
of interfaces between two namespaces, without bridge, rules and engine: nothing can be faster.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
sys.path.insert(0, str(HERE))

from harness import images  # noqa: E402
from harness.box import Box  # noqa: E402
from harness.engine import Engine, remove_root, short_root  # noqa: E402
from run import machine  # noqa: E402

PEER = str(HERE / "peer.py")
SECONDS = "1"  # of one measure of throughput
ROUND_TRIPS, CONNECTIONS = "3000", "500"
PORT, PUBLISHED = "7000", "18400"
HOST = "172.31.0.1"  # an address of the host that every container reaches

FASTER, SLOWER = "more is better", "less is better"


class Side:
    """An engine with two containers on one network, a server in the first and on the host."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self.engine = engine
        docker = engine.docker
        docker("network", "create", "--subnet", "10.99.0.0/24", "bench")
        docker("network", "create", "--subnet", "10.99.1.0/24", "other")
        publish = ["-p", f"{PUBLISHED}:{PORT}"]
        docker("run", "-d", "--name", "server", "--network", "bench", *publish, "busybox", "sleep", "100000")
        docker("run", "-d", "--name", "client", "--network", "bench", "busybox", "sleep", "100000")
        self.server, self.client = (self.pid(name) for name in ("server", "client"))
        self.address: str = engine.inspect("server")["NetworkSettings"]["Networks"]["bench"]["IPAddress"]
        for pid in (self.server, engine.box.holder):
            stack.enter_context(serving(pid))

    def pid(self, name: str) -> int:
        found = self.engine.box.host_pid(self.engine.state(name)["Pid"])
        assert found is not None, f"{name} does not run"
        return found

    def measures(self) -> dict[str, tuple[str, str, Callable[[], float]]]:
        """Name to unit, which way is better, and the measure."""
        client, host = self.client, self.engine.box.holder
        return {
            "container → container": ("Gbit/s", FASTER, lambda: peer(client, "send", self.address, PORT, SECONDS)),
            "container → host": ("Gbit/s", FASTER, lambda: peer(client, "send", HOST, PORT, SECONDS)),
            "host → published port": ("Gbit/s", FASTER, lambda: peer(host, "send", "127.0.0.1", PUBLISHED, SECONDS)),
            "container ↔ container, round trip": (
                "µs", SLOWER, lambda: peer(client, "ping", self.address, PORT, ROUND_TRIPS),
            ),
            "host ↔ published port, round trip": (
                "µs", SLOWER, lambda: peer(host, "ping", "127.0.0.1", PUBLISHED, ROUND_TRIPS),
            ),
            "container → container, connection": (
                "µs", SLOWER, lambda: peer(client, "open", self.address, PORT, CONNECTIONS),
            ),
            "host → published port, connection": (
                "µs", SLOWER, lambda: peer(host, "open", "127.0.0.1", PUBLISHED, CONNECTIONS),
            ),
            "names of containers": ("answers/s", FASTER, lambda: peer(client, "resolve", "server", SECONDS)),
            "network connect": ("ms", SLOWER, self.connect),
        }  # fmt: skip

    def connect(self) -> float:
        """By the API, without the start of a client."""
        body = {"Container": "client"}
        start = time.perf_counter()
        self.engine.api.post("/networks/other/connect", body, status=200)
        taken = (time.perf_counter() - start) * 1000
        self.engine.api.post("/networks/other/disconnect", body, status=200)
        return taken


def peer(pid: int, *words: str) -> float:
    """Run in the network namespace of `pid`; the number it prints."""
    command = ["nsenter", "-t", str(pid), "-n", "python3", "-I", PEER, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise SystemExit(f"peer.py {' '.join(words)}: {done.stderr}")
    return float(done.stdout)


@contextlib.contextmanager
def serving(pid: int) -> Iterator[None]:
    command = ["nsenter", "-t", str(pid), "-n", "python3", "-I", PEER, "serve", PORT]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


@contextlib.contextmanager
def bare_wire() -> Iterator[dict[str, float]]:
    """What two namespaces with nothing but a pair of interfaces between them do."""
    with Box() as one, Box() as two:
        one.run("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", net_only=True)
        one.run("ip", "link", "set", "wire1", "netns", str(two.holder), net_only=True)
        for box, name, address in ((one, "wire0", "10.98.0.1/24"), (two, "wire1", "10.98.0.2/24")):
            box.run("ip", "addr", "add", address, "dev", name, net_only=True)
            box.run("ip", "link", "set", name, "up", net_only=True)
        with serving(two.holder):
            yield {
                "container → container": peer(one.holder, "send", "10.98.0.2", PORT, SECONDS),
                "container ↔ container, round trip": peer(one.holder, "ping", "10.98.0.2", PORT, ROUND_TRIPS),
                "container → container, connection": peer(one.holder, "open", "10.98.0.2", PORT, CONNECTIONS),
            }


def table(found: Sequence[dict[str, list[float]]], bare: dict[str, list[float]], sides: Sequence[Side]) -> str:
    lines = ["| | | wherry | dockerd | ratio | bare wire |", "|---|---|---:|---:|---:|---:|"]
    for name, (unit, better, _) in sides[0].measures().items():
        ours, theirs = (statistics.median(each[name]) for each in found)
        wire = f"{statistics.median(bare[name]):.4g}" if name in bare else ""
        lines.append(f"| {name} | {unit}, {better} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.2f} | {wire} |")
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--save", action="store_true", help="write bench/results/network.md")
    wanted = options.parse_args()
    with ExitStack() as stack:
        sides = []
        for kind in ("wherry", "dockerd"):
            box = stack.enter_context(Box())
            root = short_root("bench")
            stack.callback(remove_root, root)
            engine = Engine(box, root, kind=kind)
            engine.start()
            stack.callback(engine.stop)
            stack.callback(engine.remove_all_containers)
            engine.load(images.docker_archive([images.busybox()]))
            sides.append(Side(engine, stack))
        found: list[dict[str, list[float]]] = [{name: [] for name in side.measures()} for side in sides]
        bare: dict[str, list[float]] = {}
        for number in range(wanted.rounds + 1):  # the first is not counted: caches fill
            with bare_wire() as measured:
                if number:
                    for name, value in measured.items():
                        bare.setdefault(name, []).append(value)
            for name in sides[0].measures():
                for side, values in zip(sides, found, strict=True):
                    value = side.measures()[name][2]()
                    if number:
                        values[name].append(value)
            print(f"  round {number}", file=sys.stderr, flush=True)
        facts = machine([side.engine for side in sides])
        text = table(found, bare, sides)
    text += f"\n\nMedians of {wanted.rounds} rounds. " + " · ".join(f"{key}: {facts[key]}" for key in facts)
    print(text)
    if wanted.save:
        (HERE / "results" / "network.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
