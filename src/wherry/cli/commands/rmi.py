"""`rmi` and `tag`: the names of images."""

from __future__ import annotations

from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line
from wherry.cli.flags import BOOL, STRINGS, Flag, Flags
from wherry.cli.platforms import FORMATTED, platform_query
from wherry.client.engine import quote

FLAGS = (
    Flag("force", "f", BOOL, "Force removal of the image"),
    Flag("no-prune", "", BOOL, "Do not delete untagged parents"),
    Flag("platform", "", STRINGS, f"Remove only the given platform variant. {FORMATTED}", since="1.50"),
)


def removed_text(entry: dict[str, str]) -> str:
    return f"Deleted: {entry['Deleted']}" if entry.get("Deleted") else f"Untagged: {entry.get('Untagged', '')}"


def rmi(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    from wherry.client.jsontext import loads

    platforms = [platform_query(text, complaint="") or "" for text in flags.texts("platform")]
    query: dict[str, bool | list[str]] = {
        "force": flags.on("force"),
        "noprune": flags.on("no-prune"),
        "platforms": platforms,
    }

    def remove(name: str) -> None:
        for entry in loads(cli.engine.call("DELETE", f"/images/{quote(name, safe=b'/:@')}", query)) or []:
            line(removed_text(entry))

    return for_each(arguments, remove, missing_is_fine=flags.on("force"))


def tag(cli: CLI, _: Flags, arguments: list[str]) -> int:
    from wherry.cli.names import InvalidReference, parse_name

    source, target = arguments
    try:
        name = parse_name(target)
    except InvalidReference as exc:
        raise Failure(f'Error parsing reference: "{target}" is not a valid repository/tag: {exc}') from None
    if name.digest:
        raise Failure("refusing to create a tag with a digest reference")
    path = f"/images/{quote(source, safe=b'/:@')}/tag"
    cli.engine.call("POST", path, {"repo": name.repository, "tag": name.with_default_tag().tag})
    return 0


COMMANDS = {
    "rmi": Command("[OPTIONS] IMAGE [IMAGE...]", rmi, flags=FLAGS, arguments=(1, UNLIMITED)),
    "tag": Command("SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", tag, arguments=(2, 2)),
}
