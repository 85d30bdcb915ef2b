"""Remarks beside a command's output: `Info -> …`, coloured on a terminal only."""

from __future__ import annotations

import os

INDENT = " " * 9
MARK, COLOURED_MARK = " Info -> ", "\x1b[1m\x1b[106m\x1b[30mi\x1b[0m \x1b[96mInfo → \x1b[0m"
ITALIC, PLAIN = "\x1b[3m", "\x1b[0m"


def mark(fd: int) -> str:
    """What a note begins with, nine columns wide."""
    return COLOURED_MARK if os.isatty(fd) else MARK


def note_text(text: str, fd: int) -> str:
    """An empty line and the note, its further lines below its first."""
    lines = text.split("\n")
    if os.isatty(fd):
        lines = [f"{ITALIC}{line}{PLAIN}" for line in lines]
    return f"\n{mark(fd)}" + f"\n{INDENT}".join(lines) + "\n"
