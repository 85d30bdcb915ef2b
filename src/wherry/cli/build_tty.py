"""A build's progress on a terminal: a list of steps, redrawn in place.

[+] Building 3.2s (5/9)
 => [internal] load build context                       0.1s
 => => transferring context: 2.3MB                      0.1s
 => CACHED [2/4] RUN apt-get install gcc                0.0s
 => [3/4] COPY . /src                                   0.0s
 => => `src/main.c` changed
 => [4/4] RUN make                                      2.9s
 => => # cc -c main.c
"""

from __future__ import annotations

import re
import time

from wherry.cli.build_board import Board, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

LOG_LINES = 6  # of a running step
INTERVAL = 0.1  # s between two pictures
BLUE, RED, YELLOW, DIM, PLAIN = "\x1b[34m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
HIDE, SHOW, CLEAR_BELOW, CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[J", "\x1b[K"

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


class Terminal:
    """`size` gives rows and columns of the moment; `now` the time in ns."""

    def __init__(
        self,
        write: Callable[[str], None],
        size: Callable[[], tuple[int, int]],
        *,
        colours: bool = True,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.board = Board()
        self._write = write
        self._size = size
        self._colours = colours
        self._now = now
        self._began = now()
        self._drawn = 0  # lines of the last picture
        self._last = 0  # ns: when it was drawn
        self._changed = True

    def hear(self, event: Mapping[str, Any]) -> None:
        self.board.hear(event)
        self._changed = True

    def tick(self) -> None:
        if self._now() - self._last >= INTERVAL * 1e9:
            self._draw(self._lines(final=False))

    def end(self) -> None:
        """The last picture, in full, stays; should there be another one, it is drawn below."""
        self._draw(self._lines(final=True))
        self._write(SHOW)
        self._drawn = 0

    def _draw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._drawn}A\r" if self._drawn else HIDE
        self._write(up + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW)
        self._drawn = len(lines)
        self._last = self._now()

    def _lines(self, *, final: bool) -> list[str]:
        rows, columns = self._size()
        rows, columns = rows or 24, columns or 80
        steps = [step for step in self.board.steps if step.name and (step.started or step.completed)]
        done = sum(1 for step in steps if step.completed)
        seconds = (self._now() - self._began) / 1e9
        over = final and not self.board.failed and not any(step.is_running for step in steps)
        heading = f"[+] Building {seconds:.1f}s ({done}/{len(self.board.steps)}){' FINISHED' if over else ''}"
        blocks = [self._block(step, columns, final=final) for step in steps]
        if not final:
            blocks = _fitting(steps, blocks, rows - 2)
        return [_fit(heading, columns), *(line for block in blocks for line in block)]

    def _block(self, step: Step, columns: int, *, final: bool) -> list[str]:
        name, colour = step.name, ""
        if step.completed:
            colour = BLUE
            if step.error:
                name, colour = (f"CANCELED {name}", YELLOW) if "canceled" in step.error else (f"ERROR {name}", RED)
            elif step.cached:
                name = f"CACHED {name}"
        found = [self._coloured(_timed(f" => {name}", step.seconds(self._now()), columns), colour)]
        if step.why and not step.cached and not step.internal:
            found.append(self._coloured(_fit(f" => => {printable(step.why)}", columns), DIM))
        if not step.completed or final:
            for status in step.statuses.values():
                time_ = ((status.completed or self._now()) - status.started) / 1e9 if status.started else 0.0
                shown = _timed(f" => => {printable(status.text)}", max(0.0, time_), columns)
                found.append(self._coloured(shown, BLUE if status.completed else ""))
        if step.is_running and not final:
            for line in step.lines[-LOG_LINES:]:
                found.append(self._coloured(_fit(f" => => # {printable(line.text)}", columns), DIM))
        return found

    def _coloured(self, line: str, colour: str) -> str:
        return f"{colour}{line}{PLAIN}" if colour and self._colours else line


def _fitting(steps: list[Step], blocks: list[list[str]], rows: int) -> list[list[str]]:
    """As many lines as there is room for: what is done goes first, then details, then what began first."""
    if sum(map(len, blocks)) <= rows:
        return blocks
    order = [at for at, step in enumerate(steps) if step.completed]
    kept = dict(enumerate(blocks))
    for at in order:
        if sum(map(len, kept.values())) <= rows:
            break
        del kept[at]
    while sum(map(len, kept.values())) > rows and any(len(block) > 1 for block in kept.values()):
        longest = max(kept, key=lambda at: len(kept[at]))
        kept[longest] = kept[longest][:-1]
    return list(kept.values())[-rows:] if rows > 0 else []


def printable(text: str) -> str:
    """What stands there in the end, without what would move the cursor."""
    text = text.rstrip("\r").rpartition("\r")[2]
    return "".join(c for c in _ESCAPE.sub("", text).expandtabs(8) if c.isprintable())


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, columns: int) -> str:
    """Cut to the width of the terminal."""
    if _width(text) <= columns:
        return text
    while _width(text) > max(columns - 1, 0):
        text = text[:-1]
    return text + "…" if columns > 0 else ""


def _timed(text: str, seconds: float, columns: int) -> str:
    """With the time at the right edge."""
    shown = f"{seconds:.1f}s"
    text = _fit(printable(text), max(columns - len(shown) - 2, 10))
    return text + " " * max(columns - _width(text) - len(shown) - 1, 1) + shown
