"""`builds ls`, `inspect`, `logs`, `explain`, `rm`: what was built, how, and why each step ran."""

from __future__ import annotations

import time

from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import flush, line, out
from wherry.cli.flags import BOOL, INT, LIST, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, print_rows
from wherry.cli.units import human_duration
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SECOND = 1_000_000_000  # ns
HEADERS = {
    "ID": "BUILD ID",
    "Name": "NAME",
    "Status": "STATUS",
    "Steps": "STEPS",
    "Cached": "CACHED",
    "CreatedAt": "CREATED",
    "Duration": "DURATION",
    "Error": "ERROR",
}
COLUMNS = ("ID", "Name", "Status", "Steps", "CreatedAt", "Duration")


class BuildRow(Row):
    def __init__(self, build: dict[str, Any]) -> None:
        self.build = build

    def name(self) -> str:
        """What came of it; else what it was made from."""
        names = self.build.get("Names") or []
        if names:
            return ", ".join(name.removeprefix("docker.io/library/").removeprefix("docker.io/") for name in names)
        context = str(self.build.get("Context") or "-")
        return context.rstrip("/").rpartition("/")[2] or context

    def steps(self) -> str:
        cached = int(self.build.get("CachedSteps") or 0)
        return f"{self.build.get('TotalSteps') or 0}" + (f" ({cached} cached)" if cached else "")

    def age(self) -> str:
        return f"{human_duration(time.time() - int(self.build['Created']) / SECOND)} ago"

    def duration(self) -> str:
        return duration_text(int(self.build.get("Duration") or 0)) if self.build.get("Completed") else "-"

    def error(self) -> str:
        return str((self.build.get("Error") or {}).get("message") or "")

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": lambda self: self.build["Id"],
        "Name": name,
        "Status": lambda self: self.build["Status"],
        "Steps": steps,
        "Cached": lambda self: self.build.get("CachedSteps") or 0,
        "CreatedAt": age,
        "Duration": duration,
        "Error": error,
    }


def duration_text(ns: int) -> str:
    """`0.4s`, `1m 5s`."""
    seconds = ns / SECOND
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def ls(cli: CLI, flags: Flags, _: list[str]) -> int:
    found = cli.engine.get_json(
        "/builds", {"filter": flags.texts("filter") or None, "limit": flags.number("limit") or None}
    )
    if flags.on("quiet"):
        for build in found or []:
            line(str(build["Id"]))
        return 0
    print_rows(flags.text("format"), [BuildRow(build) for build in found or []], COLUMNS, HEADERS)
    return 0


def path_of(name: str) -> str:
    return f"/builds/{quote(name)}"


def inspect(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    from wherry.client.jsontext import indent

    documents: list[str] = []

    def one(name: str) -> None:
        documents.append(cli.engine.call("GET", path_of(name)).decode())

    code = for_each(arguments, one)
    out(indent("[" + ",".join(document.strip() for document in documents) + "]") + "\n")
    return code


def logs(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    """The whole log, on standard output; of a build that runs, until it ends."""
    from wherry.cli.build_plain import Plain, warnings_text
    from wherry.client.jsontext import dumps

    plain = Plain(out)
    with cli.engine.open("GET", path_of(arguments[0]) + "/logs") as call:
        for event in call.messages():
            if flags.text("progress") == "rawjson":
                line(dumps(event))
            else:
                plain.hear(event)
            flush()
    if flags.text("progress") != "rawjson":
        plain.end()
        out(warnings_text(plain.board))
    return 0


def explain(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    """Each step, and why it ran or did not; without an argument of the newest build."""
    if arguments:
        name = arguments[0]
    else:
        newest = cli.engine.get_json("/builds", {"limit": 1})
        if not newest:
            line("nothing was built yet")
            return 0
        name = str(newest[0]["Id"])
    for step in cli.engine.get_json(path_of(name) + "/explain") or []:
        spent = int(step.get("Completed") or 0) - int(step.get("Started") or 0)
        took = f"  ({duration_text(spent)})" if not step.get("Cached") and spent > 0 else ""
        line(f"{step['Name']}{took}")
        line(f"    {step['Why']}")
        if step.get("Error"):
            line(f"    failed: {step['Error']}")
    return 0


def rm(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    def remove(name: str) -> None:
        cli.engine.call("DELETE", path_of(name))
        line(name)

    if flags.on("all"):
        arguments = [str(build["Id"]) for build in cli.engine.get_json("/builds") or [] if build["Status"] != "running"]
    return for_each(arguments, remove)


COMMANDS = {
    "ls": Command(
        "[OPTIONS]",
        ls,
        flags=(
            Flag("filter", "", LIST, 'Provide filter values (e.g., "status=error")'),
            Flag("format", "", STRING, FORMAT_HELP),
            Flag("limit", "n", INT, "Show so many builds at most, the newest"),
            Flag("quiet", "q", BOOL, "Only display build IDs"),
        ),
    ),
    "inspect": Command("BUILD [BUILD...]", inspect, arguments=(1, UNLIMITED)),
    "logs": Command(
        "[OPTIONS] BUILD",
        logs,
        flags=(Flag("progress", "", STRING, 'Set type of progress output ("plain", "rawjson")', default="plain"),),
        arguments=(1, 1),
    ),
    "explain": Command("[BUILD]", explain, arguments=(0, 1)),
    "rm": Command(
        "[OPTIONS] BUILD [BUILD...]",
        rm,
        flags=(Flag("all", "a", BOOL, "Remove the records of all builds that have ended"),),
        arguments=(0, UNLIMITED),
    ),
}
