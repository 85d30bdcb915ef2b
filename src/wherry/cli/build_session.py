"""One build, seen from the command line: the request goes out, questions are answered, progress is shown."""

from __future__ import annotations

import errno
import os

from wherry.cli.build_answers import Answers
from wherry.cli.build_link import Ear, Link
from wherry.cli.console import Terminated
from wherry.cli.session import write_all
from wherry.cli.signals import HUP, INT, TERM, WINCH, Inbox
from wherry.cli.terminal import RawTerminal, size_of
from wherry.client.engine import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from wherry.cli.build_request import Plan
    from wherry.cli.command import CLI
    from wherry.client.engine import Hijacked

    class Display(Protocol):
        def hear(self, event: Mapping[str, Any]) -> None: ...

        def tick(self) -> None: ...

        def end(self) -> None: ...


STDIN, STDOUT, STDERR = 0, 1, 2
CHUNK = 1 << 12
SIGNALS = (HUP, INT, TERM, WINCH)


class Session:
    """`run` gives the last frame's head: `result` or `failed`."""

    def __init__(self, cli: CLI, plan: Plan, hijacked: Hijacked, inbox: Inbox, display: Display) -> None:
        self._plan = plan
        self._inbox = inbox
        self._display = display
        self._link = Link(hijacked, inbox=inbox, attend=self._attend)
        self._answers = Answers(cli, plan, self._link)
        self._end: dict[str, Any] | None = None
        self._shell: _Shell | None = None
        self.interrupted = False

    def run(self, *, interval: int | None) -> dict[str, Any]:
        """`interval`: ms between two looks at the clock. ProtocolError when the engine goes away."""
        self._link.send(self._plan.head())
        try:
            self._link.run(self._receive, tick=self._tick, interval=interval)
        finally:
            self._leave_shell()
            self._answers.close()
        if self._end is None:
            raise ProtocolError("the engine went away in the middle of the build")
        return self._end

    def _receive(self, head: dict[str, Any], data: bytes) -> None:
        kind = head.get("type")
        if kind == "events":
            for event in head.get("events") or []:
                self._display.hear(event)
        elif kind in ("result", "failed"):
            self._end = head
            self._link.stop()
        elif kind == "shell":
            self._open_shell(int(head.get("id") or 0), str(head.get("message") or ""))
        elif self._shell is not None and int(head.get("id") or 0) == self._shell.number:
            if kind == "bytes":
                write_all(STDOUT, data)
            elif kind == "end":
                self._leave_shell()
        else:
            self._answers.answer(head, data)

    def _tick(self) -> None:
        if self._shell is None:
            self._display.tick()

    def _attend(self) -> None:
        for number in self._inbox.take():
            if number == WINCH:
                if self._shell is not None:
                    self._shell.fit()
            elif number == INT and not self.interrupted:
                self.interrupted = True  # the next one does not wait for the engine
                self._link.send({"type": "cancel"})
            else:
                raise Terminated(number)

    # the shell in a failed step

    def _open_shell(self, number: int, message: str) -> None:
        if not (os.isatty(STDIN) and os.isatty(STDOUT)):
            refusal = "--on-error shell needs a terminal, and this is none"
            self._link.send({"type": "refused", "id": number, "kind": "InvalidParameter", "message": refusal})
            return
        self._display.end()
        write_all(STDERR, f"{message}\nA shell where it failed; the build ends with it:\n".encode())
        self._shell = _Shell(number, self._link)

    def _leave_shell(self) -> None:
        if self._shell is not None:
            self._shell.close()
            self._shell = None


class _Shell:
    """The terminal is the step's as long as this is open."""

    def __init__(self, number: int, link: Link) -> None:
        self.number = number
        self._link = link
        self._terminal = RawTerminal(STDIN)
        self._terminal.__enter__()
        self.fit()
        link.listen(Ear(STDIN, self._typed))

    def fit(self) -> None:
        rows, columns = size_of(STDOUT)
        self._link.send({"type": "window", "id": self.number, "rows": rows, "columns": columns})

    def _typed(self) -> None:
        try:
            data = os.read(STDIN, CHUNK)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        if data:
            self._link.send({"type": "bytes", "id": self.number}, data)
        else:
            self._link.unlisten(STDIN)
            self._link.send({"type": "end", "id": self.number})

    def close(self) -> None:
        self._link.unlisten(STDIN)
        self._terminal.__exit__()
