"""`rm`: remove containers."""

from __future__ import annotations

from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import line
from wherry.cli.flags import BOOL, Flag, Flags
from wherry.client.engine import quote

FLAGS = (
    Flag("force", "f", BOOL, "Force the removal of a running container (uses SIGKILL)"),
    Flag("link", "l", BOOL, "Remove the specified link"),
    Flag("volumes", "v", BOOL, "Remove anonymous volumes associated with the container"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    query = {"force": flags.on("force"), "link": flags.on("link"), "v": flags.on("volumes")}

    def remove(name: str) -> None:
        name = name.strip("/")
        cli.engine.call("DELETE", f"/containers/{quote(name)}", query)
        line(name)

    return for_each(arguments, remove, missing_is_fine=flags.on("force"))


COMMANDS = {
    "rm": Command("[OPTIONS] CONTAINER [CONTAINER...]", run, flags=FLAGS, arguments=(1, UNLIMITED)),
}
