"""The user's terminal: its size, raw mode, and the key sequence that detaches."""

from __future__ import annotations

import os
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_DETACH = "ctrl-p,ctrl-q"
_NAMED_CONTROLS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def size_of(fd: int) -> tuple[int, int]:
    """Rows and columns; zeros when `fd` is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return rows, columns


class RawTerminal:
    """Every key to the reader at once, unchanged, until the `with` ends in whatever way."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._former: list[Any] | None = None

    def __enter__(self) -> RawTerminal:
        former = termios.tcgetattr(self.fd)
        raw = [*former[:6], list(former[6])]
        raw[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSANOW, raw)
        self._former = former
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            termios.tcsetattr(self.fd, termios.TCSANOW, self._former)
            self._former = None


class QuietTerminal:
    """No echo, for a password."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> QuietTerminal:
        self._former = termios.tcgetattr(self.fd)
        quiet = [*self._former]
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(self.fd, termios.TCSAFLUSH, quiet)
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self.fd, termios.TCSAFLUSH, self._former)


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or `a,b` as the bytes the keys send; ValueError names the key that is none."""
    sequence = bytearray()
    for key in text.split(","):
        if len(key) == 1 and ord(key) < 128:
            sequence.append(ord(key))
            continue
        prefix, letter = key[:5], key[5:]
        if prefix != "ctrl-" or len(letter) != 1:
            raise ValueError(f"Unknown character: '{key}'")
        if "a" <= letter <= "z":
            sequence.append(ord(letter) - ord("a") + 1)
        elif letter in _NAMED_CONTROLS:
            sequence.append(_NAMED_CONTROLS[letter])
        else:
            raise ValueError(f"Unknown character: '{key}'")
    return bytes(sequence)


class DetachFilter:
    """Passes typed bytes on, holding back what may be the beginning of the sequence."""

    def __init__(self, sequence: bytes) -> None:
        self.sequence = sequence
        self.matched = 0
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """What to send. After the whole sequence `detached` is set and the rest is dropped."""
        if not self.sequence or (self.matched == 0 and self.sequence[0] not in data):
            return data
        out = bytearray()
        for byte in data:
            if byte == self.sequence[self.matched]:
                self.matched += 1
                if self.matched == len(self.sequence):
                    self.detached = True
                    return bytes(out)
                continue
            out += self.sequence[: self.matched]
            self.matched = 1 if byte == self.sequence[0] else 0
            if not self.matched:
                out.append(byte)
            elif len(self.sequence) == 1:
                self.detached = True
                return bytes(out)
        return bytes(out)
