"""From what a container is to be to the OCI runtime spec that crun and runc read. Pure.

What depends on the content of the root file system (user, HOME, the working directory) or is known only at the start
(the sandbox's network namespace) is filled in by the shim. The defaults are Docker's.
"""

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.errors import InvalidParameter
from wherry.runtime import resources, seccomp, security
from wherry.runtime.devices import Device
from wherry.spec.engine import ContainerConfig, HostConfig

Document = dict[str, Any]

SANDBOX = "sandbox"  # netns: the namespace given to `Shims.create`, or a new one when none is given
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = "/sbin/docker-init"  # where --init's program is seen
SHM_SIZE = 64 << 20  # bytes

_PROPAGATION = ("shared", "rshared", "slave", "rslave")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecMount:
    """One entry of `mounts`."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecInput:
    id: str
    args: Sequence[str]  # path and arguments, entrypoint included
    config: ContainerConfig
    host_config: HostConfig
    mounts: Sequence[SpecMount]  # binds, volumes, tmpfs, and /etc/{hosts,hostname,resolv.conf}
    netns: str = SANDBOX  # "" = the host's; a path = another container's
    ipcns: str = ""  # path, when ipc_mode is container:…
    pidns: str = ""  # path, when pid_mode is container:…
    cgroups_path: str  # absolute within the hierarchies
    cgroup_v2: bool = False
    devices: Sequence[Device] = ()  # from devices.for_container
    block_devices: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # from devices.numbers
    init_path: str = ""  # host path of the program for --init
    shm_size: int = SHM_SIZE  # bytes, when the host config says nothing
    bounding: int | None = None  # capability mask of what we can give; None = this process's bounding set


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    spec: Document
    warnings: tuple[str, ...]


def build(wanted: SpecInput) -> Built:
    """The spec, and warnings for the user. Raises InvalidParameter in Docker's words."""
    host = wanted.host_config
    options = security.parse_options(host.security_opt or (), privileged=host.privileged)
    capabilities, warnings = security.capabilities(
        host.cap_add or (), host.cap_drop or (), privileged=host.privileged, bounding=wanted.bounding
    )
    spec: Document = {
        "ociVersion": "1.0.2",
        "process": _process(wanted, options, capabilities),
        "root": {"path": "rootfs", "readonly": host.readonly_rootfs},
        "mounts": [_mount_document(each) for each in _mounts(wanted, options)],
        "linux": _linux(wanted, options, capabilities),
    }
    if not _is_host(host.uts_mode):
        spec["hostname"] = wanted.config.hostname
    if host.annotations:
        spec["annotations"] = dict(host.annotations)
    return Built(spec=spec, warnings=tuple(warnings))


def environment(config: ContainerConfig) -> list[str]:
    """A container's variables: Docker's own, and those of its config over them."""
    merged: dict[str, str | None] = {"PATH": f"PATH={DEFAULT_PATH}", "HOSTNAME": f"HOSTNAME={config.hostname}"}
    if config.tty:
        merged["TERM"] = "TERM=xterm"
    for entry in config.env or ():
        name, equals, _ = entry.partition("=")
        merged[name] = entry if equals else None  # without `=` it is taken away
    return [entry for entry in merged.values() if entry is not None]


def bind_options(
    *, read_only: bool, propagation: str = "", recursive: bool = True, deep: bool = False
) -> tuple[str, ...]:
    """Options of a bind mount; `deep`: what is mounted below a read-only one is read-only too."""
    access = ("rro" if deep else "ro") if read_only else "rw"
    return ("rbind" if recursive else "bind", access, propagation or "rprivate")


def can_be_deep(runtime_kind: str) -> bool:
    """Kernel (mount_setattr, 5.12) and runtime know recursively read-only mounts."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return runtime_kind in ("crun", "runc") and numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 12)


def tmpfs_options(options: Sequence[str]) -> tuple[str, ...]:
    """Options of a tmpfs: Docker's `noexec,nosuid,nodev`, each unless its opposite is among those given."""
    opposite = {"noexec": "exec", "nosuid": "suid", "nodev": "dev"}
    defaults = [name for name in opposite if opposite[name] not in options and name not in options]
    return (*defaults, *options)


def _process(wanted: SpecInput, options: security.Options, capabilities: list[str]) -> Document:
    config, host = wanted.config, wanted.host_config
    args = list(wanted.args)
    if not args:
        raise InvalidParameter("no command specified")
    if wanted.init_path:
        args = [INIT, "--", *args]
    process: Document = {
        "terminal": config.tty,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": environment(config),
        "cwd": config.working_dir or "/",
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": host.oom_score_adj,
    }
    if config.tty and host.console_size and len(host.console_size) == 2 and all(host.console_size):
        process["consoleSize"] = {"height": host.console_size[0], "width": host.console_size[1]}
    if host.ulimits:
        process["rlimits"] = [
            {"type": f"RLIMIT_{each.name.upper()}", "soft": each.soft % (1 << 64), "hard": each.hard % (1 << 64)}
            for each in host.ulimits
        ]
    if options.apparmor and options.apparmor != "unconfined":
        process["apparmorProfile"] = options.apparmor
    return process


def _linux(wanted: SpecInput, options: security.Options, capabilities: list[str]) -> Document:
    host = wanted.host_config
    linux: Document = {
        "cgroupsPath": wanted.cgroups_path,
        "namespaces": _namespaces(wanted),
        "resources": resources.build(
            host, devices=wanted.devices, privileged=host.privileged, numbers=wanted.block_devices
        ),
        "sysctl": _sysctls(wanted),
    }
    if wanted.devices:
        linux["devices"] = [_device_document(each) for each in wanted.devices]
    if options.seccomp is not None:
        linux["seccomp"] = seccomp.for_container(options.seccomp, capabilities)
    if not host.privileged and options.confine_paths:
        masked, readonly = host.masked_paths, host.readonly_paths
        linux["maskedPaths"] = list(security.MASKED_PATHS if masked is None else masked)
        linux["readonlyPaths"] = list(security.READONLY_PATHS if readonly is None else readonly)
    propagations = [option for each in wanted.mounts for option in each.options if option in _PROPAGATION]
    if propagations:
        shared = any(option.endswith("shared") for option in propagations)
        linux["rootfsPropagation"] = "shared" if shared else "rslave"
    return linux


def _namespaces(wanted: SpecInput) -> list[Document]:
    host = wanted.host_config
    namespaces: list[Document] = [{"type": "mount"}]
    if wanted.netns:
        namespaces.append({"type": "network"} if wanted.netns == SANDBOX else _joined("network", wanted.netns))
    if not _is_host(host.uts_mode):
        namespaces.append({"type": "uts"})
    for kind, mode, path in (("pid", host.pid_mode, wanted.pidns), ("ipc", host.ipc_mode, wanted.ipcns)):
        if mode.startswith("container:"):
            namespaces.append(_joined(kind, path))
        elif not _is_host(mode):
            namespaces.append({"type": kind})
    private = host.cgroupns_mode == "private" or (not host.cgroupns_mode and wanted.cgroup_v2)
    if private:
        namespaces.append({"type": "cgroup"})
    return namespaces


def _joined(kind: str, path: str) -> Document:
    if not path:
        raise InvalidParameter(f"no path of the {kind} namespace to join")
    return {"type": kind, "path": path}


def _is_host(mode: str) -> bool:
    return mode == "host"


def _sysctls(wanted: SpecInput) -> dict[str, str]:
    values: dict[str, str] = {}
    if wanted.netns:
        values["net.ipv4.ip_unprivileged_port_start"] = "0"
        values["net.ipv4.ping_group_range"] = "0 2147483647"
    if wanted.config.domainname and not _is_host(wanted.host_config.uts_mode):
        values["kernel.domainname"] = wanted.config.domainname
    if wanted.netns not in ("", SANDBOX):
        values.clear()  # another container's network: not ours to change
    return {**values, **(wanted.host_config.sysctls or {})}


def _default_mounts(wanted: SpecInput, options: security.Options) -> list[SpecMount]:
    host = wanted.host_config
    usual = ("nosuid", "noexec", "nodev")
    open_sys = host.privileged
    mounts = [
        SpecMount(destination="/proc", type="proc", source="proc", options=usual),
        SpecMount(
            destination="/dev",
            type="tmpfs",
            source="tmpfs",
            options=("nosuid", "strictatime", "mode=755", "size=65536k"),
        ),
        SpecMount(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        SpecMount(destination="/sys", type="sysfs", source="sysfs", options=(*usual, "rw" if open_sys else "ro")),
        SpecMount(
            destination="/sys/fs/cgroup",
            type="cgroup",
            source="cgroup",
            options=("rw" if open_sys or options.writable_cgroups else "ro", *usual),
        ),
    ]
    if _is_host(host.ipc_mode):
        return [*mounts, _shared_with_host("/dev/mqueue"), _shared_with_host("/dev/shm")]
    mounts.append(SpecMount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=usual))
    if host.ipc_mode.startswith("container:"):  # the other's: the shim brings it to the bundle
        mounts.append(SpecMount(destination="/dev/shm", type="bind", source="shm", options=("rbind", "rw")))
    elif host.ipc_mode != "none":
        size = host.shm_size or wanted.shm_size
        mounts.append(
            SpecMount(destination="/dev/shm", type="tmpfs", source="shm", options=(*usual, "mode=1777", f"size={size}"))
        )
    return mounts


def _shared_with_host(path: str) -> SpecMount:
    return SpecMount(destination=path, type="bind", source=path, options=("rbind", "rw"))


def _mounts(wanted: SpecInput, options: security.Options) -> list[SpecMount]:
    """Default mounts, with the caller's over them, each after the one it lies on."""
    given = {posixpath.normpath(each.destination): each for each in wanted.mounts}
    mounts = [each for each in _default_mounts(wanted, options) if each.destination not in given]
    if "/dev" in given:  # the whole of the host's, or an own one: nothing of ours on top
        mounts = [each for each in mounts if not each.destination.startswith("/dev/")]
    ordered = sorted(given.values(), key=lambda each: posixpath.normpath(each.destination).count("/"))
    if wanted.init_path:
        ordered.append(SpecMount(destination=INIT, type="bind", source=wanted.init_path, options=("bind", "ro")))
    return [*mounts, *ordered]


def _mount_document(mount: SpecMount) -> Document:
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }


def _device_document(device: Device) -> Document:
    return {
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }
