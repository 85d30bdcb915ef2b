"""`stats`: what containers use, once or again and again."""

from __future__ import annotations

import os

from wherry.cli.batch import AT_ONCE
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import flush, out
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, format_rows
from wherry.cli.units import binary_size, human_size
from wherry.client.engine import EngineError, ProtocolError, Unreachable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADERS = {
    "Container": "CONTAINER",
    "ID": "CONTAINER ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
NOTHING = "--"
HOME, CLEAR_BELOW, CLEAR_RIGHT = "\x1b[H", "\x1b[J", "\x1b[K"


def cpu_percent(stats: dict[str, Any]) -> float:
    """Of one CPU, between the two readings that the engine took."""
    now, before = stats.get("cpu_stats") or {}, stats.get("precpu_stats") or {}
    used = _usage(now) - _usage(before)
    system = (now.get("system_cpu_usage") or 0) - (before.get("system_cpu_usage") or 0)
    cpus = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or []) or 1
    return float(used / system * cpus * 100) if used > 0 and system > 0 else 0.0


def _usage(reading: dict[str, Any]) -> int:
    return int((reading.get("cpu_usage") or {}).get("total_usage") or 0)


def memory_used(memory: dict[str, Any]) -> int:
    """Without the file cache that could go at any time (cgroup v1 and v2 name it differently)."""
    usage = int(memory.get("usage") or 0)
    details = memory.get("stats") or {}
    for name in ("total_inactive_file", "inactive_file"):
        inactive = details.get(name)
        if inactive is not None and inactive < usage:
            return usage - int(inactive)
    return usage


class StatsRow(Row):
    type_name = "*container.statsContext"

    def __init__(self, asked: str, stats: dict[str, Any] | None, *, truncate: bool) -> None:
        self.asked = asked
        self.stats = stats  # None when the engine had none to give
        self.truncate = truncate

    def identifier(self) -> str:
        identifier = str((self.stats or {}).get("id") or "")
        return (identifier[:12] if self.truncate else identifier) or NOTHING

    def name(self) -> str:
        return str((self.stats or {}).get("name") or "").removeprefix("/") or NOTHING

    def cpu(self) -> str:
        return NOTHING if self.stats is None else f"{cpu_percent(self.stats):.2f}%"

    def memory(self) -> dict[str, Any]:
        return (self.stats or {}).get("memory_stats") or {}

    def memory_usage(self) -> str:
        if self.stats is None:
            return f"{NOTHING} / {NOTHING}"
        return f"{binary_size(memory_used(self.memory()))} / {binary_size(self.memory().get('limit') or 0)}"

    def memory_percent(self) -> str:
        limit = self.memory().get("limit") or 0
        if self.stats is None:
            return NOTHING
        return f"{memory_used(self.memory()) / limit * 100 if limit else 0:.2f}%"

    def network(self) -> str:
        if self.stats is None:
            return NOTHING
        networks = (self.stats.get("networks") or {}).values()
        received = sum(entry.get("rx_bytes") or 0 for entry in networks)
        sent = sum(entry.get("tx_bytes") or 0 for entry in networks)
        return f"{human_size(received, 3)} / {human_size(sent, 3)}"

    def block(self) -> str:
        if self.stats is None:
            return NOTHING
        entries = (self.stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
        totals = {"r": 0, "w": 0}
        for entry in entries:
            first = str(entry.get("op") or "")[:1].lower()
            if first in totals:
                totals[first] += entry.get("value") or 0
        return f"{human_size(totals['r'], 3)} / {human_size(totals['w'], 3)}"

    def pids(self) -> str:
        if self.stats is None:
            return NOTHING
        return str((self.stats.get("pids_stats") or {}).get("current") or 0)

    FIELDS = {  # noqa: RUF012 - a constant
        "BlockIO": block,
        "CPUPerc": cpu,
        "Container": lambda self: self.asked,
        "ID": identifier,
        "MemPerc": memory_percent,
        "MemUsage": memory_usage,
        "Name": name,
        "NetIO": network,
        "PIDs": pids,
    }


FLAGS = (
    Flag("all", "a", BOOL, "Show all containers (default shows just running)"),
    Flag("format", "", STRING, FORMAT_HELP),
    Flag("no-stream", "", BOOL, "Disable streaming stats and only pull the first result"),
    Flag("no-trunc", "", BOOL, "Do not truncate output"),
)


def read_one(cli: CLI, name: str) -> dict[str, Any] | None:
    """A reading over about a second; None when there is none. EngineError when there is no such container."""
    engine = cli.another_engine()
    try:
        stats = engine.get_json(f"/containers/{quote(name)}/stats", {"stream": 0})
    except EngineError as exc:
        if exc.status == 404:
            raise
        return None
    except ProtocolError:
        return None
    finally:
        engine.close()
    return stats if isinstance(stats, dict) else None


def read_all(cli: CLI, names: list[str], *, truncate: bool, strict: bool) -> list[StatsRow]:
    """All at once. A container that went away meanwhile is left out, unless `strict`."""
    if not names:
        return []
    from concurrent.futures import ThreadPoolExecutor

    def one(name: str) -> StatsRow | EngineError:
        try:
            return StatsRow(name, read_one(cli, name), truncate=truncate)
        except EngineError as exc:
            return exc

    rows: list[StatsRow] = []
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        for found in pool.map(one, names):
            if isinstance(found, StatsRow):
                rows.append(found)
            elif strict:
                raise found
    return rows


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    form = flags.text("format") or str(cli.config.get("statsFormat") or "")
    truncate = not flags.on("no-trunc")

    def names() -> list[str]:
        if arguments:
            return arguments
        return [container["Id"][:12] for container in cli.engine.get_json("/containers/json", {"all": flags.on("all")})]

    if flags.on("no-stream"):
        rows = read_all(cli, names(), truncate=truncate, strict=bool(arguments))
        out(format_rows(form, rows, COLUMNS, HEADERS))
        return 0
    terminal, first = os.isatty(1), True
    while True:
        try:
            rows = read_all(cli, names(), truncate=truncate, strict=first and bool(arguments))
        except Unreachable:
            if first:
                raise
            return 0  # the engine is gone, and so is what was shown
        text = format_rows(form, rows, COLUMNS, HEADERS)
        if terminal:
            text = HOME + text.replace("\n", CLEAR_RIGHT + "\n") + CLEAR_BELOW
        out(text)
        flush()
        first = False
        if arguments and not rows:
            return 0
        if not rows:
            import time

            time.sleep(1)


COMMANDS = {"stats": Command("[OPTIONS] [CONTAINER...]", run, flags=FLAGS, arguments=(0, UNLIMITED))}
