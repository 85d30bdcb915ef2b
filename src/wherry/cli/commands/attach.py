"""`attach`: to a running container."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.commands.run import ask_wait, attach_stream, check_tty, finish
from wherry.cli.console import Failure
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.client.engine import quote

FLAGS = (
    Flag("detach-keys", "", STRING, "Override the key sequence for detaching a container"),
    Flag("no-stdin", "", BOOL, "Do not attach STDIN"),
    Flag("sig-proxy", "", BOOL, "Proxy all received signals to the process", default=True),
)


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    from wherry.cli.session import Detached, container_session

    engine = cli.engine
    container = engine.get_json(f"/containers/{quote(arguments[0])}/json")
    state, config = container["State"], container["Config"]
    if not state["Running"]:
        raise Failure("You cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise Failure("You cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise Failure("You cannot attach to a restarting container, wait until it is running")
    stdin = not flags.on("no-stdin") and bool(config["OpenStdin"])
    check_tty(stdin=not flags.on("no-stdin"), tty=bool(config["Tty"]))
    identifier = str(container["Id"])
    keys = flags.text("detach-keys")
    session = container_session(
        cli,
        cli.another_engine(),
        identifier,
        tty=bool(config["Tty"]),
        stdin=stdin,
        detach_keys=keys,
        sig_proxy=flags.on("sig-proxy") and not config["Tty"],
    )
    with session:
        waiting = ask_wait(engine, identifier, "not-running")
        stream = attach_stream(
            engine,
            identifier,
            stdin=stdin,
            stdout=True,
            stderr=True,
            detach_keys=keys or str(cli.config.get("detachKeys") or ""),
        )
        session.redraw()
        try:
            session.pump(stream)
        except Detached:
            waiting.close()
            raise Failure("read escape sequence") from None
        finally:
            stream.close()
        return finish(session, waiting)


COMMANDS = {"attach": Command("[OPTIONS] CONTAINER", run, flags=FLAGS, arguments=(1, 1))}
