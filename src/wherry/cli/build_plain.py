"""A build's progress as lines, one behind the other: for logs, and where there is no terminal.

    #5 [2/3] RUN make
    #5 `Makefile` changed
    #5 0.211 cc -o x x.c
    #5 DONE 1.3s

Lines of one step stay together as long as it has something to say.
"""

from __future__ import annotations

import time

from wherry.cli.build_board import Board, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

PATIENCE = 1.0  # s that a silent step keeps the word while others have something to say
TAIL = 20  # lines of a failed step's output that are repeated


class Plain:
    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.board = Board()
        self._write = write
        self._clock = clock
        self._speaking: Step | None = None
        self._heard = 0.0  # when it last said something
        self._told: dict[int, _Told] = {}

    def hear(self, event: Mapping[str, Any]) -> None:
        step = self.board.hear(event)
        if step is not None:
            self._told.setdefault(step.number, _Told(step))
            self._speak(step)

    def tick(self) -> None:
        """Time has gone by: another step may have the word."""
        self._pass_on()

    def end(self) -> None:
        """The build is over: what is left is told."""
        for told in self._told.values():
            if told.has_news():
                self._give_word(told.step)
                self._tell(told)
        self._speaking = None

    def _speak(self, step: Step) -> None:
        if self._speaking is None:
            if not self._told[step.number].has_news():
                return
            self._give_word(step)
        if self._speaking is step:
            self._tell(self._told[step.number])
            self._heard = self._clock()
        self._pass_on()

    def _pass_on(self) -> None:
        while True:
            speaking = self._speaking
            if speaking is not None and not speaking.completed and self._clock() - self._heard < PATIENCE:
                return
            waiting = next(
                (told for told in self._told.values() if told.step is not speaking and told.has_news()), None
            )
            if waiting is None:
                if speaking is not None and speaking.completed:
                    self._speaking = None
                return
            self._give_word(waiting.step)
            self._tell(waiting)
            self._heard = self._clock()

    def _give_word(self, step: Step) -> None:
        if self._speaking is step:
            return
        if self._speaking is not None and not self._speaking.completed:
            self._write(f"#{self._speaking.number} ...\n")
        self._speaking = step
        self._write(f"\n#{step.number} {step.name}\n")

    def _tell(self, told: _Told) -> None:
        for line in told.news():
            self._write(f"#{told.step.number} {line}\n")


class _Told:
    """How much of a step has been told."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._why = self._end = False
        self._lines = 0
        self._statuses: set[str] = set()

    def has_news(self) -> bool:
        step = self.step
        if not step.name or not (step.started or step.completed):
            return False
        return bool(
            (step.started and not self._lines and not self._end and not self._why)
            or len(step.lines) > self._lines
            or (step.completed and not self._end)
            or any(status.completed and status.id not in self._statuses for status in step.statuses.values())
        )

    def news(self) -> list[str]:
        step = self.step
        found = []
        if not self._why and step.why and not step.cached:
            found.append(f"runs: {step.why}")
        self._why = True
        for status in step.statuses.values():
            if status.completed and status.id not in self._statuses:
                self._statuses.add(status.id)
                found.append(f"{status.text} done")
        found += [f"{line.after:.3f} {line.text}" for line in step.lines[self._lines :]]
        self._lines = len(step.lines)
        if step.completed and not self._end:
            self._end = True
            if step.error:
                found.append("CANCELED" if "canceled" in step.error else f"ERROR: {step.error}")
            else:
                found.append("CACHED" if step.cached else f"DONE {step.seconds(step.completed):.1f}s")
        return found


def failure_text(board: Board, message: str, excerpt: str) -> str:
    """What stands at the end of a build that failed: the failed step's last lines, the place in the file, the words."""
    found = ""
    if (step := board.failed) is not None and step.lines:
        lines = "".join(f"{line.after:.3f} {line.text}\n" for line in step.lines[-TAIL:])
        left_out = f"[{len(step.lines) - TAIL} lines before are left out]\n" if len(step.lines) > TAIL else ""
        found += f"------\n > {step.name}:\n{left_out}{lines}------\n"
    if excerpt:
        found += excerpt.rstrip("\n") + "\n"
    return f"{found}ERROR: failed to build: {message}\n"


def warnings_text(board: Board) -> str:
    if not board.warnings:
        return ""
    count = len(board.warnings)
    heading = "1 warning found" if count == 1 else f"{count} warnings found"
    return f"\n{heading}:\n" + "".join(f" - {each.text}\n" for each in board.warnings)
