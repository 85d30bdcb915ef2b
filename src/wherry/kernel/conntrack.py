"""Connection tracking: forget flows, so that the next packet is looked at afresh by the address translation.

Needed for UDP, where a flow that was seen before a port was published, or while another container held it, keeps its
old fate for as long as packets come. The messages are for a socket of NETLINK_NETFILTER; the kernel answers ENOENT
where there is no such flow, EINVAL or EOPNOTSUPP when it is older than 5.8.
"""

import ipaddress
import socket
import struct

from wherry.kernel.netlink import Message, attribute, nested

DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
TUPLE_ORIGINAL, TUPLE_REPLY, FILTER = 1, 2, 25
TUPLE_IP, TUPLE_PROTOCOL = 1, 2
IP_V4_SOURCE = 1
PROTOCOL_NUMBER, PROTOCOL_DESTINATION_PORT = 1, 3
FILTER_ORIGINAL, FILTER_REPLY = 1, 2
BY_SOURCE, BY_PROTOCOL, BY_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5

IPV4 = struct.pack(">BBH", socket.AF_INET, 0, 0)


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
