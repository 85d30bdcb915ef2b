"""`search`: images on Docker Hub."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure
from wherry.cli.credentials import registry_header
from wherry.cli.flags import BOOL, FILTER, INT, STRING, Flag, Flags
from wherry.cli.listing import Row, ellipsis, filters_json, print_rows
from wherry.cli.names import INDEX_SERVER, is_domain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADERS = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
COLUMNS = ("Name", "Description", "StarCount", "IsOfficial")


class SearchRow(Row):
    type_name = "*formatter.searchContext"

    def __init__(self, found: dict[str, Any], *, truncate: bool) -> None:
        self.found = found
        self.truncate = truncate

    def description(self) -> str:
        text = str(self.found.get("description") or "").replace("\n", " ").replace("\r", " ")
        return ellipsis(text, 45) if self.truncate else text

    FIELDS = {  # noqa: RUF012 - a constant
        "Name": lambda self: self.found.get("name") or "",
        "Description": description,
        "StarCount": lambda self: str(self.found.get("star_count") or 0),
        "IsOfficial": lambda self: "[OK]" if self.found.get("is_official") else "",
    }


FLAGS = (
    Flag("filter", "f", FILTER, "Filter output based on conditions provided"),
    Flag("format", "", STRING, "Pretty-print search using a Go template"),
    Flag("limit", "", INT, "Max number of search results"),
    Flag("no-trunc", "", BOOL, "Don't truncate output"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    if not arguments[0]:
        raise Failure("Error: empty search term")
    query = {
        "term": arguments[0],
        "limit": flags.number("limit") or None,
        "filters": filters_json(flags.texts("filter")),
    }
    from wherry.client.jsontext import loads

    domain, slash, _ = arguments[0].partition("/")
    server = domain if slash and is_domain(domain) else INDEX_SERVER
    with cli.engine.open("GET", "/images/search", query, headers=registry_header(cli, server)) as call:
        found = loads(b"".join(call.chunks())) or []
    rows = [SearchRow(entry, truncate=not flags.on("no-trunc")) for entry in found]
    print_rows(flags.text("format"), rows, COLUMNS, HEADERS)
    return 0


COMMANDS = {"search": Command("[OPTIONS] TERM", run, flags=FLAGS, arguments=(1, 1))}
