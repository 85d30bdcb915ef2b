from pathlib import Path

import pytest

from imagekit.world import MemorySnapshots, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, MemorySnapshots())  # type: ignore[arg-type]
