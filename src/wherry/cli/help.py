"""Help texts, in docker's layout and wrapped to the terminal (80 columns when there is none)."""

from __future__ import annotations

import os

from wherry.cli import catalog
from wherry.cli.console import out
from wherry.cli.flags import BOOL, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from wherry.cli.catalog import Entry
    from wherry.cli.command import Command

PROGRAM = "wherry"
DEFAULT_WIDTH = 80


def terminal_width() -> int:
    try:
        return os.get_terminal_size(0).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def wrap(text: str, width: int) -> list[str]:
    """Words of each line of `text` in lines of at most `width`; a longer word stays whole. Spaces in a row stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        current = ""
        for number, word in enumerate(paragraph.split(" ")):
            if current.strip() and len(current) + 1 + len(word) > width:
                lines.append(current.rstrip())
                current = word
            else:
                current = f"{current} {word}" if number else word
        lines.append(current)
    return lines


def _shown_default(flag: Flag) -> str:
    if flag.default == flag.kind.zero or flag.kind.many:
        return ""
    if isinstance(flag.default, bool):
        return " (default true)" if flag.default else ""
    return f' (default "{flag.default}")' if isinstance(flag.default, str) else f" (default {flag.default})"


def render_flags(table: Sequence[Flag], width: int) -> str:
    """The block under `Options:`."""
    rows: list[tuple[str, str]] = []
    for flag in sorted(table, key=lambda flag: flag.name):
        if flag.hidden:
            continue
        head = f"  -{flag.short}, --{flag.name}" if flag.short else f"      --{flag.name}"
        if flag.kind is not BOOL:
            head += " " + flag.shown
        rows.append((head, flag.help + _shown_default(flag)))
    left = max((len(head) for head, _ in rows), default=0) + 3
    lines: list[str] = []
    for head, text in rows:
        for number, part in enumerate(wrap(text, max(width - 1 - left, 24))):
            lines.append((head.ljust(left) if number == 0 else " " * left) + part)
    return "".join(line.rstrip() + "\n" for line in lines)


def usage_line(path: str, command: Command) -> str:
    """After `Usage:  `; further lines of the usage begin with a tab."""
    first, *more = command.usage.split("\n")
    return "\n\t".join(f"{PROGRAM} {path} {part}".rstrip() for part in (first, *more))


def command_help(path: str, entry: Entry, command: Command) -> str:
    text = f"Usage:  {usage_line(path, command)}\n\n{command.details or entry.summary}\n"
    aliases = catalog.names_of(entry)
    if len(aliases) > 1:
        text += "\nAliases:\n  " + ", ".join(f"{PROGRAM} {alias}" for alias in aliases) + "\n"
    if any(not flag.hidden for flag in command.flags):
        text += "\nOptions:\n" + render_flags(command.flags, terminal_width())
    return text


def _listing(entries: dict[str, str], width: int) -> str:
    return "".join(f"  {name.ljust(width)} {summary}\n" for name, summary in entries.items())


def group_help(name: str) -> str:
    group = catalog.GROUPS[name]
    commands = {command: entry.summary for command, entry in group.commands.items()}
    return (
        f"Usage:  {PROGRAM} {name} COMMAND\n\n{group.summary}\n\nCommands:\n"
        + _listing(commands, max(11, *(len(command) for command in commands)))
        + f"\nRun '{PROGRAM} {name} COMMAND --help' for more information on a command.\n"
    )


def root_help(table: Sequence[Flag]) -> str:
    groups = {name: group.summary for name, group in catalog.GROUPS.items()}
    commons = {name: entry.summary for name, entry in catalog.COMMON.items()}
    servers = {name: summary for name, (_, summary) in catalog.SERVERS.items()}
    others = {name: entry.summary for name, entry in catalog.OTHERS.items()}
    return (
        f"Usage:  {PROGRAM} [OPTIONS] COMMAND\n\nThe Docker engine, in Python: its daemon and its client\n\n"
        f"Common Commands:\n{_listing(commons, 11)}\n"
        f"Management Commands:\n{_listing(groups, 11)}\n"
        f"Commands:\n{_listing(others, 11)}\n"
        f"Servers:\n{_listing(servers, 11)}\n"
        f"Global Options:\n{render_flags(table, terminal_width())}\n"
        f"Run '{PROGRAM} COMMAND --help' for more information on a command.\n"
    )


def print_help(text: str) -> None:
    out(text)
