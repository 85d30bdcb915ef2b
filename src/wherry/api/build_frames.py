"""The frames that `POST /builds` speaks once its connection is taken over, and the conversations they belong to.

    frame   length of head, length of data (both uint32, big-endian), head (JSON), data (bytes)

The client sends `build`, its request; the engine answers with `events` as the build goes on and ends with `result` or
`failed`. `cancel`, or the end of the client's sending, ends the build. In between the engine asks for what it needs.
Each question has a number, which everything that belongs to it carries:

    list                 a directory's files, listed                → listing*, refused
    want                 of those, these are needed                 → file*
    secret               a secret                                   → secret
    agent                is there an ssh agent, or a connection     → agent, then bytes* either way, end
    credentials          for a registry                             → credentials
    upload               what the client reads from its stdin       → bytes*, end
    output               a result, as one stream: bytes*, end       → received, refused
    tree                 a result, as files: entry*, bytes*, end    → received, refused
    read                 a blob of a content store                  → bytes*, end, refused
    write                the same the other way: bytes*, end        → received, refused
    shell                the failed step's terminal                 → window, refused; then bytes* either way, window*,
                                                                      and the engine's end

Paths travel in the data, since names need not be UTF-8: `path NUL link NUL` for each entry of the head.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from wherry.api.hijack import Stream
from wherry.errors import Failed, InvalidParameter, NotFound, WherryError

MAX_HEAD = 4 << 20  # bytes
MAX_DATA = 1 << 20
PIECE = 256 << 10  # bytes of content sent in one frame
OVERHEAD = 256  # bytes that any frame counts for, besides its data
BACKLOG = 8 << 20  # bytes of a conversation that nobody has read yet; then the connection waits
LENGTHS = struct.Struct(">II")


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """One `--output`, or one `--cache-to`."""

    type: str
    attributes: dict[str, str] = {}


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All heads in one: what a type has no use for is left out."""

    type: str
    id: int = 0  # of the conversation
    message: str = ""
    kind: str = ""  # of an error
    # build
    ref: str = ""
    attributes: dict[str, str] = {}  # as BuildKit's clients send them to its frontend
    entitlements: list[str] = []
    exports: list[Export] = []
    cache_exports: list[Export] = []
    squash: bool = False
    shell: bool = False  # a failed step is to be looked at
    verify: bool = False  # build twice and compare
    node: str = ""  # names the client's machine: directories of the same name there are the same
    # list, listing, want, file
    name: str = ""
    include: list[str] = []
    exclude: list[str] = []
    follow: list[str] = []
    entries: list[tuple[int, int, int, int]] = []  # mode as in stat(2), size, mtime ns, device
    more: bool = False
    files: list[int] = []  # numbers of entries, from 0
    file: int = 0
    done: bool = False  # the content of `file` is complete
    # answers and questions
    found: bool = False
    auth: dict[str, str] = {}
    exporter: int = 0
    metadata: dict[str, str] = {}
    store: str = ""
    digest: str = ""
    size: int = 0
    rows: int = 0
    columns: int = 0
    # events, result, failed
    events: list[dict[str, dict[str, object]]] = []
    response: dict[str, str] = {}
    excerpt: str = ""


class Frame(msgspec.Struct, frozen=True):
    head: Head
    data: bytes = b""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Head).decode


def encode(head: Head, data: bytes = b"") -> bytes:
    raw = _encode(head)
    return LENGTHS.pack(len(raw), len(data)) + raw + data


class Reader:
    """Frames out of a stream of bytes that may be cut anywhere. Raises InvalidParameter for what is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        buffer = self._buffer
        buffer += data
        frames = []
        at = 0
        while len(buffer) - at >= LENGTHS.size:
            head, rest = LENGTHS.unpack_from(buffer, at)
            if head > MAX_HEAD or rest > MAX_DATA:
                raise InvalidParameter("a frame of this build's client is too long")
            end = at + LENGTHS.size + head + rest
            if len(buffer) < end:
                break
            middle = end - rest
            try:
                decoded = _decode(buffer[at + LENGTHS.size : middle])
            except (msgspec.MsgspecError, RecursionError) as exc:
                raise InvalidParameter(f"a frame of this build's client makes no sense: {exc}") from None
            frames.append(Frame(decoded, bytes(buffer[middle:end])))
            at = end
        del buffer[:at]
        return frames


ERRORS: dict[str, type[WherryError]] = {"NotFound": NotFound, "InvalidParameter": InvalidParameter}


class Conversation:
    """One question and what follows from it."""

    def __init__(self, link: "Link", number: int) -> None:
        self._link = link
        self.number = number
        self._frames: deque[Frame] = deque()
        self._held = 0  # bytes
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, frame: Frame) -> None:
        """From the link: waits while too much is unread."""
        self._frames.append(frame)
        self._held += len(frame.data) + OVERHEAD
        self._arrived.set()
        if self._held > BACKLOG:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """No more will come, and nobody waits for room any more."""
        self._arrived.set()
        self._room.set()

    async def receive_all(self) -> list[Frame]:
        """What has come since the last time, at least one. Raises what the client refused with, and ConnectionError."""
        while not self._frames:
            if self._link.closed:
                raise ConnectionResetError("the client is gone")
            self._arrived.clear()
            await self._arrived.wait()
        frames = list(self._frames)
        self._frames.clear()
        self._held = 0
        self._room.set()
        for frame in frames:
            if frame.head.type == "refused":
                raise ERRORS.get(frame.head.kind, Failed)(frame.head.message or "the client refused")
        return frames

    async def receive(self) -> Frame:
        """The one frame that answers a question."""
        frames = await self.receive_all()
        for frame in frames[1:]:
            self._frames.append(frame)
            self._held += len(frame.data) + OVERHEAD
        return frames[0]

    async def content(self) -> AsyncGenerator[bytes, None]:
        """The data of all `bytes` up to the `end`."""
        while True:
            for frame in await self.receive_all():
                if frame.head.type == "end":
                    return
                if frame.data:
                    yield frame.data

    async def send(self, head: Head, data: bytes = b"") -> None:
        await self._link.send(head, data)

    async def send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), PIECE):
            await self._link.send(Head(type="bytes", id=self.number), bytes(view[at : at + PIECE]))

    async def send_end(self) -> None:
        await self._link.send(Head(type="end", id=self.number))


class Link:
    """Both directions of a taken-over connection. `listen` runs until the client is gone."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = Reader()
        self.control = Conversation(self, 0)  # what the client says without being asked
        self._talks: dict[int, Conversation] = {0: self.control}
        self._next = 1
        self._sending = asyncio.Lock()
        self.closed = False

    async def first(self) -> Frame:
        """The request. Raises InvalidParameter, and ConnectionError when the client went away before."""
        while data := await self._stream.read():
            if frames := self._reader.feed(data):
                if len(frames) > 1:
                    raise InvalidParameter("this build's client speaks before it is asked")
                return frames[0]
        raise ConnectionResetError("the client is gone")

    async def listen(self) -> None:
        """Hand what comes to the conversation it belongs to, until the client ends its sending."""
        try:
            while data := await self._stream.read():
                for frame in self._reader.feed(data):
                    talk = self._talks.get(frame.head.id)
                    if talk is not None:  # else it is over, and the client does not know yet
                        await talk.put(frame)
        finally:
            self.closed = True
            for talk in self._talks.values():
                talk.end()

    @asynccontextmanager
    async def ask(self, question: Head) -> AsyncIterator[Conversation]:
        """Begin a conversation; it is over when the block ends."""
        number = self._next
        self._next += 1
        talk = self._talks[number] = Conversation(self, number)
        try:
            await self.send(msgspec.structs.replace(question, id=number))
            yield talk
        finally:
            del self._talks[number]
            talk.end()

    async def send(self, head: Head, data: bytes = b"") -> None:
        async with self._sending:
            await self._stream.write(encode(head, data))


def names(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Paths and links as they travel in the data of `listing` and `entry`."""
    return b"".join(path + b"\0" + link + b"\0" for path, link in entries)


def split_names(data: bytes, count: int) -> list[tuple[bytes, bytes]]:
    """Raises InvalidParameter unless there are `count` pairs."""
    parts = data.split(b"\0")
    if len(parts) != 2 * count + 1 or parts[-1]:
        raise InvalidParameter("a listing of this build's client does not name its entries")
    return list(zip(parts[0:-1:2], parts[1:-1:2], strict=True))
