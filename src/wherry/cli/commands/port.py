"""`port`: what a container publishes."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, out
from wherry.cli.flags import Flags
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _address(binding: dict[str, Any]) -> str:
    host = binding.get("HostIp") or ""
    return f"[{host}]:{binding['HostPort']}" if ":" in host else f"{host}:{binding['HostPort']}"


def _order(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number), protocol


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    container = cli.engine.get_json(f"/containers/{quote(arguments[0])}/json")
    ports: dict[str, list[dict[str, Any]] | None] = (container.get("NetworkSettings") or {}).get("Ports") or {}
    if len(arguments) > 1:
        number, _, protocol = arguments[1].partition("/")
        if not number.isdigit() or not 0 <= int(number) < 65536:
            raise Failure(f'Error: invalid port ({number}): strconv.ParseUint: parsing "{number}": invalid syntax')
        bindings = ports.get(f"{number}/{protocol or 'tcp'}")
        if not bindings:
            raise Failure(f"Error: No public port '{arguments[1]}' published for {arguments[0]}")
        lines = [_address(binding) for binding in bindings]
    else:
        lines = [
            f"{port} -> {_address(binding)}" for port in sorted(ports, key=_order) for binding in ports[port] or []
        ]
    out("".join(text + "\n" for text in lines))
    return 0


COMMANDS = {"port": Command("CONTAINER [PRIVATE_PORT[/PROTO]]", run, arguments=(1, 2))}
