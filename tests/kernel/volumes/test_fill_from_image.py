"""Copy-up through a detached mount of real overlay layers."""

import os
import stat
from pathlib import Path

import pytest

from harness.descriptors import descriptors
from wherry.errors import InvalidParameter
from wherry.events import Events
from wherry.kernel.mount import overlay_mount
from wherry.state import State
from wherry.volumes.volumes import Volumes

pytestmark = pytest.mark.kernel


@pytest.fixture
async def volumes(tmp_path: Path) -> Volumes:
    volumes = Volumes(State(None), tmp_path / "volumes", Events())
    await volumes.start()
    return volumes


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Top first; the top one deletes a file of the base, and replaces one."""
    base, top = tmp_path / "base", tmp_path / "top"
    (base / "srv").mkdir(parents=True)
    (base / "srv" / "kept").write_text("base")
    (base / "srv" / "gone").write_text("x")
    (base / "srv" / "changed").write_text("old")
    (top / "srv").mkdir(parents=True)
    (top / "srv" / "changed").write_text("new")
    os.mknod(top / "srv" / "gone", stat.S_IFCHR, 0)
    (top / "srv").chmod(0o1777)
    os.chown(top / "srv", 33, 44)
    (top / "outside").symlink_to("/../../../../etc")
    (top / "file").write_text("x")
    return [top, base]


async def test_an_empty_volume_gets_the_merged_content_with_owner_and_mode(
    volumes: Volumes, layers: list[Path]
) -> None:
    before, fds = Path("/proc/self/mountinfo").read_text(), descriptors()
    path = await volumes.ensure("data")
    await volumes.fill("data", [overlay_mount([str(layer) for layer in layers])], "/srv")
    assert {each.name: each.read_text() for each in path.iterdir()} == {"kept": "base", "changed": "new"}
    info = path.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o1777, 33, 44)
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not descriptors() - fds


async def test_links_of_the_image_do_not_lead_out_of_it(volumes: Volumes, layers: list[Path]) -> None:
    path = await volumes.ensure("data")
    root = [overlay_mount([str(layer) for layer in layers])]
    await volumes.fill("data", root, "/outside")
    assert os.listdir(path) == []
    with pytest.raises(InvalidParameter, match="cannot mount volume over existing file, file exists /file"):
        await volumes.fill("data", root, "/file")
