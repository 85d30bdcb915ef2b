"""`events`: what happens in the engine, as it happens."""

from __future__ import annotations

from wherry.cli.clock import rfc3339, timestamp
from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, flush, line
from wherry.cli.flags import FILTER, STRING, Flag, Flags
from wherry.cli.listing import INSPECT_FORMAT_HELP, compile_template, filters_json, render_row
from wherry.client import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    Flag("filter", "f", FILTER, "Filter output based on conditions provided"),
    Flag("format", "", STRING, INSPECT_FORMAT_HELP),
    Flag("since", "", STRING, "Show all events created since timestamp"),
    Flag("until", "", STRING, "Stream events until this timestamp"),
)


def describe_event(event: dict[str, Any]) -> str:
    """`TIME TYPE ACTION ID (key=value, …)`"""
    nano = event.get("timeNano") or 0
    when = rfc3339(nano // 1_000_000_000, nano % 1_000_000_000) if nano else rfc3339(event.get("time") or 0)
    actor = event.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    text = f"{when} {event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    if attributes:
        text += " (" + ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes)) + ")"
    return text


def _moment(value: str) -> str | None:
    try:
        return timestamp(value) if value else None
    except ValueError as exc:
        raise Failure(str(exc)) from None


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    form = flags.text("format")
    template = compile_template(form) if form and form != "json" else None
    query = {
        "filters": filters_json(flags.texts("filter")),
        "since": _moment(flags.text("since")),
        "until": _moment(flags.text("until")),
    }
    with cli.engine.open("GET", "/events", query) as call:
        for event in call.messages():
            if template is not None:
                line(render_row(template, event))
            elif form:
                line(jsontext.dumps(event))
            else:
                line(describe_event(event))
            flush()
    return 0


COMMANDS = {"events": Command("[OPTIONS]", run, flags=FLAGS)}
