"""Stores of an engine, and a registry, for sources of builds."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from imagekit.registry import FakeRegistry, serve
from imagekit.world import World
from wherry.storage.overlay import OverlaySnapshotter


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "world"
    root.mkdir()
    made = World(root, OverlaySnapshotter(root))
    yield made
    made.snapshots.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found
