"""A person at a terminal: runs a program on a pseudo-terminal, types, looks at the screen, resizes the window."""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self


class Terminal:
    """`screen` is everything shown so far. Every wait is bounded, and fails with the screen in its message."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], rows: int = 24, cols: int = 80) -> None:
        self._master, slave = os.openpty()
        self.screen = ""
        self._seen = 0  # `expect` looks from here on
        self._size(rows, cols)
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._slave = slave  # kept open: the screen stays readable after the program's end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _size(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def resize(self, rows: int, cols: int) -> None:
        """As a window manager does: the kernel tells the foreground process by SIGWINCH."""
        self._size(rows, cols)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGWINCH)

    def send(self, text: str | bytes) -> None:
        os.write(self._master, text.encode() if isinstance(text, str) else text)

    def line(self, text: str) -> None:
        self.send(text + "\r")

    def _look(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout)
        if not ready:
            return False
        self.screen += os.read(self._master, 65536).decode(errors="replace")
        return True

    def expect(self, pattern: str, timeout: float = 20) -> "re.Match[str]":
        """Wait until the screen shows `pattern` after what the last call found."""
        until = time.monotonic() + timeout
        while True:
            found = re.compile(pattern).search(self.screen, self._seen)
            if found:
                self._seen = found.end()
                return found
            left = until - time.monotonic()
            if left <= 0 or (not self._look(min(left, 0.2)) and self.process.poll() is not None and not self._look(0)):
                raise AssertionError(f"{pattern!r} not seen on the screen:\n{self.screen}")

    def wait(self, timeout: float = 20) -> int:
        """The program's exit code, after everything it wrote is on the screen."""
        until = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > until:
                raise AssertionError(f"the program did not end; the screen:\n{self.screen}")
            self._look(0.05)
        while self._look(0):
            pass
        return self.process.returncode

    def modes(self) -> list[object]:
        """The terminal's modes: to see that a program left them as it found them."""
        return termios.tcgetattr(self._slave)
