from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builderkit.site import Site, load_busybox, open_site
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter


@pytest.fixture(params=[OverlaySnapshotter, NativeSnapshotter], ids=["overlay", "native"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "site", request.param) as found:
        await load_busybox(found)
        yield found


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "site") as found:
        await load_busybox(found)
        yield found
