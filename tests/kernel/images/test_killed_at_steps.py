"""A daemon killed by -9 at a step of whatever it does to its stores: the next start finds all whole, or gone."""

import asyncio
import os
import random
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from imagekit import killed
from imagekit.making import make
from imagekit.registry import FakeRegistry
from imagekit.world import World
from wherry.images.progress import quiet
from wherry.images.upkeep.check import check
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel

KILLS = int(os.environ.get("WHERRY_TEST_STEPS", "6"))  # 0: at every step
MADE = make([{"a": b"1" * 50_000}, {"b": b"2" * 50_000}])


async def live(root: Path, registry: FakeRegistry, step: int) -> tuple[int, int]:
    """Exit code, and the number of steps when it came to its end."""
    words = (sys.executable, killed.__file__, str(root), registry.host, str(step))
    child = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE)
    out, err = await child.communicate()
    assert child.returncode in (0, -9), err.decode()[-3000:]
    return child.returncode, int(out or 0)


async def test_killed_at_any_step_the_store_is_whole_at_the_next_start(tmp_path: Path, registry: FakeRegistry):
    registry.add("x", "1", MADE)
    first = tmp_path / "first"
    first.mkdir()
    code, steps = await live(first, registry, 0)
    assert code == 0
    assert steps > 60
    moments = range(1, steps + 1) if KILLS == 0 else sorted(random.sample(range(1, steps + 1), KILLS))
    print("killed at", *moments)
    root = tmp_path / "world"
    root.mkdir()
    for step in moments:
        code, _ = await live(root, registry, step)
        world = World(root, OverlaySnapshotter(root))
        await recover(world.deps)
        damage = {"altered-layer", "missing-blob"}  # done by hand before the check which was killed
        found = await check(world.deps, snapshots=lambda: {"box"}, progress=quiet)
        assert {problem.kind.value for problem in found.problems} <= damage, (step, found.problems)
        assert not [path for path in (root / "layers").iterdir() if not (path / "diff").is_dir()]
        await check(world.deps, repair=True, snapshots=set, progress=quiet)
        for image in sorted(world.deps.store.all(), key=lambda image: -len(image.layers)):
            await remove(world.deps, image.id, force=True, in_use={})
        await recover(world.deps)
        world.snapshots.close()
        assert not any(world.held().values()), (step, world.held())
        world.state.close()
