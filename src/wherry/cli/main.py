"""`wherry`: finds the command, runs it, and turns every failure into words and an exit code.

Exit codes: 0, 1 for a failure, 125 for a wrong flag and for a `run` that did not get as far as its container, else
what the command says (a container's own code). 130 for Ctrl-C, 141 would be a broken pipe's and is silent.
"""

from __future__ import annotations

import os
import sys

from wherry.cli import catalog
from wherry.cli.command import CLI, UNLIMITED, Command, environment
from wherry.cli.console import Failure, Terminated, UsageFailure, flush, line, warn
from wherry.cli.flags import BOOL, LIST, STRING, Flag, HelpAsked, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from wherry.cli.catalog import Entry
    from wherry.cli.flags import Flags
    from wherry.client.engine import Unreachable

PROGRAM = "wherry"
BROKEN_PIPE, INTERRUPTED = 141, 130
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal", "panic", "warning", "trace")

GLOBAL_FLAGS = (
    Flag("config", "", STRING, "Location of client config files (default ~/.docker)"),
    Flag("context", "c", STRING, "Accepted and ignored: the endpoint is given by -H or the environment"),
    Flag("debug", "D", BOOL, "Enable debug mode"),
    Flag("host", "H", LIST, "Daemon socket to connect to"),
    Flag("log-level", "l", STRING, 'Set the logging level ("debug", "info", "warn", "error", "fatal")', default="info"),
    Flag("tls", "", BOOL, "Use TLS; implied by --tlsverify"),
    Flag("tlscacert", "", STRING, "Trust certs signed only by this CA"),
    Flag("tlscert", "", STRING, "Path to TLS certificate file"),
    Flag("tlskey", "", STRING, "Path to TLS key file"),
    Flag("tlsverify", "", BOOL, "Use TLS and verify the remote"),
    Flag("version", "v", BOOL, "Print version information and quit"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Without `argv` it is the process's own, and the process ends here: interpreter shutdown
    would cost more than many a command."""
    if argv is not None:
        return guarded(argv)
    code = guarded(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = BROKEN_PIPE
    os._exit(code)


def guarded(argv: Sequence[str]) -> int:
    """Like `dispatch`, with the failures that can come from anywhere turned into exit codes."""
    try:
        code = dispatch(argv)
        flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence()
        return BROKEN_PIPE
    except Failure as failure:
        if failure.message:
            warn(failure.message)
        return failure.code
    except Terminated as exc:
        return 128 + exc.number
    except OSError as exc:  # of standard output, the files a command works on being its own matter
        warn(f"{PROGRAM}: {exc.filename or 'write /dev/stdout'}: {(exc.strerror or str(exc)).lower()}")
        _silence()
        return 1


def _silence() -> None:
    """Nobody reads standard output any more: let what is still buffered go nowhere."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def dispatch(argv: Sequence[str]) -> int:
    if argv and argv[0] in catalog.SERVERS:
        return serve(argv)
    try:
        flags, rest = parse(argv, GLOBAL_FLAGS, interspersed=False)
    except HelpAsked as asked:
        return _root_help(deprecated=asked.deprecated)
    except UsageFailure as failure:
        raise Failure(
            f"{failure.message}\n\nUsage:  {PROGRAM} [OPTIONS] COMMAND [ARG...]\n\n"
            f"Run '{PROGRAM} --help' for more information",
            125,
        ) from None
    if flags.on("version"):
        from wherry import __version__

        line(f"Wherry version {__version__}")
        return 0
    if flags.text("log-level") not in LOG_LEVELS:
        raise Failure(f"Unable to parse logging level: {flags.text('log-level')}")
    if not rest:
        return _root_help()
    if rest[0] in catalog.SERVERS:
        raise Failure(f"{PROGRAM}: '{PROGRAM} {rest[0]}' has options of its own, which follow its name")
    cli = CLI(flags, environment())
    if rest[0] == "help":
        return _help(rest[1:])
    found = find(rest)
    if found is None:
        return _group(rest)
    path, entry, arguments = found
    try:
        return invoke(cli, path, entry, arguments)
    finally:
        cli.close()


def serve(argv: Sequence[str]) -> int:
    """Run a command that is no client: its room is no business of ours, so it is imported by name and at need."""
    from importlib import import_module

    try:
        code = import_module(catalog.SERVERS[argv[0]][0]).main(list(argv[1:]))
    except SystemExit as exc:  # argparse's, after help and wrong usage
        if isinstance(exc.code, str):
            raise Failure(exc.code) from None
        code = exc.code
    return code if isinstance(code, int) else 0


def find(words: Sequence[str]) -> tuple[str, Entry, list[str]] | None:
    """The command that `words` begin with, and what is left of them; None for a group alone or an unknown command of
    a group. Failure for an unknown top-level word."""
    first = words[0]
    entry = catalog.find_top(first)
    if entry is not None:
        return first, entry, list(words[1:])
    if first not in catalog.GROUPS:
        from wherry.cli.suggest import nearest

        near = nearest(first, catalog.top_names())
        hint = f"\n\nDid you mean '{PROGRAM} {near}'?" if near else ""
        raise Failure(
            f"{PROGRAM}: unknown command: {PROGRAM} {first}{hint}\n\nRun '{PROGRAM} --help' for more information"
        )
    if len(words) > 1 and (found := catalog.find_in_group(first, words[1])) is not None:
        return f"{first} {found[0]}", found[1], list(words[2:])
    return None


def load(entry: Entry) -> Command:
    """Import the module of one command."""
    module = __import__(f"wherry.cli.commands.{entry.module}", fromlist=["COMMANDS"])
    command = module.COMMANDS[entry.key]
    assert isinstance(command, Command)
    return command


def invoke(cli: CLI, path: str, entry: Entry, arguments: Sequence[str]) -> int:
    command = load(entry)
    cli.path = path
    try:
        flags, rest = parse(arguments, command.flags, interspersed=command.interspersed)
    except HelpAsked as asked:
        from wherry.cli.help import command_help, print_help

        if asked.deprecated:
            warn("Flag shorthand -h has been deprecated, use --help")
        print_help(command_help(path, entry, command))
        return 0
    except UsageFailure as failure:
        raise _wrong_usage(path, command, failure.message, failure.code) from None
    if problem := _count_problem(command, len(rest)):
        see = "See" if problem.startswith("requires at least") and command.most == UNLIMITED else "Run"
        raise _wrong_usage(path, command, f"{PROGRAM}: '{PROGRAM} {path}' {problem}", 1, see=see)
    try:
        return _run(cli, command, flags, rest)
    except UsageFailure as failure:
        if failure.bare:
            raise Failure(failure.message, failure.code) from None
        raise _pointed(path, failure.message, failure.code) from None
    except Failure as failure:
        if command.prefixed and failure.message and failure.code in (125, 126, 127):
            raise _pointed(path, failure.message, failure.code) from None
        raise


def _run(cli: CLI, command: Command, flags: Flags, rest: list[str]) -> int:
    from wherry.client.engine import EngineError, ProtocolError, Unreachable

    code = 125 if command.prefixed else 1
    try:
        for flag in command.flags:
            if flag.since and flag.name in flags.changed and not cli.engine.newer_than(flag.since):
                raise Failure(
                    f'"--{flag.name}" requires API version {flag.since}, '
                    f"but the Wherry daemon API version is {cli.engine.version}"
                )
        return command.run(cli, flags, rest)
    except EngineError as exc:
        raise Failure(daemon_said(exc.message), code) from exc
    except Unreachable as exc:
        raise Failure(cannot_connect(exc), code) from exc
    except ProtocolError as exc:
        raise Failure(str(exc), code) from exc
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, IndexError) as exc:
        # The edge: an answer of another shape than the API's, or a bug of ours.
        if cli.globals.on("debug"):
            raise
        raise Failure(
            f"{PROGRAM}: unexpected answer from the engine, or a bug: {type(exc).__name__}: {exc}\n"
            f"'{PROGRAM} -D {cli.path} …' shows where."
        ) from exc


def daemon_said(message: str) -> str:
    return f"Error response from daemon: {message}"


def cannot_connect(exc: Unreachable) -> str:
    """Docker's sentence, and what to do about the reason."""
    text = f"Cannot connect to the Wherry daemon at {exc.endpoint}. Is the wherry daemon running?"
    if exc.reason == "Permission denied":
        return text + f"\n{exc.reason}: run as root, or as a member of the group that owns the socket."
    if exc.endpoint.startswith("unix://"):
        return (
            text + f"\n{exc.reason}: start it with '{PROGRAM} daemon', or name another socket with -H or WHERRY_HOST."
        )
    return text + f"\n{exc.reason}: check the address given by -H, WHERRY_HOST or DOCKER_HOST."


def _wrong_usage(path: str, command: Command, message: str, code: int, *, see: str = "Run") -> Failure:
    from wherry.cli.help import usage_line

    return Failure(
        f"{message}\n\nUsage:  {usage_line(path, command)}\n\n{see} '{PROGRAM} {path} --help' for more information",
        code,
    )


def _pointed(path: str, message: str, code: int) -> Failure:
    return Failure(f"{PROGRAM}: {message}\n\nRun '{PROGRAM} {path} --help' for more information", code)


def _count_problem(command: Command, count: int) -> str:
    """What is wrong with the number of arguments, in docker's words; empty when nothing is."""

    def plural(number: int) -> str:
        return f"{number} argument" if number == 1 else f"{number} arguments"

    least, most = command.least, command.most
    if count >= least and (most == UNLIMITED or count <= most):
        return ""
    if most == 0:
        return "accepts no arguments"
    if least == most:
        return f"requires {plural(least)}"
    if most == UNLIMITED:
        return f"requires at least {plural(least)}"
    if least == 0:
        return f"requires at most {plural(most)}"
    return f"requires at least {least} and at most {plural(most)}"


def _root_help(*, deprecated: bool = False) -> int:
    from wherry.cli.help import print_help, root_help

    if deprecated:
        warn("Flag shorthand -h has been deprecated, use --help")
    print_help(root_help(GLOBAL_FLAGS))
    return 0


def _help(words: Sequence[str]) -> int:
    """`help`, `help ps`, `help container ls`."""
    from wherry.cli.help import command_help, group_help, print_help

    if not words:
        return _root_help()
    if words[0] in catalog.SERVERS:
        return serve([words[0], "--help"])
    if catalog.find_top(words[0]) is None and words[0] not in catalog.GROUPS:
        raise Failure(f"unknown help topic: {' '.join(words)}")
    found = find(words)
    if found is None:
        if len(words) > 1:
            raise Failure(f"unknown help topic: {' '.join(words)}")
        print_help(group_help(words[0]))
        return 0
    path, entry, _ = found
    print_help(command_help(path, entry, load(entry)))
    return 0


def _group(words: Sequence[str]) -> int:
    """A group without a command of its own: its help, or what is wrong with the next word."""
    from wherry.cli.help import group_help, print_help
    from wherry.cli.suggest import nearest

    name = words[0]
    try:
        _, rest = parse(words[1:], (), interspersed=True)
    except HelpAsked:
        rest = []
    except UsageFailure as failure:
        raise Failure(
            f"{failure.message}\n\nUsage:  {PROGRAM} {name} COMMAND\n\n"
            f"Run '{PROGRAM} {name} --help' for more information",
            125,
        ) from None
    if not rest:
        print_help(group_help(name))
        return 0
    near = nearest(rest[0], [*catalog.GROUPS[name].commands, *catalog.ALIASES.get(name, {})])
    hint = f"\n\nDid you mean '{PROGRAM} {name} {near}'?" if near else ""
    raise Failure(
        f"{PROGRAM}: unknown command: {PROGRAM} {name} {rest[0]}{hint}\n\nUsage:  {PROGRAM} {name}\n\n"
        f"Run '{PROGRAM} {name} --help' for more information"
    )
