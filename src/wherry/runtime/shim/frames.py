"""What daemon, zygote and shim say to each other: JSON documents with a length before them. Stdlib only.

A connection to a shim starts with one document, `{"op": …}`. It stays a control connection (requests with `seq`,
answers with the same `seq` and `ok` or `error`, and events without), or it becomes a raw byte stream (attach, exec).
"""

import json
import socket
import struct
from collections.abc import Iterator, Mapping

_LENGTH = struct.Struct(">I")
LENGTH = _LENGTH.size
MAX_DOCUMENT = 16 << 20  # bytes

Document = dict[str, object]


def encode(document: Mapping[str, object]) -> bytes:
    body = json.dumps(document, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def length(head: bytes) -> int:
    """How long the document after `head` is. Raises ValueError when it cannot be one."""
    (size,) = _LENGTH.unpack(head)
    if size > MAX_DOCUMENT:
        raise ValueError(f"document of {size} bytes")
    return int(size)


class Decoder:
    """Bytes in, documents out; `rest` is what came after the last one taken."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> None:
        self.rest += data

    def take(self) -> Document | None:
        """The next whole document, or None. Raises ValueError for what cannot be one."""
        if len(self.rest) < LENGTH:
            return None
        end = LENGTH + length(self.rest[:LENGTH])
        if len(self.rest) < end:
            return None
        document = json.loads(self.rest[LENGTH:end])
        self.rest = self.rest[end:]
        if not isinstance(document, dict):
            raise ValueError("not a document")
        return document

    def __iter__(self) -> Iterator[Document]:
        while (document := self.take()) is not None:
            yield document


def receive(sock: socket.socket) -> Document | None:
    """Read one document from a blocking socket; None at its end."""
    decoder = Decoder()
    while (document := decoder.take()) is None:
        data = sock.recv(256 << 10)
        if not data:
            return None
        decoder.feed(data)
    return document
