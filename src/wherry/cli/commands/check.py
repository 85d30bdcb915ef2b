"""`system check`: is the store of images what its records say, and what can be mended.

Exit code 1 as long as there is damage left.
"""

from __future__ import annotations

import os

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.listing import Row, compile_template, render_row
from wherry.cli.progress import StreamError, show_stream
from wherry.cli.table import align
from wherry.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from wherry.client.engine import Call


class ProblemRow(Row):
    """One thing that is, or was, damaged."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem

    def state(self) -> str:
        return "repaired" if self.problem.get("repaired") else "damaged"

    FIELDS = {  # noqa: RUF012 - a constant
        "Kind": lambda self: self.problem.get("kind") or "",
        "Object": lambda self: self.problem.get("object") or "",
        "State": state,
        "Detail": lambda self: self.problem.get("detail") or "",
        "Remedy": lambda self: self.problem.get("remedy") or "",
    }


class Result:
    """Takes the result out of the stream of progress."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = None

    def progress(self, call: Call) -> Iterator[dict[str, Any]]:
        for message in call.messages():
            if "checked" in message:
                self.document = message
            else:
                yield message


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary(checked: dict[str, Any], found: int, left: int) -> str:
    looked = (
        f"Checked {plural(checked.get('images') or 0, 'image')}, {plural(checked.get('layers') or 0, 'layer')} and "
        f"{plural(checked.get('blobs') or 0, 'blob')} of {human_size(checked.get('bytes') or 0)}: "
    )
    if not found:
        return looked + "no damage found"
    if not left:
        return f"{looked}{plural(found, 'problem')}, all repaired"
    return f"{looked}{plural(found, 'problem')}, {found - left} repaired, {left} left"


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    form, repair = flags.text("format"), flags.on("repair")
    template = compile_template(form) if form not in ("", "table", "json") else None
    if flags.on("pull") and not repair:
        raise Failure("--pull is about how to repair: give --repair, too")
    result = Result()
    query = {"repair": repair, "quick": flags.on("quick"), "pull": flags.on("pull")}
    try:
        with cli.engine.open("POST" if repair else "GET", "/system/check", query) as call:
            show_stream(result.progress(call), fd=2, quiet=flags.on("quiet") or not os.isatty(2))
    except StreamError as exc:
        raise Failure(str(exc)) from None
    if result.document is None:
        raise Failure("the engine broke off before the check was through: see its log")
    rows = [ProblemRow(problem) for problem in result.document.get("problems") or []]
    left = sum(not row.problem.get("repaired") for row in rows)
    if form == "json":
        from wherry.client.jsontext import dumps

        line(dumps(result.document))
    elif template is not None:
        for row in rows:
            line(render_row(template, row))
    else:
        show_table(rows)
        line(summary(result.document["checked"], len(rows), left))
    return 1 if left else 0


def show_table(rows: list[ProblemRow]) -> None:
    """A line for each problem, what is wrong and what to do below it."""
    from wherry.cli.console import out

    heads = align([f"{row.get('State')}\t{row.get('Kind')}\t{row.get('Object')}" for row in rows]).splitlines()
    for row, head in zip(rows, heads, strict=True):
        line(head)
        out("".join(f"    {text}\n" for text in (row.get("Detail"), row.get("Remedy")) if text))
    if rows:
        line("")


COMMANDS = {
    "check": Command(
        "[OPTIONS]",
        run,
        flags=(
            Flag(
                "format",
                "",
                STRING,
                "Format output using a custom template:\n"
                "'json':             Print the engine's report in JSON format\n"
                "'TEMPLATE':         Print each problem using the given Go template",
            ),
            Flag("pull", "", BOOL, "With --repair: fetch what is lost from the registries images came from"),
            Flag("quick", "", BOOL, "Compare sizes only, do not read contents"),
            Flag("quiet", "q", BOOL, "Suppress progress output"),
            Flag("repair", "", BOOL, "Mend what can be mended"),
        ),
        details="Find damage in the store of images: missing, truncated or altered blobs and layers, and leftovers",
    )
}
