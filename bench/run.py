"""The same commands, by the same docker CLI, against Wherry and against Debian's dockerd, in alternation.

    make bench                       print the table
    make bench BENCH="--save"        … and write it to bench/results/
    make bench BENCH="--rounds 50"   more rounds: 20 by default

Each daemon lives in namespaces of its own (tests/harness/box.py) with the same image. Rounds alternate between the two,
so that what else the machine does hits both; medians are compared. What is measured is what a user waits for: the
docker CLI's own start is in every figure, on both sides.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from harness import images  # noqa: E402
from harness.box import Box  # noqa: E402
from harness.engine import Engine, remove_root, short_root  # noqa: E402

LISTED = 500  # containers for `ps`
RUNNING = 10  # containers for the memory of one
PAUSE = 0.05  # s between two rounds: a teardown that goes on after the answer belongs to the round before


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One line of the table."""

    name: str
    unit: str
    wherry: float
    dockerd: float
    aim: str = ""

    @property
    def ratio(self) -> float:
        return self.wherry / self.dockerd if self.dockerd else float("nan")


Action = Callable[[Engine], None]


def timed(engine: Engine, action: Action) -> float:
    start = time.perf_counter()
    action(engine)
    return (time.perf_counter() - start) * 1000  # ms


def alternate(engines: Sequence[Engine], rounds: int, action: Action, before: Action | None = None) -> list[float]:
    """Median ms per engine. One round of each is not counted: caches fill."""
    times: list[list[float]] = [[] for _ in engines]
    for number in range(rounds + 1):
        for engine, found in zip(engines, times, strict=True):
            if before:
                before(engine)
            took = timed(engine, action)
            if number:
                found.append(took)
            time.sleep(PAUSE)
    return [statistics.median(found) for found in times]


def commands(engines: Sequence[Engine], rounds: int) -> list[Measure]:
    found = []

    def measure(name: str, action: Action, *, before: Action | None = None, aim: str = "") -> None:
        wherry, dockerd = alternate(engines, rounds, action, before)
        found.append(Measure(name=name, unit="ms", wherry=wherry, dockerd=dockerd, aim=aim))
        print(f"  {name}: {wherry:.0f} ms, dockerd {dockerd:.0f} ms", file=sys.stderr, flush=True)

    def run(engine: Engine) -> None:
        engine.docker("run", "--rm", "busybox", "true")

    def run_none(engine: Engine) -> None:
        engine.docker("run", "--rm", "--network", "none", "busybox", "true")

    measure("run --rm busybox true", run, aim="≤ 0.25")
    measure("run --rm --network none busybox true", run_none, aim="≤ 0.25")
    for engine in engines:
        engine.docker("run", "-d", "--name", "host", "busybox", "sleep", "100000")
    measure("exec CONTAINER true", lambda engine: void(engine.docker("exec", "host", "true")), aim="≤ 0.5")
    for engine in engines:
        engine.docker("create", "--name", "again", "busybox", "sleep", "100000")
    measure(
        "start CONTAINER",
        lambda engine: void(engine.docker("start", "again")),
        before=lambda engine: void(engine.docker("kill", "again", check=False)),
    )
    for engine in engines:
        clear(engine)
    return found


def listing(engines: Sequence[Engine], rounds: int) -> Measure:
    for engine in engines:
        for number in range(LISTED):
            body = {"Image": "busybox", "Cmd": ["sleep", "1"], "Labels": {"number": str(number)}}
            engine.api.post(f"/containers/create?name=listed-{number}", body, status=201)
    wherry, dockerd = alternate(engines, rounds, lambda engine: void(engine.docker("ps", "-a")))
    for engine in engines:
        clear(engine)
    return Measure(name=f"ps -a with {LISTED} containers", unit="ms", wherry=wherry, dockerd=dockerd)


def clear(engine: Engine) -> None:
    """Remove every container. Asked again while one is left: this is housekeeping, the tests judge removal."""
    while found := engine.api.get("/containers/json?all=1"):
        for container in found:
            engine.api.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")


def void(_: object) -> None:
    return None


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(engine: Engine, *, rss: bool) -> dict[int, float]:
    """MB of every process in the box that is the engine's own: RSS, or its proportional share."""
    found = {}
    for pid, name in engine.box.processes().items():
        if name.startswith(("sleep", "[")):
            continue
        rollup = (engine.box.proc(pid) / "smaps_rollup").read_text()
        wanted = "Rss" if rss else "Pss"
        found[pid] = int(re.search(rf"^{wanted}:\s+(\d+)", rollup, re.MULTILINE)[1]) / 1024  # type: ignore[index]
    return found


def idle(engine: Engine) -> tuple[float, float]:
    """RSS of the daemon itself, and together with what it always runs besides: containerd, the zygote."""
    found = memory(engine, rss=True)
    return found[engine.pid], sum(found.values())


def per_container(engine: Engine) -> float:
    """PSS of the engine's processes with so many containers, less without any, by container."""
    without = sum(memory(engine, rss=False).values())
    for _ in range(RUNNING):
        engine.docker("run", "-d", "--network", "none", "busybox", "sleep", "100000")
    within = sum(memory(engine, rss=False).values())
    clear(engine)
    return (within - without) / RUNNING


def idle_memory(engines: Sequence[Engine]) -> list[Measure]:
    (wherry, wherry_all), (dockerd, dockerd_all) = (idle(engine) for engine in engines)
    return [
        Measure(name="idle daemon", unit="MB", wherry=wherry, dockerd=dockerd, aim="≤ 60 MB"),
        Measure(name="… with its helpers (zygote; containerd)", unit="MB", wherry=wherry_all, dockerd=dockerd_all),
    ]


def container_memory(engines: Sequence[Engine]) -> Measure:
    wherry, dockerd = (per_container(engine) for engine in engines)
    return Measure(name="per running container", unit="MB", wherry=wherry, dockerd=dockerd, aim="≤ 2 MB")


# -- report ------------------------------------------------------------------------------------------------------------


def first_line(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip().partition("\n")[0]


def machine(engines: Sequence[Engine]) -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)", info, re.MULTILINE)
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} × {model[1] if model else platform.processor()}",
        "memory": f"{int(total[1]) >> 20 if total else 0} GB",
        "kernel": platform.release(),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "python": platform.python_version(),
        "docker CLI": first_line("docker", "--version"),
        "wherry": str(engines[0].api.get("/version")["Version"]) if len(engines) > 1 else "",
        "dockerd": str(engines[1].api.get("/version")["Version"]),
        "crun": first_line("crun", "--version"),
        "runc": first_line("runc", "--version"),
    }


def table(measures: Sequence[Measure], facts: dict[str, str], names: Sequence[str], rounds: int) -> str:
    lines = [f"| | {names[0]} | {names[1]} | ratio | aim |", "|---|---:|---:|---:|---:|"]
    for line in measures:
        digits = 0 if line.unit == "ms" else 1
        lines.append(
            f"| {line.name} | {line.wherry:.{digits}f} {line.unit} | {line.dockerd:.{digits}f} {line.unit} "
            f"| {line.ratio:.2f} | {line.aim} |"
        )
    lines += ["", f"Medians of {rounds} rounds in alternation. " + " · ".join(f"{key}: {facts[key]}" for key in facts)]
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--save", action="store_true", help="write bench/results/latest.md and .json")
    options.add_argument("--self", action="store_true", help="dockerd on both sides: how much is noise")
    wanted = options.parse_args()
    kinds = ["dockerd" if wanted.self else "wherry", "dockerd"]
    with ExitStack() as stack:
        engines = []
        for kind in kinds:
            box = stack.enter_context(Box())
            root = short_root("bench")
            stack.callback(remove_root, root)
            engine = Engine(box, root, kind=kind)
            engine.start()
            stack.callback(engine.stop)
            engine.load(images.docker_archive([images.busybox()]))
            engines.append(engine)
        measures = idle_memory(engines)  # before anything else has run
        measures = [
            *commands(engines, wanted.rounds),
            listing(engines, wanted.rounds),
            *measures,
            container_memory(engines),
        ]
        facts = machine(engines)
        for engine in engines:
            clear(engine)
    text = table(measures, facts, kinds, wanted.rounds)
    print(text)
    if wanted.save:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        (results / "latest.md").write_text(text + "\n")
        rows = [{"name": m.name, "unit": m.unit, "wherry": m.wherry, "dockerd": m.dockerd} for m in measures]
        (results / "latest.json").write_text(json.dumps({"machine": facts, "measures": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
