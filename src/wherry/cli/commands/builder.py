"""`builder prune`, `builder du`: what builds keep on disk."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.commands.prune import Pruned, confirm
from wherry.cli.console import line
from wherry.cli.flags import BOOL, BYTES, FILTER, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, filters_json, print_rows
from wherry.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NORMAL = "WARNING! This will remove all dangling build cache."
ALL = "WARNING! This will remove all build cache."
HEADERS = {
    "ID": "ID",
    "Type": "TYPE",
    "Description": "DESCRIPTION",
    "InUse": "IN USE",
    "Shared": "SHARED",
    "Size": "SIZE",
    "LastUsedAt": "LAST USED",
}
COLUMNS = ("ID", "Type", "Size", "InUse", "Shared", "Description")


def prune(cli: CLI, flags: Flags, _: list[str]) -> int:
    everything = flags.on("all")
    if not flags.on("force") and not confirm(ALL if everything else NORMAL):
        return 0
    pairs = flags.texts("filter")
    reserved = flags.number("reserved-space") or flags.number("keep-storage")
    query = {
        "all": everything,
        "filters": filters_json(pairs),
        "reserved-space": reserved or None,
        "max-used-space": flags.number("max-used-space") or None,
        "min-free-space": flags.number("min-free-space") or None,
    }
    answer = cli.engine.post_json("/build/prune", query) or {}
    Pruned("Deleted build cache objects:", answer.get("CachesDeleted") or []).show()
    line(f"Total reclaimed space: {human_size(answer.get('SpaceReclaimed') or 0)}")
    return 0


class CacheRow(Row):
    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": lambda self: self.entry["ID"],
        "Type": lambda self: self.entry["Type"],
        "Description": lambda self: " ".join(str(self.entry.get("Description") or "").split())[:60],
        "InUse": lambda self: str(bool(self.entry.get("InUse"))).lower(),
        "Shared": lambda self: str(bool(self.entry.get("Shared"))).lower(),
        "Size": lambda self: human_size(self.entry["Size"]),
        "LastUsedAt": lambda self: self.entry.get("LastUsedAt") or "",
    }


def du(cli: CLI, flags: Flags, _: list[str]) -> int:
    found = cli.engine.get_json("/system/df", {"type": "build-cache"}).get("BuildCache") or []
    print_rows(flags.text("format"), [CacheRow(entry) for entry in found], COLUMNS, HEADERS)
    if not flags.text("format"):
        line(f"Total: {human_size(sum(entry['Size'] for entry in found))}")
    return 0


COMMANDS = {
    "prune": Command(
        "[OPTIONS]",
        prune,
        flags=(
            Flag("all", "a", BOOL, "Remove all unused build cache, not just dangling ones"),
            Flag("filter", "", FILTER, 'Provide filter values (e.g. "until=24h")'),
            Flag("force", "f", BOOL, "Do not prompt for confirmation"),
            Flag("keep-storage", "", BYTES, "Amount of disk space to keep for cache", hidden=True),
            Flag("max-used-space", "", BYTES, "Maximum amount of disk space allowed to keep for cache"),
            Flag("min-free-space", "", BYTES, "Target amount of free disk space after pruning"),
            Flag("reserved-space", "", BYTES, "Amount of disk space always allowed to keep for cache"),
        ),
    ),
    "du": Command("[OPTIONS]", du, flags=(Flag("format", "", STRING, FORMAT_HELP),)),
}
