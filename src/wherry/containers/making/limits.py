"""Limits that this kernel cannot keep: discarded with a warning in Docker's words, as Docker does."""

import functools
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from wherry.kernel import cgroup
from wherry.spec.engine import Resources

R = TypeVar("R", bound=Resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What the kernel's control groups can do."""

    swap: bool = True
    swappiness: bool = True
    oom_kill_disable: bool = True
    blkio_weight: bool = True
    blkio_weight_device: bool = True


@functools.cache
def support() -> Support:
    """Of this machine; it does not change while it runs."""
    if cgroup.layout() is cgroup.Layout.V2:
        return Support(swappiness=False, oom_kill_disable=False)
    return Support(
        swap=cgroup.supports("memory", "memory.memsw.limit_in_bytes"),
        swappiness=cgroup.supports("memory", "memory.swappiness"),
        oom_kill_disable=cgroup.supports("memory", "memory.oom_control"),
        blkio_weight=cgroup.supports("blkio", "blkio.weight"),
        blkio_weight_device=cgroup.supports("blkio", "blkio.weight_device"),
    )


def keep_supported(limits: R, known: Support) -> tuple[R, list[str]]:
    """The limits that can be kept, and a warning for each that cannot."""
    warnings: list[str] = []

    def lacking(what: str, consequence: str) -> None:
        warnings.append(f"Your kernel does not support {what} or the cgroup is not mounted. {consequence}")

    if limits.memory > 0 and limits.memory_swap != -1 and not known.swap:
        lacking("swap limit capabilities", "Memory limited without swap.")
        limits = replace(limits, memory_swap=-1)
    if limits.memory_swappiness not in (None, -1) and not known.swappiness:
        lacking("memory swappiness capabilities", "Memory swappiness discarded.")
        limits = replace(limits, memory_swappiness=None)
    if limits.oom_kill_disable and not known.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        limits = replace(limits, oom_kill_disable=None)
    if limits.oom_kill_disable and limits.memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if limits.blkio_weight and not known.blkio_weight:
        lacking("Block I/O weight", "Weight discarded.")
        limits = replace(limits, blkio_weight=0)
    if limits.blkio_weight_device and not known.blkio_weight_device:
        lacking("Block I/O weight_device", "Weight-device discarded.")
        limits = replace(limits, blkio_weight_device=None)
    return limits, warnings
