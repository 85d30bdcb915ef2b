"""gRPC over connections that were something else before: grpclib's HTTP/2 protocol with what BuildKit's clients need.

- A Go server that is not read to its end says RST_STREAM behind its trailers. grpclib takes that for a failure of the
  call; here it is what it is: the end.
- h2 takes 50-100 us for a frame. A client that lists its files sends one frame for each, so plain DATA frames are told
  apart before h2 sees them and go straight into the stream's buffer; everything else goes through h2. The bytes that
  h2 has not seen are flow-controlled here.
  What is sent in whole frames goes the same way.
- `Pipe` reads and writes what is there of a stream of messages at once.

grpclib's inside is used in this file only.
"""

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from grpclib import client, server
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.exceptions import GRPCError
from grpclib.protocol import AbstractHandler, EventsProcessor, H2Protocol
from grpclib.protocol import Connection as BaseConnection
from grpclib.protocol import Stream as BaseStream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, StreamReset
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes

from wherry.buildkit import bk_pb2 as pb

Request = TypeVar("Request")
Reply = TypeVar("Reply")

MAX_MESSAGE = 64 << 20  # bytes; BuildKit's clients keep below 16 MiB
CONNECTION_WINDOW = 16 << 20  # bytes a peer may send before it must wait
STREAM_WINDOW = 8 << 20
_GIVE_BACK = 1 << 20  # bytes read, after which the peer is told that it may send as many more
_PREFACE = 24  # bytes a client begins with
_MAX_FRAME = 16384  # bytes, HTTP/2's default, which we do not change
_AT_ONCE = 256 << 10  # bytes written before anybody else has a turn
_FULL_FRAME = struct.Struct(">HBBBI")  # head of a DATA frame of `_MAX_FRAME` bytes
_UPDATE = struct.Struct(">HBBBII")  # a WINDOW_UPDATE frame
_PREFIX = struct.Struct(">BI")  # of a message: compressed, length
_WINDOW_UPDATE = 8

logging.getLogger("hpack").setLevel(logging.INFO)  # at DEBUG it tells of every byte of every header
logging.getLogger("grpclib").setLevel(logging.WARNING)  # at INFO of every client that goes away

CONFIG = Configuration(http2_connection_window_size=CONNECTION_WINDOW, http2_stream_window_size=STREAM_WINDOW)


class TooLarge(GRPCError):
    def __init__(self, size: int) -> None:
        super().__init__(
            Status.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE})"
        )


class Buffer:
    """The bytes of a stream, in place of grpclib's: what h2 has not seen is given back to the peer as it is read."""

    def __init__(self, give_back: Callable[[int], None]) -> None:
        self._chunks: deque[bytes] = deque()
        self._give_back = give_back
        self._direct = 0  # bytes that h2 has not seen, not given back yet
        self._size = 0  # bytes unread
        self._ended = False
        self._arrived = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        """From h2, which is told at once that they are read: they are few."""
        self._chunks.append(data)
        self._size += len(data)
        self._arrived.set()

    def add_direct(self, data: bytes) -> None:
        self._direct += len(data)
        self.add(data, 0)

    def eof(self) -> None:
        self._ended = True
        self._arrived.set()

    @property
    def unread(self) -> int:
        return self._size

    async def wait(self) -> bool:
        """For bytes to be there; False at the end."""
        while not self._size:
            if self._ended:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        return True

    def take(self) -> bytes:
        """Everything there is."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._read()
        return data

    def put_back(self, data: bytes) -> None:
        if data:
            self._chunks.appendleft(data)
            self._size += len(data)

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes; b"" at the end. As grpclib asks: five bytes, then the message they announce."""
        if size > MAX_MESSAGE:
            raise TooLarge(size)
        parts: list[bytes] = []
        left = size
        while left:
            if not await self.wait():
                if len(parts):
                    raise GRPCError(Status.INTERNAL, "the stream ended within a message")
                return b""
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            if len(chunk) > left:
                self.put_back(chunk[left:])
                chunk = chunk[:left]
            parts.append(chunk)
            left -= len(chunk)
            self._read()
        return b"".join(parts)

    def _read(self) -> None:
        if self._direct >= _GIVE_BACK:
            self.give_back()

    def give_back(self) -> None:
        if self._direct:
            size, self._direct = self._direct, 0
            self._give_back(size)

    def unacked_size(self) -> int:
        return 0


class Stream(BaseStream):
    buffer: Buffer  # type: ignore[assignment]

    def init_stream(self, stream_id: int, connection: BaseConnection) -> None:
        super().init_stream(stream_id, connection)
        self.buffer = Buffer(lambda size: cast(Connection, connection).give_back(stream_id, size))

    async def send_data(self, data: bytes, end_stream: bool = False) -> None:
        """As grpclib's, but what fills whole frames goes past h2, whose windows are kept for it."""
        assert self.id is not None
        h2, view = self._h2_connection, memoryview(data)
        while len(view) > _MAX_FRAME:
            await self.connection.write_ready.wait()
            stream = h2.streams.get(self.id)
            if stream is None or stream.closed or self._transport.is_closing():
                raise StreamClosedError(self.id)
            whole = min(h2.local_flow_control_window(self.id), len(view) - 1, _AT_ONCE) // _MAX_FRAME
            if whole < 1:
                break  # grpclib waits for the window
            size = whole * _MAX_FRAME
            frames: list[bytes | memoryview] = []
            for at in range(0, size, _MAX_FRAME):
                frames += (_FULL_FRAME.pack(_MAX_FRAME >> 8, 0, 0, 0, self.id), view[at : at + _MAX_FRAME])
            h2.outbound_flow_control_window -= size
            stream.outbound_flow_control_window -= size
            self._transport.writelines(frames)
            view = view[size:]
        await super().send_data(bytes(view) if len(view) < len(data) else data, end_stream)


class Connection(BaseConnection):
    def create_stream(self, *, stream_id: int | None = None, wrapper: Wrapper | None = None) -> Stream:
        return Stream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)

    def give_back(self, stream_id: int, size: int) -> None:
        """The peer may send `size` bytes more, of the stream and in all."""
        if self.is_closing():
            return
        updates = _UPDATE.pack(0, 4, _WINDOW_UPDATE, 0, 0, size)
        if stream_id in self._connection.streams and not self._connection.streams[stream_id].closed:
            updates += _UPDATE.pack(0, 4, _WINDOW_UPDATE, 0, stream_id, size)
        self._transport.write(updates)


class Processor(EventsProcessor):
    def register(self, stream: BaseStream) -> Callable[[], None]:
        release = super().register(stream)

        def release_stream() -> None:
            release()
            assert isinstance(stream, Stream)
            stream.buffer.give_back()

        return release_stream

    def process(self, event: Event) -> None:
        if hasattr(self, "processors") and event.__class__ in self.processors:  # there are others, of no interest
            super().process(event)

    def process_stream_reset(self, event: StreamReset) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None or stream.trailers is None:
            super().process_stream_reset(event)


class Protocol(H2Protocol):
    """One HTTP/2 connection, of either side."""

    connection: Connection
    processor: Processor

    def __init__(self, handler: AbstractHandler, *, client_side: bool) -> None:
        config = H2Configuration(
            client_side=client_side,
            header_encoding="utf-8",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(handler, CONFIG.__for_client__() if client_side else CONFIG.__for_server__(), config)
        self._preface = 0 if client_side else _PREFACE
        self._rest = b""  # the beginning of a frame
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        h2 = H2Connection(config=self.h2_config)
        h2.initiate_connection()
        h2.increment_flow_control_window(CONNECTION_WINDOW - h2.local_settings.initial_window_size)
        h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW})
        self.connection = Connection(h2, cast(asyncio.Transport, transport), config=self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = Processor(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        if self._preface:
            head, data = data[: self._preface], data[self._preface :]
            self._preface -= len(head)
            self._feed(head)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = begin = 0  # what is before `begin` has been dealt with; between the two lie frames for h2
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            end = at + 9 + length
            if length > _MAX_FRAME:
                self.processor.close("the peer sent a frame that is too large")
                return
            if end > len(data):
                break
            if data[at + 3] == 0 and data[at + 4] == 0:  # DATA without padding, not the last of its stream
                stream = self.processor.streams.get(int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF)
                if stream is not None:
                    if begin < at:
                        self._feed(data[begin:at])
                    if not self._direct(cast(Stream, stream), data[at + 9 : end]):
                        return
                    begin = end
            at = end
        if begin < at:
            self._feed(data[begin:at])
        self._rest = data[at:]

    def _direct(self, stream: Stream, data: bytes) -> bool:
        """Bytes of a stream, past h2; False when the connection is closed for them."""
        if stream.buffer.unread + len(data) > STREAM_WINDOW + _GIVE_BACK:
            self.processor.close("the peer sends more than it may")
            return False
        if data:
            stream.buffer.add_direct(data)
        return True

    def _feed(self, data: bytes) -> None:
        if self.connection.is_closing():
            return
        try:
            events = self.connection.feed(data)
        except (ProtocolError, UnicodeError, ValueError):
            self.processor.close("Protocol error")
            return
        self.connection.flush()
        for event in events:
            self.processor.process(event)
        if not self.connection.is_closing():
            self.connection.flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


class DetailsCodec(StatusDetailsCodecBase):
    """`grpc-status-details-bin`: a google.rpc.Status; the details are its `Any`s."""

    def encode(self, status: Status, message: str | None, details: Sequence[pb.RpcAny]) -> bytes:
        return pb.RpcStatus(code=status.value, message=message or "", details=details).SerializeToString()

    def decode(self, status: Status, message: str | None, data: bytes) -> list[pb.RpcAny]:
        try:
            return list(pb.RpcStatus.FromString(data).details)
        except Exception:  # upb's DecodeError is no public name
            return []


# --- streams of messages ----------------------------------------------------------------------------------------------


class Pipe:
    """The messages of one stream as bytes, many at a time, for either side of it."""

    def __init__(self, stream: "server.Stream[Request, Reply] | client.Stream[Request, Reply]") -> None:
        self._stream = cast("server.Stream[object, object] | client.Stream[object, object]", stream)

    @property
    def _inner(self) -> Stream:
        return cast(Stream, self._stream._stream)

    async def receive(self) -> list[bytes]:
        """Every message that has arrived, at least one; [] at the end."""
        stream = self._stream
        if isinstance(stream, client.Stream):
            if not stream._recv_initial_metadata_done:
                await stream.recv_initial_metadata()
            with stream._wrapper:
                return await self._receive()
        return await self._receive()

    async def _receive(self) -> list[bytes]:
        buffer = self._inner.buffer
        while await buffer.wait():
            messages, rest = split(buffer.take())
            if messages:
                buffer.put_back(rest)
                return messages
            # Less than one message is there: wait for the whole of it, so that it is put together once.
            (size,) = struct.unpack(">I", rest[1:5]) if len(rest) >= 5 else (0,)
            buffer.put_back(rest)
            head = await buffer.read(5)
            if len(head) < 5:
                break
            (size,) = struct.unpack(">I", head[1:])
            body = await buffer.read(size) if size else b""
            if len(body) < size:
                break
            return [body]
        return []

    async def send(self, messages: Iterable[bytes], *, end: bool = False) -> None:
        """All of them, in as few frames as they fit in. `end`: nothing follows (clients only)."""
        stream = self._stream
        data = b"".join([part for each in messages for part in (_PREFIX.pack(0, len(each)), each)])
        if isinstance(stream, client.Stream):
            if not stream._send_request_done:
                await stream.send_request()
            with stream._wrapper:
                await self._inner.send_data(data, end_stream=end)
            stream._end_done = stream._end_done or end
            stream._send_message_done = True
        else:
            if not stream._send_initial_metadata_done:
                await stream.send_initial_metadata()
            await self._inner.send_data(data)
            stream._send_message_done = True


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole messages, and the beginning of the next. Raises GRPCError for one that is too large or compressed."""
    messages: list[bytes] = []
    at, end = 0, len(data)
    while end - at >= 5:
        compressed, size = _PREFIX.unpack_from(data, at)
        if size > MAX_MESSAGE:
            raise TooLarge(size)
        if compressed:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not supported")
        if at + 5 + size > end:
            break
        messages.append(data[at + 5 : at + 5 + size])
        at += 5 + size
    return messages, data[at:]
