"""What the shim does to make an OCI bundle complete: mounts, user, working directory, namespace paths. Stdlib only.

All that depends on the content of the root file system is decided here, since only the shim ever sees it mounted.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

from wherry.errors import InvalidParameter
from wherry.kernel import cgroup, process
from wherry.kernel.files import openat2
from wherry.kernel.mount import Mount, make_rslave, mount, mount_raw
from wherry.runtime import users

_MAX_ACCOUNTS = 16 << 20  # bytes read of passwd and group


class Capabilities(TypedDict, total=False):
    bounding: list[str]
    effective: list[str]
    permitted: list[str]
    inheritable: list[str]
    ambient: list[str]


class ProcessUser(TypedDict, total=False):
    uid: int
    gid: int
    additionalGids: list[int]


class ConsoleSize(TypedDict):
    height: int
    width: int


class Process(TypedDict, total=False):
    """`process` of an OCI runtime spec, the parts used here."""

    terminal: bool
    consoleSize: ConsoleSize
    user: ProcessUser
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: Capabilities


class Namespace(TypedDict, total=False):
    type: str
    path: str


class Linux(TypedDict, total=False):
    namespaces: list[Namespace]
    cgroupsPath: str


class SpecMount(TypedDict, total=False):
    destination: str
    type: str
    source: str
    options: list[str]


class Spec(TypedDict, total=False):
    process: Process
    root: dict[str, object]
    mounts: list[SpecMount]
    linux: Linux


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The directory of one run; see `shim` for what is in it."""

    directory: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    @property
    def rootfs(self) -> str:
        return self.path("rootfs")

    def read_spec(self) -> Spec:
        with open(self.path("config.json"), "rb") as file:
            return cast(Spec, json.load(file))

    def write(self, name: str, document: Mapping[str, object], *, durable: bool = False) -> str:
        """Write a JSON file so that it appears whole or not at all; returns its path."""
        path = self.path(name)
        with open(path + ".tmp", "w") as file:
            json.dump(document, file, separators=(",", ":"))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
        return path


def enter_namespace() -> None:
    """A mount namespace of our own: what is mounted in the host still arrives, what we mount stays here.

    On a hybrid machine the v2 hierarchy is covered: crun refuses to work where it sees one with controllers.
    """
    hybrid = cgroup.layout() is cgroup.Layout.HYBRID
    process.unshare(process.CLONE_NEWNS)
    make_rslave("/")
    if hybrid:  # covering costs nothing; unmounting would wait for an RCU grace period
        mount_raw("none", f"{cgroup.ROOT}/{cgroup.HYBRID}", "tmpfs", 0, "mode=0755,size=64k")


def mount_rootfs(bundle: Bundle, mounts: Iterable[Mount]) -> None:
    os.makedirs(bundle.rootfs, exist_ok=True)
    for each in mounts:
        mount(each, bundle.rootfs)


def complete(spec: Spec, bundle: Bundle, *, user: str, group_add: Sequence[str], netns: int | None) -> None:
    """Fill in what the daemon could not know. Raises InvalidParameter for a user or directory that cannot be."""
    spec["root"] = {**spec.get("root", {}), "path": bundle.rootfs}
    if netns is not None:
        _join_network(spec, f"/proc/{os.getpid()}/fd/{netns}")
    root = os.open(bundle.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        set_user(spec["process"], root, user, group_add)
        cwd = spec["process"].get("cwd") or "/"
        if not _is_mounted_over(cwd, spec.get("mounts", [])):
            make_directory(root, cwd)
    finally:
        os.close(root)


def _join_network(spec: Spec, path: str) -> None:
    namespaces = [each for each in spec["linux"].get("namespaces", []) if each.get("type") != "network"]
    spec["linux"]["namespaces"] = [*namespaces, {"type": "network", "path": path}]


def _is_mounted_over(path: str, mounts: Iterable[SpecMount]) -> bool:
    """`path` is on one of the mounts, which are not there yet: the runtime makes it."""
    path = os.path.normpath(path)
    for each in mounts:
        destination = os.path.normpath(each["destination"])
        if path == destination or path.startswith(destination.rstrip("/") + "/"):
            return True
    return False


def set_user(target: Process, root: int, user: str, group_add: Sequence[str]) -> None:
    """Resolve `user` within the directory fd `root`; sets user, HOME, and drops the capabilities of a non-root user."""
    found = users.resolve(user, group_add, passwd=_read_text(root, "etc/passwd"), group=_read_text(root, "etc/group"))
    target["user"] = {"uid": found.uid, "gid": found.gid, "additionalGids": list(found.additional_gids)}
    env = target.setdefault("env", [])
    if not any(entry.startswith("HOME=") for entry in env):
        env.append(f"HOME={found.home}")
    if found.uid != 0 and "capabilities" in target:
        target["capabilities"] = {"bounding": target["capabilities"].get("bounding", [])}


def _read_text(root: int, path: str) -> str:
    """A small text file of the container, `""` when there is none; never blocks on what only looks like a file."""
    try:
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_MAX_ACCOUNTS).decode("utf-8", "surrogateescape")


def make_directory(root: int, path: str) -> None:
    """`mkdir -p`, mode 0755, owned by root, never outside the directory fd `root`."""
    made = "/"
    for part in os.path.normpath(path).strip("/").split("/"):
        parent, made = made, os.path.join(made, part)
        try:
            os.close(openat2(root, made, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            fd = openat2(root, parent, os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(part, 0o755, dir_fd=fd)
            except FileExistsError:
                raise InvalidParameter(f"Cannot mkdir: {made} is a symbolic link that leads nowhere") from None
            finally:
                os.close(fd)
        except NotADirectoryError:
            raise InvalidParameter(f"Cannot mkdir: {made} is not a directory") from None
        except OSError as exc:
            raise InvalidParameter(f"Cannot mkdir: {made}: {os.strerror(exc.errno or errno.EIO)}") from exc


def own_groups(pid: int, cgroups_path: str) -> dict[str, str]:
    """The cgroup directories made for this container, of those that `pid` is in: never one that others share."""
    name = "/" + cgroups_path.strip("/")
    found = {}
    for controller, directory in cgroup.groups_of(pid).items():
        at = directory.find(name)
        if name != "/" and at >= 0 and (directory + "/")[at + len(name)] == "/":
            found[controller] = directory[: at + len(name)]
    return found


def exec_process(
    spec: Spec, root: int, *, user: str, group_add: Sequence[str], capabilities: list[str] | None, **own: object
) -> Process:
    """The process document of an exec: the container's own, and `own` (args, env, cwd, terminal) over it.

    `user` "" is the container's; `capabilities` None means those the container's root has.
    """
    target = cast(Process, {**spec["process"], **own})
    target.pop("consoleSize", None)
    known = spec["process"].get("capabilities", {}).get("bounding", [])
    if user:
        target["capabilities"] = {"bounding": known, "effective": known, "permitted": known}
        set_user(target, root, user, group_add)
    elif not any(entry.startswith("HOME=") for entry in target["env"]):
        home = [entry for entry in spec["process"]["env"] if entry.startswith("HOME=")]
        target["env"] = [*target["env"], *home]
    if capabilities is not None:
        target["capabilities"] = {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    return target
