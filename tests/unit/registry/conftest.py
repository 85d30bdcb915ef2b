"""A registry on a folder for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registrykit.served import Served, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path / "registry") as made:
        yield made


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Served]:
    """Gives clients up after a tenth of a second."""
    async with serving(tmp_path / "registry", stall=0.1) as made:
        yield made
