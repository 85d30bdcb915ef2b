"""What egress policies refused, as the kernel reports it: packets' headers through NFNETLINK_LOG.

The rules (rules.py) report at a limited rate; what nobody reads in time is dropped by the kernel.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from wherry.kernel.netlink import F_ACK, NETLINK_NETFILTER, Message, Netlink, attribute, attributes, decode
from wherry.network.wall.rules import SNAP, log_group

log = logging.getLogger(__name__)

PACKET, CONFIG = 4 << 8, 4 << 8 | 1  # NFNL_SUBSYS_ULOG, NFULNL_MSG_*
CONFIG_COMMAND, CONFIG_MODE, CONFIG_THRESHOLD = 1, 2, 5
BIND, COPY_PACKET = 1, 2
PACKET_PAYLOAD, PACKET_PREFIX = 9, 10
RECEIVE = 1 << 16  # bytes
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp", 132: "sctp"}
WITH_PORTS = (6, 17, 132)
EXTENSIONS = (0, 43, 60)  # IPv6 headers that say what comes next and how long they are
MOST_EXTENSIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    key: str  # of the policy
    protocol: str  # tcp, udp, sctp, icmp, or a number
    source: str
    destination: str
    port: int  # 0 = the protocol has none


class Refusals:
    """For one table; to be opened in its network namespace, and closed. Used from the event loop."""

    def __init__(self, table: str) -> None:
        self._group = log_group(table)
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Raises OSError: EBUSY when another program listens to the same group."""
        made = _Listener()
        try:
            made.listen(self._group)
        except BaseException:
            made.close()
            raise
        self._socket = made.socket

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def __aiter__(self) -> AsyncIterator[Refusal]:
        loop = asyncio.get_running_loop()
        while self._socket is not None:
            try:
                data = await loop.sock_recv(self._socket, RECEIVE)
            except OSError as exc:
                if exc.errno == errno.ENOBUFS:  # more than we can read: some are lost
                    continue
                raise
            for refusal in parse(data):
                yield refusal


class _Listener(Netlink):
    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    @property
    def socket(self) -> socket.socket:
        self._socket.setblocking(False)
        return self._socket

    def listen(self, group: int) -> None:
        header = struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
        settings = attribute(CONFIG_COMMAND, bytes([BIND]))
        modes = attribute(CONFIG_MODE, struct.pack(">IBx", SNAP, COPY_PACKET))
        modes += attribute(CONFIG_THRESHOLD, struct.pack(">I", 1))  # each at once
        for body in (settings, modes):
            self.transact(Message(CONFIG, F_ACK, header + body, "listen to refused packets"))


def parse(data: bytes) -> Iterator[Refusal]:
    """The refusals in one datagram of the kernel; what is none is passed over."""
    for kind, _, _, body in decode(data):
        if kind != PACKET:
            continue
        found = attributes(body[4:])
        key = found.get(PACKET_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
        refusal = _read(key, found.get(PACKET_PAYLOAD, b""))
        if refusal is not None:
            yield refusal


def _read(key: str, packet: bytes) -> Refusal | None:
    """From an IP packet's first bytes; None when they are too few."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
        source: object = ipaddress.IPv4Address(packet[12:16])
        destination: object = ipaddress.IPv4Address(packet[16:20])
    elif version == 6 and len(packet) >= 40:
        start, protocol, fragment = 40, packet[6], 0
        source, destination = ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40])
        for _ in range(MOST_EXTENSIONS):
            if protocol not in EXTENSIONS or len(packet) < start + 2:
                break
            protocol, start = packet[start], start + 8 + packet[start + 1] * 8
    else:
        return None
    ports = packet[start : start + 4]
    known = protocol in WITH_PORTS and len(ports) == 4 and not fragment
    return Refusal(
        key=key,
        protocol=NAMES.get(protocol, str(protocol)),
        source=str(source),
        destination=str(destination),
        port=int.from_bytes(ports[2:], "big") if known else 0,
    )
