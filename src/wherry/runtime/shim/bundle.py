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
from wherry.kernel.cgroup import unescape
from wherry.kernel.files import openat2
from wherry.kernel.mount import MS_SLAVE, Mount, attach, clone_tree, make_rslave, mount, mount_raw
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


@dataclass(slots=True, kw_only=True)
class Spec:
    """An OCI runtime spec, of which the shim reads and changes only what is apart here.

    The rest is JSON text: as objects it would stay in the memory of every shim for as long as its container runs.
    """

    process: Process
    root: dict[str, object]
    namespaces: list[Namespace]
    destinations: list[str]  # of all mounts
    cgroups_path: str
    members: str  # of the document, but for process, root and linux: `"mounts":[…],"hostname":"x"`
    linux_members: str  # of its `linux`, but for namespaces

    def text(self) -> str:
        """The document."""
        linux = _object(("namespaces", self.namespaces), rest=self.linux_members)
        return _object(
            ("process", self.process),
            ("root", self.root),
            rest=",".join(filter(None, (f'"linux":{linux}', self.members))),
        )


def _object(*members: tuple[str, object], rest: str) -> str:
    first = ",".join(f'"{key}":{json.dumps(value, separators=(",", ":"))}' for key, value in members)
    return "{" + ",".join(filter(None, (first, rest))) + "}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The directory of one run; see `shim` for what is in it."""

    directory: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    @property
    def rootfs(self) -> str:
        return self.path("rootfs")

    def part(self, number: int) -> str:
        """Where a part of another tree is, for the spec to bind it from."""
        return self.path(f"part{number}")

    def read_process(self) -> Process:
        """The process document of the container's init."""
        with open(self.path("process.json"), "rb") as file:
            return cast(Process, json.load(file))

    def write(self, name: str, document: Mapping[str, object], *, durable: bool = False) -> str:
        """Write a JSON file so that it appears whole or not at all; returns its path."""
        return self.write_text(name, json.dumps(document, separators=(",", ":")), durable=durable)

    def write_text(self, name: str, text: str, *, durable: bool = False) -> str:
        path = self.path(name)
        with open(path + ".tmp", "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
        return path


def enter_namespace(bundle: Bundle, *, shared: bool) -> None:
    """A mount namespace of our own: what is mounted in the host still arrives, what we mount stays here.

    `shared`: mounts that the container makes on a shared bind are to reach the host, so only the places where we mount
    something ourselves are cut off. On a hybrid machine the v2 hierarchy is covered: crun refuses to work where it sees
    one with controllers.
    """
    hybrid = cgroup.layout() is cgroup.Layout.HYBRID
    process.unshare(process.CLONE_NEWNS)
    if shared:
        for place in (bundle.directory, *([f"{cgroup.ROOT}/{cgroup.HYBRID}"] if hybrid else [])):
            mount_raw(None, _mount_point(os.path.dirname(place)), None, MS_SLAVE)
    else:
        make_rslave("/")
    if hybrid:  # covering costs nothing; unmounting would wait for an RCU grace period
        mount_raw("none", f"{cgroup.ROOT}/{cgroup.HYBRID}", "tmpfs", 0, "mode=0755,size=64k")


def _mount_point(path: str) -> str:
    """The mount that `path` is on."""
    with open("/proc/self/mountinfo") as file:
        points = [unescape(line.split(" ", 5)[4]) for line in file]
    inside = os.path.realpath(path) + "/"
    return max((point for point in points if inside.startswith(point.rstrip("/") + "/")), key=len, default="/")


def mount_rootfs(bundle: Bundle, mounts: Iterable[Mount]) -> None:
    os.makedirs(bundle.rootfs, exist_ok=True)
    for each in mounts:
        mount(each, bundle.rootfs)


def complete(spec: Spec, bundle: Bundle, *, user: str, group_add: Sequence[str], netns: int | None) -> None:
    """Fill in what the daemon could not know. Raises InvalidParameter for a user or directory that cannot be."""
    spec.root["path"] = bundle.rootfs
    if netns is not None:
        others = [each for each in spec.namespaces if each.get("type") != "network"]
        spec.namespaces = [*others, {"type": "network", "path": f"/proc/{os.getpid()}/fd/{netns}"}]
    root = os.open(bundle.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        set_user(spec.process, root, user, group_add)
        cwd = spec.process.get("cwd") or "/"
        if not _is_mounted_over(cwd, spec.destinations):
            make_directory(root, cwd)
    finally:
        os.close(root)


def _is_mounted_over(path: str, destinations: Iterable[str]) -> bool:
    """`path` is on one of the mounts, which are not there yet: the runtime makes it."""
    path = os.path.normpath(path)
    for destination in map(os.path.normpath, destinations):
        if path == destination or path.startswith(destination.rstrip("/") + "/"):
            return True
    return False


def take_shm(bundle: Bundle, pid: int) -> None:
    """Bring the /dev/shm of the container whose init is `pid` to `<bundle>/shm`, where the spec binds it from.

    A mount can be copied only in the namespace it is in, and attached in any.
    """
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(theirs, process.CLONE_NEWNS)
        try:
            copy = clone_tree("/dev/shm")
        finally:
            process.setns(own, process.CLONE_NEWNS)
            os.chdir("/")
    finally:
        os.close(own)
        os.close(theirs)
    os.makedirs(bundle.path("shm"), exist_ok=True)
    try:
        attach(copy, bundle.path("shm"))
    finally:
        os.close(copy)


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


def below(groups: Mapping[str, str], cgroups_path: str) -> dict[str, str]:
    """Of a process's cgroups those made for its container: never one that others share."""
    name = "/" + cgroups_path.strip("/")
    found = {}
    for controller, directory in groups.items():
        at = directory.find(name)
        if name != "/" and at >= 0 and (directory + "/")[at + len(name)] == "/":
            found[controller] = directory[: at + len(name)]
    return found


def exec_process(
    base: Process, root: int, *, user: str, group_add: Sequence[str], capabilities: list[str] | None, **own: object
) -> Process:
    """The process document of an exec: the container's own, `base`, and `own` (args, env, cwd, terminal) over it.

    `user` "" is the container's; `capabilities` None means those the container's root has.
    """
    target = cast(Process, {**base, **own})
    target.pop("consoleSize", None)
    known = base.get("capabilities", {}).get("bounding", [])
    if user:
        target["capabilities"] = {"bounding": known, "effective": known, "permitted": known}
        set_user(target, root, user, group_add)
    elif not any(entry.startswith("HOME=") for entry in target["env"]):
        home = [entry for entry in base["env"] if entry.startswith("HOME=")]
        target["env"] = [*target["env"], *home]
    if capabilities is not None:
        target["capabilities"] = {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    return target
