"""What mount points name on the host: is it there, may it be mounted so. Blocking, briefly; Docker's words."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from wherry.containers.making.mounts import is_around
from wherry.containers.record import MountPoint
from wherry.errors import Failed, InvalidParameter
from wherry.kernel import mountinfo
from wherry.runtime.oci import create_failed

_SHARED = frozenset({"shared", "rshared"})
_SLAVE = frozenset({"slave", "rslave"})
_COVERED_BY_LXCFS = frozenset(  # and by its like: the numbers of a container instead of the machine's
    f"/proc/{name}"
    for name in (
        "cpuinfo diskstats meminfo stat swaps uptime loadavg slabinfo net/dev sys/kernel/ns_last_pid "
        "sys/crypto/fips_enabled"
    ).split()
)
_RESTRICTIONS = {"ro": os.ST_RDONLY, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
_NAMES = 10_000  # entries of a directory that are compared with a missing name


def prepare_binds(points: Iterable[MountPoint]) -> None:
    """Make missing host directories of `-v` binds, as Docker does; raises InvalidParameter for `--mount` ones."""
    for point in points:
        if point.type != "bind":
            continue
        source = Path(point.source)
        try:
            if source.exists():
                continue
            if point.must_exist:
                raise InvalidParameter(
                    'invalid mount config for type "bind": bind source path does not exist: '
                    f"{point.source}{_suggestion(point.source)}"
                )
            source.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidParameter(
                f"error while creating mount source path '{point.source}': mkdir {point.source}: "
                f"{(exc.strerror or str(exc)).lower()}"
            ) from exc


def doubts(points: Iterable[MountPoint]) -> list[str]:
    """Warnings about `-v` sources that are not there and will be made, where the name looks like a slip of the hand."""
    found = []
    for point in points:
        if point.type == "bind" and not point.must_exist and not os.path.lexists(point.source):
            near = nearest(point.source)
            if near:
                found.append(
                    f"{point.source} does not exist and will be made as an empty directory: did you mean {near}?"
                )
    return found


def _suggestion(path: str) -> str:
    near = nearest(path)
    return f" (did you mean {near}?)" if near else ""


def nearest(path: str) -> str:
    """What is there and nearly has the name of `path`, which is not; "" when nothing is like it."""
    import difflib  # costs 5 ms, and is for mistakes only

    known, rest = "/", [part for part in path.split("/") if part]
    while rest:
        here = os.path.join(known, rest[0])
        if os.path.lexists(here):
            known = here
            rest.pop(0)
            continue
        try:
            names = os.listdir(known)[:_NAMES]
        except OSError:
            return ""
        like = difflib.get_close_matches(rest[0], names, n=1, cutoff=0.75)
        candidate = os.path.join(known, like[0], *rest[1:]) if like else ""
        return candidate if candidate and os.path.lexists(candidate) else ""
    return ""


def restrictions(path: str) -> tuple[str, ...]:
    """What the mount that `path` is on forbids, as options: crun's binds would not forbid it any more."""
    try:
        flags = os.statvfs(path).f_flag if path.startswith("/") else 0
    except OSError:  # the runtime will say it
        return ()
    return tuple(word for word, flag in _RESTRICTIONS.items() if flags & flag)


def check_proc(points: Iterable[MountPoint], runtime_kind: str) -> None:
    """What would cover the container's /proc: runc refuses that, crun would do it. Raises Failed in runc's words."""
    for point in points:
        target = point.destination
        if target != "/proc" and not target.startswith("/proc/"):
            continue
        if target == "/proc":
            if point.type == "bind" and _fstype(point.source) == "proc":
                continue
            why = "it is not of type proc"
        elif target in _COVERED_BY_LXCFS:
            continue
        else:
            why = "it is inside /proc"
        raise Failed(
            create_failed(
                runtime_kind,
                f'error during container init: error mounting "{point.source or "tmpfs"}" to rootfs at "{target}": '
                f'"{target}" cannot be mounted because {why}',
            )
        )


def _fstype(path: str) -> str:
    found = mountinfo.mount_of(os.path.realpath(path), mountinfo.entries())
    return found.fstype if found is not None else ""


def propagations(points: Sequence[MountPoint], data_root: Path) -> dict[str, str]:
    """The propagation that each bind really gets, by destination.

    Raises Failed when the source cannot propagate: its mount on the host is private.
    """
    found = {point.destination: point.propagation for point in points if point.type == "bind"}
    if _SHARED.isdisjoint(found.values()) and _SLAVE.isdisjoint(found.values()):
        return found
    table = list(mountinfo.entries())
    for point in points:
        wanted = found.get(point.destination, "")
        if wanted not in _SHARED | _SLAVE:
            continue
        at = mountinfo.mount_of(os.path.realpath(point.source), table)
        if at is None or at.shared or (at.slave and wanted in _SLAVE):
            continue
        if wanted in _SLAVE and is_around(point.source, data_root):  # we chose it: see `over_daemon`
            found[point.destination] = "rprivate"
            continue
        kind = "shared" if wanted in _SHARED else "shared or slave"
        raise Failed(
            f"path {point.source} is mounted on {at.point} but it is not a {kind} mount: mount it so on the host "
            f"(mount --make-rshared {at.point}), or leave the propagation out"
        )
    return found
