"""`info`: the engine and the machine it runs on."""

from __future__ import annotations

from wherry import __version__
from wherry.cli.batch import describe
from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line, out, warn
from wherry.cli.flags import STRING, Flag, Flags
from wherry.cli.listing import INSPECT_FORMAT_HELP, compile_template, render_row
from wherry.cli.units import binary_size
from wherry.client import jsontext
from wherry.client.engine import EngineError, ProtocolError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def client_info(cli: CLI) -> dict[str, Any]:
    return {
        "Version": __version__,
        "Context": "default",
        "Debug": cli.globals.on("debug"),
        "Plugins": [],
        "Warnings": None,
    }


def client_text(client: dict[str, Any]) -> str:
    debug = "true" if client["Debug"] else "false"
    return f"Client:\n Version:    {client['Version']}\n Context:    {client['Context']}\n Debug Mode: {debug}\n"


def _flag(value: object) -> str:
    return "true" if value else "false"


def _containers(info: dict[str, Any]) -> list[str]:
    lines = [f" Containers: {info.get('Containers', 0)}"]
    lines += [f"  {name}: {info.get('Containers' + name, 0)}" for name in ("Running", "Paused", "Stopped")]
    lines += [f" Images: {info.get('Images', 0)}", f" Server Version: {info.get('ServerVersion', '')}"]
    lines.append(f" Storage Driver: {info.get('Driver', '')}")
    lines += [f"  {key}: {value}" for key, value in info.get("DriverStatus") or []]
    lines += [f" {key}: {value}" for key, value in info.get("SystemStatus") or []]
    return lines


def _plugins(info: dict[str, Any]) -> list[str]:
    lines = [
        f" Logging Driver: {info.get('LoggingDriver', '')}",
        f" Cgroup Driver: {info.get('CgroupDriver', '')}",
        f" Cgroup Version: {info.get('CgroupVersion') or '1'}",
        " Plugins:",
    ]
    plugins = info.get("Plugins") or {}
    for kind in ("Volume", "Network", "Authorization", "Log"):
        names = plugins.get(kind) or []
        if names or kind in ("Volume", "Network"):
            lines.append(f"  {kind}: {' '.join(names)}")
    if directories := info.get("CDISpecDirs"):
        lines.append(" CDI spec directories:")
        lines += [f"  {directory}" for directory in directories]
    swarm = (info.get("Swarm") or {}).get("LocalNodeState") or "inactive"
    lines.append(f" Swarm: {swarm}")
    return lines


def _runtimes(info: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if runtimes := info.get("Runtimes"):
        lines.append(f" Runtimes: {' '.join(sorted(runtimes))}")
        lines.append(f" Default Runtime: {info.get('DefaultRuntime', '')}")
    lines.append(f" Init Binary: {info.get('InitBinary', '')}")
    for name, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
        lines.append(f" {name} version: {(info.get(key) or {}).get('ID', '')}")
    if options := info.get("SecurityOptions"):
        lines.append(" Security Options:")
        for option in options:
            pairs = [pair.partition("=") for pair in option.split(",")]
            name = next((value for key, _, value in pairs if key == "name"), option)
            lines.append(f"  {name}")
            lines += [f"   {key.capitalize()}: {value}" for key, _, value in pairs if key != "name" and value]
    return lines


def _machine(info: dict[str, Any]) -> list[str]:
    lines = [
        f" Kernel Version: {info.get('KernelVersion', '')}",
        f" Operating System: {info.get('OperatingSystem', '')}",
        f" OSType: {info.get('OSType', '')}",
        f" Architecture: {info.get('Architecture', '')}",
        f" CPUs: {info.get('NCPU', 0)}",
        f" Total Memory: {binary_size(info.get('MemTotal', 0))}",
        f" Name: {info.get('Name', '')}",
        f" ID: {info.get('ID', '')}",
        f" Docker Root Dir: {info.get('DockerRootDir', '')}",
        f" Debug Mode: {_flag(info.get('Debug'))}",
    ]
    if info.get("Debug"):
        lines += [f"  File Descriptors: {info.get('NFd', 0)}", f"  Goroutines: {info.get('NGoroutines', 0)}"]
        lines += [f"  System Time: {info.get('SystemTime', '')}"]
        lines += [f"  EventsListeners: {info.get('NEventsListener', 0)}"]
    for name, key in (("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")):
        if info.get(key):
            lines.append(f" {name}: {info[key]}")
    if labels := info.get("Labels"):
        lines.append(" Labels:")
        lines += [f"  {label}" for label in labels]
    lines.append(f" Experimental: {_flag(info.get('ExperimentalBuild'))}")
    registries = info.get("RegistryConfig") or {}
    insecure = [name for name, entry in sorted((registries.get("IndexConfigs") or {}).items()) if not entry["Secure"]]
    insecure += registries.get("InsecureRegistryCIDRs") or []
    if insecure:
        lines.append(" Insecure Registries:")
        lines += [f"  {name}" for name in insecure]
    if mirrors := registries.get("Mirrors"):
        lines.append(" Registry Mirrors:")
        lines += [f"  {mirror}" for mirror in mirrors]
    lines.append(f" Live Restore Enabled: {_flag(info.get('LiveRestoreEnabled'))}")
    if product := info.get("ProductLicense"):
        lines.append(f" Product License: {product}")
    if pools := info.get("DefaultAddressPools"):
        lines.append(" Default Address Pools:")
        lines += [f"   Base: {pool['Base']}, Size: {pool['Size']}" for pool in pools]
    return lines


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    form = flags.text("format")
    template = compile_template(form) if form not in ("", "json") else None
    client = client_info(cli)
    info: dict[str, Any] = {}
    failure: EngineError | ProtocolError | Unreachable | None = None
    try:
        info = cli.engine.get_json("/info")
    except (EngineError, ProtocolError, Unreachable) as exc:
        failure = exc
    if form == "json":
        merged = {**info, "ClientInfo": client}
        if failure is not None:
            merged["ServerErrors"] = [describe(failure)]
        line(jsontext.dumps(merged))
    elif template is not None:
        line(render_row(template, {**info, "ClientInfo": client}))
    else:
        out(client_text(client) + "\nServer:\n")
        if failure is None:
            lines = _containers(info) + _plugins(info) + _runtimes(info) + _machine(info)
            out("".join(text + "\n" for text in lines) + "\n")
    for warning in info.get("Warnings") or []:
        warn(warning)
    if failure is not None:
        raise Failure(describe(failure))
    return 0


COMMANDS = {"info": Command("[OPTIONS]", run, flags=(Flag("format", "f", STRING, INSPECT_FORMAT_HELP),))}
