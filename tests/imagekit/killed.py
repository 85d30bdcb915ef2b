"""`python killed.py ROOT REGISTRY STEP`: pull, run, commit, convert, remove; killed by -9 at the STEP-th step on disk.

Prints how many steps there were when it was not killed.
"""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from imagekit.world import World
from wherry.images.garbage import collect_all
from wherry.images.making.commit import commit
from wherry.images.making.convert import convert
from wherry.images.progress import quiet
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.check import check
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.spec.engine import ContainerConfig
from wherry.storage.content import ContentStore
from wherry.storage.overlay import OverlaySnapshotter


async def live(world: World, registry: str) -> None:
    deps, name = world.deps, f"{registry}/x:1"
    image = await pull(deps, name, progress=quiet)
    if "box" not in set(deps.snapshots.keys()):
        deps.snapshots.prepare("box", image.chain)
    (deps.snapshots.upper("box") / "new").write_bytes(os.urandom(10_000))
    made = await commit(deps, "box", image_id=image.id, config=ContainerConfig())
    await convert(deps, name, "converted", compression="zstd", progress=quiet)
    path = deps.snapshots.layer(image.layers[0].chain) / "a"
    path.unlink(missing_ok=True)
    deps.content.path(made.layers[-1].digest).unlink()
    found = await check(deps, repair=True, snapshots=lambda: {"box"}, progress=quiet)
    assert all(problem.repaired for problem in found.problems), found.problems
    await remove(deps, made.id, force=True, in_use={})
    await remove(deps, "converted", in_use={})
    await collect_all(deps)


def main() -> None:
    root, registry, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

    world = World(root, OverlaySnapshotter(root, trace=step))
    world.deps = dataclasses.replace(world.deps, content=ContentStore(root, trace=step))

    async def run() -> None:
        await recover(world.deps)
        await live(world, registry)

    asyncio.run(run())
    print(steps)


if __name__ == "__main__":
    main()
