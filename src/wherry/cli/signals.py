"""Signals by name and number, and their delivery to a loop by a pipe. Without `signal`, which imports `enum`."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG"
    " XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
).split()
NUMBERS = {name: number for number, name in enumerate(NAMES, 1)}
HUP, INT, QUIT, TERM, WINCH = (NUMBERS[name] for name in ("HUP", "INT", "QUIT", "TERM", "WINCH"))

# Passed on to the container. Not those that cannot be caught, that say something about this process itself (a fault,
# a child, a pipe), or that the terminal's job control needs.
PROXIED = tuple(
    NUMBERS[name] for name in "HUP INT QUIT USR1 USR2 ALRM TERM CONT TSTP XCPU VTALRM PROF WINCH IO PWR".split()
)


class Inbox:
    """Caught signals, readable from `fileno()`. Used in a `with`; the former handlers come back."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers = numbers
        self._read, self._write = -1, -1
        self._former: dict[int, object] = {}
        self._wakeup = -1

    def __enter__(self) -> Inbox:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = _signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self.numbers:
            self._former[number] = _signal.signal(number, _ignore)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        _signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """The numbers that came since the last time."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []


def _ignore(number: int, frame: object) -> None:
    """The wake-up descriptor has it; a handler must exist for that."""
