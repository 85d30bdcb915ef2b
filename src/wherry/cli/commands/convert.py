"""`image convert`: the same image with its layers compressed in another way."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import InvalidReference, parse_name
from wherry.cli.progress import StreamError, show_stream
from wherry.client.engine import quote

COMPRESSIONS = ("gzip", "zstd", "none")
FORMATS = ("", "docker", "oci")


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    source, target = arguments
    compression, form = flags.text("compression"), flags.text("format")
    if compression not in COMPRESSIONS:
        raise Failure(f"--compression must be one of {', '.join(COMPRESSIONS)}" + _given(compression))
    if form not in FORMATS:
        raise Failure(f"--format must be docker or oci{_given(form)}")
    try:
        name = parse_name(target).with_default_tag()
    except InvalidReference as exc:
        raise Failure(f'Error parsing reference: "{target}" is not a valid repository/tag: {exc}') from None
    if name.digest:
        raise Failure("refusing to create a tag with a digest reference")
    query = {"to": name.familiar + name.suffix, "compression": compression, "format": form or None}
    path = f"/images/{quote(source, safe=b'/:@')}/convert"
    try:
        with cli.engine.open("POST", path, query) as call:
            show_stream(call.messages(), fd=1, quiet=flags.on("quiet"))
    except StreamError as exc:
        raise Failure(str(exc)) from None
    if flags.on("quiet"):
        line(name.familiar + name.suffix)
    return 0


def _given(text: str) -> str:
    return f", not {text}" if text else ""


COMMANDS = {
    "convert": Command(
        "[OPTIONS] SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        run,
        flags=(
            Flag("compression", "", STRING, "How the layers are to be compressed (gzip, zstd, none)"),
            Flag("format", "", STRING, "Media types of the new manifest (docker, oci); those of the source when empty"),
            Flag("quiet", "q", BOOL, "Suppress verbose output"),
        ),
        arguments=(2, 2),
        details="Make an image whose layers are compressed another way; its ID stays what it is",
    )
}
