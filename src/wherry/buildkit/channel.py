"""A gRPC client on a connection that the other side opened: the session, in which the daemon asks and buildx answers.

The connection is what `/session` was taken over from, or bytes inside a stream of `Control.Session` (`Tunnel`).
"""

import asyncio
from collections.abc import Iterable

from grpclib.client import Channel as BaseChannel
from grpclib.client import Handler
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Stream

from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.wire import DetailsCodec, Pipe, Protocol

TUNNEL_HIGH = 1 << 20  # bytes waiting to be sent through a tunnel; then writing pauses
_PIECE = 1 << 20  # bytes of one message


class Channel(BaseChannel):
    """Has one connection, never another: `protocol` is for `transport.set_protocol`."""

    def __init__(self) -> None:
        super().__init__(codec=ProtoCodec(), status_details_codec=DetailsCodec())
        self.protocol = Protocol(Handler(), client_side=True)
        self._protocol = None

    async def __connect__(self) -> H2Protocol:
        if self.protocol.lost.is_set() or not hasattr(self.protocol, "connection"):
            raise StreamTerminatedError("the session is closed")
        return self.protocol

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is."""
        return self.protocol.lost

    def close(self) -> None:
        if hasattr(self.protocol, "processor"):
            self.protocol.processor.close()


class Tunnel(asyncio.Transport):
    """The transport of a `Channel` whose bytes travel in messages of another gRPC stream."""

    def __init__(self, stream: Stream[pb.Bytes, pb.Bytes], protocol: Protocol) -> None:
        super().__init__()
        self._pipe = Pipe(stream)
        self._protocol = protocol
        self._out: list[bytes] = []
        self._size = 0  # bytes in `_out`
        self._written = asyncio.Event()
        self._paused = False
        self._closing = False

    async def run(self) -> None:
        """Carry bytes in both directions until either side ends."""
        self._protocol.connection_made(self)
        sending = asyncio.ensure_future(self._send())
        receiving = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._closing = True
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            self._protocol.connection_lost(None)

    async def _receive(self) -> None:
        while messages := await self._pipe.receive():
            self._protocol.data_received(b"".join([pb.Bytes.FromString(each).data for each in messages]))

    async def _send(self) -> None:
        while not self._closing or self._out:
            if not self._out:
                self._written.clear()
                await self._written.wait()
            data = b"".join(self._out)
            self._out.clear()
            self._size = 0
            if self._paused:
                self._paused = False
                self._protocol.resume_writing()
            pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
            await self._pipe.send([pb.Bytes(data=piece).SerializeToString() for piece in pieces])

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        self._out.append(bytes(data))
        self._size += len(data)
        self._written.set()
        if self._size > TUNNEL_HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._written.set()

    def abort(self) -> None:
        self.close()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default
