"""The stream of JSON messages that pull, push, load and import answer: shown as docker shows it.

On a terminal every layer has a line of its own, rewritten in place with a bar; elsewhere each change of status is a
line, without bars.
"""

from __future__ import annotations

import os
import time

from wherry.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

DEFAULT_WIDTH = 200
BAR = 50  # characters
CLEAR_LINE = "\x1b[2K"


class StreamError(Exception):
    """The engine reported a failure in the stream; `code` is its code, 0 when there was none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def columns_of(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def draw_progress(detail: Mapping[str, Any], width: int, now: float) -> str:
    """`[====>     ]  1.2MB/3MB`; as much of it as `width` columns allow, "" when nothing is known."""
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    if current <= 0 and total <= 0:
        return ""
    units = str(detail.get("units") or "")
    if total <= 0:
        return f"{current} {units}" if units else f"{human_size(current):>8}"
    bar = ""
    half = min(int(current / total * 100) // 2, BAR)
    if width > 110:
        bar = f"[{'=' * half}>{' ' * (BAR - half)}] "
    counts = ""
    if not detail.get("hidecounts"):
        if units:
            counts = f"{current}/{total} {units}"
        elif current > total:
            counts = f"{human_size(current):>8}"
        else:
            counts = f"{human_size(current):>8}/{human_size(total)}"
    left = ""
    start = int(detail.get("start") or 0)
    if width > 50 and current > 0 and start > 0 and half < BAR:
        each = (now - start) / current
        left = f" {int((total - current) * each)}s"
    return bar + counts + left


class Display:
    """One stream onto one file descriptor's `write`."""

    def __init__(self, write: Callable[[str], None], *, terminal: bool, width: int = DEFAULT_WIDTH) -> None:
        self.write = write
        self.terminal = terminal
        self.width = width
        self.lines: dict[str, int] = {}

    def show(self, message: Mapping[str, Any]) -> None:
        """StreamError when the message is one."""
        detail = message.get("progressDetail")
        identifier = str(message.get("id") or "")
        below = 0
        if identifier and (detail is not None or message.get("progress")):
            if identifier not in self.lines:
                self.lines[identifier] = len(self.lines)
                if self.terminal:
                    self.write("\n")
            below = len(self.lines) - self.lines[identifier]
            if self.terminal and below:
                self.write(f"\x1b[{below}A")
        else:
            self.lines.clear()  # what follows is below all that
        self._show_line(message, detail, identifier)
        if identifier and self.terminal and below:
            self.write(f"\x1b[{below}B")

    def _show_line(self, message: Mapping[str, Any], detail: Mapping[str, Any] | None, identifier: str) -> None:
        if message.get("errorDetail") or message.get("error"):
            failure = message.get("errorDetail") or {}
            text = str(failure.get("message") or message.get("error") or "")
            raise StreamError(text, int(failure.get("code") or 0))
        text, end = "", ""
        drawn = draw_progress(detail, self.width, time.time()) if detail is not None else ""
        stream = message.get("stream")
        if self.terminal and not stream and detail is not None:
            end = "\r"
            text += CLEAR_LINE + end
        elif detail is not None and drawn:
            return
        if identifier:
            text += f"{identifier}: "
        if origin := message.get("from"):
            text += f"(from {origin}) "
        status = str(message.get("status") or "")
        if detail is not None and self.terminal:
            text += f"{status} {drawn}{end}"
        elif message.get("progress"):
            text += f"{status} {message['progress']}{end}"
        elif stream:
            text += f"{stream}{end}"
        else:
            text += f"{status}{end}\n"
        self.write(text)


def show_stream(
    messages: Iterable[Mapping[str, Any]],
    *,
    fd: int = 1,
    quiet: bool = False,
    aux: Callable[[Any], None] | None = None,
) -> None:
    """All of a stream onto `fd` (nothing when `quiet`); StreamError at its first failure. `aux` gets what is meant
    for programs."""
    from wherry.cli.console import flush

    flush()

    def write(text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(fd, data) :]

    display = Display(write if not quiet else lambda text: None, terminal=os.isatty(fd), width=columns_of(fd))
    for message in messages:
        if (value := message.get("aux")) is not None:
            if aux is not None:
                aux(value)
            continue
        display.show(message)
