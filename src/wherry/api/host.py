"""The machine, as `GET /info` and `GET /version` describe it. Read from the kernel each time it can change."""

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_V1_FILES = {  # key of the document -> controller and the file that shows the ability
    "MemoryLimit": ("memory", "memory.limit_in_bytes"),
    "SwapLimit": ("memory", "memory.memsw.limit_in_bytes"),
    "CpuCfsPeriod": ("cpu", "cpu.cfs_period_us"),
    "CpuCfsQuota": ("cpu", "cpu.cfs_quota_us"),
    "CPUShares": ("cpu", "cpu.shares"),
    "CPUSet": ("cpuset", "cpuset.cpus"),
    "OomKillDisable": ("memory", "memory.oom_control"),
}
_V2_CONTROLLERS = {
    "MemoryLimit": "memory",
    "SwapLimit": "memory",
    "CpuCfsPeriod": "cpu",
    "CpuCfsQuota": "cpu",
    "CPUShares": "cpu",
    "CPUSet": "cpuset",
    "PidsLimit": "pids",
}


def cgroup_version(root: Path = _CGROUP) -> str:
    """ "2", or "1", which a hybrid set-up counts as: its controllers are on the v1 side."""
    return "2" if (root / "cgroup.controllers").exists() else "1"


def limits(root: Path = _CGROUP) -> dict[str, bool]:
    """Which limits this kernel can set."""
    if cgroup_version(root) == "2":
        there = (root / "cgroup.controllers").read_text().split()
        found = {key: controller in there for key, controller in _V2_CONTROLLERS.items()}
        return {**found, "OomKillDisable": False}
    found = {key: (root / controller / file).exists() for key, (controller, file) in _V1_FILES.items()}
    return {**found, "PidsLimit": (root / "pids").is_dir()}


def forwards_ipv4() -> bool:
    try:
        return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    except OSError:
        return False


@functools.cache
def os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {"PRETTY_NAME": "Linux", "VERSION_ID": ""}


@functools.cache
def memory() -> int:
    """Bytes of RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def kernel() -> str:
    return os.uname().release


def machine() -> str:
    """As the kernel calls it: x86_64."""
    return os.uname().machine


@functools.cache
def architecture() -> str:
    """As Go and OCI call it: amd64."""
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386", "i386": "386"}.get(
        machine(), machine()
    )


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
