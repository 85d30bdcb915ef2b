"""A process's stdio within the shim: read once, logged, and handed to every attached client. Stdlib only.

Output reaches clients ready for the API's wire: framed as `>BxxxI` and the payload, or raw for a terminal.

A client that is slower than the process slows the process down, as a pipe would (`docker run … | gzip` loses nothing).
One that takes nothing at all for `GRACE` seconds is cut off, so that a dead client never holds up a container or its
log. Nobody attached: output goes to the log alone.
"""

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from wherry.runtime.shim.loop import HANGUP, IN, OUT, Loop, Timer

CHUNK = 64 << 10  # bytes, one full pipe; larger reads are slower
BACKLOG = 1 << 20  # bytes queued for a client before its process has to wait
GRACE = 10.0  # s
INPUT = 64 << 10  # bytes of stdin held for a process that does not read
HOT = 0.001  # s; reads that follow each other faster are gathered by a nap of this length
_HOT_READS = 3
_LAST_READS = 64  # chunks taken from output that others hold open

_HEADER = struct.Struct(">BxxxI")
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
STDOUT, STDERR, SYSTEM_ERROR = 1, 2, 3


class Log(Protocol):
    """What takes the output of a process besides its clients."""

    def write(self, stream: str, chunk: bytes) -> None: ...

    def flush(self, stream: str) -> None: ...

    def close(self) -> None: ...


def frame(number: int, data: bytes) -> bytes:
    return _HEADER.pack(number, len(data)) + data


class Connection:
    """A non-blocking socket with a queue before it."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.closed = False
        self.queued = 0  # bytes
        self.progress = time.monotonic()  # when the peer last took something
        self._queue: deque[memoryview] = deque()
        self._reading = True
        self._ended = False  # the peer said it sends no more
        self._ending = False  # we close when the queue is empty
        self._cut: Timer | None = None
        sock.setblocking(False)
        self._watch()

    def send(self, data: bytes) -> None:
        """Queue whole messages; sent at once as far as the peer takes them."""
        if self.closed or self._ending:
            return
        view = memoryview(data)
        if not self._queue:
            view = view[self._try(view) :]
        if view and not self.closed:
            self._queue.append(view)
            self.queued += len(view)
            self._watch()

    def finish(self, grace: float = GRACE) -> None:
        """Close after everything queued was sent, or the peer took nothing for `grace` seconds."""
        if self.closed or self._ending:
            return
        self._ending = True
        if self._queue:
            self._guard(grace)
        else:
            self.close()

    def close(self) -> None:
        """At once. Idempotent."""
        if not self.closed:
            self.closed = True
            self.loop.unwatch(self.sock.fileno())
            self.sock.close()
            self._queue.clear()
            self.queued = 0
            if self._cut is not None:
                self._cut.cancel()
            self.on_closed()

    def drop(self, last: bytes = b"") -> None:
        """Give up on a peer that does not read: forget the queue but for the message begun, and end with `last`."""
        while len(self._queue) > 1:
            self.queued -= len(self._queue.pop())
        self.send(last)
        self.finish()

    def release(self) -> socket.socket:
        """Give the socket away: this object is done with it."""
        self.closed = True
        self.loop.unwatch(self.sock.fileno())
        return self.sock

    def read_from(self, *, wanted: bool) -> None:
        """Whether to read what the peer sends; nothing to do after its end."""
        if wanted != self._reading and not self.closed and not self._ended:
            self._reading = wanted
            self._watch()

    def on_data(self, data: bytes) -> None:
        """The peer sent something; `b""` once at its end."""

    def on_flushed(self) -> None:
        """The queue became shorter."""

    def on_closed(self) -> None:
        """Called once."""

    def _try(self, view: memoryview) -> int:
        sent = 0
        try:
            while sent < len(view):
                sent += self.sock.send(view[sent:], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError as exc:
            if exc.errno not in _GONE:
                raise
            self.close()
        if sent:
            self.progress = time.monotonic()
        return sent

    def _watch(self) -> None:
        events = (IN if self._reading else 0) | (OUT if self._queue else 0)
        self.loop.watch(self.sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if events & (IN | HANGUP) and not self.closed:
            self._receive(hung_up=bool(events & HANGUP))

    def _flush(self) -> None:
        while self._queue and not self.closed:
            view = self._queue[0]
            sent = self._try(view)
            self.queued -= sent
            if sent < len(view):
                if not self.closed:
                    self._queue[0] = view[sent:]
                break
            self._queue.popleft()
        if self.closed:
            return
        if not self._queue:
            if self._ending:
                self.close()
                return
            self._watch()
        self.on_flushed()

    def _receive(self, *, hung_up: bool) -> None:
        if self._reading:
            try:
                data = self.sock.recv(CHUNK)
            except BlockingIOError:
                data = None
            except OSError:
                self.close()
                return
            if data is not None:
                if not data:
                    self._reading, self._ended = False, True
                    self._watch()
                self.on_data(data)
                return
        if hung_up and not self.closed:  # nobody will take what we send
            self.close()

    def _guard(self, grace: float) -> None:
        if self.closed:
            return
        left = self.progress + grace - time.monotonic()
        if left <= 0:
            self.close()
        else:
            self._cut = self.loop.call_later(left, lambda: self._guard(grace))


class Client(Connection):
    """One attached client."""

    def __init__(self, session: "Session", sock: socket.socket, *, streams: frozenset[int], stdin: bool) -> None:
        self.session = session
        self.streams = streams
        self.stdin = stdin
        super().__init__(session.loop, sock)

    def on_data(self, data: bytes) -> None:
        if self.stdin:
            self.session.receive(self, data)

    def on_flushed(self) -> None:
        self.session.balance()

    def on_closed(self) -> None:
        self.session.lost(self)


class Input:
    """The write side of a process's stdin: a pipe, or the master of its terminal."""

    def __init__(self, loop: Loop, fd: int, on_room: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._pending = bytearray()
        self._ending = False
        self._on_room = on_room
        os.set_blocking(fd, False)

    @property
    def full(self) -> bool:
        return len(self._pending) >= INPUT

    def write(self, data: bytes) -> None:
        """What the process does not take now is kept; after its end data is dropped."""
        if self._fd < 0 or self._ending:
            return
        self._pending += data
        self._flush()

    def end(self) -> None:
        """EOF after everything written."""
        self._ending = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._pending.clear()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._fd, self._pending[:CHUNK])]
        except BlockingIOError:
            self._loop.watch(self._fd, OUT, self._ready)
            return
        except OSError:  # EPIPE: the process closed its stdin; EIO: its terminal is gone
            self.close()
            return
        self._loop.unwatch(self._fd)
        if self._ending:
            self.close()

    def _ready(self, events: int) -> None:
        if events & HANGUP and not events & OUT:
            self.close()
        else:
            self._flush()
        if not self.full:
            self._on_room()


class Session:
    """The stdio of one process and those attached to it."""

    def __init__(
        self,
        loop: Loop,
        *,
        tty: bool,
        log: Log | None = None,
        close_stdin: bool = False,
        grace: float | None = GRACE,
        on_log_error: Callable[[OSError], None] | None = None,
        on_abandoned: Callable[[], None] | None = None,
    ) -> None:
        """`close_stdin`: the end of a client's input is that of the process's. `grace` None: no client is cut off.

        `on_abandoned` is called when the last client has left.
        """
        self.loop = loop
        self.tty = tty
        self.clients: list[Client] = []
        self._log = log
        self._on_log_error = on_log_error
        self._on_abandoned = on_abandoned
        self._close_stdin = close_stdin and not tty
        self._grace = grace
        self._outputs: dict[int, int] = {}  # stream by fd
        self._input: Input | None = None
        self._reading = False
        self._stall: Timer | None = None
        self._on_drained: Callable[[], None] | None = None
        self._last_read = 0.0
        self._quick_reads = 0

    def use(self, *, stdin: int | None, outputs: dict[int, int]) -> None:
        """Take over the fds of our ends: the write side of stdin, and stream number by read side."""
        for fd in outputs:
            os.set_blocking(fd, False)
        self._outputs = dict(outputs)
        if stdin is not None:
            self._input = Input(self.loop, stdin, self._accept_input)

    def begin(self) -> None:
        """Start to read what the process writes."""
        self._read(wanted=True)

    def attach(self, sock: socket.socket, *, streams: frozenset[int], stdin: bool, early: bytes = b"") -> Client:
        """A new client; it gets what is written from now on. `early` is what it has sent already."""
        client = Client(self, sock, streams=streams, stdin=stdin and self._input is not None)
        self.clients.append(client)
        if early:
            client.on_data(early)
        return client

    def drain(self, on_drained: Callable[[], None], limit: float) -> None:
        """The process has ended: call back when its output has too, or after `limit` seconds of others holding it."""
        if not self._outputs:
            on_drained()
            return
        self._on_drained = on_drained
        self.loop.call_later(limit, self._give_up)

    def emit(self, number: int, data: bytes) -> None:
        """Log and hand on a chunk of output."""
        if self._log is not None:
            try:
                self._log.write("stderr" if number == STDERR else "stdout", data)
            except OSError as exc:
                self._log_failed(exc)
        whole = data if self.tty else None
        for client in tuple(self.clients):
            if number in client.streams:
                if whole is None:
                    whole = frame(number, data)
                client.send(whole)
        self.balance()

    def end_output(self) -> None:
        """No more output: the log is complete."""
        self._close_outputs()
        if self._input is not None:
            self._input.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def end_input(self) -> None:
        """No client will send anything."""
        if self._input is not None:
            self._input.end()

    def finish(self) -> None:
        """End the clients, each once it has got everything."""
        self.end_output()
        for client in tuple(self.clients):
            client.finish()

    def receive(self, client: Client, data: bytes) -> None:
        """A client's input."""
        if self._input is None:
            return
        if data:
            self._input.write(data)
        elif self._close_stdin:
            self._input.end()
        if self._input.full:
            for other in self.clients:
                if other.stdin:
                    other.read_from(wanted=False)

    def lost(self, client: Client) -> None:
        """A client is gone."""
        if client in self.clients:
            self.clients.remove(client)
            if client.stdin and self._close_stdin and self._input is not None:
                self._input.end()
            self.balance()
            if not self.clients and self._on_abandoned is not None:
                self._on_abandoned()

    def balance(self) -> None:
        """Stop reading while a client is behind; go on when all have caught up."""
        behind = [client for client in self.clients if client.queued > BACKLOG]
        if behind and self._reading:
            self._read(wanted=False)
            if self._grace is not None and self._stall is None:
                self._stall = self.loop.call_later(self._grace, self._check_stall)
        elif not behind and not self._reading and self._outputs:
            self._read(wanted=True)

    def _check_stall(self) -> None:
        self._stall = None
        assert self._grace is not None
        now, left = time.monotonic(), []
        for client in tuple(self.clients):
            if client.queued > BACKLOG:
                if now - client.progress >= self._grace:
                    client.streams = frozenset()
                    client.drop(b"" if self.tty else frame(SYSTEM_ERROR, b"attached client does not read: cut off\n"))
                else:
                    left.append(client.progress + self._grace - now)
        if left:
            self._stall = self.loop.call_later(min(left), self._check_stall)
        self.balance()

    def _accept_input(self) -> None:
        for client in self.clients:
            if client.stdin:
                client.read_from(wanted=True)

    def _read(self, *, wanted: bool) -> None:
        self._reading = wanted
        for fd in self._outputs:
            if wanted:
                self.loop.watch(fd, IN, partial(self._on_readable, fd))
            else:
                self.loop.unwatch(fd)

    def _on_readable(self, fd: int, _events: int) -> None:
        self._readable(fd)

    def _readable(self, fd: int) -> bool:
        """Read once; False when there is nothing now, or no more ever."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.EIO:  # the way a terminal's master says EOF
                raise
            data = b""
        number = self._outputs[fd]
        if data:
            self.emit(number, data)
            self._nap(len(data))
        else:
            self._close_output(fd)
        return bool(data)

    def _nap(self, size: int) -> None:
        """Let a busy writer fill its pipe: one system call per line costs both sides several times more."""
        now = time.monotonic()
        self._quick_reads = self._quick_reads + 1 if now - self._last_read < HOT else 0
        if self._quick_reads >= _HOT_READS and size < CHUNK:
            time.sleep(HOT)
            now = time.monotonic()
        self._last_read = now

    def _close_output(self, fd: int) -> None:
        number = self._outputs.pop(fd)
        self.loop.unwatch(fd)
        os.close(fd)
        if self._log is not None and number not in self._outputs.values():
            try:
                self._log.flush("stderr" if number == STDERR else "stdout")
            except OSError as exc:
                self._log_failed(exc)
        if not self._outputs and (call := self._on_drained) is not None:
            self._on_drained = None
            call()

    def _close_outputs(self) -> None:
        for fd in tuple(self._outputs):
            self._close_output(fd)

    def _give_up(self) -> None:
        """Others hold the output open, or a client is behind: take what the process left, and end it."""
        if self._on_drained is None:
            return
        for fd in tuple(self._outputs):
            for _ in range(_LAST_READS):
                if not self._readable(fd):
                    break
        self._close_outputs()

    def _log_failed(self, exc: OSError) -> None:
        if self._on_log_error is not None:
            self._on_log_error(exc)
