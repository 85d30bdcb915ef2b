"""The connection of a build: frames both ways, one thread, one poll.

    frame   length of head, length of data (both uint32, big-endian), head (JSON), data (bytes)

What the engine asks for is answered by `answers` (build_answers.py), each conversation by its number. Nothing here
waits for anything but the poll: what is to be sent is made when there is room for it.
"""

from __future__ import annotations

import select

from wherry.cli.signals import Inbox
from wherry.client.engine import ProtocolError
from wherry.client.jsontext import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from wherry.client.engine import Hijacked

MAX_HEAD, MAX_DATA = 64 << 20, 1 << 20  # bytes
PIECE = 256 << 10  # bytes of content in one frame
ROOM = 1 << 20  # bytes not sent yet at which no more are made


def encode(head: dict[str, Any], data: bytes = b"") -> bytes:
    raw = dumps(head).encode("utf-8", "replace")
    return len(raw).to_bytes(4, "big") + len(data).to_bytes(4, "big") + raw + data


class Reader:
    """Frames out of bytes that may be cut anywhere; ProtocolError for what is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        self._buffer += data
        while len(self._buffer) >= 8:
            head, rest = int.from_bytes(self._buffer[:4], "big"), int.from_bytes(self._buffer[4:8], "big")
            if head > MAX_HEAD or rest > MAX_DATA:
                raise ProtocolError("what answers does not speak as an engine does about builds")
            end = 8 + head + rest
            if len(self._buffer) < end:
                return
            document = loads(bytes(self._buffer[8 : 8 + head]))
            body = bytes(self._buffer[8 + head : end])
            del self._buffer[:end]
            yield document, body


class Ear:
    """A descriptor that is listened to besides the connection; `ready` is called when it can be read."""

    __slots__ = ("fd", "ready")

    def __init__(self, fd: int, ready: Callable[[], None]) -> None:
        self.fd = fd
        self.ready = ready


class Link:
    """`run` until the engine ends the connection, or `stop` is called."""

    def __init__(self, hijacked: Hijacked, *, inbox: Inbox, attend: Callable[[], None]) -> None:
        self._stream = hijacked.stream
        self._early = hijacked.early
        self._inbox = inbox
        self._attend = attend  # to signals
        self._out = bytearray()
        self._producers: list[Iterator[bytes]] = []  # frames yet to be made, one producer after the other
        self._ears: dict[int, Ear] = {}
        self._stopped = False

    def send(self, head: dict[str, Any], data: bytes = b"") -> None:
        self._out += encode(head, data)

    def produce(self, frames: Iterator[bytes]) -> None:
        """Send these, each made when there is room."""
        self._producers.append(frames)

    def listen(self, ear: Ear) -> None:
        self._ears[ear.fd] = ear

    def unlisten(self, fd: int) -> None:
        self._ears.pop(fd, None)

    def stop(self) -> None:
        self._stopped = True

    @property
    def has_room(self) -> bool:
        return len(self._out) < ROOM

    def run(
        self, receive: Callable[[dict[str, Any], bytes], None], *, tick: Callable[[], None], interval: int | None
    ) -> None:
        """`receive` gets every frame; `tick` is called every `interval` ms, or after each frame that came."""
        reader = Reader()
        data = self._early
        while True:
            for head, body in reader.feed(data):
                receive(head, body)
            tick()
            if self._is_over():
                return
            data = b""
            if self._wait(interval):
                try:
                    data = self._stream.recv()
                except ConnectionResetError:
                    return
                if not data:
                    return

    def _is_over(self) -> bool:
        return self._stopped

    def _wait(self, interval: int | None) -> bool:
        """For something to happen: is it that the connection can be read?"""
        self._fill()
        stream = self._stream
        poll = select.poll()
        poll.register(self._inbox.fileno(), select.POLLIN)
        poll.register(stream.fileno(), select.POLLIN | (select.POLLOUT if self._out else 0))
        if self.has_room:
            for fd in self._ears:
                poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(0 if stream.pending() else interval))
        if self._inbox.fileno() in ready:
            self._attend()
        for ear in [ear for fd, ear in self._ears.items() if fd in ready]:
            ear.ready()
        if self._out:
            del self._out[: stream.send_some(self._out)]
        return stream.pending() or bool(ready.get(stream.fileno(), 0) & ~select.POLLOUT)

    def _fill(self) -> None:
        while self._producers and self.has_room:
            frame = next(self._producers[0], None)
            if frame is None:
                self._producers.pop(0)
            else:
                self._out += frame
