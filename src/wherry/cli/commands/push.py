"""`push`: an image, or all tags of a repository, to a registry."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, flush, line, out
from wherry.cli.credentials import registry_header
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import InvalidReference, parse_name
from wherry.cli.notes import note_text
from wherry.cli.platforms import platform_query
from wherry.cli.progress import StreamError, show_stream
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    Flag("all-tags", "a", BOOL, "Push all tags of an image to the repository"),
    Flag("compression", "", STRING, "Compress the layers this way on their way out (gzip, zstd, none)"),
    Flag("disable-content-trust", "", BOOL, "Skip image signing", default=True),
    Flag(
        "platform",
        "",
        STRING,
        "Push a platform-specific manifest as a single-platform image to the registry.\n"
        "Image index won't be pushed, meaning that other manifests, including attestations won't be preserved.\n"
        "'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)",
        since="1.46",
    ),
    Flag("quiet", "q", BOOL, "Suppress verbose output"),
)
SINGLE_PLATFORM = (
    "Using --platform pushes only the specified platform manifest of a multi-platform image index.\n"
    "Other components, like attestations, will not be included.\n"
    "To push the complete multi-platform image, remove the --platform flag.\n"
)
CONTENT_MISSING = (
    "You're trying to push a manifest list/index which references multiple platform specific manifests, but not all "
    "of them are available locally or available to the remote repository.\n\n"
    "Make sure you have all the referenced content and try again.\n\n"
    "You can also push only a single platform specific manifest directly by specifying the platform you want to push "
    "with the --platform flag."
)


def note_of(aux: Any, *, coloured: bool) -> str:
    """What the user should know of a message that is for programs; "" when it is nothing."""
    if not isinstance(aux, dict):
        return ""
    if aux.get("manifestPushedInsteadOfIndex"):
        former, pushed = str(aux["originalIndex"]["digest"]), str(aux["selectedManifest"]["digest"])
        if coloured:
            former, pushed = f"\x1b[31m{former}\x1b[0m", f"\x1b[32m{pushed}\x1b[0m"
        return (
            "Not all multiplatform-content is present and only the available single-platform image was pushed\n"
            f"{former} -> {pushed}"
        )
    return CONTENT_MISSING if aux.get("contentMissing") else ""


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    quiet = flags.on("quiet")
    platform = platform_query(flags.text("platform"))
    if platform:
        out(note_text(SINGLE_PLATFORM, 1))
    try:
        name = parse_name(arguments[0])
    except InvalidReference as exc:
        raise Failure(str(exc)) from None
    if flags.on("all-tags"):
        if name.tag or name.digest:
            raise Failure("tag can't be used with --all-tags/-a")
    elif not name.tag:
        name = name.with_default_tag()
        if not quiet:
            line(f"Using default tag: {name.tag}")
    path = f"/images/{quote(name.familiar, safe=b'/:')}/push"
    query = {"tag": name.tag, "platform": platform, "compression": flags.text("compression") or None}
    headers = registry_header(cli, name.server)
    notes: list[str] = []

    def remember(aux: Any) -> None:
        if note := note_of(aux, coloured=os.isatty(1)):
            notes.append(note)

    try:
        with cli.engine.open("POST", path, query, headers=headers) as call:
            show_stream(call.messages(), fd=1, quiet=quiet, aux=remember)
        if quiet:
            line(name.repository + name.suffix)
    except StreamError as exc:
        raise Failure(str(exc)) from None
    finally:
        flush()
        for note in notes:
            out(note_text(note, 1))
    return 0


COMMANDS = {"push": Command("[OPTIONS] NAME[:TAG]", run, flags=FLAGS, arguments=(1, 1))}
