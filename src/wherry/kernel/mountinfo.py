"""What is mounted, as /proc/self/mountinfo tells it (proc_pid_mountinfo(5)). Stdlib only: the shim uses it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wherry.kernel.cgroup import unescape


@dataclass(frozen=True, slots=True)
class Entry:
    """One mount of the caller's namespace."""

    id: int
    point: str  # where it is, from the caller's root
    shared: bool  # it passes mounts on
    slave: bool  # it receives them
    fstype: str


def entries() -> Iterator[Entry]:
    """All mounts of the caller's namespace that can be reached from its root, each after those it lies on."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            words = before.split()
            optional = words[6:]
            yield Entry(
                id=int(words[0]),
                point=unescape(words[4]),
                shared=any(each.startswith("shared:") for each in optional),
                slave=any(each.startswith("master:") for each in optional),
                fstype=after.split(" ", 1)[0],
            )


def mount_of(path: str, table: Iterable[Entry]) -> Entry | None:
    """The mount that `path`, absolute and without symbolic links, is on."""
    found: Entry | None = None
    for entry in table:
        inside = entry.point == "/" or path == entry.point or path.startswith(entry.point + "/")
        if inside and (found is None or len(entry.point) >= len(found.point)):  # of two at one place the later is seen
            found = entry
    return found


def filesystem_of(fd: int) -> str:
    """The type of the file system `fd` is on, by the mount it was opened through; "unknown" when it is out of sight."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        number = next((int(line.split()[1]) for line in file if line.startswith("mnt_id:")), -1)
    return next((entry.fstype for entry in entries() if entry.id == number), "unknown")
