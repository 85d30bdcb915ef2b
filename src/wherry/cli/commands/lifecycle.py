"""`stop`, `restart`, `kill`, `pause`, `unpause`, `wait`, `rename`."""

from __future__ import annotations

from wherry.cli.batch import describe, for_each, for_each_at_once
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line, warn
from wherry.cli.flags import INT, STRING, Flag, Flags
from wherry.client.engine import Engine, EngineError, quote

STOP_FLAGS = (
    Flag("signal", "s", STRING, "Signal to send to the container", since="1.42"),
    Flag("time", "", INT, "Seconds to wait before killing the container", hidden=True),
    Flag("timeout", "t", INT, "Seconds to wait before killing the container"),
)
KILL_FLAGS = (Flag("signal", "s", STRING, "Signal to send to the container"),)
ONE_OR_MORE = (1, UNLIMITED)


def _stop_query(flags: Flags) -> dict[str, str | bool | int | list[str] | None]:
    if "time" in flags.changed and "timeout" in flags.changed:
        raise Failure("conflicting options: cannot specify both --timeout and --time")
    name = "time" if "time" in flags.changed else "timeout"
    return {"signal": flags.text("signal") or None, "t": flags.number(name) if name in flags.changed else None}


def stop(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    query = _stop_query(flags)

    def act(engine: Engine, name: str) -> None:
        engine.call("POST", f"/containers/{quote(name)}/stop", query)

    return for_each_at_once(cli, arguments, act)


def restart(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    query = _stop_query(flags)

    def act(name: str) -> None:
        cli.engine.call("POST", f"/containers/{quote(name)}/restart", query)
        line(name)

    return for_each(arguments, act)


def kill(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    query = {"signal": flags.text("signal") or None}

    def act(engine: Engine, name: str) -> None:
        engine.call("POST", f"/containers/{quote(name)}/kill", query)

    return for_each_at_once(cli, arguments, act)


def pause(cli: CLI, _: Flags, arguments: list[str]) -> int:
    return for_each_at_once(
        cli, arguments, lambda engine, name: void(engine.call("POST", f"/containers/{quote(name)}/pause"))
    )


def unpause(cli: CLI, _: Flags, arguments: list[str]) -> int:
    return for_each_at_once(
        cli, arguments, lambda engine, name: void(engine.call("POST", f"/containers/{quote(name)}/unpause"))
    )


def void(_: object) -> None:
    """For calls whose answer says nothing."""


def wait(cli: CLI, _: Flags, arguments: list[str]) -> int:
    def act(name: str) -> None:
        answer = cli.engine.post_json(f"/containers/{quote(name)}/wait")
        error = answer.get("Error")
        if error and error.get("Message"):
            raise EngineError(0, error["Message"])
        line(str(answer.get("StatusCode", 0)))

    return for_each(arguments, act)


def rename(cli: CLI, _: Flags, arguments: list[str]) -> int:
    old, new = (argument.strip() for argument in arguments)
    if not old or not new:
        raise Failure("Error: Neither old nor new names may be empty")
    try:
        cli.engine.call("POST", f"/containers/{quote(old)}/rename", {"name": new})
    except EngineError as exc:
        warn(describe(exc))
        raise Failure(f"Error: failed to rename container named {old}") from None
    return 0


COMMANDS = {
    "stop": Command("[OPTIONS] CONTAINER [CONTAINER...]", stop, flags=STOP_FLAGS, arguments=ONE_OR_MORE),
    "restart": Command("[OPTIONS] CONTAINER [CONTAINER...]", restart, flags=STOP_FLAGS, arguments=ONE_OR_MORE),
    "kill": Command("[OPTIONS] CONTAINER [CONTAINER...]", kill, flags=KILL_FLAGS, arguments=ONE_OR_MORE),
    "pause": Command("CONTAINER [CONTAINER...]", pause, arguments=ONE_OR_MORE),
    "unpause": Command("CONTAINER [CONTAINER...]", unpause, arguments=ONE_OR_MORE),
    "wait": Command("CONTAINER [CONTAINER...]", wait, arguments=ONE_OR_MORE),
    "rename": Command("CONTAINER NEW_NAME", rename, arguments=(2, 2)),
}
