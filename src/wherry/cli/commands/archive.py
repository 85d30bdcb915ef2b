"""`save`, `load` and `import`: images as tar archives."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.commands.files import check_output, save_stream
from wherry.cli.console import Failure, flush
from wherry.cli.flags import BOOL, LIST, STRING, Flag, Flags
from wherry.cli.platforms import FORMATTED, platform_query
from wherry.cli.progress import StreamError, show_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 18  # bytes


def read_chunks(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, CHUNK):
        yield data


def open_input(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise Failure(f"open {path}: {(exc.strerror or '').lower()}") from None


def save(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    path = flags.text("output")
    check_output(path, "save image")
    query = {"names": arguments, "platform": platform_query(flags.text("platform"))}
    with cli.engine.open("GET", "/images/get", query) as call:
        save_stream(call.chunks(), path)
    return 0


def load(cli: CLI, flags: Flags, _: list[str]) -> int:
    path = flags.text("input")
    if not path and os.isatty(0):
        raise Failure("requested load from stdin, but stdin is empty")
    fd = open_input(path) if path else 0
    quiet = flags.on("quiet") or not os.isatty(1)
    query = {"quiet": quiet, "platform": platform_query(flags.text("platform"))}
    try:
        with cli.engine.open("POST", "/images/load", query, data=read_chunks(fd)) as call:
            if call.response.headers.get("content-type", "").startswith("application/json"):
                show_stream(call.messages(), fd=1)
            else:
                flush()
                save_stream(call.chunks(), "")
    except StreamError as exc:
        raise Failure(str(exc)) from None
    finally:
        if path:
            os.close(fd)
    return 0


def import_(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    from wherry.cli.commands.commit import repository_and_tag

    source = arguments[0]
    reference = arguments[1] if len(arguments) > 1 else ""
    if reference:
        repository_and_tag(reference)
    query: dict[str, str | bool | int | list[str] | None] = {
        "message": flags.text("message"),
        "changes": flags.texts("change"),
        "platform": cli.platform(flags),
        "repo": reference,
    }
    remote = source.startswith(("http://", "https://"))
    query["fromSrc"] = source if remote else "-"
    fd = -1 if remote else 0 if source == "-" else open_input(source)
    data = None if remote else read_chunks(fd)
    try:
        with cli.engine.open("POST", "/images/create", query, data=data) as call:
            show_stream(call.messages(), fd=1)
    except StreamError as exc:
        raise Failure(str(exc)) from None
    finally:
        if fd > 0:
            os.close(fd)
    return 0


COMMANDS = {
    "save": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        save,
        flags=(
            Flag("output", "o", STRING, "Write to a file, instead of STDOUT"),
            Flag("platform", "", STRING, f"Save only the given platform variant. {FORMATTED}", since="1.48"),
        ),
        arguments=(1, UNLIMITED),
    ),
    "load": Command(
        "[OPTIONS]",
        load,
        flags=(
            Flag("input", "i", STRING, "Read from tar archive file, instead of STDIN"),
            Flag("platform", "", STRING, f"Load only the given platform variant. {FORMATTED}", since="1.48"),
            Flag("quiet", "q", BOOL, "Suppress the load output"),
        ),
    ),
    "import": Command(
        "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        import_,
        flags=(
            Flag("change", "c", LIST, "Apply Dockerfile instruction to the created image"),
            Flag("message", "m", STRING, "Set commit message for imported image"),
            Flag("platform", "", STRING, "Set platform if server is multi-platform capable", since="1.32"),
        ),
        arguments=(1, 2),
    ),
}
