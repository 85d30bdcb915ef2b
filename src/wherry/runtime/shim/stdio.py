"""The stdio of a new process: pipes, or a terminal that the runtime makes. Stdlib only."""

import os

from wherry.runtime.shim.bundle import Bundle
from wherry.runtime.shim.console import Console, set_size
from wherry.runtime.shim.requests import Size
from wherry.runtime.shim.streams import STDERR, STDOUT

STDIN = 0


class Stdio:
    """The ends of a new process's stdio, until ours are taken. Leaving closes all ends that are here then.

    With a terminal the runtime makes it and sends its master; `theirs` then is what the runtime itself gets.
    """

    def __init__(self, bundle: Bundle, name: str, *, tty: bool, stdin: bool, output: bool = True) -> None:
        self._ours: list[tuple[int, int]] = []  # fd, stream
        self._stdin = stdin
        self._console = Console(bundle.directory, name) if tty else None
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.theirs = [null, null, null]
        if not tty:
            if stdin:
                self.theirs[STDIN], ours = os.pipe2(os.O_CLOEXEC)
                self._ours.append((ours, STDIN))
            for number in (STDOUT, STDERR) if output else ():
                ours, self.theirs[number] = os.pipe2(os.O_CLOEXEC)
                self._ours.append((ours, number))
        self._close = {null, *self.theirs}

    @property
    def console_path(self) -> str | None:
        return self._console.path if self._console else None

    def accept(self, size: Size | None) -> None:
        """The runtime has succeeded: take the terminal it sent, if there is to be one."""
        if self._console is not None:
            master = self._console.accept()
            self._ours = [(master, STDOUT)]
            if size is not None:
                set_size(master, *size)
            if self._stdin:
                self._ours.append((os.dup(master), STDIN))

    def ours(self) -> tuple[list[int], list[int]]:
        """Our ends, and what each is: the output of a terminal, or a stream's number. Still closed on leaving."""
        return [fd for fd, _ in self._ours], [number for _, number in self._ours]

    def take(self) -> tuple[int | None, dict[int, int]]:
        """Our ends for a session, which closes them from now on: stdin, and stream number by fd of the others."""
        ours, self._ours = self._ours, []
        stdin = next((fd for fd, number in ours if number == STDIN), None)
        return stdin, {fd: number for fd, number in ours if number != STDIN}

    def close(self) -> None:
        """Idempotent."""
        for fd in (*self._close, *(fd for fd, _ in self._ours)):
            os.close(fd)
        self._close, self._ours = set(), []
        if self._console is not None:
            self._console.close()

    def __enter__(self) -> "Stdio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
