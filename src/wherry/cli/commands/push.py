"""`push`: an image to a registry."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.commands.archive import platform_query
from wherry.cli.console import Failure, line
from wherry.cli.credentials import registry_header
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import InvalidReference, parse_name
from wherry.cli.progress import StreamError, show_stream
from wherry.client.engine import quote

FLAGS = (
    Flag("all-tags", "a", BOOL, "Push all tags of an image to the repository"),
    Flag("disable-content-trust", "", BOOL, "Skip image signing", default=True),
    Flag("platform", "", STRING, "Push a platform-specific manifest as a single-platform image", since="1.46"),
    Flag("quiet", "q", BOOL, "Suppress verbose output"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    try:
        name = parse_name(arguments[0])
    except InvalidReference as exc:
        raise Failure(str(exc)) from None
    if flags.on("all-tags"):
        if name.tag or name.digest:
            raise Failure("tag can't be used with --all-tags/-a")
    elif not name.tag:
        name = name.with_default_tag()
        if not flags.on("quiet"):
            line(f"Using default tag: {name.tag}")
    path = f"/images/{quote(name.familiar, safe=b'/:')}/push"
    query = {"tag": name.tag, "platform": platform_query(flags.text("platform"))}
    headers = registry_header(cli, name.server)
    try:
        with cli.engine.open("POST", path, query, headers=headers) as call:
            show_stream(call.messages(), fd=1, quiet=flags.on("quiet"))
    except StreamError as exc:
        raise Failure(str(exc)) from None
    if flags.on("quiet"):
        line(name.repository + name.suffix)
    return 0


COMMANDS = {"push": Command("[OPTIONS] NAME[:TAG]", run, flags=FLAGS, arguments=(1, 1))}
