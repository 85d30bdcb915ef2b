"""`version`: of the client and of the engine."""

from __future__ import annotations

import os

from wherry import __version__
from wherry.cli.batch import describe
from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line, out
from wherry.cli.flags import STRING, Flag, Flags
from wherry.cli.listing import INSPECT_FORMAT_HELP, compile_template, render_row
from wherry.client import jsontext
from wherry.client.engine import API_VERSION, EngineError, ProtocolError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DETAILS = (
    ("ApiVersion", "API version"),
    ("GoVersion", "Go version"),
    ("PythonVersion", "Python version"),
    ("GitCommit", "Git commit"),
    ("BuildTime", "Built"),
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def client_facts(cli: CLI, api_version: str) -> dict[str, Any]:
    import sys

    machine = os.uname().machine
    return {
        "Version": __version__,
        "ApiVersion": api_version,
        "DefaultAPIVersion": API_VERSION,
        "PythonVersion": sys.version.partition(" ")[0],
        "Os": "linux",
        "Arch": ARCHITECTURES.get(machine, machine),
        "Context": "default",
    }


def client_text(client: dict[str, Any]) -> str:
    version = client["ApiVersion"]
    if version != client["DefaultAPIVersion"]:
        version += f" (downgraded from {client['DefaultAPIVersion']})"
    return (
        "Client:\n"
        f" Version:           {client['Version']}\n"
        f" API version:       {version}\n"
        f" Python version:    {client['PythonVersion']}\n"
        f" OS/Arch:           {client['Os']}/{client['Arch']}\n"
        f" Context:           {client['Context']}\n"
    )


def server_text(server: dict[str, Any]) -> str:
    """The engine and its components, each with what it tells about itself."""
    platform = (server.get("Platform") or {}).get("Name") or ""
    text = f"\nServer:{' ' + platform if platform else ''}\n"
    for component in server.get("Components") or [{"Name": "Engine", "Version": server.get("Version"), **server}]:
        details = component.get("Details") or {}
        text += f" {component['Name']}:\n  Version:          {component.get('Version') or ''}\n"
        if component["Name"] == "Engine":
            api = f"{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})"
            rows = [("API version", api)]
            rows += [(label, _shown(key, str(details[key]))) for key, label in DETAILS[1:] if details.get(key)]
            rows.append(("OS/Arch", f"{details.get('Os', '')}/{details.get('Arch', '')}"))
            rows.append(("Experimental", str(details.get("Experimental", "false"))))
        else:
            rows = [(key, str(value)) for key, value in sorted(details.items())]
        text += "".join(f"  {label + ':':<17} {value}\n" for label, value in rows)
    return text


def _shown(key: str, value: str) -> str:
    """Times of a build in the form of `date`; the rest as it is."""
    if key != "BuildTime":
        return value
    import time

    from wherry.cli.clock import parse_rfc3339

    try:
        seconds, _ = parse_rfc3339(value)
    except ValueError:
        return value
    return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    form = flags.text("format")
    template = compile_template(form) if form not in ("", "json") else None
    server: dict[str, Any] | None = None
    failure: EngineError | ProtocolError | Unreachable | None = None
    version = API_VERSION
    try:
        server = cli.engine.get_json("/version")
        version = cli.engine.version
    except (EngineError, ProtocolError, Unreachable) as exc:
        failure = exc
    client = client_facts(cli, version)
    if form == "json":
        line(jsontext.dumps({"Client": client, "Server": server}))
    elif template is not None:
        line(render_row(template, {"Client": client, "Server": server}))
    else:
        out(client_text(client))
        if server is not None:
            out(server_text(server))
    if failure is not None:
        raise Failure(describe(failure))
    return 0


COMMANDS = {
    "version": Command("[OPTIONS]", run, flags=(Flag("format", "f", STRING, INSPECT_FORMAT_HELP),)),
}
