"""Pull, push, load and save of a 400 MB image with 15,000 files: Wherry against Debian's dockerd, in one run.

    make bench-images                       print the table
    make bench-images BENCH="--save"        … and write it to bench/results/images.md
    make bench-images BENCH="--rounds 5"    3 by default

Each daemon lives in namespaces of its own, and beside it Debian's docker-registry with the image. Rounds alternate.
Told are the wall time of the same docker CLI, and the processor time of the engine with its helpers and children.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
sys.path.insert(0, str(HERE))

from harness import images  # noqa: E402
from harness.box import Box  # noqa: E402
from harness.engine import Engine, remove_root, short_root  # noqa: E402
from harness.registry import Registry  # noqa: E402
from run import machine  # noqa: E402

LAYERS = 4
FILES = 15_000
SIZE = 400 << 20  # bytes of all files
TICKS = os.sysconf("SC_CLK_TCK")
PAUSE = 1.0  # s between two measures: what goes on after the answer belongs to the one before
_LETTERS = b"abcdefghijklmnopqrstuvwxyz      \n"


def big_image() -> images.Image:
    """Always the same: half of the bytes like text, half like compiled programs; sizes from 100 bytes to megabytes."""
    draw = random.Random(400)
    sizes = [draw.lognormvariate(8.5, 1.7) for _ in range(FILES)]
    scale = SIZE / sum(sizes)
    text = bytes(draw.choices(_LETTERS, k=1 << 20))
    layers = []
    for layer in range(LAYERS):
        entries = [images.directory("data")]
        entries += [images.directory(f"data/{layer}"), *(images.directory(f"data/{layer}/{n}") for n in range(50))]
        for number in range(layer, FILES, LAYERS):
            size = int(sizes[number] * scale)
            data = draw.randbytes(size) if number % 5 == 0 else (text * (size // len(text) + 1))[:size]
            entries.append(images.Entry(name=f"data/{layer}/{number % 50}/{number}", data=data, mode=0o644))
        layers.append(images.tar(entries))
    return images.Image(tags=["big:latest"], layers=layers)


@dataclass
class Taken:
    wall: list[float] = field(default_factory=list)  # seconds
    cpu: list[float] = field(default_factory=list)  # seconds


@dataclass(frozen=True)
class Side:
    engine: Engine
    source: Registry  # has the image
    root: Path


def cpu(engine: Engine) -> float:
    """Seconds of processor the engine, its helpers and their ended children have used."""
    ticks = 0
    for pid in engine.box.processes():
        try:
            fields = (engine.box.proc(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def measure(side: Side, taken: Taken, work: Callable[[], object], *, counted: bool) -> None:
    time.sleep(PAUSE)
    before, start = cpu(side.engine), time.perf_counter()
    work()
    wall = time.perf_counter() - start
    used = cpu(side.engine) - before
    if counted:
        taken.wall.append(wall)
        taken.cpu.append(used)


@contextmanager
def empty_registry(side: Side, number: int):  # type: ignore[no-untyped-def]
    """A registry that has nothing yet, so that a push sends everything."""
    registry = Registry(side.engine.box, side.root / f"empty-{number}", 5001, private=False)
    with registry.running():
        yield registry


def one_round(side: Side, taken: dict[str, Taken], number: int, archive: Path) -> None:
    docker = side.engine.docker
    counted = number > 0  # the first fills caches
    name = f"{side.source.address}/big:latest"
    measure(side, taken["pull, cold"], lambda: docker("pull", "-q", name, timeout=300), counted=counted)
    measure(side, taken["pull, again"], lambda: docker("pull", "-q", name, timeout=300), counted=counted)
    with empty_registry(side, number) as registry:
        target = f"{registry.address}/big:latest"
        docker("tag", name, target)
        measure(side, taken["push"], lambda: docker("push", "-q", target, timeout=300), counted=counted)
    saved = side.root / "saved.tar"
    measure(side, taken["save"], lambda: docker("save", "-o", str(saved), name, timeout=300), counted=counted)
    saved.unlink()
    docker("rmi", "-f", name, target, timeout=120)
    measure(side, taken["load"], lambda: docker("load", "-q", "-i", str(archive), timeout=300), counted=counted)
    docker("rmi", "-f", "big:latest", timeout=120)


def table(kinds: Sequence[str], taken: Sequence[dict[str, Taken]], facts: dict[str, str], rounds: int) -> str:
    lines = [
        f"| 400 MB, {FILES} files | {kinds[0]} | {kinds[1]} | ratio | {kinds[0]} CPU | {kinds[1]} CPU | ratio | aim |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in taken[0]:
        walls = [statistics.median(each[name].wall) for each in taken]
        cpus = [statistics.median(each[name].cpu) for each in taken]
        aim = "≤ 0.5" if name in ("pull, cold", "load") else ""
        ratio = f"{cpus[0] / cpus[1]:.2f}" if cpus[1] >= 0.05 else "-"
        lines.append(
            f"| {name} | {walls[0]:.2f} s | {walls[1]:.2f} s | {walls[0] / walls[1]:.2f} "
            f"| {cpus[0]:.2f} s | {cpus[1]:.2f} s | {ratio} | {aim} |"
        )
    lines += ["", f"Medians of {rounds} rounds in alternation. " + " · ".join(f"{key}: {facts[key]}" for key in facts)]
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--save", action="store_true", help="write bench/results/images.md")
    wanted = options.parse_args()
    kinds = ["wherry", "dockerd"]
    with ExitStack() as stack:
        work = short_root("bench")
        stack.callback(remove_root, work)
        archive = work / "big.tar"
        archive.write_bytes(images.docker_archive([big_image()]))
        sides = []
        for kind in kinds:
            box = stack.enter_context(Box())
            root = short_root("bench")
            stack.callback(remove_root, root)
            engine = Engine(box, root, kind=kind)
            engine.start()
            stack.callback(engine.stop)
            source = stack.enter_context(Registry(box, work / f"registry-{kind}", 5000, private=False).running())
            source.push(f"docker-archive:{archive}", "big:latest")
            sides.append(Side(engine, source, work / kind))
            sides[-1].root.mkdir()
        names = ("pull, cold", "pull, again", "push", "save", "load")
        taken = [{name: Taken() for name in names} for _ in sides]
        for number in range(wanted.rounds + 1):
            for side, found in zip(sides, taken, strict=True):
                one_round(side, found, number, archive)
                print(f"  round {number} of {side.engine.kind}", file=sys.stderr, flush=True)
        facts = machine([side.engine for side in sides])
    text = table(kinds, taken, facts, wanted.rounds)
    print(text)
    if wanted.save:
        (HERE / "results" / "images.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
