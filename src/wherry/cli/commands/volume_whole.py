"""`volume` rename, clone, snapshot, rollback, export, import, push and pull: what docker has not."""

from __future__ import annotations

import os
import time

from wherry.cli.batch import for_each
from wherry.cli.clock import parse_rfc3339
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.commands.archive import open_input, read_chunks
from wherry.cli.commands.files import check_output, save_stream
from wherry.cli.console import Failure, UsageFailure, line, out
from wherry.cli.credentials import registry_header
from wherry.cli.flags import BOOL, LIST, STRING, Flag, Flags
from wherry.cli.names import InvalidReference, Name, parse_name
from wherry.cli.progress import StreamError, show_stream
from wherry.cli.run_values import label
from wherry.cli.table import align
from wherry.cli.units import human_duration, human_size
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.client.engine import Query

PAUSE = "Pause the containers that use the volume meanwhile, so that its files fit together"
IN_USE = (
    "The volume may be in use: the containers that use it are paused meanwhile.\n"
    "With --pause=false they go on, and each file is taken as it is at its moment."
)


def _path(name: str, *rest: str) -> str:
    return "/".join(("/volumes", quote(name), *(quote(part) for part in rest)))


def _paused(flags: Flags) -> int | None:
    return None if flags.on("pause") else 0


def _split(text: str) -> tuple[str, str]:
    """VOLUME@NAME; Failure when one is missing."""
    volume, _, name = text.partition("@")
    if not volume or not name:
        raise Failure(f"invalid snapshot {text!r}: want VOLUME@NAME")
    return volume, name


def rename(cli: CLI, _: Flags, arguments: list[str]) -> int:
    old, new = arguments
    cli.engine.call("POST", _path(old, "rename"), {"name": new})
    return 0


def clone(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    source, target = arguments
    query: Query = {"name": target, "label": flags.texts("label"), "pause": _paused(flags)}
    line(cli.engine.post_json(_path(source, "clone"), query)["Name"])
    return 0


# --- snapshots --------------------------------------------------------------------------------------------------------


def snapshot(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    verb, *rest = arguments
    match verb:
        case "create" if len(rest) == 1:
            return _create(cli, flags, rest[0])
        case "ls" | "list" if len(rest) == 1:
            return _list(cli, flags, rest[0])
        case "rm" | "remove" if rest:
            return _remove(cli, rest)
        case "create" | "ls" | "list" | "rm" | "remove":
            what = "at least 1 argument" if verb in ("rm", "remove") else "1 argument"
            raise UsageFailure(f"'wherry volume snapshot {verb}' requires {what}")
    raise UsageFailure(f"unknown command: wherry volume snapshot {verb}: want create, ls or rm")


def _create(cli: CLI, flags: Flags, text: str) -> int:
    volume, _, name = text.partition("@")
    made = cli.engine.post_json(_path(volume, "snapshots"), {"name": name, "pause": _paused(flags)})
    line(f"{volume}@{made['Name']}")
    return 0


def _list(cli: CLI, flags: Flags, volume: str) -> int:
    found: list[dict[str, Any]] = cli.engine.get_json(_path(volume, "snapshots"))
    if flags.on("quiet"):
        out("".join(f"{each['Volume']}@{each['Name']}\n" for each in found))
        return 0
    now = time.time()
    rows = ["SNAPSHOT\tCREATED\tSIZE"]
    for each in found:
        age = human_duration(now - parse_rfc3339(each["CreatedAt"])[0])
        rows.append(f"{each['Volume']}@{each['Name']}\t{age} ago\t{human_size(each['Size'])}")
    out(align(rows))
    return 0


def _remove(cli: CLI, names: list[str]) -> int:
    def act(text: str) -> None:
        volume, name = _split(text)
        cli.engine.call("DELETE", _path(volume, "snapshots", name))
        line(text)

    return for_each(names, act)


def rollback(cli: CLI, _: Flags, arguments: list[str]) -> int:
    volume, name = _split(arguments[0])
    cli.engine.call("POST", _path(volume, "rollback"), {"snapshot": name})
    return 0


# --- archives ---------------------------------------------------------------------------------------------------------


def export(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    path = flags.text("output")
    check_output(path, "export volume")
    with cli.engine.open("GET", _path(arguments[0], "export"), {"pause": 1 if flags.on("pause") else None}) as call:
        save_stream(call.chunks(), path)
    return 0


def import_(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    name, source = arguments[0], arguments[1] if len(arguments) > 1 else "-"
    if source == "-" and os.isatty(0):
        raise Failure("cowardly refusing to read an archive from a terminal: name a file, or redirect")
    query: Query = {
        "size": flags.text("size") or None,
        "label": flags.texts("label"),
        "replace": 1 if flags.on("replace") else None,
    }
    fd = 0 if source == "-" else open_input(source)
    try:
        with cli.engine.open("POST", _path(name, "import"), query, data=read_chunks(fd)) as call:
            for _ in call.chunks():
                pass
    finally:
        if fd:
            os.close(fd)
    line(name)
    return 0


# --- registries -------------------------------------------------------------------------------------------------------


def _name(text: str) -> Name:
    try:
        return parse_name(text)
    except InvalidReference as exc:
        raise Failure(str(exc)) from None


def _follow(cli: CLI, path: str, query: Query, name: Name, *, quiet: bool) -> dict[str, Any]:
    """Show the progress of a push or pull; what it says at the end."""
    told: dict[str, Any] = {}
    try:
        with cli.engine.open("POST", path, query, headers=registry_header(cli, name.server)) as call:
            show_stream(call.messages(), fd=1, quiet=quiet, aux=told.update)
    except StreamError as exc:
        raise Failure(str(exc)) from None
    return told


def push(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    volume, name = arguments[0], _name(arguments[1]).with_default_tag()
    query: Query = {
        "reference": name.repository + name.suffix,
        "compression": flags.text("compression") or None,
        "pause": _paused(flags),
    }
    told = _follow(cli, _path(volume, "push"), query, name, quiet=flags.on("quiet"))
    if flags.on("quiet"):
        line(f"{name.repository}:{name.tag}@{told.get('Digest', '')}")
    return 0


def pull(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    name = _name(arguments[0]).with_default_tag()
    query: Query = {
        "reference": name.repository + name.suffix,
        "name": arguments[1] if len(arguments) > 1 else None,
        "replace": 1 if flags.on("replace") else None,
    }
    told = _follow(cli, "/volumes/pull", query, name, quiet=flags.on("quiet"))
    line(str(told.get("Name", "")))
    return 0


_LABEL = Flag("label", "", LIST, "Set metadata for the new volume", check=label)
_REPLACE = Flag("replace", "", BOOL, "Replace the content of a volume that is not empty; it must not be in use")
_QUIET = Flag("quiet", "q", BOOL, "Suppress verbose output")

COMMANDS = {
    "rename": Command(
        "OLD NEW",
        rename,
        arguments=(2, 2),
        details=("Rename a volume that no container uses, not even a stopped one:\ncontainers know it by its name"),
    ),
    "clone": Command(
        "[OPTIONS] SOURCE TARGET",
        clone,
        flags=(_LABEL, Flag("pause", "p", BOOL, PAUSE, default=True)),
        arguments=(2, 2),
        details=(
            "Make a new volume with the content of another, its labels and its size.\n"
            f"Blocks are shared where the file system can.\n{IN_USE}"
        ),
    ),
    "snapshot": Command(
        "create [OPTIONS] VOLUME[@NAME]\nls [OPTIONS] VOLUME\nrm VOLUME@NAME [VOLUME@NAME...]",
        snapshot,
        flags=(
            Flag("pause", "p", BOOL, PAUSE, default=True),
            Flag("quiet", "q", BOOL, "Only display names"),
        ),
        arguments=(1, UNLIMITED),
        details=(
            "Keep a volume's content as it is now, under a name or the time; list what is\n"
            "kept, and drop it. Blocks are shared where the file system can. Snapshots go\n"
            f"with their volume.\n{IN_USE}"
        ),
    ),
    "rollback": Command(
        "VOLUME@NAME",
        rollback,
        arguments=(1, 1),
        details=(
            "Bring back a volume's content from a snapshot, which stays.\nNo running container may use the volume."
        ),
    ),
    "export": Command(
        "[OPTIONS] VOLUME",
        export,
        flags=(
            Flag("output", "o", STRING, "Write to a file, instead of STDOUT"),
            Flag("pause", "p", BOOL, PAUSE),
        ),
        arguments=(1, 1),
    ),
    "import": Command(
        "[OPTIONS] VOLUME [file|-]",
        import_,
        flags=(
            _LABEL,
            _REPLACE,
            Flag("size", "", STRING, "Limit the new volume to so many bytes (10g)"),
        ),
        arguments=(1, 2),
    ),
    "push": Command(
        "[OPTIONS] VOLUME NAME[:TAG]",
        push,
        flags=(
            Flag("compression", "", STRING, 'Compress the content this way (gzip, zstd, none) (default "zstd")'),
            Flag("pause", "p", BOOL, PAUSE, default=True),
            _QUIET,
        ),
        arguments=(2, 2),
        details=f"Push a volume's content, labels and size to a registry, as an OCI artifact.\n{IN_USE}",
    ),
    "pull": Command(
        "[OPTIONS] NAME[:TAG|@DIGEST] [VOLUME]",
        pull,
        flags=(_QUIET, _REPLACE),
        arguments=(1, 2),
        details=("Make a volume of what a registry has, called as the one that was pushed unless\na name is given"),
    ),
}
