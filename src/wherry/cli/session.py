"""A container's or an exec's terminal session: bytes between here and a taken-over connection.

One thread, one poll: typed bytes out, output in, signals to the container, until the output ends or the user
detaches. Nothing is lost and nothing grows: input is read only while the connection takes it.
"""

from __future__ import annotations

import errno
import os
import select

from wherry.cli.console import Terminated
from wherry.cli.signals import HUP, PROXIED, QUIT, TERM, WINCH, Inbox
from wherry.cli.terminal import DEFAULT_DETACH, DetachFilter, RawTerminal, parse_detach_keys, size_of
from wherry.client.engine import EngineError, ProtocolError, Unreachable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.cli.command import CLI
    from wherry.client.engine import Call, Engine, Hijacked

STDIN, STDOUT, STDERR = 0, 1, 2
CHUNK = 1 << 16  # bytes read from standard input at a time
BACKLOG = 1 << 18  # unsent bytes at which standard input has to wait
FAILURES = (EngineError, ProtocolError, Unreachable)


class Detached(Exception):
    """The user typed the detach keys."""


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()


class Demultiplexer:
    """Splits 8-byte headed frames onto standard output and error as they come, whole or in parts."""

    def __init__(self, write: Callable[[int, bytes | memoryview], None] = write_all) -> None:
        self._write = write
        self._header = b""
        self._left = 0
        self._fd = STDOUT
        self._error = bytearray()

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._left:
                missing = 8 - len(self._header)
                self._header += bytes(view[:missing])
                view = view[missing:]
                if len(self._header) < 8:
                    return
                kind, self._left = self._header[0], int.from_bytes(self._header[4:], "big")
                if kind > 3 or self._header[1:4] != b"\0\0\0":
                    raise ProtocolError(f"Unrecognized input header: {kind}")
                self._fd = STDOUT if kind < 2 else STDERR if kind == 2 else -1
                self._header = b""
                continue
            part = view[: self._left]
            if self._fd < 0:
                self._error += part
            else:
                self._write(self._fd, part)
            self._left -= len(part)
            view = view[len(part) :]
            if self._fd < 0 and not self._left:
                raise ProtocolError("error from daemon in stream: " + self._error.decode("utf-8", "replace"))


def detach_sequence(cli: CLI, given: str) -> bytes:
    """From --detach-keys, else config.json, else ^P^Q."""
    keys = given or str(cli.config.get("detachKeys") or DEFAULT_DETACH)
    try:
        return parse_detach_keys(keys)
    except ValueError as exc:
        if given:
            from wherry.cli.console import Failure

            raise Failure(f"invalid detach keys ({given}): {exc}") from None
        return parse_detach_keys(DEFAULT_DETACH)


class Session:
    """What connects the user to one process.

    `resize` and `kill` tell the engine about the window and about signals; they run on a connection of their own,
    and what goes wrong there is no concern of the session.
    """

    def __init__(
        self,
        *,
        tty: bool,
        stdin: bool,
        sequence: bytes = b"",
        resize: Callable[[int, int], None] | None = None,
        kill: Callable[[int], None] | None = None,
    ) -> None:
        self.tty = tty
        self.stdin = stdin
        self.resize = resize if tty else None
        self.kill = kill
        self.raw = tty and stdin and os.isatty(STDIN)
        self.filter = DetachFilter(sequence if self.raw else b"")
        watched = set(PROXIED) if kill is not None else {HUP, TERM, QUIT} if self.raw else set()
        if self.resize is not None:
            watched.add(WINCH)
        self.inbox = Inbox(tuple(sorted(watched)))
        self._pending = bytearray()

    def __enter__(self) -> Session:
        self.inbox.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.inbox.__exit__(*exc)

    def fit_window(self, *, larger: int = 0) -> None:
        """Tell the engine the size of this window, if it is one."""
        rows, columns = size_of(STDOUT)
        if self.resize is not None and (rows or columns):
            try:
                self.resize(rows + larger, columns + larger)
            except FAILURES:
                return  # not started yet, or gone already

    def redraw(self) -> None:
        """Have a program that has drawn already draw again: only a change of size makes it."""
        self.fit_window(larger=1)
        self.fit_window()

    def attend(self) -> None:
        """Act on the signals that came."""
        for number in self.inbox.take():
            if number == WINCH and self.resize is not None:
                self.fit_window()
            if self.kill is not None:
                try:
                    self.kill(number)
                except FAILURES:
                    continue
            elif number != WINCH:
                raise Terminated(number)

    def pump(self, hijacked: Hijacked) -> None:
        """Until the output ends; Detached when the user leaves before."""
        demultiplexer = None if self.tty else Demultiplexer()

        def show(data: bytes) -> None:
            if demultiplexer is None:
                write_all(STDOUT, data)
            else:
                demultiplexer.feed(data)

        if self.raw:
            with RawTerminal(STDIN):
                self._loop(hijacked, show)
        else:
            self._loop(hijacked, show)

    def _loop(self, hijacked: Hijacked, show: Callable[[bytes], None]) -> None:
        stream = hijacked.stream
        open_stdin, half_closed = self.stdin, False
        if hijacked.early:
            show(hijacked.early)
        while True:
            if not open_stdin and not self._pending and not half_closed:
                stream.close_write()
                half_closed = True
            poll = select.poll()
            poll.register(self.inbox.fileno(), select.POLLIN)
            poll.register(stream.fileno(), select.POLLIN | (select.POLLOUT if self._pending else 0))
            if open_stdin and len(self._pending) < BACKLOG:
                poll.register(STDIN, select.POLLIN)
            ready = dict(poll.poll(0 if stream.pending() else None))
            if self.inbox.fileno() in ready:
                self.attend()
            if STDIN in ready:
                open_stdin = self._read_stdin()
            if self._pending:
                del self._pending[: stream.send_some(self._pending)]
            if self.filter.detached and not self._pending:
                raise Detached
            if stream.pending() or ready.get(stream.fileno(), 0) & ~select.POLLOUT:
                try:
                    data = stream.recv()
                except ConnectionResetError:
                    data = b""
                if not data:
                    return
                show(data)

    def _read_stdin(self) -> bool:
        """Is there more to come?"""
        try:
            data = os.read(STDIN, CHUNK)
        except BlockingIOError:
            return True
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.EBADF):  # the terminal is gone, or there never was an input
                return False
            raise
        self._pending += self.filter.feed(data)
        return bool(data)

    def await_answer(self, call: Call) -> bytes:
        """The body of a response that comes late, signals being passed on meanwhile."""
        body = b""
        chunks = call.chunks()
        while True:
            if not call.response.buffered():
                poll = select.poll()
                poll.register(self.inbox.fileno(), select.POLLIN)
                poll.register(call.fileno(), select.POLLIN)
                ready = dict(poll.poll(0 if call.pending() else None))
                if self.inbox.fileno() in ready:
                    self.attend()
                if call.fileno() not in ready and not call.pending():
                    continue
            data = next(chunks, None)
            if data is None:
                return body
            body += data


def container_session(
    cli: CLI, engine: Engine, identifier: str, *, tty: bool, stdin: bool, detach_keys: str, sig_proxy: bool
) -> Session:
    """A session whose signals and window go to a container."""
    path = f"/containers/{quote(identifier)}"

    def resize(rows: int, columns: int) -> None:
        engine.call("POST", f"{path}/resize", {"h": rows, "w": columns})

    def kill(number: int) -> None:
        from wherry.cli.signals import NAMES

        engine.call("POST", f"{path}/kill", {"signal": NAMES[number - 1]})

    return Session(
        tty=tty,
        stdin=stdin,
        sequence=detach_sequence(cli, detach_keys) if tty else b"",
        resize=resize,
        kill=kill if sig_proxy else None,
    )
