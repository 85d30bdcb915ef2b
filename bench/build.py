"""Building: Wherry against dockerd 26 with BuildKit, and against its classic builder, in one run.

Wherry by stock buildx, by its own client (`wherry build`) and by the classic door; dockerd by buildx and classic.

    make bench-build                       print the table
    make bench-build BENCH="--save"        … and write it to bench/results/build.md
    make bench-build BENCH="--rounds 9"    5 by default

Both daemons live in namespaces of their own; rounds alternate between them and between the doors. Told is the wall
time of one build, the client's own part included.
"""

import argparse
import random
import statistics
import sys
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
AIMS = {"ten RUN steps": "≤ 0.33", "rebuild, nothing changed": "≤ 0.5"}
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
            "wherry build": (self.engine.wherry, ["build"]),
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
    if door == "buildx":
        side.measure(
            "buildx version", door, lambda: docker_with_plugins(side.engine)("buildx", "version"), counted=counted
        )


def table(sides: Sequence[Side], facts: dict[str, str], rounds: int) -> str:
    ratios = ("ratio, buildx", "ratio, classic", "wherry build to buildx and dockerd", "CPU ratio, buildx", "aim")
    lines = [f"| | {' | '.join(map(', '.join, COLUMNS))} | {' | '.join(ratios)} |"]
    lines.append("|---|" + "---:|" * (len(COLUMNS) + len(ratios)))
    taken = {(side.engine.kind, door): side.taken for side in sides for door in DOORS[side.engine.kind]}
    for scenario in dict.fromkeys(scenario for side in sides for scenario, _ in side.taken):

        def median(column: tuple[str, str], kind: str = "wall", scenario: str = scenario) -> float | None:
            found = taken[column].get((scenario, column[1]))
            return statistics.median(getattr(found, kind)) if found else None

        def ratio(ours: float | None, theirs: float | None) -> str:
            return f"{ours / theirs:.2f}" if ours is not None and theirs is not None and theirs >= 0.02 else ""

        walls = [median(column) for column in COLUMNS]
        cells = [f"{wall:.2f} s" if wall is not None else "" for wall in walls]
        cells += [ratio(walls[0], walls[1]), ratio(walls[2], walls[3]), ratio(walls[4], walls[1])]
        cells += [ratio(median(COLUMNS[0], "cpu"), median(COLUMNS[1], "cpu")), AIMS.get(scenario, "")]
        lines.append(f"| {scenario} | {' | '.join(cells)} |")
    lines += ["", f"Medians of {rounds} rounds in alternation. " + " · ".join(f"{key}: {facts[key]}" for key in facts)]
    return "\n".join(lines)


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
    text = table(sides, facts, wanted.rounds)
    print(text)
    if wanted.save:
        (HERE / "results" / "build.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
