"""After the kernel tests nothing of theirs may be left: no child process, no mount, no cgroup of a test's container."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.leaks import settle


def children() -> list[str]:
    """Processes this one has started and not reaped."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += [f"process {pid}: {told(pid)}" for pid in (task / "children").read_text().split()]
    return found


def told(pid: str) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words.strip() or Path(f"/proc/{pid}/stat").read_text().partition(" ")[2][:40]
    return "gone meanwhile"


def mounts(below: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line.split()[4]}" for line in lines if line.split()[4].startswith(f"{below}/")]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    home = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
    before = children()
    yield
    left = settle(lambda: [trace for trace in [*children(), *mounts(base)] if trace not in before])
    if (os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")) != home:
        left.append("the test process itself is in another namespace")
    assert not left, "left behind:\n  " + "\n  ".join(left)
