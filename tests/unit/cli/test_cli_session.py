"""A session between standard descriptors and a connection, and the terminal's modes."""

import contextlib
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import session as sessions
from wherry.cli.session import Demultiplexer
from wherry.cli.signals import NUMBERS, WINCH, Inbox
from wherry.cli.terminal import DetachFilter, RawTerminal, parse_detach_keys
from wherry.client.engine import ProtocolError

SOURCE = Path(sessions.__file__).parents[2]


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxI", kind, len(payload)) + payload


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=20)), max_size=8), st.data())
def test_frames_come_out_whole_however_they_are_cut(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    wire = b"".join(frame(kind, payload) for kind, payload in frames)
    written = {1: b"", 2: b""}

    def write(fd: int, part: bytes | memoryview) -> None:
        written[fd] += bytes(part)

    demultiplexer = Demultiplexer(write)
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        demultiplexer.feed(wire[:cut])
        wire = wire[cut:]
    assert written[1] == b"".join(payload for kind, payload in frames if kind < 2)
    assert written[2] == b"".join(payload for kind, payload in frames if kind == 2)


def test_an_error_of_the_engine_in_the_stream_is_raised() -> None:
    demultiplexer = Demultiplexer(lambda fd, data: None)
    demultiplexer.feed(frame(3, b"broken pipe")[:12])
    with pytest.raises(ProtocolError, match="error from daemon in stream: broken pipe"):
        demultiplexer.feed(frame(3, b"broken pipe")[12:])
    with pytest.raises(ProtocolError, match="Unrecognized input header: 65"):
        Demultiplexer(lambda fd, data: None).feed(b"A plain text")


@pytest.mark.parametrize(
    ("keys", "sequence"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-@,ctrl-[,ctrl-_", b"\x00\x1b\x1f"), ("ctrl-\\,x", b"\x1cx")],
)
def test_detach_keys(keys: str, sequence: bytes) -> None:
    assert parse_detach_keys(keys) == sequence


@pytest.mark.parametrize("keys", ["foo", "ctrl-", "ctrl-1", "ctrl-P", "a,,b", ""])
def test_what_is_no_detach_key(keys: str) -> None:
    with pytest.raises(ValueError, match="Unknown character"):
        parse_detach_keys(keys)


@pytest.mark.parametrize(
    ("typed", "sent", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"\x10\x11"], b"", True),
        ([b"ab\x10", b"\x11rest"], b"ab", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_the_sequence_is_held_back_and_everything_else_passes(typed: list[bytes], sent: bytes, detached: bool) -> None:
    keys = DetachFilter(b"\x10\x11")
    assert b"".join(keys.feed(data) for data in typed) == sent
    assert keys.detached is detached


def test_no_sequence_passes_everything() -> None:
    assert DetachFilter(b"").feed(b"\x10\x11") == b"\x10\x11"


def test_raw_mode_ends_whatever_happens() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        with contextlib.suppress(RuntimeError), RawTerminal(slave):
            raw = termios.tcgetattr(slave)
            assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            assert not raw[1] & termios.OPOST
            raise RuntimeError
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_signals_wait_in_the_inbox_and_handlers_come_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGWINCH)
    with Inbox((WINCH, NUMBERS["USR1"])) as inbox:
        os.kill(os.getpid(), signal.SIGWINCH)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert inbox.take() == [signal.SIGWINCH, signal.SIGUSR1]
        assert inbox.take() == []
    assert signal.getsignal(signal.SIGWINCH) == before


def test_signal_numbers_are_the_systems() -> None:
    import signal

    for name, number in NUMBERS.items():
        if hasattr(signal, f"SIG{name}"):
            assert getattr(signal, f"SIG{name}") == number


PUMP = """
import sys
sys.path.insert(0, {source!r})
import _socket
from wherry.cli.session import Session
from wherry.client.engine import Hijacked
from wherry.client.http import Response, Stream
sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, {fd})
stream = Stream(sock)
head = Response(stream, 101, "UPGRADED", {{"content-type": "x"}}, {early!r})
with Session(tty={tty}, stdin={stdin}, sequence=b"") as session:
    session.pump(Hijacked(stream, head))
"""


def pump(*, tty: bool, stdin: bool, early: bytes = b"") -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """A session in a process of its own; the engine's end of its connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with theirs:
        code = PUMP.format(source=str(SOURCE), fd=theirs.fileno(), tty=tty, stdin=stdin, early=early)
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
    return process, ours


def test_input_is_carried_over_and_its_end_half_closes() -> None:
    process, engine = pump(tty=False, stdin=True, early=frame(1, b"early "))
    with engine:
        assert process.stdin is not None
        process.stdin.write(b"typed")
        process.stdin.close()
        process.stdin = None
        received = b""
        while data := engine.recv(100):
            received += data
        assert received == b"typed"
        engine.sendall(frame(1, b"out") + frame(2, b"err"))
    assert process.communicate(timeout=20) == (b"early out", b"err")
    assert process.returncode == 0


def test_without_input_the_connection_is_half_closed_at_once() -> None:
    process, engine = pump(tty=True, stdin=False)
    with engine:
        assert engine.recv(1) == b""
        engine.sendall(b"raw \x01\x00 bytes")
    assert process.communicate(timeout=20) == (b"raw \x01\x00 bytes", b"")


def test_output_flows_while_the_engine_takes_no_input() -> None:
    """A container that reads nothing until its output is read must not block both sides."""
    process, engine = pump(tty=True, stdin=True)
    assert process.stdin is not None
    total = 1 << 23
    os.set_blocking(process.stdin.fileno(), False)
    written = 0
    with engine:
        block = b"x" * 65536
        engine.sendall(b"begin")
        assert process.stdout is not None
        assert process.stdout.read(5) == b"begin"
        refused = 0
        while refused < 20:  # rounds of output in which the session took no input
            try:
                written += os.write(process.stdin.fileno(), block)
                refused = 0
            except BlockingIOError:
                engine.sendall(b"o")
                assert process.stdout.read(1) == b"o"
                refused += 1
            assert written < total, "the session buffers without limit"
        process.stdin.close()
        process.stdin = None
        received = 0
        while data := engine.recv(1 << 20):
            received += len(data)
        assert received == written
    process.communicate(timeout=20)
