"""Building: Wherry against dockerd 26 with BuildKit, and against its classic builder, in one run.

Wherry by stock buildx, by its own client (`wherry build`) and by the classic door; dockerd by buildx and classic.

    make bench-build                       print the table
    make bench-build BENCH="--save"        … and write it to bench/results/build.md
    make bench-build BENCH="--rounds 9"    5 by default

Both daemons live in namespaces of their own; rounds alternate between them and between the doors. Told is the wall
time of one build, the client's own part included; what `buildx version` takes is a part no engine can take away.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
sys.path.insert(0, str(HERE))

from harness import images  # noqa: E402
from harness.box import Box  # noqa: E402
from harness.buildx import docker_classic, docker_with_plugins  # noqa: E402
from harness.dockerd_build import Yardstick  # noqa: E402
from harness.engine import Engine, remove_root, short_root  # noqa: E402
from images import Taken, measure  # noqa: E402
from run import machine  # noqa: E402

FILES = 2_000
SIZE = 50 << 20  # bytes of all files
RUNS = "\n".join(f"RUN echo $ROUND {number} > /file{number}" for number in range(10))
STAGES = 8
PART = "FROM busybox AS part{n}\nARG ROUND\nRUN i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $ROUND > /{n}\n"

DOCKERFILES = {
    "runs": f"FROM busybox\nARG ROUND\n{RUNS}\n",
    "copy": "FROM busybox\nCOPY . /src\nRUN find /src -type f | wc -l > /count\n",
    "stages": "".join(PART.replace("{n}", str(n)) for n in range(STAGES))
    + "FROM busybox\n"
    + "".join(f"COPY --from=part{n} /{n} /{n}\n" for n in range(STAGES)),
}
AIMS = {"ten RUN steps": "≤ 0.33", "… again, nothing changed": "≤ 0.5", "rebuild, nothing changed": "≤ 0.5"}
DOORS = {"wherry": ("buildx", "own", "classic"), "dockerd": ("buildx", "classic")}
COLUMNS = (
    ("wherry", "buildx"),
    ("wherry", "own"),
    ("dockerd", "buildx"),
    ("wherry", "classic"),
    ("dockerd", "classic"),
)
RATIOS = (("buildx", "buildx"), ("own", "buildx"), ("classic", "classic"))  # ours, theirs


def write_files(context: Path) -> None:
    """The same tree every time, half of it compressible."""
    draw = random.Random(50)
    sizes = [draw.lognormvariate(8.5, 1.7) for _ in range(FILES)]
    scale = SIZE / sum(sizes)
    for number, size in enumerate(sizes):
        path = context / f"{number % 40:02}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        count = int(size * scale)
        path.write_bytes(draw.randbytes(count) if number % 2 else b"compressible " * (count // 13))


@dataclass
class Side:
    """One daemon and its doors, with a context of its own."""

    engine: Engine
    context: Path
    taken: dict[tuple[str, str], Taken] = field(default_factory=dict)  # by scenario and door

    def build(self, door: str, what: str, *options: str) -> None:
        client, command = {
            "buildx": (docker_with_plugins(self.engine), ["buildx", "build"]),
            "own": (self.engine.wherry, ["build"]),
            "classic": (docker_classic(self.engine), ["build"]),
        }[door]
        folder = self.context / what
        client(*command, "-q", "-t", f"bench-{what}", *options, str(folder), timeout=300)

    def forget(self) -> None:
        """Nothing is cached any more."""
        self.engine.docker("rmi", "-f", *(f"bench-{what}" for what in DOCKERFILES), check=False)
        docker_with_plugins(self.engine)("builder", "prune", "-af", timeout=300)

    def measure(self, scenario: str, door: str, work: Callable[[], object], *, counted: bool) -> None:
        measure(self, self.taken.setdefault((scenario, door), Taken()), work, counted=counted)  # type: ignore[arg-type]


def one_round(side: Side, door: str, number: int) -> None:
    counted = number > 0  # the first fills the page cache
    mark = f"--build-arg=ROUND={door}{number}"
    side.forget()
    side.measure("ten RUN steps", door, lambda: side.build(door, "runs", mark), counted=counted)
    side.measure("… again, nothing changed", door, lambda: side.build(door, "runs", mark), counted=counted)
    copied = f"COPY of {FILES} files, {SIZE >> 20} MB"
    side.measure(copied, door, lambda: side.build(door, "copy"), counted=counted)
    side.measure("rebuild, nothing changed", door, lambda: side.build(door, "copy"), counted=counted)
    changed = side.context / "copy/00/0.txt"
    changed.write_text(f"changed in round {number} for {door}")
    side.measure("rebuild, one file changed", door, lambda: side.build(door, "copy"), counted=counted)
    side.measure(f"{STAGES} stages at a time", door, lambda: side.build(door, "stages", mark), counted=counted)


def table(sides: Mapping[str, Side], facts: dict[str, str], rounds: int) -> str:
    head = [f"{kind}, {door}" for kind, door in COLUMNS] + [f"{ours} / {theirs}" for ours, theirs in RATIOS]
    lines = ["| | " + " | ".join([*head, "aim"]) + " |", "|---|" + "---:|" * (len(head) + 1)]
    for scenario in dict.fromkeys(scenario for scenario, _ in sides["wherry"].taken):
        wall = {(kind, door): statistics.median(sides[kind].taken[scenario, door].wall) for kind, door in COLUMNS}
        cells = [f"{wall[column]:.2f} s" for column in COLUMNS]
        cells += [f"{wall['wherry', ours] / wall['dockerd', theirs]:.2f}" for ours, theirs in RATIOS]
        lines.append(f"| {scenario} | " + " | ".join([*cells, AIMS.get(scenario, "")]) + " |")
    lines += ["", f"Medians of {rounds} rounds in alternation. " + " · ".join(f"{key}: {facts[key]}" for key in facts)]
    return "\n".join(lines)


def client_alone(side: Side) -> str:
    """What it takes to start buildx."""
    docker, times = docker_with_plugins(side.engine), []
    for _ in range(9):
        start = time.perf_counter()
        docker("buildx", "version")
        times.append(time.perf_counter() - start)
    return f"{statistics.median(times):.2f} s"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--save", action="store_true", help="write bench/results/build.md")
    wanted = options.parse_args()
    with ExitStack() as stack:
        work = short_root("bench")
        stack.callback(remove_root, work)
        sides: dict[str, Side] = {}
        for number, make in enumerate((lambda box, root: Engine(box, root, kind="wherry"), Yardstick)):
            box = stack.enter_context(Box())
            root = short_root("bench")
            stack.callback(remove_root, root)
            engine = make(box, root)
            engine.start()
            stack.callback(engine.stop)
            engine.load(images.docker_archive([images.busybox()]))
            context = work / str(number)
            for what, text in DOCKERFILES.items():
                (context / what).mkdir(parents=True)
                (context / what / "Dockerfile").write_text(text)
            write_files(context / "copy")
            sides[engine.kind] = Side(engine, context)
        for number in range(wanted.rounds + 1):
            for door in ("buildx", "own", "classic"):
                for kind, side in sides.items():
                    if door in DOORS[kind]:
                        one_round(side, door, number)
                        print(f"  round {number} of {kind} by {door}", file=sys.stderr, flush=True)
        facts = machine([side.engine for side in sides.values()])
        facts["buildx"] = docker_with_plugins(sides["wherry"].engine)("buildx", "version").text
        facts["buildx version takes"] = client_alone(sides["wherry"])
    text = table(sides, facts, wanted.rounds)
    print(text)
    if wanted.save:
        (HERE / "results" / "build.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
