"""Port 53 of 127.0.0.11 in a container's namespace leads to the resolver's own ports there.

    table ip wherry_dns_<UDP port>_<TCP port>
      chain output    of what the namespace itself sends to 127.0.0.11:53 the port is rewritten, and back in the answers

So a container can bind port 53 of all addresses itself. Packets are rewritten one by one, not translated as flows: a
namespace without connection tracking stays without it. The name of the table says all about it: a daemon that comes
back takes the same ports, and finds the rules in place. Blocking; acts on the namespace of the calling thread.
"""

import re
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from wherry.kernel.netlink import F_ACK, F_CREATE, Message, attribute, nested, string
from wherry.kernel.nftables import SUBSYSTEM, Family, Nftables

IPV4 = struct.pack(">BBH", socket.AF_INET, 0, 0)  # nfgenmsg
ADDRESS = "127.0.0.11"
PORT = 53
BACKLOG = 64  # connections
TABLE = re.compile(r"wherry_dns_(\d{1,5})_(\d{1,5})\Z")

NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE = (SUBSYSTEM << 8 | number for number in (0, 2, 3, 6))
TABLE_NAME = 1
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_TYPE, HOOK_NUMBER, HOOK_PRIORITY = 1, 3, 4, 7, 1, 2
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, LIST_ITEM, EXPRESSION_NAME, EXPRESSION_DATA, DATA_VALUE = 1, 2, 4, 1, 1, 2, 1
LOCAL_OUT = 3
F_APPEND = 0x800
RAW = struct.pack(">i", -300)  # before anything looks at flows
REGISTER = 1
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
SOURCE_ADDRESS, DESTINATION_ADDRESS = 12, 16  # offsets in an IPv4 header
SOURCE_PORT, DESTINATION_PORT = 0, 2
CHECKSUM = {socket.IPPROTO_UDP: 6, socket.IPPROTO_TCP: 16}  # offset in the header
L4_PROTOCOL = 16  # meta key


@dataclass(frozen=True, slots=True)
class Listening:
    """The sockets of one resolver, in a container's namespace."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


class _Rules(Nftables):
    def put(self, messages: Sequence[Message]) -> None:
        self._commit(messages)


def listen() -> Listening:
    """Bind sockets and lead port 53 to them. Idempotent. Raises OSError; then no socket is left."""
    with _Rules() as rules:
        tables = [name for name in rules.tables(Family.IP) if TABLE.match(name)]
        found = _bind(tables)
        try:
            table = f"wherry_dns_{_port(found.udp)}_{_port(found.tcp)}"
            messages = [_table(DELETE_TABLE, name) for name in tables if name != table]
            if table not in tables:
                messages += _redirection(table, found)
            if messages:
                rules.put(messages)
        except BaseException:
            found.close()
            raise
        return found


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def _bind(tables: Sequence[str]) -> Listening:
    """On the ports that a table speaks of already, else on any."""
    for name in tables:
        with suppress(OSError, OverflowError):  # another program has one of them by now
            return bind(ADDRESS, *map(int, name.split("_")[2:]))
    return bind(ADDRESS, 0, 0)


def bind(address: str, udp_port: int, tcp_port: int) -> Listening:
    """0 = any. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    udp = socket.socket(family, socket.SOCK_DGRAM | kind)
    tcp = socket.socket(family, socket.SOCK_STREAM | kind)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.bind((address, udp_port))
        tcp.bind((address, tcp_port))
        tcp.listen(BACKLOG)
    except BaseException:
        udp.close()
        tcp.close()
        raise
    return Listening(udp, tcp)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _table(verb: int, name: str) -> Message:
    flags = F_ACK | (F_CREATE if verb == NEW_TABLE else 0)
    return Message(verb, flags, IPV4 + attribute(TABLE_NAME, string(name)), f"change firewall table {name}")


def _redirection(table: str, to: Listening) -> list[Message]:
    hook = nested(CHAIN_HOOK, _number(HOOK_NUMBER, LOCAL_OUT), attribute(HOOK_PRIORITY, RAW))
    chain = attribute(CHAIN_TABLE, string(table)) + attribute(CHAIN_NAME, string("output")) + hook
    chain += attribute(CHAIN_TYPE, string("filter"))
    messages = [
        _table(NEW_TABLE, table),
        Message(NEW_CHAIN, F_ACK | F_CREATE, IPV4 + chain, f"make a chain in firewall table {table}"),
    ]
    for protocol, port in ((socket.IPPROTO_UDP, _port(to.udp)), (socket.IPPROTO_TCP, _port(to.tcp))):
        messages.append(_rewrite(table, protocol, DESTINATION_ADDRESS, DESTINATION_PORT, PORT, port))
        messages.append(_rewrite(table, protocol, SOURCE_ADDRESS, SOURCE_PORT, port, PORT))
    return messages


def _rewrite(table: str, protocol: int, address: int, port: int, old: int, new: int) -> Message:
    """A rule: where that address is ours and that port is `old`, the port becomes `new`."""
    expressions = [
        _expression("meta", _number(1, REGISTER), _number(2, L4_PROTOCOL)),
        _equals(bytes([protocol])),
        _load(NETWORK_HEADER, address, 4),
        _equals(socket.inet_aton(ADDRESS)),
        _load(TRANSPORT_HEADER, port, 2),
        _equals(struct.pack(">H", old)),
        _expression("immediate", _number(1, REGISTER), nested(2, attribute(DATA_VALUE, struct.pack(">H", new)))),
        _expression(
            "payload",
            _number(5, REGISTER),
            *(_number(kind, value) for kind, value in ((2, TRANSPORT_HEADER), (3, port), (4, 2))),
            *(_number(kind, value) for kind, value in ((6, 1), (7, CHECKSUM[protocol]))),
        ),
    ]
    body = attribute(RULE_TABLE, string(table)) + attribute(RULE_CHAIN, string("output"))
    body += nested(RULE_EXPRESSIONS, *expressions)
    return Message(NEW_RULE, F_ACK | F_CREATE | F_APPEND, IPV4 + body, f"add a rule to firewall table {table}")


def _expression(name: str, *data: bytes) -> bytes:
    return nested(LIST_ITEM, attribute(EXPRESSION_NAME, string(name)), nested(EXPRESSION_DATA, *data))


def _load(header: int, offset: int, size: int) -> bytes:
    """Payload into the register."""
    return _expression("payload", *(_number(n + 1, value) for n, value in enumerate((REGISTER, header, offset, size))))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, REGISTER), _number(2, 0), nested(3, attribute(DATA_VALUE, value)))
