"""Connection tracking: forget flows, so that the next packet is looked at afresh by the address translation.

Needed for UDP, where a flow that was seen before a port was published, or while another container held it, keeps its
old fate for as long as packets come. The messages are for a socket of NETLINK_NETFILTER; the kernel answers ENOENT
where there is no such flow, EINVAL or EOPNOTSUPP when it is older than 5.8.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass

from wherry.kernel.netlink import NLA_F_NESTED, Message, Netlink, attribute, attributes, nested

GET, DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
TUPLE_ORIGINAL, TUPLE_REPLY, FILTER = 1, 2, 25
TUPLE_IP, TUPLE_PROTOCOL = 1, 2
IP_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, by IP version
PROTOCOL_NUMBER, PROTOCOL_DESTINATION_PORT = 1, 3
FILTER_ORIGINAL, FILTER_REPLY = 1, 2
BY_SOURCE, BY_PROTOCOL, BY_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}  # by IP version


def _header(family: int) -> bytes:
    """nfgenmsg."""
    return struct.pack(">BBH", family, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    family: int
    original: bytes  # the kernel's tuple of the first packet
    protocol: int
    port: int  # to which it was sent


def flows(netlink: Netlink) -> list[Flow]:
    """All flows of protocols with ports, of both address families. Raises OSError."""
    result = []
    for body in netlink.dump(Message(GET, 0, _header(socket.AF_UNSPEC), "list flows")):
        original = attributes(body[4:]).get(TUPLE_ORIGINAL, b"")
        numbers = attributes(attributes(original).get(TUPLE_PROTOCOL, b""))
        if PROTOCOL_DESTINATION_PORT in numbers and PROTOCOL_NUMBER in numbers:
            port = int.from_bytes(numbers[PROTOCOL_DESTINATION_PORT], "big")
            flow = Flow(family=body[0], original=original, protocol=numbers[PROTOCOL_NUMBER][0], port=port)
            result.append(flow)
    return result


def forget_flow(flow: Flow) -> Message:
    original = attribute(TUPLE_ORIGINAL | NLA_F_NESTED, flow.original)
    return Message(DELETE, 0, _header(flow.family) + original, "forget a flow")


def _filter(which: int, flags: int) -> bytes:
    return nested(FILTER, attribute(which, struct.pack("=I", flags)))


def forget_port(protocol: int, port: int, version: int) -> Message:
    """Forget every flow of `protocol` (its number) and IP version that was sent to `port`, on whatever address."""
    numbers = attribute(PROTOCOL_NUMBER, bytes([protocol]))
    numbers += attribute(PROTOCOL_DESTINATION_PORT, struct.pack(">H", port))
    body = nested(TUPLE_ORIGINAL, nested(TUPLE_PROTOCOL, numbers))
    body += _filter(FILTER_ORIGINAL, BY_PROTOCOL | BY_DESTINATION_PORT)
    return Message(DELETE, 0, _header(FAMILY[version]) + body, f"forget flows to port {port}")


def forget_answers(protocol: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Message:
    """Forget every flow of `protocol` that `address` answers, translated or not."""
    body = nested(
        TUPLE_REPLY,
        nested(TUPLE_IP, attribute(IP_SOURCE[address.version], address.packed)),
        nested(TUPLE_PROTOCOL, attribute(PROTOCOL_NUMBER, bytes([protocol]))),
    )
    body += _filter(FILTER_REPLY, BY_SOURCE | BY_PROTOCOL)
    return Message(DELETE, 0, _header(FAMILY[address.version]) + body, f"forget flows answered by {address}")
