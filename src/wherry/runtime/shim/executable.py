"""Why a program cannot be executed: looked up within a container's files, as the kernel's "no such file" never says.

Conservative: what is not surely wrong is left to the kernel. Stdlib only: the shim uses it.
"""

import os
import platform
import posixpath
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.kernel.files import openat2
from wherry.runtime.shim.bundle import Process, ProcessUser

_HEAD = 4096  # bytes read of a program
_SHEBANG = 256  # bytes of a first line that the kernel reads
_MAX_DEPTH = 4  # interpreters of interpreters
_BINFMT = "/proc/sys/fs/binfmt_misc"

# ELF machine numbers -> the names users know; and what each machine can run
_MACHINES = {3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64",
             243: "riscv64", 258: "loong64"}  # fmt: skip
_RUNS = {
    "x86_64": (62, 3),
    "i686": (3,),
    "aarch64": (183, 40),
    "armv7l": (40,),
    "riscv64": (243,),
    "ppc64le": (21,),
    "s390x": (22,),
    "loongarch64": (258,),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why not. `words` are those Docker's clients know, `cause` is for people and may be empty."""

    words: str
    cause: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.cause})" if self.cause else self.words


def examine(root: int, target: Process) -> Problem | None:
    """What keeps a process's program from being executed below the directory fd `root`; None when nothing seems to."""
    name, cwd = target["args"][0], target.get("cwd") or "/"
    try:
        if "/" in name:
            path = posixpath.join(cwd, name)
        else:
            found = _search(root, name, target.get("env", ()), cwd)
            if isinstance(found, Problem):
                return found
            path = found
        return _examine_path(root, name, path, target.get("user", {}))
    except (OSError, LookupError, ValueError, struct.error):
        return None


def _search(root: int, name: str, env: Sequence[str], cwd: str) -> str | Problem:
    """Where PATH leads to."""
    path = next((entry[5:] for entry in reversed(env) if entry.startswith("PATH=")), "")
    unusable = ""
    for directory in path.split(":"):
        candidate = posixpath.join(cwd, directory, name)
        mode = _mode(root, candidate)
        if mode is None or stat.S_ISDIR(mode):
            continue
        if mode & 0o111:
            return candidate
        unusable = unusable or candidate
    cause = f"{unusable} is there, but has no execute bit" if unusable else ""
    return Problem(f'exec: "{name}": executable file not found in $PATH', cause)


def _mode(root: int, path: str) -> int | None:
    try:
        fd = openat2(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _may_execute(info: os.stat_result, user: ProcessUser) -> bool:
    """By the permission bits."""
    uid = user.get("uid", 0)
    if uid == 0:
        return bool(info.st_mode & 0o111)
    if uid == info.st_uid:
        return bool(info.st_mode & 0o100)
    if info.st_gid in (user.get("gid", 0), *user.get("additionalGids", ())):
        return bool(info.st_mode & 0o010)
    return bool(info.st_mode & 0o001)


def _examine_path(root: int, name: str, path: str, user: ProcessUser) -> Problem | None:
    quoted = f'exec: "{name}"'
    try:
        fd = openat2(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return Problem(f"{quoted}: stat {path}: no such file or directory", _dangling(root, path))
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            return Problem(f"{quoted}: is a directory: permission denied")
        if not info.st_mode & 0o111:
            return Problem(f"{quoted}: permission denied", f"{path} has no execute bit")
        if not _may_execute(info, user) and not _has_acl(fd):
            return Problem(f"{quoted}: permission denied", f"{path} may not be executed by user {user.get('uid', 0)}")
        if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
            return Problem(f"{quoted}: permission denied", f"{path} is on a file system mounted noexec")
    finally:
        os.close(fd)
    found = _examine_content(root, path, depth=0)
    return None if found is None else Problem(f"exec {path}: {found.words}", found.cause)


def _has_acl(fd: int) -> bool:
    try:
        return bool(os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access"))
    except OSError:
        return False


def _dangling(root: int, path: str) -> str:
    try:
        fd = openat2(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        target = os.readlink("", dir_fd=fd)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return f"{path} is a symbolic link to {target}, which does not exist in the container"


def _head(root: int, path: str) -> bytes | None:
    """The first bytes of a regular file; None for anything else."""
    fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return os.read(fd, _HEAD)
    finally:
        os.close(fd)


def _examine_content(root: int, path: str, *, depth: int) -> Problem | None:
    head = _head(root, path)
    if head is None or depth > _MAX_DEPTH:
        return None
    if head.startswith(b"\x7fELF"):
        return _examine_elf(root, path, head)
    if head.startswith(b"#!"):
        return _examine_script(root, path, head, depth)
    if _has_binfmt():
        return None
    if not head:
        return Problem("exec format error", f"{path} is empty")
    return Problem("exec format error", f"{path} is neither an ELF program nor a script that begins with #!")


def _examine_script(root: int, path: str, head: bytes, depth: int) -> Problem | None:
    line = head[2:_SHEBANG].split(b"\n", 1)[0]
    name = line.strip(b" \t").replace(b"\t", b" ").split(b" ", 1)[0]  # the kernel knows no other white space
    if not name:
        return Problem("exec format error", f"the first line of {path} names no interpreter after #!")
    interpreter = os.fsdecode(name)
    mode = _mode(root, interpreter)
    if mode is not None:
        if not mode & 0o111 or stat.S_ISDIR(mode):
            return Problem("permission denied", f"its interpreter {interpreter} cannot be executed")
        return _examine_content(root, interpreter, depth=depth + 1)
    bare = interpreter.rstrip("\r")
    if bare != interpreter:
        return Problem(
            "no such file or directory",
            f"{path} has Windows line ends (CRLF), so its interpreter is taken to be {bare}\\r; convert it to LF",
        )
    if not interpreter.startswith("/"):
        return None  # relative to the working directory: rare, and right in its own way
    return Problem("no such file or directory", f"its interpreter {interpreter} does not exist in the container")


def _examine_elf(root: int, path: str, head: bytes) -> Problem | None:
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    machine = struct.unpack_from(order + "H", head, 18)[0]
    here = platform.machine()
    runs = _RUNS.get(here)
    if runs is not None and machine not in runs:
        if _has_binfmt():
            return None
        built = _MACHINES.get(machine, f"ELF machine {machine}")
        return Problem("exec format error", f"{path} was built for {built}, this machine is {_MACHINES[runs[0]]}")
    interpreter = _elf_interpreter(head, order, wide=wide)
    if interpreter is None or _mode(root, interpreter) is not None:
        return None
    return Problem(
        "no such file or directory",
        f"its ELF loader {interpreter} does not exist in the container: {path} was linked for another C library",
    )


def _elf_interpreter(head: bytes, order: str, *, wide: bool) -> str | None:
    """The path in PT_INTERP, as far as it lies within `head`."""
    table = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    for index in range(min(count, 64)):
        at = table + index * size
        if struct.unpack_from(order + "I", head, at)[0] != 3:  # PT_INTERP
            continue
        if wide:
            offset, length = struct.unpack_from(order + "Q16xQ", head, at + 8)
        else:
            offset, length = struct.unpack_from(order + "I8xI", head, at + 4)
        if offset + length > len(head):
            return None
        return os.fsdecode(head[offset : offset + length].split(b"\0", 1)[0])
    return None


def _has_binfmt() -> bool:
    """Other formats may be registered with the kernel (qemu-user, for one): then it knows better."""
    try:
        return any(name not in ("register", "status") for name in os.listdir(_BINFMT))
    except OSError:
        return False
