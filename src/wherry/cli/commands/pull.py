"""`pull`, and pulling for `run` and `create`."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line
from wherry.cli.credentials import registry_header
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import InvalidReference, Name, parse_name
from wherry.cli.progress import StreamError, show_stream

FLAGS = (
    Flag("all-tags", "a", BOOL, "Download all tagged images in the repository"),
    Flag("disable-content-trust", "", BOOL, "Skip image verification", default=True),
    Flag(
        "platform",
        "",
        STRING,
        "Set platform if server is multi-platform capable; 'all' brings every platform",
        since="1.32",
    ),
    Flag("quiet", "q", BOOL, "Suppress verbose output"),
)


def pull_image(cli: CLI, name: Name, *, platform: str | None, fd: int, quiet: bool, all_tags: bool = False) -> None:
    """Have the engine pull, showing its progress on `fd`. StreamError when it fails on the way."""
    query = {
        "fromImage": name.familiar if name.domain != "docker.io" else name.repository,
        "tag": "" if all_tags else (name.digest or name.tag),
        "platform": platform,
    }
    headers = registry_header(cli, name.server)
    with cli.engine.open("POST", "/images/create", query, headers=headers) as call:
        show_stream(call.messages(), fd=fd, quiet=quiet)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    try:
        name = parse_name(arguments[0])
    except InvalidReference as exc:
        raise Failure(str(exc)) from None
    all_tags = flags.on("all-tags")
    if all_tags and (name.tag or name.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not all_tags and not (name.tag or name.digest):
        name = name.with_default_tag()
        if not flags.on("quiet"):
            line(f"Using default tag: {name.tag}")
    try:
        pull_image(cli, name, platform=cli.platform(flags), fd=1, quiet=flags.on("quiet"), all_tags=all_tags)
    except StreamError as exc:
        raise Failure(str(exc)) from None
    line(name.repository + name.suffix)
    return 0


COMMANDS = {"pull": Command("[OPTIONS] NAME[:TAG|@DIGEST]", run, flags=FLAGS, arguments=(1, 1))}
