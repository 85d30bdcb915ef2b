"""`diff` and `export`: the file system of a container."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, flush, out
from wherry.cli.flags import STRING, Flag, Flags
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = ("C", "A", "D")


def diff(cli: CLI, _: Flags, arguments: list[str]) -> int:
    if not arguments[0]:
        raise Failure("Container name cannot be empty")
    changes = cli.engine.get_json(f"/containers/{quote(arguments[0])}/changes") or []
    out("".join(f"{KINDS[change['Kind']]} {change['Path']}\n" for change in changes))
    return 0


def check_output(path: str, doing: str) -> None:
    """Failure, naming what was being done, when nothing could be written at `path` or it is to go to a terminal."""
    if not path:
        if os.isatty(1):
            raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
        return
    directory = os.path.dirname(path)
    prefix = f"failed to {doing}: invalid output path: "
    if directory and not os.path.exists(directory):
        raise Failure(f"{prefix}stat {directory}: no such file or directory")
    if os.path.isdir(path):
        raise Failure(f"failed to {doing}: cannot write to a directory")
    if os.path.exists(path) and not os.path.isfile(path):
        raise Failure(f'{prefix}"{path}" must be a regular file')


def save_stream(chunks: Iterable[bytes], path: str) -> None:
    """To standard output when `path` is empty, else to the file, which appears only when it is whole."""
    if not path:
        flush()
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(1, view) :]
        return
    temporary = os.path.join(os.path.dirname(path) or ".", f".tmp-{os.path.basename(path)}{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(temporary, path)
    except OSError as exc:
        raise Failure(f"open {path}: {(exc.strerror or str(exc)).lower()}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def export(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    path = flags.text("output")
    check_output(path, "export container")
    with cli.engine.open("GET", f"/containers/{quote(arguments[0])}/export") as call:
        save_stream(call.chunks(), path)
    return 0


COMMANDS = {
    "diff": Command("CONTAINER", diff, arguments=(1, 1)),
    "export": Command(
        "[OPTIONS] CONTAINER",
        export,
        flags=(Flag("output", "o", STRING, "Write to a file, instead of STDOUT"),),
        arguments=(1, 1),
    ),
}
