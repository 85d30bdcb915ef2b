"""`login` and `logout`: credentials for registries."""

from __future__ import annotations

import os
import sys

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, err, flush, line, out, warn
from wherry.cli.credentials import HelperError, auth_for, default_server, erase, store
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import INDEX_SERVER
from wherry.cli.notes import note_text
from wherry.client.engine import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


UNENCRYPTED = (
    "\nWARNING! Your credentials are stored unencrypted in '{path}'.\n"
    "Configure a credential helper to remove this warning. See\n"
    "https://docs.docker.com/go/credential-store/\n\n"
)
ACCESS_TOKEN = (
    "A Personal Access Token (PAT) can be used instead.\nTo create a PAT, visit https://app.docker.com/settings"
)
MAX_PASSWORD = 1 << 16  # bytes
FLAGS = (
    Flag("password", "p", STRING, "Password or Personal Access Token (PAT)"),
    Flag("password-stdin", "", BOOL, "Take the Password or Personal Access Token (PAT) from stdin"),
    Flag("username", "u", STRING, "Username"),
)


def check_flags(flags: Flags) -> None:
    """Failure for flags that contradict each other."""
    if "password-stdin" in flags.changed:
        if "password" in flags.changed:
            raise Failure("conflicting options: cannot specify both --password and --password-stdin")
        if "username" not in flags.changed:
            raise Failure("the --password-stdin option requires --username to be set")
    for name in ("username", "password"):
        if name in flags.changed and not flags.text(name):
            raise Failure(f"{name} is empty")


def _secret(flags: Flags) -> str:
    """The password given on the command line or on standard input; empty when it has to be asked for."""
    if "password" in flags.changed:
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
        return flags.text("password")
    if not flags.on("password-stdin"):
        return ""
    data = b""
    while len(data) <= MAX_PASSWORD and (more := os.read(0, MAX_PASSWORD)):
        data += more
    if len(data) > MAX_PASSWORD:
        raise Failure(f"what standard input holds is no password: it is longer than {MAX_PASSWORD} bytes")
    return data.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _ask(user: str, password: str, default: str, *, hub: bool) -> tuple[str, str]:
    if not os.isatty(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        if hub and not default:
            line(
                "Log in with your Docker ID or email address to push and pull images from Docker Hub. "
                "If you don't have a Docker ID, head over to https://hub.docker.com/ to create one."
            )
        out(f"Username{f' ({default})' if default else ''}: ")
        flush()
        user = sys.stdin.readline().strip() or default
        if not user:
            raise Failure("Error: Non-null Username Required")
    if not password:
        from wherry.cli.terminal import QuietTerminal

        if hub:
            out(note_text(ACCESS_TOKEN, 1) + "\n")
        with QuietTerminal(0):  # before the prompt: turning echo off drops what was typed already
            out("Password: ")
            flush()
            password = sys.stdin.readline().rstrip("\r\n")
        out("\n")
        flush()
        if not password:
            raise Failure("Error: Password Required")
    return user, password


def _known(cli: CLI, known: dict[str, Any]) -> dict[str, Any] | None:
    """What the engine answers to the credentials that are stored; None, and said why, when they are not taken."""
    err(f"Authenticating with existing credentials... [Username: {known['username']}]\n")
    err(note_text("To login with a different account, run 'wherry logout' followed by 'wherry login'", 2) + "\n\n")
    try:
        return cli.engine.post_json("/auth", None, known) or {}
    except EngineError as exc:
        from wherry.cli.main import daemon_said

        refused = exc.status == 401
        warn(
            "Stored credentials invalid or expired"
            if refused
            else f"Login did not succeed, error: {daemon_said(exc.message)}"
        )
        return None


def login(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    check_flags(flags)
    user, password = flags.text("username"), _secret(flags)
    server = default_server(arguments[0] if arguments else None)
    known = auth_for(cli, server)
    answer = None
    stored = not user and not password and known.get("username") and known.get("password")
    if stored and (answer := _known(cli, known)) is not None:
        user, password = str(known["username"]), str(known["password"])
    else:
        stored = False
        if not user or not password:
            default = str(known.get("username") or "") if not user else ""
            user, password = _ask(user, password, default, hub=server == INDEX_SERVER)
        body = {"username": user, "password": password, "serveraddress": server}
        answer = cli.engine.post_json("/auth", None, body) or {}
    token = str(answer.get("IdentityToken") or "")
    try:
        path = store(cli, server, user, token or password, is_token=bool(token))
    except (HelperError, OSError) as exc:
        raise Failure(f"Error saving credentials: {exc}") from None
    if path is not None and not token and not stored:
        err(UNENCRYPTED.format(path=path))
    line(str(answer.get("Status") or "Login Succeeded"))
    return 0


def logout(cli: CLI, _: Flags, arguments: list[str]) -> int:
    server = default_server(arguments[0] if arguments else None)
    line(f"Removing login credentials for {server}")
    try:
        erase(cli, server)
    except (HelperError, OSError) as exc:
        raise Failure(f"WARNING: could not erase credentials:\n{server}: {exc}") from None  # which docker lets pass
    return 0


COMMANDS = {
    "login": Command(
        "[OPTIONS] [SERVER]",
        login,
        flags=FLAGS,
        arguments=(0, 1),
        details="Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
    ),
    "logout": Command(
        "[SERVER]",
        logout,
        arguments=(0, 1),
        details="Log out from a registry.\nIf no server is specified, the default is defined by the daemon.",
    ),
}
