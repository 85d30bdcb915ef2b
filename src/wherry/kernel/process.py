"""Processes: namespaces, pidfds, subreapers, and spawning with a clean slate. Stdlib only: the shim uses it."""

import ctypes
import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wherry.kernel.libc import check, libc

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# Python ignores SIGPIPE and a shim some more; an exec would hand that on.
_DEFAULTED = [number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP)]


class Identity(NamedTuple):
    """A process, told apart from a later one with the same pid."""

    pid: int
    start: int  # clock ticks since boot


def set_name(name: str) -> None:
    """The name that `ps -o comm` shows; cut at 15 bytes."""
    check(libc.prctl(_PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0), "PR_SET_NAME")


def set_oom_score(value: int) -> None:
    """oom_score_adj of this process; PermissionError for less than it has been, without CAP_SYS_RESOURCE."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    check(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")


def unshare(flags: int) -> None:
    """New namespaces for the calling thread."""
    check(libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """Move the calling thread into the namespace behind `fd`."""
    check(libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def user_namespace(uids: str, gids: str) -> int:
    """An fd of a new user namespace with these id maps, as /proc/<pid>/uid_map takes them: `inside outside count`.

    Forks: for a process with one thread only. The caller needs CAP_SETUID and CAP_SETGID in its own namespace.
    """
    ready, reading = os.pipe2(os.O_CLOEXEC)[::-1]
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(ready, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(ready)
    try:
        if not os.read(reading, 1):
            raise OSError(errno.ENOSYS, "this kernel gives no user namespaces")
        for name, text in (("uid_map", uids), ("gid_map", gids)):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    stat = _stat(pid)
    return None if stat is None else int(stat[19])


def state(pid: int) -> str | None:
    """The one-letter state of `pid` (`R`, `S`, `Z`, …); None when there is no such process."""
    stat = _stat(pid)
    return None if stat is None else stat[0].decode()


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/<pid>/stat from the state on."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return text[text.rindex(b")") + 2 :].split()


def family(leader: int, pids: Iterable[int]) -> list[int]:
    """Of `pids` those in the session of `leader` or descended from it; itself, if it is there, comes last."""
    stats = {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    found = {pid for pid, stat in stats.items() if pid == leader or int(stat[3]) == leader}
    while more := {pid for pid, stat in stats.items() if pid not in found and int(stat[1]) in found}:
        found |= more
    return sorted(found, key=lambda pid: (pid == leader, pid))


def is_alive(who: Identity) -> bool:
    """True while the very process `who` runs; a zombie has ended."""
    return start_time(who.pid) == who.start and state(who.pid) not in (None, "Z", "X")


def open_pidfd(who: Identity) -> int | None:
    """A pidfd for exactly `who`; None when it is gone, also when its pid was given to another process."""
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return None
    if start_time(who.pid) != who.start:
        os.close(fd)
        return None
    return fd


def send_signal(who: Identity, number: int) -> bool:
    """Signal exactly `who`; False when it is gone."""
    fd = open_pidfd(who)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def spawn(args: Sequence[str], *, stdio: Sequence[int], env: Mapping[str, str]) -> int:
    """Start a program with `stdio` as fds 0, 1, 2, default signals, nothing blocked, and no other fd.

    Relies on every other fd being close-on-exec, as Python opens them. `args[0]` is a path.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)]
    return os.posix_spawn(args[0], list(args), dict(env), file_actions=actions, setsigmask=[], setsigdef=_DEFAULTED)


def exit_code(status: int) -> int:
    """A wait status as Docker shows it: the exit code, or 128 + the signal's number."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def capabilities(name: str = "CapBnd") -> int:
    """One capability mask of this process, by its name in /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1], 16)
    return 0


def close_fds(keep: Iterable[int]) -> None:
    """Close every fd above 2 that is not in `keep`."""
    low = 3
    for fd in sorted(set(keep)):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1
    limit = max((int(name) for name in os.listdir("/proc/self/fd")), default=low) + 1
    if limit > low:
        os.closerange(low, limit)
