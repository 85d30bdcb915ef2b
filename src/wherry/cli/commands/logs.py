"""`logs`: what a container has written."""

from __future__ import annotations

from wherry.cli.clock import timestamp
from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.client.engine import quote

FLAGS = (
    Flag("details", "", BOOL, "Show extra details provided to logs"),
    Flag("follow", "f", BOOL, "Follow log output"),
    Flag(
        "since",
        "",
        STRING,
        'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)',
    ),
    Flag("tail", "n", STRING, "Number of lines to show from the end of the logs", default="all"),
    Flag("timestamps", "t", BOOL, "Show timestamps"),
    Flag(
        "until",
        "",
        STRING,
        'Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)',
        since="1.35",
    ),
)


def moment(name: str, value: str) -> str | None:
    if not value:
        return None
    try:
        return timestamp(value)
    except ValueError:
        raise Failure(f'invalid value for "{name}": failed to parse value as time or duration: "{value}"') from None


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    container = cli.engine.get_json(f"/containers/{quote(arguments[0])}/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": flags.on("follow"),
        "timestamps": flags.on("timestamps"),
        "details": flags.on("details"),
        "since": moment("since", flags.text("since")),
        "until": moment("until", flags.text("until")),
        "tail": flags.text("tail"),
    }
    from wherry.cli.session import STDOUT, Demultiplexer, write_all

    with cli.engine.open("GET", f"/containers/{quote(container['Id'])}/logs", query) as call:
        if container["Config"]["Tty"]:
            for chunk in call.chunks():
                write_all(STDOUT, chunk)
        else:
            demultiplexer = Demultiplexer()
            for chunk in call.chunks():
                demultiplexer.feed(chunk)
    return 0


COMMANDS = {"logs": Command("[OPTIONS] CONTAINER", run, flags=FLAGS, arguments=(1, 1))}
