"""Captures: what passes a container's interface, as a pcap stream (nanoseconds, Ethernet) that tcpdump reads.

Taken at the host's end of the link where there is one, so that it ends with the container and is in nobody's way
there; else in the container's namespace. The kernel's buffer is the only queue: who reads slowly loses packets, which
are counted, and never slows the container down.
"""

import asyncio
import errno
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from wherry.aio import acquire
from wherry.errors import Failed, InvalidParameter
from wherry.kernel import netlink, packets
from wherry.kernel.netlink import Netlink
from wherry.kernel.netns import in_netns
from wherry.network.capture_filter import compile_filter
from wherry.network.places import Namespace, Place

MAGIC, LINK_ETHERNET = 0xA1B23C4D, 1  # pcap with nanoseconds
LONGEST_PACKET = 262_144  # bytes, as tcpdump
BUFFER = 4 << 20  # bytes the kernel keeps for us
PIECE, PIECE_PACKETS = 128 << 10, 256  # bytes and packets of the stream at a time, about
LOOK = 0.2  # s after which an interface that went down is looked for: that it is gone is not told

_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    snaplen: int = LONGEST_PACKET  # bytes of each packet that are kept
    filter: str = ""
    count: int = 0  # packets; 0 = no end
    seconds: float = 0.0  # 0 = no end


class Capture:
    """One capture: `pieces` once, `dropped` at any time, `close` in the end."""

    def __init__(self, sock: socket.socket, request: CaptureRequest) -> None:
        self._socket = sock
        self._request = request
        self._room = bytearray(request.snaplen)
        self._taken = 0
        self._dropped = 0
        self._down = False

    def close(self) -> None:
        self._socket.close()

    @property
    def dropped(self) -> int:
        """Packets lost because the stream was read too slowly."""
        if self._socket.fileno() >= 0:
            self._dropped += packets.dropped(self._socket)
        return self._dropped

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file's head at once, then packets as they come; ends as asked for, or when the interface goes."""
        yield _HEADER.pack(MAGIC, 2, 4, 0, 0, self._request.snaplen, LINK_ETHERNET)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._request.seconds if self._request.seconds else math.inf
        while loop.time() < end and not self._full():
            await self._readable(min(end, loop.time() + LOOK) if self._down else end)
            if piece := self._read():
                yield piece
            if self._down and not self._alive():
                return

    def _full(self) -> bool:
        return 0 < self._request.count <= self._taken

    async def _readable(self, until: float) -> None:
        """Wait until something has come, or for that moment of the loop's clock."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._socket, ready.set)
        try:
            async with asyncio.timeout_at(None if until == math.inf else until):
                await ready.wait()
        except TimeoutError:
            return
        finally:
            loop.remove_reader(self._socket)

    def _read(self) -> bytes:
        """What has come, up to a piece."""
        piece = bytearray()
        for _ in range(PIECE_PACKETS):
            if len(piece) >= PIECE or self._full():
                break
            try:
                packet = packets.receive(self._socket, self._room)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENETDOWN:
                    raise
                self._down = True
                break
            self._down = False
            piece += _RECORD.pack(packet.seconds, packet.nanoseconds, len(packet.data), packet.length)
            piece += packet.data
            self._taken += 1
        return bytes(piece)

    def _alive(self) -> bool:
        name: str = self._socket.getsockname()[0]
        return name != ""


def check(request: CaptureRequest) -> None:
    """Raises InvalidParameter."""
    if not 1 <= request.snaplen <= LONGEST_PACKET:
        raise InvalidParameter(f"invalid snaplen {request.snaplen}: not between 1 and {LONGEST_PACKET}")
    if request.count < 0 or not 0 <= request.seconds < 1 << 40:
        raise InvalidParameter("invalid capture: a count or duration cannot be negative")
    compile_filter(request.filter)


def open_capture(namespace: Namespace, place: Place, request: CaptureRequest) -> Capture:
    """Packets are kept from now on. The namespace need not stay open. Blocking; who calls closes.

    Raises InvalidParameter, Failed, OSError.
    """
    check(request)
    program = compile_filter(request.filter)

    def here(interface: str) -> socket.socket:
        return packets.open_packets(interface, program, buffer=BUFFER)

    with Netlink() as nl:
        host = netlink.find_link(nl, place.host_name)
    if host is not None:
        return Capture(here(host.name), request)
    if netlink.find_link(namespace.netlink, place.interface) is None:
        raise Failed(f"no interface {place.interface} in the container: it was taken away or renamed from inside")
    return Capture(in_netns(namespace.fd, lambda: here(place.interface)), request)


@asynccontextmanager
async def capturing(namespace: Namespace, place: Place, request: CaptureRequest) -> AsyncIterator[Capture]:
    capture = await acquire(open_capture, namespace, place, request)
    try:
        yield capture
    finally:
        capture.close()
