"""`commit`: an image of a container's changes."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line
from wherry.cli.flags import BOOL, LIST, STRING, Flag, Flags

FLAGS = (
    Flag("author", "a", STRING, 'Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")'),
    Flag("change", "c", LIST, "Apply Dockerfile instruction to the created image"),
    Flag("message", "m", STRING, "Commit message"),
    Flag("pause", "p", BOOL, "Pause container during commit", default=True),
)


def repository_and_tag(reference: str) -> tuple[str, str]:
    """As the API wants a new image's name; Failure when it is none."""
    from wherry.cli.names import InvalidReference, parse_name

    if not reference:
        return "", ""
    try:
        name = parse_name(reference)
    except InvalidReference as exc:
        raise Failure(str(exc)) from None
    if name.digest:
        raise Failure("cannot commit to digest reference")
    return name.repository, name.tag


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    repository, tag = repository_and_tag(arguments[1] if len(arguments) > 1 else "")
    query: dict[str, str | bool | int | list[str] | None] = {
        "container": arguments[0],
        "repo": repository,
        "tag": tag,
        "comment": flags.text("message"),
        "author": flags.text("author"),
        "changes": flags.texts("change"),
        "pause": None if flags.on("pause") else 0,
    }
    line(cli.engine.post_json("/commit", query)["Id"])
    return 0


COMMANDS = {"commit": Command("[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", run, flags=FLAGS, arguments=(1, 2))}
