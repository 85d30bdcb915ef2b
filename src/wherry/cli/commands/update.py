"""`update`: limits and restart policy of containers that exist."""

from __future__ import annotations

from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line, warn
from wherry.cli.flags import BYTES, CPUS, INT, MEMORY_SWAP, STRING, UINT16, Flag, Flags
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
    Flag("pids-limit", "", INT, "Tune container pids limit (set -1 for unlimited)", since="1.40"),
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


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    if not flags.changed:
        raise Failure("you must provide one or more flags when using this command")
    body: dict[str, Any] = {key: flags.value(name) for name, key in KEYS.items() if name in flags.changed}
    if flags.text("restart"):
        body["RestartPolicy"] = restart_policy(flags.text("restart"))

    def act(name: str) -> None:
        answer = cli.engine.post_json(f"/containers/{quote(name)}/update", None, body) or {}
        line(name)
        warnings.extend(answer.get("Warnings") or [])

    warnings: list[str] = []
    code = for_each(arguments, act)
    for warning in warnings:
        warn(warning)
    return code


COMMANDS = {
    "update": Command("[OPTIONS] CONTAINER [CONTAINER...]", run, flags=FLAGS, arguments=(1, UNLIMITED)),
}
