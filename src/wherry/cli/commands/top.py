"""`top`: the processes of a container."""

from __future__ import annotations

from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import out
from wherry.cli.flags import Flags
from wherry.cli.table import align
from wherry.client.engine import quote


def run(cli: CLI, _: Flags, arguments: list[str]) -> int:
    answer = cli.engine.get_json(f"/containers/{quote(arguments[0])}/top", {"ps_args": " ".join(arguments[1:]) or None})
    rows = [answer["Titles"], *(answer.get("Processes") or [])]
    out(align(["\t".join(row) for row in rows], min_width=20))
    return 0


COMMANDS = {"top": Command("CONTAINER [ps OPTIONS]", run, arguments=(1, UNLIMITED), interspersed=False)}
