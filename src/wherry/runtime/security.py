"""What a container may do: capabilities, paths it must not see or change, and `--security-opt`. Pure.

The defaults are Docker's: part of the interface that images are written against.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import InvalidParameter
from wherry.kernel import process
from wherry.runtime import seccomp

# In the order of their numbers.
CAPABILITIES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)

DEFAULT_CAPABILITIES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
        "AUDIT_WRITE"
    ).split()
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def available(bounding: int | None = None) -> list[str]:
    """All capabilities that this process can give away: those in its bounding set."""
    mask = process.capabilities("CapBnd") if bounding is None else bounding
    return [name for number, name in enumerate(CAPABILITIES) if mask >> number & 1]


def capabilities(
    add: Sequence[str], drop: Sequence[str], *, privileged: bool, bounding: int | None = None
) -> tuple[list[str], list[str]]:
    """A container's capabilities by Docker's rules, and warnings about those this machine does not have.

    Raises InvalidParameter for a name that is none.
    """
    have = available(bounding)
    added, dropped = _normalized(add), _normalized(drop)
    wanted: Sequence[str]
    if privileged:
        wanted = have
    elif "ALL" in added:
        wanted = [name for name in have if name not in dropped]
    elif "ALL" in dropped:
        wanted = added
    else:
        wanted = [*(name for name in DEFAULT_CAPABILITIES if name not in dropped), *added]
    missing = [name for name in added if name in CAPABILITIES and name not in have and not privileged]
    if privileged or "ALL" in added:
        missing = [name for name in CAPABILITIES if name not in have and name not in dropped]
    warnings = [f"This machine does not have {name}: the container runs without it." for name in missing]
    return list(dict.fromkeys(name for name in wanted if name in have)), warnings


def _normalized(names: Sequence[str]) -> list[str]:
    result = []
    for name in names:
        upper = name.upper()
        if upper == "ALL":
            result.append(upper)
            continue
        full = upper if upper.startswith("CAP_") else "CAP_" + upper
        if full not in CAPABILITIES:
            raise InvalidParameter(f'unknown capability: "{full}"')
        result.append(full)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`--security-opt`, read."""

    seccomp: dict[str, Any] | None = None  # a profile; None = unconfined
    no_new_privileges: bool = False
    confine_paths: bool = True  # masked and read-only paths apply
    writable_cgroups: bool = False
    apparmor: str = ""


def parse_options(options: Sequence[str], *, privileged: bool = False) -> Options:
    """Read `--security-opt` values as the API carries them: a seccomp profile comes as JSON. Raises InvalidParameter.

    A privileged container has a seccomp profile only if it was asked for.
    """
    values: dict[str, Any] = {"seccomp": None if privileged else seccomp.default_profile()}
    for option in options:
        if option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            values["no_new_privileges"] = True
            continue
        if option == "disable":
            continue  # labels, in the oldest form
        separator = "=" if "=" in option else ":"  # the older form
        key, found, value = option.partition(separator)
        if not found:
            raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
        _read_option(values, option, key, value)
    return Options(**values)


def _read_option(values: dict[str, Any], option: str, key: str, value: str) -> None:
    match key:
        case "label":
            return  # SELinux: there is none to tell
        case "apparmor":
            values["apparmor"] = value
        case "seccomp":
            values["seccomp"] = _seccomp(value)
        case "no-new-privileges":
            values["no_new_privileges"] = _boolean(option, value)
        case "writable-cgroups":
            values["writable_cgroups"] = _boolean(option, value)
        case "systempaths":
            if value != "unconfined":
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
            values["confine_paths"] = False
        case _:
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')


def _boolean(option: str, value: str) -> bool:
    if value.lower() in ("true", "1", "t"):
        return True
    if value.lower() in ("false", "0", "f"):
        return False
    raise InvalidParameter(f'invalid --security-opt 2: "{option}"')


def _seccomp(value: str) -> dict[str, Any] | None:
    if value == "unconfined":
        return None
    if value in ("builtin", ""):
        return seccomp.default_profile()
    try:
        return seccomp.check_profile(json.loads(value))
    except ValueError as exc:
        raise InvalidParameter(f"opening seccomp profile ({value[:60]}) failed: {exc}") from exc
