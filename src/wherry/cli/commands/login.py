"""`login` and `logout`: credentials for registries."""

from __future__ import annotations

import os
import sys

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, err, flush, line, out, warn
from wherry.cli.credentials import HelperError, auth_for, default_server, erase, store
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.names import INDEX_SERVER

MAX_PASSWORD = 1 << 16  # bytes
FLAGS = (
    Flag("password", "p", STRING, "Password or Personal Access Token (PAT)"),
    Flag("password-stdin", "", BOOL, "Take the Password or Personal Access Token (PAT) from stdin"),
    Flag("username", "u", STRING, "Username"),
)


def _secret(flags: Flags) -> str:
    """The password given on the command line or on standard input; empty when it has to be asked for."""
    if "password" in flags.changed:
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
        if flags.on("password-stdin"):
            raise Failure("--password and --password-stdin are mutually exclusive")
        return flags.text("password")
    if flags.on("password-stdin"):
        if not flags.text("username"):
            raise Failure("Must provide --username with --password-stdin")
        return os.read(0, MAX_PASSWORD).decode("utf-8", "replace").rstrip("\r\n")
    return ""


def _ask(user: str, password: str, default: str) -> tuple[str, str]:
    if not os.isatty(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        out(f"Username{f' ({default})' if default else ''}: ")
        flush()
        user = sys.stdin.readline().strip() or default
        if not user:
            raise Failure("Error: Non-null Username Required")
    if not password:
        from wherry.cli.terminal import QuietTerminal

        out("Password: ")
        flush()
        with QuietTerminal(0):
            password = sys.stdin.readline().rstrip("\r\n")
        out("\n")
        if not password:
            raise Failure("Error: Password Required")
    return user, password


def login(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    server = default_server(arguments[0] if arguments else None)
    user, password = flags.text("username"), _secret(flags)
    known = auth_for(cli, server)
    answer = None
    if not user and not password and known.get("username"):
        out("Authenticating with existing credentials...\n")
        answer = cli.engine.post_json("/auth", None, known)
        user, password = str(known["username"]), str(known.get("password", ""))
    if answer is None:
        if not user or not password:
            user, password = _ask(user, password, str(known.get("username", "")))
        body = {"username": user, "password": password, "serveraddress": server}
        answer = cli.engine.post_json("/auth", None, body)
    token = str((answer or {}).get("IdentityToken") or "")
    try:
        path = store(cli, server, user, token or password, is_token=bool(token))
    except (HelperError, OSError) as exc:
        raise Failure(f"Error saving credentials: {exc}") from None
    if path is not None:
        err(
            f"WARNING! Your credentials are stored unencrypted in '{path}'.\n"
            "Configure a credential helper to remove this warning. See\n"
            "https://docs.docker.com/go/credential-store/\n\n"
        )
    line(str((answer or {}).get("Status") or "Login Succeeded"))
    return 0


def logout(cli: CLI, _: Flags, arguments: list[str]) -> int:
    server = default_server(arguments[0] if arguments else None)
    line(f"Removing login credentials for {server if server == INDEX_SERVER else arguments[0]}")
    try:
        erase(cli, server)
    except (HelperError, OSError) as exc:
        raise Failure(f"WARNING: could not erase credentials:\n{server}: {exc}") from None
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
        details="Log out from a registry.\nIf no server is specified, Docker Hub is meant.",
    ),
}
