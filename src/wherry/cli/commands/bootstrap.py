"""`image bootstrap`: a base image without a registry, from this machine's own packages."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure
from wherry.cli.flags import BOOL, Flag, Flags
from wherry.cli.progress import StreamError, show_stream

NAMES = ("busybox", "debian")


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    name = arguments[0]
    try:
        with cli.engine.open("POST", "/images/bootstrap", {"name": name}) as call:
            show_stream(call.messages(), fd=1, quiet=flags.on("quiet"))
    except StreamError as exc:
        raise Failure(str(exc)) from None
    return 0


COMMANDS = {
    "bootstrap": Command(
        "[OPTIONS] NAME",
        run,
        flags=(Flag("quiet", "q", BOOL, "Suppress verbose output"),),
        arguments=(1, 1),
        details=f"Make a base image from this machine's packages; NAME is one of {', '.join(NAMES)}",
    )
}
