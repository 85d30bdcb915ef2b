"""`history`: how an image came about."""

from __future__ import annotations

import time

from wherry.cli.clock import rfc3339
from wherry.cli.command import CLI, Command
from wherry.cli.console import line
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, ellipsis, print_rows, short_id
from wherry.cli.platforms import FORMATTED, platform_query
from wherry.cli.units import human_duration, human_size
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADERS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
HUMAN = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
EXACT = ("ID", "CreatedAt", "CreatedBy", "Size", "Comment")


class HistoryRow(Row):
    type_name = "*formatter.historyContext"

    def __init__(self, entry: dict[str, Any], *, truncate: bool, human: bool) -> None:
        self.entry = entry
        self.truncate = truncate
        self.human = human

    def identifier(self) -> str:
        identifier = str(self.entry["Id"])
        return short_id(identifier) if self.truncate else identifier

    def created_since(self) -> str:
        created = self.entry["Created"]
        if not self.human:
            return self.created_at()
        return "N/A" if created <= 0 else human_duration(time.time() - created) + " ago"

    def created_at(self) -> str:
        return rfc3339(self.entry["Created"])

    def created_by(self) -> str:
        text = str(self.entry.get("CreatedBy") or "").replace("\t", " ")
        return ellipsis(text, 45) if self.truncate else text

    def size(self) -> str:
        size = self.entry.get("Size") or 0
        return human_size(size, 3) if self.human else str(size)

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": identifier,
        "CreatedSince": created_since,
        "CreatedAt": created_at,
        "CreatedBy": created_by,
        "Size": size,
        "Comment": lambda self: self.entry.get("Comment") or "",
    }


FLAGS = (
    Flag("format", "", STRING, FORMAT_HELP),
    Flag("human", "H", BOOL, "Print sizes and dates in human readable format", default=True),
    Flag("no-trunc", "", BOOL, "Don't truncate output"),
    Flag("platform", "", STRING, f"Show history for the given platform. {FORMATTED}", since="1.48"),
    Flag("quiet", "q", BOOL, "Only show image IDs"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    human = flags.on("human")
    query = {"platform": platform_query(flags.text("platform"))}
    entries = cli.engine.get_json(f"/images/{quote(arguments[0], safe=b'/:@')}/history", query) or []
    rows = [HistoryRow(entry, truncate=not flags.on("no-trunc"), human=human) for entry in entries]
    if flags.on("quiet"):
        for row in rows:
            line(row.identifier())
        return 0
    print_rows(flags.text("format"), rows, HUMAN if human else EXACT, HEADERS)
    return 0


COMMANDS = {"history": Command("[OPTIONS] IMAGE", run, flags=FLAGS, arguments=(1, 1))}
