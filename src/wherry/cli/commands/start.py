"""`start`."""

from __future__ import annotations

from wherry.cli.batch import describe
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.commands.run import ask_wait, attach_stream, finish
from wherry.cli.console import Failure, line, warn
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.client.engine import EngineError, quote

FLAGS = (
    Flag("attach", "a", BOOL, "Attach STDOUT/STDERR and forward signals"),
    Flag("checkpoint", "", STRING, "Restore from this checkpoint", hidden=True),
    Flag("checkpoint-dir", "", STRING, "Use a custom checkpoint storage directory", hidden=True),
    Flag("detach-keys", "", STRING, "Override the key sequence for detaching a container"),
    Flag("interactive", "i", BOOL, "Attach container's STDIN"),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    if flags.on("attach") or flags.on("interactive"):
        if len(arguments) > 1:
            raise Failure("you cannot start and attach multiple containers at once")
        return start_attached(cli, flags, arguments[0])
    query = {
        "checkpoint": flags.text("checkpoint") or None,
        "checkpoint-dir": flags.text("checkpoint-dir") or None,
    }
    failed: list[str] = []
    for name in arguments:
        try:
            cli.engine.call("POST", f"/containers/{quote(name)}/start", query)
        except EngineError as exc:
            warn(describe(exc))
            failed.append(name)
        else:
            line(name)
    if failed:
        raise Failure(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def start_attached(cli: CLI, flags: Flags, name: str) -> int:
    from wherry.cli.session import Detached, container_session

    engine = cli.engine
    container = engine.get_json(f"/containers/{quote(name)}/json")
    identifier, tty = str(container["Id"]), bool(container["Config"]["Tty"])
    stdin = flags.on("interactive") and bool(container["Config"]["OpenStdin"])
    control = cli.another_engine()
    keys = flags.text("detach-keys")
    session = container_session(cli, control, identifier, tty=tty, stdin=stdin, detach_keys=keys, sig_proxy=not tty)
    with session:
        stream = attach_stream(
            engine,
            identifier,
            stdin=stdin,
            stdout=True,
            stderr=True,
            detach_keys=keys or str(cli.config.get("detachKeys") or ""),
        )
        waiting = ask_wait(engine, identifier, "removed" if container["HostConfig"].get("AutoRemove") else "next-exit")
        try:
            control.call("POST", f"/containers/{quote(identifier)}/start")
        except EngineError as exc:
            stream.close()
            waiting.close()
            raise Failure(describe(exc)) from None
        session.fit_window()
        try:
            session.pump(stream)
        except Detached:
            waiting.close()
            return 0
        finally:
            stream.close()
        return finish(session, waiting)


COMMANDS = {
    "start": Command("[OPTIONS] CONTAINER [CONTAINER...]", run, flags=FLAGS, arguments=(1, UNLIMITED)),
}
