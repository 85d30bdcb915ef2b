"""Standard output and error as bytes in UTF-8, whatever the locale says, and the one way to fail.

A broken pipe surfaces as BrokenPipeError, which `main` turns into a silent end.
"""

from __future__ import annotations

import sys


class Failure(Exception):
    """Ends the command: `message` goes to standard error (nothing when empty), `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class UsageFailure(Failure):
    """The command line is wrong. `bare` leaves out the usage line, as docker does for bad values found late."""

    def __init__(self, message: str, code: int = 125, *, bare: bool = False) -> None:
        super().__init__(message, code)
        self.bare = bare


class Terminated(BaseException):
    """The process was asked to end; raised so that the terminal is put back on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def out(text: str) -> None:
    """Write `text` as it is to standard output; buffered."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))


def line(text: str) -> None:
    out(text + "\n")


def err(text: str) -> None:
    """Write `text` as it is to standard error, after what standard output holds."""
    sys.stdout.flush()
    sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stderr.buffer.flush()


def warn(text: str) -> None:
    err(text + "\n")


def flush() -> None:
    sys.stdout.buffer.flush()
