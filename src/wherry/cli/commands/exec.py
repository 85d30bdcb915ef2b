"""`exec`: a command in a running container."""

from __future__ import annotations

from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.commands.run import check_tty
from wherry.cli.console import Failure
from wherry.cli.flags import BOOL, LIST, STRING, Flag, Flags
from wherry.cli.run_config import env_file
from wherry.cli.run_values import environment_variable
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    Flag("detach", "d", BOOL, "Detached mode: run command in the background"),
    Flag("detach-keys", "", STRING, "Override the key sequence for detaching a container"),
    Flag("env", "e", LIST, "Set environment variables", check=environment_variable, since="1.25"),
    Flag("env-file", "", LIST, "Read in a file of environment variables", since="1.25"),
    Flag("interactive", "i", BOOL, "Keep STDIN open even if not attached"),
    Flag("privileged", "", BOOL, "Give extended privileges to the command"),
    Flag("tty", "t", BOOL, "Allocate a pseudo-TTY"),
    Flag("user", "u", STRING, 'Username or UID (format: "<name|uid>[:<group|gid>]")'),
    Flag("workdir", "w", STRING, "Working directory inside the container", since="1.35"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    detach, tty = flags.on("detach"), flags.on("tty")
    stdin = flags.on("interactive") and not detach
    variables = [variable for path in flags.texts("env-file") for variable in env_file(path)]
    keys = flags.text("detach-keys") or str(cli.config.get("detachKeys") or "")
    body: dict[str, Any] = {
        "User": flags.text("user"),
        "Privileged": flags.on("privileged"),
        "Tty": tty,
        "AttachStdin": stdin,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Detach": detach,
        "DetachKeys": keys,
        "Env": (variables + flags.texts("env")) or None,
        "WorkingDir": flags.text("workdir"),
        "Cmd": arguments[1:],
    }
    engine = cli.engine
    container = quote(arguments[0])
    # Asked first so that a missing container is reported before a missing terminal.
    engine.call("GET", f"/containers/{container}/json")
    if not detach:
        check_tty(stdin=stdin, tty=tty)
    size: list[int] = []
    if tty and not detach:
        from wherry.cli.terminal import size_of

        size = [number for number in size_of(1) if number]
        if len(size) == 2:
            body["ConsoleSize"] = size
    created = engine.post_json(f"/containers/{container}/exec", None, body)
    identifier = str((created or {}).get("Id") or "")
    if not identifier:
        raise Failure("exec ID empty")
    path = f"/exec/{quote(identifier)}"
    if detach:
        engine.call("POST", f"{path}/start", None, {"Detach": True, "Tty": tty})
        return 0
    return attach(cli, path, tty=tty, stdin=stdin, detach_keys=flags.text("detach-keys"), size=size)


def attach(cli: CLI, path: str, *, tty: bool, stdin: bool, detach_keys: str, size: list[int]) -> int:
    """Start the exec with this terminal, and answer with its exit code."""
    from wherry.cli.session import Detached, Session, detach_sequence

    engine = cli.engine

    def resize(rows: int, columns: int) -> None:
        engine.call("POST", f"{path}/resize", {"h": rows, "w": columns})

    body: dict[str, Any] = {"Detach": False, "Tty": tty}
    if len(size) == 2:
        body["ConsoleSize"] = size
    sequence = detach_sequence(cli, detach_keys) if tty else b""
    with Session(tty=tty, stdin=stdin, sequence=sequence, resize=resize) as session:
        stream = engine.hijack(f"{path}/start", None, body)
        session.fit_window()
        try:
            session.pump(stream)
        except Detached:
            raise Failure("read escape sequence") from None
        finally:
            stream.close()
    answer = engine.get_json(f"{path}/json")
    return int(answer.get("ExitCode") or 0)


COMMANDS = {
    "exec": Command(
        "[OPTIONS] CONTAINER COMMAND [ARG...]", run, flags=FLAGS, arguments=(2, UNLIMITED), interspersed=False
    )
}
