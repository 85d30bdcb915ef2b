"""`build`: an image, an archive or files from a Dockerfile."""

from __future__ import annotations

import os

from wherry.cli.build_flags import BUILD_FLAGS
from wherry.cli.build_request import Plan, plan_build
from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, err, flush, line, out
from wherry.cli.flags import Flags
from wherry.client.engine import EngineError
from wherry.client.jsontext import JSONError, dumps, indent, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from wherry.cli.build_board import Board
    from wherry.cli.build_session import Display

STDERR = 2
INTERRUPTED = 130
FAST, SLOW = 100, 1000  # ms between two looks at the clock


class Quiet:
    """Shows nothing, and remembers it for when the build fails."""

    def __init__(self) -> None:
        from wherry.cli.build_board import Board

        self.board = Board()

    def hear(self, event: Mapping[str, Any]) -> None:
        self.board.hear(event)

    def tick(self) -> None:
        return

    def end(self) -> None:
        return


class Raw(Quiet):
    """The engine's events as they are, a JSON document a line."""

    def hear(self, event: Mapping[str, Any]) -> None:
        err(dumps(event) + "\n")


def write_error(text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(STDERR, data) :]


def choose_display(cli: CLI, flags: Flags) -> tuple[Display, Board, int | None]:
    """What shows the progress, the board it is on, and how often it looks at the clock."""
    wanted = flags.text("progress")
    if "progress" not in flags.changed:
        wanted = cli.environ.get("BUILDKIT_PROGRESS") or wanted
    if flags.on("quiet") or wanted in ("quiet", "none"):
        quiet = Quiet()
        return quiet, quiet.board, None
    if wanted == "rawjson":
        raw = Raw()
        return raw, raw.board, None
    terminal = os.isatty(STDERR) and cli.environ.get("TERM", "") != "dumb"
    if wanted == "tty" and not os.isatty(STDERR):
        raise Failure("ERROR: failed to get console: provided file is not a console")
    if wanted == "tty" or (wanted == "auto" and terminal):
        from wherry.cli.build_tty import Terminal
        from wherry.cli.terminal import size_of

        tty = Terminal(write_error, lambda: size_of(STDERR), colours="NO_COLOR" not in cli.environ)
        return tty, tty.board, FAST
    from wherry.cli.build_plain import Plain

    plain = Plain(write_error)
    return plain, plain.board, SLOW


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    from wherry.cli.build_plain import failure_text, warnings_text
    from wherry.cli.build_session import SIGNALS, Session
    from wherry.cli.build_ssh import KeyAgents
    from wherry.cli.signals import Inbox

    plan = plan_build(cli, flags, arguments[0])
    display, board, interval = choose_display(cli, flags)
    flush()
    try:
        hijacked = cli.engine.hijack("/builds")
    except EngineError as exc:
        if exc.status == 404:
            raise Failure("this engine is not Wherry's, which `build` needs: use docker's own here") from None
        raise
    try:
        with KeyAgents(plan.keys) as agents, Inbox(SIGNALS) as inbox:
            plan.agents.update(agents.sockets)
            session = Session(cli, plan, hijacked, inbox, display)
            end = session.run(interval=interval)
    finally:
        hijacked.close()
        display.end()
    if end.get("type") == "failed":
        write_error(failure_text(board, str(end.get("message")), str(end.get("excerpt") or "")))
        if end.get("ref"):
            write_error(f"The whole of it: wherry builds logs {end['ref']}\n")
        return INTERRUPTED if session.interrupted else 1
    if plan.call:
        return show_answer(flags, end.get("metadata") or {})
    if not isinstance(display, Quiet):
        write_error(warnings_text(board))
    finish(flags, plan, end)
    return verdict(end.get("response") or {}) if plan.verify else 0


def show_answer(flags: Flags, metadata: Mapping[str, str]) -> int:
    """Of --check and --call, on standard output; the exit code is the linter's."""
    form = flags.text("call").partition(",")[2]
    if form in ("format=json", "json"):
        out(metadata.get("result.json", "").rstrip("\n") + "\n")
    else:
        text = metadata.get("result.txt", "").rstrip("\n")
        out((text or "Check complete, no warnings found.") + "\n")
    return int(metadata.get("result.statuscode") or 0)


def finish(flags: Flags, plan: Plan, end: Mapping[str, Any]) -> None:
    """Files that were asked for, and what is printed at the end."""
    response: dict[str, str] = end.get("response") or {}
    image = response.get("containerimage.config.digest") or response.get("containerimage.digest") or ""
    described = _descriptor(response)
    _name_layouts(plan, response, described)
    if path := flags.text("iidfile"):
        _write_file(path, image)
    if path := flags.text("metadata-file"):
        metadata: dict[str, Any] = {"wherry.build.ref": end.get("ref"), **response}
        if described is not None:
            metadata["containerimage.descriptor"] = described
        _write_file(path, indent(dumps(metadata, sort=True), "  ") + "\n")
    if flags.on("quiet") and image:
        line(image)


def verdict(response: Mapping[str, str]) -> int:
    """Of --verify: how the second build differs from the first."""
    difference = response.get("wherry.difference", "")
    if not difference:
        write_error("\nVerified: built twice, and the results are the same\n")
        return 0
    write_error("\nThe second build, without the cache, has another result:\n")
    out(difference + "\n")
    return 1


def _write_file(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        raise Failure(f"open {path}: {(exc.strerror or '').lower()}") from None


def _descriptor(response: Mapping[str, str]) -> object:
    """Of what was exported; None when nothing was."""
    import binascii

    try:
        return loads(binascii.a2b_base64(response.get("containerimage.descriptor", "")))
    except (binascii.Error, JSONError):
        return None


def _name_layouts(plan: Plan, response: Mapping[str, str], described: object) -> None:
    """The blobs of local caches and OCI layouts are there; their indexes name them."""
    from wherry.cli.build_layouts import add_to_index

    if cache := response.get("cache.manifest"):
        for each in plan.cache_exports:
            if each["type"] == "local":
                attributes = each["attributes"]
                add_to_index(os.path.realpath(attributes["dest"]), loads(cache), attributes.get("tag", "latest"))
    for output in plan.outputs:
        if output.is_layout and isinstance(described, dict):
            name = output.attributes.get("name", "").partition(",")[0]
            add_to_index(os.path.realpath(output.path), described, name.rpartition(":")[2] or "latest")


COMMANDS = {
    "build": Command(
        "[OPTIONS] PATH | URL | -",
        run,
        flags=BUILD_FLAGS,
        arguments=(1, 1),
        details="Build an image from a Dockerfile",
    )
}
