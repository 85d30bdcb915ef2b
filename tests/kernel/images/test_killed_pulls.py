"""A daemon killed in the middle of a pull: afterwards the image is there whole, or nothing of it is."""

from pathlib import Path

import pytest

from imagekit.children import pulling
from imagekit.making import make
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import NOTHING, World
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.storage.overlay import OverlaySnapshotter

pytestmark = pytest.mark.kernel

LAYERS = [{f"layer{number}/{each}": bytes([number]) * 20_000 for each in range(40)} for number in range(4)]


async def test_at_whatever_message_a_pull_is_killed_the_image_is_whole_or_not_there(
    tmp_path: Path, registry: FakeRegistry
):
    made = make(LAYERS)
    registry.add("x", "1", made)
    root = tmp_path / "world"
    root.mkdir()
    outcomes: list[str] = []
    heard, message = 0, 0
    while heard == message:  # until a pull ends before it is killed
        message += 3
        child = await pulling(root, f"{registry.host}/x:1", listen=True)
        assert child.stdout is not None
        heard = 0
        while heard < message and await child.stdout.readline():
            heard += 1
        if heard == message:
            child.kill()
        await child.stdout.read()
        await child.wait()
        outcomes.append(await look(World(root, OverlaySnapshotter(root)), f"{registry.host}/x:1"))
    assert outcomes[0] == "nothing"
    assert outcomes[-1] == "whole"
    assert len(outcomes) > 5


async def look(world: World, name: str) -> str:
    await recover(world.deps)
    world.snapshots.close()
    if not world.deps.store.all():
        assert world.held() == NOTHING
        return "nothing"
    image = world.deps.store.get(name)
    expected = {path: content for layer in LAYERS for path, content in layer.items()}
    assert {path: content for path, content in files(world, image).items() if content is not None} == expected
    held = world.held()
    assert held["blobs"] == image.blobs
    assert held["layers"] == {layer.chain for layer in image.layers}
    assert world.partials().keys() <= image.blobs  # of a pull that was killed when all was done
    assert all(not held[name] for name in ("leases", "ingests", "snapshots", "scratch"))
    await remove(world.deps, name, in_use={})
    assert world.held() == NOTHING
    world.state.close()
    return "whole"
