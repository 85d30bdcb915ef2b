"""Limits in the Engine API's words to `linux.resources` of the OCI runtime spec. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.errors import InvalidParameter
from wherry.runtime.devices import Device
from wherry.spec.engine import Resources, ThrottleDevice

Document = dict[str, Any]
Numbers = Mapping[str, tuple[int, int]]  # major and minor by path

PERIOD = 100_000  # us; what --cpus is measured in
_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})\Z")

# Nodes may be made of any device, but used only of these: null, zero, full, random, urandom, tty, console, ptmx, pts,
# and the tun device for reading and writing by who may make one.
_USUAL_DEVICES = (
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),
    ("c", 1, 5, "rwm"),
    ("c", 1, 7, "rwm"),
    ("c", 1, 8, "rwm"),
    ("c", 1, 9, "rwm"),
    ("c", 5, 0, "rwm"),
    ("c", 5, 1, "rwm"),
    ("c", 5, 2, "rwm"),
    ("c", 136, None, "rwm"),
)


def build(
    limits: Resources, *, devices: Sequence[Device] = (), privileged: bool = False, numbers: Numbers | None = None
) -> Document:
    """All resources of a new container."""
    return {
        "devices": [{"allow": True, "type": "a", "access": "rwm"}] if privileged else device_rules(limits, devices),
        **update(limits, numbers=numbers or {}),
    }


def update(limits: Resources, *, numbers: Numbers | None = None) -> Document:
    """What of `limits` is set, and nothing else: also the body of a runtime's `update`."""
    parts = {
        "memory": _memory(limits),
        "cpu": _cpu(limits),
        "pids": _pids(limits),
        "blockIO": _block_io(limits, numbers or {}),
    }
    return {key: value for key, value in parts.items() if value}


def _memory(limits: Resources) -> Document:
    memory: Document = {}
    if limits.memory > 0:
        memory["limit"] = limits.memory
        memory["swap"] = 2 * limits.memory  # Docker's default: as much swap as memory
    if limits.memory_reservation > 0:
        memory["reservation"] = limits.memory_reservation
    if limits.memory_swap:
        memory["swap"] = limits.memory_swap
    if limits.memory_swappiness is not None and limits.memory_swappiness >= 0:
        memory["swappiness"] = limits.memory_swappiness
    if limits.oom_kill_disable:
        memory["disableOOMKiller"] = True
    return memory


def _cpu(limits: Resources) -> Document:
    if limits.nano_cpus and (limits.cpu_quota or limits.cpu_period):
        option = "CPU Period" if limits.cpu_period else "CPU Quota"
        raise InvalidParameter(f"Conflicting options: Nano CPUs and {option} cannot both be set.")
    cpu: Document = {}
    if limits.nano_cpus > 0:
        cpu["period"], cpu["quota"] = PERIOD, limits.nano_cpus * PERIOD // 10**9
    for key, value in (
        ("shares", limits.cpu_shares),
        ("period", limits.cpu_period),
        ("quota", limits.cpu_quota),
        ("realtimePeriod", limits.cpu_realtime_period),
        ("realtimeRuntime", limits.cpu_realtime_runtime),
        ("cpus", limits.cpuset_cpus),
        ("mems", limits.cpuset_mems),
    ):
        if value and value != -1:  # unlimited is what a group begins with, and crun cannot write it
            cpu[key] = value
    return cpu


def _pids(limits: Resources) -> Document:
    if limits.pids_limit is None or limits.pids_limit <= 0:
        return {}  # unlimited is what a group begins with, and crun cannot write it
    return {"limit": limits.pids_limit}


def _block_io(limits: Resources, numbers: Numbers) -> Document:
    def throttles(devices: Sequence[ThrottleDevice] | None) -> list[Document]:
        return [{**_numbered(each.path, numbers), "rate": each.rate} for each in devices or ()]

    parts = {
        "weight": limits.blkio_weight,
        "weightDevice": [
            {**_numbered(each.path, numbers), "weight": each.weight} for each in limits.blkio_weight_device or ()
        ],
        "throttleReadBpsDevice": throttles(limits.blkio_device_read_bps),
        "throttleWriteBpsDevice": throttles(limits.blkio_device_write_bps),
        "throttleReadIOPSDevice": throttles(limits.blkio_device_read_iops),
        "throttleWriteIOPSDevice": throttles(limits.blkio_device_write_iops),
    }
    return {key: value for key, value in parts.items() if value}


def _numbered(path: str, numbers: Numbers) -> Document:
    major, minor = numbers[path]
    return {"major": major, "minor": minor}


def device_rules(limits: Resources, devices: Sequence[Device]) -> list[Document]:
    """What devices a container may use that is not privileged: the first rule forbids all, each next one allows some.

    Raises InvalidParameter.
    """
    rules: list[Document] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in _USUAL_DEVICES:
        rules.append(_allow(kind, major, minor, access))
    rules += [_allow(each.kind, each.major, each.minor, each.access) for each in devices]
    for text in limits.device_cgroup_rules or ():
        match = _RULE.match(text)
        if match is None:
            raise InvalidParameter(f"invalid device cgroup rule format: '{text}'")
        major, minor = (None if match[index] == "*" else int(match[index]) for index in (2, 3))
        rules.append(_allow(match[1], major, minor, match[4]))
    return rules


def _allow(kind: str, major: int | None, minor: int | None, access: str) -> Document:
    rule: Document = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule
