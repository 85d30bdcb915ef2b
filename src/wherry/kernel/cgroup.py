"""Control groups, v1, v1 with a hybrid `unified` mount, and v2: where a process is, freeze, kill, read, remove.

A container's groups are a mapping from controller to directory: `{"memory": "/sys/fs/cgroup/memory/wherry/<id>", …}`
on v1, `{"": "/sys/fs/cgroup/wherry/<id>"}` on v2. `root` is a parameter so that tests can lay out either kind as plain
files. Stdlib only: the shim uses it.
"""

import contextlib
import errno
import functools
import os
import re
import signal
import time
from collections.abc import Mapping
from enum import StrEnum

ROOT = "/sys/fs/cgroup"
HYBRID = "unified"  # the v2 mount below ROOT that systemd's hybrid layout and its imitations have

_REMOVE_TRIES = 100  # a group stays busy until the kernel has released its last task
_FREEZE_TRIES = 500
_PAUSE = 0.002  # s

Groups = Mapping[str, str]


class Layout(StrEnum):
    V1 = "v1"
    HYBRID = "hybrid"  # v1 controllers, and a v2 hierarchy that has controllers of its own
    V2 = "v2"


@functools.cache
def layout(root: str = ROOT) -> Layout:
    """How this machine mounts its cgroups; it does not change while it runs."""
    if os.path.exists(f"{root}/cgroup.controllers"):
        return Layout.V2
    try:
        return Layout.HYBRID if _read(f"{root}/{HYBRID}/cgroup.controllers").strip() else Layout.V1
    except OSError:
        return Layout.V1


def unescape(field: str) -> str:
    """A path as mountinfo has it, with spaces and the like in octal."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field)


def hierarchies(mountinfo: str, root: str = ROOT) -> dict[str, str]:
    """Mount point by v1 controller (`name=systemd` as it is), from the text of /proc/self/mountinfo."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2) if after.count(" ") >= 2 else ("", "", "")
        where = unescape(before.split(" ")[4])
        if kind != "cgroup" or not where.startswith(root + "/"):
            continue
        controllers = [option for option in options.split(",") if option not in ("rw", "ro", "xattr")]
        for controller in controllers:
            found.setdefault(controller, where)
    return found


def groups_of(pid: int, root: str = ROOT) -> dict[str, str]:
    """The cgroup directories of `pid` as the caller's cgroup namespace sees them, without hierarchies at their root."""
    return parse_groups(_read(f"/proc/{pid}/cgroup"), _read("/proc/self/mountinfo"), root)


def expect_moves(root: str = ROOT) -> None:
    """Have the kernel ready to move processes between groups. Blocking: up to 25 ms; never raises.

    The first move after a quiet moment waits for an RCU grace period, those that follow soon do not. Called when a
    start is foreseen, this takes the wait off its path. Writing our own pid to the group we are in changes nothing.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError):
        mounts = {"": root} if layout(root) is Layout.V2 else hierarchies(_read("/proc/self/mountinfo"), root)
        lines = (line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines())
        controller, path = next((controllers, path) for _, controllers, path in lines if controllers in mounts)
        with open(f"{mounts[controller]}{path}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))


def parse_groups(membership: str, mountinfo: str, root: str = ROOT) -> dict[str, str]:
    """`groups_of` from the texts of /proc/<pid>/cgroup and /proc/self/mountinfo."""
    v2 = layout(root) is Layout.V2
    mounts = {} if v2 else hierarchies(mountinfo, root)
    groups: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if path == "/":
            continue
        if v2:
            if not controllers:
                groups[""] = root + path
            continue
        for controller in filter(None, controllers.split(",")):
            if controller in mounts:
                groups[controller] = mounts[controller] + path
    return groups


def planned_groups(path: str, root: str = ROOT) -> dict[str, str]:
    """The directories that a container with this `cgroupsPath` has or will have, whether they exist or not."""
    path = "/" + path.strip("/")
    if layout(root) is Layout.V2:
        return {"": root + path}
    mounts = hierarchies(_read("/proc/self/mountinfo"), root)
    return {controller: where + path for controller, where in mounts.items()}


def _main(groups: Groups) -> str | None:
    """The directory whose tasks stand for the whole container."""
    for controller in ("", "pids", "freezer", "memory", "name=systemd", "cpu"):
        if controller in groups:
            return groups[controller]
    return next(iter(groups.values()), None)


def processes(groups: Groups) -> list[int]:
    """Pids of all processes in the groups and below."""
    top = _main(groups)
    if top is None:
        return []
    found: set[int] = set()
    for directory, _, _ in os.walk(top):
        try:
            found.update(int(line) for line in _read(f"{directory}/cgroup.procs").splitlines())
        except OSError:
            continue
    found.discard(0)  # a process of another pid namespace
    return sorted(found)


def freeze(groups: Groups, *, frozen: bool) -> None:
    """Freeze or thaw every process of the groups, and wait until the kernel has done it. Idempotent."""
    if "" in groups:
        _write(f"{groups['']}/cgroup.freeze", "1" if frozen else "0")
        _await_state(f"{groups['']}/cgroup.events", "frozen 1" if frozen else "frozen 0")
    elif "freezer" in groups:
        wanted = "FROZEN" if frozen else "THAWED"
        for _ in range(_FREEZE_TRIES):
            _write(f"{groups['freezer']}/freezer.state", wanted)
            if _read(f"{groups['freezer']}/freezer.state").strip() == wanted:
                return
            time.sleep(_PAUSE)  # FREEZING: some task is not there yet; writing again is what helps
        if frozen:
            _write(f"{groups['freezer']}/freezer.state", "THAWED")
        raise OSError(errno.EBUSY, "cannot freeze all processes", groups["freezer"])
    else:
        raise OSError(errno.ENOTSUP, "no freezer cgroup")


def _await_state(path: str, wanted: str) -> None:
    for _ in range(_FREEZE_TRIES):
        if wanted in _read(path).splitlines():
            return
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, f"still not {wanted!r}", path)


def is_frozen(groups: Groups) -> bool:
    try:
        if "" in groups:
            return _read(f"{groups['']}/cgroup.freeze").strip() == "1"
        return "freezer" in groups and _read(f"{groups['freezer']}/freezer.state").strip() != "THAWED"
    except OSError:
        return False


def supports(controller: str, file: str, root: str = ROOT) -> bool:
    """A v1 controller is mounted and its groups have `file`."""
    where = hierarchies(_read("/proc/self/mountinfo"), root).get(controller)
    return where is not None and os.path.exists(f"{where}/{file}")


def lift_pids(groups: Groups) -> None:
    """Let the groups have any number of processes: crun can only set limits."""
    if (directory := groups.get("", groups.get("pids"))) is not None:
        _write(f"{directory}/pids.max", "max")


def lift_cpu(groups: Groups) -> None:
    """Let the groups have all the time there is: crun can only set quotas."""
    if "" in groups:
        _write(f"{groups['']}/cpu.max", "max")
    elif "cpu" in groups:
        _write(f"{groups['cpu']}/cpu.cfs_quota_us", "-1")


def allow_device(groups: Groups, rule: str, *, allowed: bool) -> None:
    """Change what devices may be used, by `c 1:5 rwm`. OSError ENOTSUP on v2, where that is a BPF program."""
    if "devices" not in groups:
        raise OSError(errno.ENOTSUP, "no devices cgroup")
    _write(f"{groups['devices']}/devices.{'allow' if allowed else 'deny'}", rule)


def oom_kills(groups: Groups) -> int:
    """How many processes the kernel's OOM killer took from the groups."""
    try:
        if "" in groups:
            text = _read(f"{groups['']}/memory.events")
        elif "memory" in groups:
            text = _read(f"{groups['memory']}/memory.oom_control")
        else:
            return 0
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def kill(groups: Groups) -> int:
    """SIGKILL everything in the groups, thawing it; returns how many were signalled."""
    killed = 0
    for pid in processes(groups):
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    if killed and is_frozen(groups):
        freeze(groups, frozen=False)
    return killed


def remove(groups: Groups) -> list[str]:
    """Kill what is left and remove the groups; returns the directories that could not be removed. Idempotent."""
    pending = [directory for directory in groups.values() if not _rmdir_tree(directory)]
    for _ in range(_REMOVE_TRIES):
        if not pending:
            break
        kill(groups)
        time.sleep(_PAUSE)
        pending = [directory for directory in pending if not _rmdir_tree(directory)]
    return pending


def remove_empty(path: str, root: str = ROOT) -> None:
    """Remove the group `path` from every hierarchy where nothing is in it or below. Idempotent."""
    for directory in planned_groups(path, root).values():
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _rmdir_tree(top: str) -> bool:
    """Remove a cgroup and those below it; False while one is busy."""
    try:
        os.rmdir(top)
        return True
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _read(path: str) -> str:
    # Not by `open`: text files cost a shim 100 KB of memory that it otherwise shares.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 64 << 10):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
