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
IP_V4_SOURCE = 1
PROTOCOL_NUMBER, PROTOCOL_DESTINATION_PORT = 1, 3
FILTER_ORIGINAL, FILTER_REPLY = 1, 2
BY_SOURCE, BY_PROTOCOL, BY_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5

IPV4 = struct.pack(">BBH", socket.AF_INET, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    original: bytes  # the kernel's tuple of the first packet
    protocol: int
    port: int  # to which it was sent


def flows(netlink: Netlink) -> list[Flow]:
    """All IPv4 flows of protocols with ports. Raises OSError."""
    result = []
    for body in netlink.dump(Message(GET, 0, IPV4, "list flows")):
        original = attributes(body[4:]).get(TUPLE_ORIGINAL, b"")
        numbers = attributes(attributes(original).get(TUPLE_PROTOCOL, b""))
        if PROTOCOL_DESTINATION_PORT in numbers and PROTOCOL_NUMBER in numbers:
            port = int.from_bytes(numbers[PROTOCOL_DESTINATION_PORT], "big")
            result.append(Flow(original=original, protocol=numbers[PROTOCOL_NUMBER][0], port=port))
    return result


def forget_flow(flow: Flow) -> Message:
    return Message(DELETE, 0, IPV4 + attribute(TUPLE_ORIGINAL | NLA_F_NESTED, flow.original), "forget a flow")


def _filter(which: int, flags: int) -> bytes:
    return nested(FILTER, attribute(which, struct.pack("=I", flags)))


def forget_port(protocol: int, port: int) -> Message:
    """Forget every IPv4 flow of `protocol` (its number) that was sent to `port`, on whatever address."""
    numbers = attribute(PROTOCOL_NUMBER, bytes([protocol]))
    numbers += attribute(PROTOCOL_DESTINATION_PORT, struct.pack(">H", port))
    body = nested(TUPLE_ORIGINAL, nested(TUPLE_PROTOCOL, numbers))
    body += _filter(FILTER_ORIGINAL, BY_PROTOCOL | BY_DESTINATION_PORT)
    return Message(DELETE, 0, IPV4 + body, f"forget flows to port {port}")


def forget_answers(protocol: int, address: ipaddress.IPv4Address) -> Message:
    """Forget every flow of `protocol` that `address` answers, translated or not."""
    body = nested(
        TUPLE_REPLY,
        nested(TUPLE_IP, attribute(IP_V4_SOURCE, address.packed)),
        nested(TUPLE_PROTOCOL, attribute(PROTOCOL_NUMBER, bytes([protocol]))),
    )
    body += _filter(FILTER_REPLY, BY_SOURCE | BY_PROTOCOL)
    return Message(DELETE, 0, IPV4 + body, f"forget flows answered by {address}")
