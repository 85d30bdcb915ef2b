"""Packet sockets and the filters that run on them in the kernel: packet(7), and "classic" BPF.

A filter is a list of instructions that only jump forward; it is attached before the socket is bound, so no packet that
it refuses is ever seen.
"""

import ctypes
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
SOL_PACKET, PACKET_STATISTICS = 263, 6
ETH_P_ALL = 3
LONGEST_FILTER = 4096  # instructions
WHOLE = 0xFFFFFFFF  # what an accepting filter returns: all bytes of the packet

# load absolute / index by a header's length / load at the index; compare; end
LOAD = {4: 0x20, 2: 0x28, 1: 0x30}
LOAD_INDEXED = {4: 0x40, 2: 0x48, 1: 0x50}
HEADER_LENGTH = 0xB1  # X = 4 * (packet[k] & 15)
AND, JUMP, JUMP_EQUAL, JUMP_SET, JUMP_AT_LEAST, RETURN = 0x54, 0x05, 0x15, 0x45, 0x35, 0x06

_TIMESPEC = struct.Struct("@ll")
_STATISTICS = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Instruction:
    code: int
    value: int = 0
    if_true: int = 0  # instructions to pass over
    if_false: int = 0

    def encode(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.if_true, self.if_false, self.value)


@dataclass(frozen=True, slots=True)
class Packet:
    seconds: int
    nanoseconds: int
    length: int  # on the wire
    data: memoryview  # as much as was asked for; good until the next one is received


def attach_filter(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Raises OSError (EINVAL) for a program that the kernel does not accept."""
    code = b"".join(instruction.encode() for instruction in program)
    held = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(held)))


def open_packets(interface: str, program: Sequence[Instruction], *, buffer: int) -> socket.socket:
    """All packets of an interface of the calling thread's namespace, both ways; not blocking. Raises OSError.

    `buffer`: bytes the kernel keeps until they are read; what comes when it is full is dropped, and counted.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        if program:
            attach_filter(sock, program)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        sock.bind((interface, ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, room: bytearray) -> Packet:
    """The next packet, into `room`. Raises BlockingIOError when there is none, OSError (ENETDOWN) at the end."""
    size, ancillary, _, _ = sock.recvmsg_into([room], 64, socket.MSG_TRUNC)
    seconds = nanoseconds = 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
    return Packet(seconds, nanoseconds, size, memoryview(room)[: min(size, len(room))])


def dropped(sock: socket.socket) -> int:
    """Packets lost since it was last asked, for nobody read them in time."""
    _, lost = _STATISTICS.unpack(sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, _STATISTICS.size))
    return int(lost)
