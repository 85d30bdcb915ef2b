"""`update`: limits and restart policy of containers that exist."""

from __future__ import annotations

from wherry.cli import run_values as check
from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line
from wherry.cli.flags import BYTES, CPUS, INT, LIST, MEMORY_SWAP, STRING, UINT16, Flag, Flags
from wherry.cli.ports import PortError, parse_publish
from wherry.cli.run_config import restart_policy
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    Flag("blkio-weight", "", UINT16, "Block IO (relative weight), between 10 and 1000, or 0 to disable"),
    Flag("cpu-period", "", INT, "Limit CPU CFS (Completely Fair Scheduler) period"),
    Flag("cpu-quota", "", INT, "Limit CPU CFS (Completely Fair Scheduler) quota"),
    Flag("cpu-rt-period", "", INT, "Limit the CPU real-time period in microseconds"),
    Flag("cpu-rt-runtime", "", INT, "Limit the CPU real-time runtime in microseconds"),
    Flag("cpu-shares", "c", INT, "CPU shares (relative weight)"),
    Flag("cpus", "", CPUS, "Number of CPUs"),
    Flag("cpuset-cpus", "", STRING, "CPUs in which to allow execution (0-3, 0,1)"),
    Flag("cpuset-mems", "", STRING, "MEMs in which to allow execution (0-3, 0,1)"),
    Flag("memory", "m", BYTES, "Memory limit"),
    Flag("memory-reservation", "", BYTES, "Memory soft limit"),
    Flag("memory-swap", "", MEMORY_SWAP, "Swap limit equal to memory plus swap: -1 to enable unlimited swap"),
    Flag("device-add", "", LIST, "Add a host device to the container", check=check.device_path),
    Flag("device-rm", "", LIST, "Remove a device from the container, by its path there"),
    Flag("mount-add", "", LIST, "Attach a filesystem mount to the container", check=check.mount, shown="mount"),
    Flag("mount-rm", "", LIST, "Detach the mount at a path of the container"),
    Flag("pids-limit", "", INT, "Tune container pids limit (set -1 for unlimited)", since="1.40"),
    Flag("publish-add", "", LIST, "Publish a container's port(s) to the host, without a restart"),
    Flag("publish-rm", "", LIST, "Publish a port no more: [[ip:]host-port:]container-port[/protocol]"),
    Flag("restart", "", STRING, "Restart policy to apply when a container exits"),
)
KEYS = {
    "blkio-weight": "BlkioWeight",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpu-shares": "CpuShares",
    "cpus": "NanoCpus",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "pids-limit": "PidsLimit",
}


def _changes(body: dict[str, Any], flags: Flags) -> None:
    """What comes to the container and what goes."""
    try:
        for text in flags.texts("publish-add"):
            for port, address, published in parse_publish(text):
                bindings = body.setdefault("PublishAdd", {}).setdefault(port, [])
                bindings.append({"HostIp": address, "HostPort": published})
        for text in flags.texts("publish-rm"):
            body.setdefault("PublishRm", []).extend(_port(*found) for found in parse_publish(text))
    except PortError as exc:
        raise Failure(str(exc)) from None
    if mounts := flags.value("mount-add"):
        body["MountAdd"] = mounts
    if devices := flags.texts("device-add"):
        body["DeviceAdd"] = [_device(text) for text in devices]
    for name, key in (("mount-rm", "MountRm"), ("device-rm", "DeviceRm")):
        if paths := flags.texts(name):
            body[key] = paths


def _port(port: str, address: str, published: str) -> str:
    """One port to be published no more, in the words of -p."""
    if not address:
        return f"{published}:{port}" if published else port
    return f"[{address}]:{published}:{port}" if ":" in address else f"{address}:{published}:{port}"


def _device(text: str) -> dict[str, str]:
    host, *rest = text.split(":")
    mode = rest.pop() if rest and check.is_device_mode(rest[-1]) else "rwm"
    if len(rest) > 1:
        raise Failure(f"bad mode specified: {rest[-1]}")
    return {"PathOnHost": host, "PathInContainer": rest[0] if rest else host, "CgroupPermissions": mode}


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    if not flags.changed:
        raise Failure("you must provide one or more flags when using this command")
    body: dict[str, Any] = {key: flags.value(name) for name, key in KEYS.items() if name in flags.changed}
    if flags.text("restart"):
        body["RestartPolicy"] = restart_policy(flags.text("restart"))
    _changes(body, flags)

    def act(name: str) -> None:
        answer = cli.engine.post_json(f"/containers/{quote(name)}/update", None, body) or {}
        line(name)
        warnings.extend(answer.get("Warnings") or [])

    warnings: list[str] = []
    code = for_each(arguments, act)
    for warning in warnings:  # docker says them on stdout here
        line(warning)
    return code


COMMANDS = {
    "update": Command("[OPTIONS] CONTAINER [CONTAINER...]", run, flags=FLAGS, arguments=(1, UNLIMITED)),
}
