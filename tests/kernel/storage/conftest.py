"""Storage on the real kernel. Nothing is mounted where the machine sees it: mounts are detached, or a thread's own."""

import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from wherry.kernel import mount
from wherry.kernel.mount import Mount
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter


class Member:
    """One entry of a layer made by a test; anything tarfile can write, also what no honest program would."""

    def __init__(self, name: str, content: bytes | None = None, **fields: Any) -> None:
        self.info = tarfile.TarInfo(name)
        self.info.mtime = 1_600_000_000
        self.info.pax_headers = fields.pop("pax", {})
        if content is not None:
            self.info.size = len(content)
        elif name.endswith("/"):
            self.info.type, self.info.mode = tarfile.DIRTYPE, 0o755
        self.content = content or b""
        for key, value in fields.items():
            setattr(self.info, key, value)


def link(name: str, target: str) -> Member:
    return Member(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Member:
    return Member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member.info, io.BytesIO(member.content))
    return out.getvalue()


def see(root: int | Path) -> dict[str, str]:
    """Path -> what is there: `dir`, `-> target`, `dev 1:3`, `fifo`, or a file's content. The root is left out."""
    base = f"/proc/self/fd/{root}" if isinstance(root, int) else os.fspath(root)
    found: dict[str, str] = {}
    for directory, directories, files in os.walk(base):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                text = f"-> {os.readlink(path)}"
            elif stat.S_ISDIR(status.st_mode):
                text = "dir"
            elif stat.S_ISREG(status.st_mode):
                text = Path(path).read_text()
            elif stat.S_ISFIFO(status.st_mode):
                text = "fifo"
            else:
                text = f"dev {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            found[os.path.relpath(path, base)] = text
    return found


def see_mounts(mounts: Sequence[Mount]) -> dict[str, str]:
    fd = mount.open_detached(mounts)
    try:
        return see(fd)
    finally:
        os.close(fd)


def within(mounts: Sequence[Mount], work: Callable[[Path], None]) -> None:
    """`work` on the mounted tree, as a container would."""
    fd = mount.open_detached(mounts, attributes=0)
    try:
        work(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def in_namespace(work: Callable[[], None]) -> None:
    """Run `work` in a thread with a mount namespace of its own, which ends with it."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            mount.unshare_mounts()
            mount.make_rprivate("/")
            work()
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


class Kit:
    """The helpers above, for tests: `kit.tar(kit.Member(...))`."""

    Member, link, hard, tar = Member, staticmethod(link), staticmethod(hard), staticmethod(tar)
    see, see_mounts, within = staticmethod(see), staticmethod(see_mounts), staticmethod(within)
    in_namespace = staticmethod(in_namespace)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture(params=[OverlaySnapshotter, NativeSnapshotter], ids=["overlay", "native"])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def snapshots(driver: Any, tmp_path: Path) -> Any:
    made = driver(tmp_path / "root")
    yield made
    made.close()
