"""rtnetlink: links, addresses, routes and bridge ports, without a process or a library.

A `Message` is a request that knows in words what it wants; `Netlink.transact` sends a batch by one system call and
collects one acknowledgement for each. The kernel does not undo the earlier messages of a batch when a later one fails:
the caller undoes. A socket belongs to the network namespace of the thread that made it, wherever it is used later.
Blocking in name only: the kernel has answered when `send` returns.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

F_REQUEST, F_ACK, F_EXCL, F_CREATE, F_REPLACE = 0x1, 0x4, 0x200, 0x400, 0x100
F_DUMP = 0x300
F_DUMP_INTERRUPTED = 0x10
F_CAPPED, F_ACK_TLVS = 0x100, 0x200  # in answers of type NLMSG_ERROR
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_IFALIAS, IFLA_NET_NS_FD = 20, 28
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
BRPORT_STATE, BRPORT_MODE, BRPORT_ISOLATED = 1, 4, 33
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
NDA_LLADDR = 2
IFF_UP, IFF_RUNNING = 0x1, 0x40
BR_STATE_FORWARDING = 3
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTM_F_CLONED = 0x200
AF_BRIDGE, NUD_NOARP, NTF_MASTER = 7, 0x40, 0x04
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
ERROR_MESSAGE = 1  # NLMSGERR_ATTR_MSG: the kernel's own words

BATCH = 100  # messages a send: beyond some hundreds the acknowledgements overflow the receive buffer
RECEIVE = 1 << 17  # bytes a recv; the kernel's dumps come in pieces of at most 32 KiB
DUMP_ATTEMPTS = 5  # a dump is repeated when the tables changed under it

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Message:
    type: int
    flags: int  # beyond F_REQUEST
    body: bytes
    what: str  # "add address 172.17.0.1/16 to wherry0": the beginning of the error's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    index: int
    name: str
    kind: str  # "bridge", "veth", ...; "" for hardware
    mac: str
    mtu: int
    master: int  # index of the bridge this is a port of; 0 = none
    up: bool  # somebody wants it up
    passing: bool  # it takes packets: with carrier, and as a bridge's port in state forwarding
    alias: str  # a remark that the kernel keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    index: int  # of the link
    interface: Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Of the main table."""

    destination: IPNetwork
    index: int  # of the link it leaves by; 0 = several or none
    gateway: str  # "" = on the link
    metric: int
    protocol: int  # who made it


def attribute(kind: int, data: bytes) -> bytes:
    """One type-length-value, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def attributes(data: bytes | memoryview) -> Mapping[int, bytes]:
    """Decode a run of attributes: type to payload; the last of a kind wins. Stops at the first that is cut short."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4 or position + length > len(data):
            break
        found[kind & NLA_TYPE_MASK] = bytes(data[position + 4 : position + length])
        position += (length + 3) & ~3
    return found


def string(text: str) -> bytes:
    return os.fsencode(text) + b"\0"


def encode(message: Message, sequence: int) -> bytes:
    header = struct.pack("=IHHII", 16 + len(message.body), message.type, F_REQUEST | message.flags, sequence, 0)
    return header + message.body + bytes(-len(message.body) % 4)


def decode(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Each message of a datagram: type, flags, sequence, body."""
    view = memoryview(data)
    position = 0
    while position + 16 <= len(view):
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", view, position)
        if length < 16 or position + length > len(view):
            return
        yield kind, flags, sequence, view[position + 16 : position + length]
        position += (length + 3) & ~3


def error_of(flags: int, body: memoryview) -> tuple[int, str]:
    """errno (0 = acknowledged) and the kernel's own words, "" when it has none, of an NLMSG_ERROR."""
    code, request_length = struct.unpack_from("=iI", body)
    if not flags & F_ACK_TLVS:
        return -code, ""
    start = 20 if flags & F_CAPPED else 4 + ((request_length + 3) & ~3)
    words = attributes(body[start:]).get(ERROR_MESSAGE, b"")
    return -code, words.rstrip(b"\0").decode(errors="replace")


def as_error(number: int, what: str, words: str = "") -> OSError:
    text = os.strerror(number)
    return OSError(number, f"cannot {what}: {text} ({words})" if words else f"cannot {what}: {text}")


class Netlink:
    """One netlink socket. Not for several threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, messages: Sequence[Message]) -> range:
        """Send as one datagram; the range of sequence numbers given to them."""
        first = self._sequence + 1
        self._sequence += len(messages)
        numbers = range(first, self._sequence + 1)
        self._socket.send(b"".join(encode(message, number) for message, number in zip(messages, numbers, strict=True)))
        return numbers

    def receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        return decode(self._socket.recv(RECEIVE))

    def transact(self, *messages: Message) -> None:
        """Do all, in order. Raises the OSError of the first that failed, naming it; the others were tried as well."""
        for start in range(0, len(messages), BATCH):
            self._transact(messages[start : start + BATCH])

    def _transact(self, messages: Sequence[Message]) -> None:
        acknowledged = [Message(m.type, m.flags | F_ACK, m.body, m.what) for m in messages]
        numbers = self.send(acknowledged)
        waiting = set(numbers)
        failures: dict[int, OSError] = {}
        while waiting:
            for kind, flags, sequence, body in self.receive():
                if kind == NLMSG_ERROR and sequence in waiting:
                    waiting.discard(sequence)
                    number, words = error_of(flags, body)
                    if number:
                        failures[sequence] = as_error(number, messages[sequence - numbers.start].what, words)
        if failures:
            raise failures[min(failures)]

    def get(self, message: Message) -> memoryview:
        """The body of the one answer. Raises OSError."""
        numbers = self.send([message])
        while True:
            for kind, flags, sequence, body in self.receive():
                if sequence not in numbers:
                    continue
                if kind == NLMSG_ERROR:
                    raise as_error(*_named(message.what, *error_of(flags, body)))
                return body

    def dump(self, message: Message) -> list[memoryview]:
        """The bodies of all answers, in the kernel's order and consistent with each other. Raises OSError."""
        for _ in range(DUMP_ATTEMPTS):
            bodies, consistent = self._dump(message)
            if consistent:
                return bodies
        return bodies  # somebody changes it all the time: the best that can be had

    def _dump(self, message: Message) -> tuple[list[memoryview], bool]:
        numbers = self.send([Message(message.type, message.flags | F_DUMP, message.body, message.what)])
        bodies: list[memoryview] = []
        consistent = True
        while True:
            for kind, flags, sequence, body in self.receive():
                if sequence not in numbers:
                    continue
                consistent = consistent and not flags & F_DUMP_INTERRUPTED
                if kind == NLMSG_ERROR:
                    raise as_error(*_named(message.what, *error_of(flags, body)))
                if kind == NLMSG_DONE:
                    return bodies, consistent
                bodies.append(body)


def _named(what: str, number: int, words: str) -> tuple[int, str, str]:
    return number, what, words


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def link_body(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def create_bridge(name: str, *, mac: str, mtu: int) -> Message:
    """A bridge that is down. Its MAC is fixed: an inherited one changes with the ports, and peers' ARP entries rot."""
    body = link_body() + attribute(IFLA_IFNAME, string(name)) + attribute(IFLA_ADDRESS, mac_bytes(mac))
    body += attribute(IFLA_MTU, struct.pack("=I", mtu)) + nested(IFLA_LINKINFO, attribute(INFO_KIND, string("bridge")))
    return Message(RTM_NEWLINK, F_CREATE | F_EXCL, body, f"create bridge {name}")


def create_veth(name: str, *, bridge: int, peer: str, peer_mac: str, netns: int, mtu: int) -> Message:
    """A pair: `name` here, up and a port of link `bridge`; `peer` in the namespace of fd `netns`, down.

    The peer cannot be created up: the other half does not exist yet (ENOTCONN).
    """
    peer_body = link_body() + attribute(IFLA_IFNAME, string(peer)) + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
    peer_body += attribute(IFLA_MTU, struct.pack("=I", mtu)) + attribute(IFLA_NET_NS_FD, struct.pack("=I", netns))
    info = nested(
        IFLA_LINKINFO, attribute(INFO_KIND, string("veth")), nested(INFO_DATA, nested(VETH_INFO_PEER, peer_body))
    )
    body = link_body(flags=IFF_UP, change=IFF_UP) + attribute(IFLA_IFNAME, string(name))
    body += attribute(IFLA_MTU, struct.pack("=I", mtu)) + attribute(IFLA_MASTER, struct.pack("=I", bridge)) + info
    return Message(RTM_NEWLINK, F_CREATE | F_EXCL, body, f"create interface pair {name}")


def set_port(name: str, *, isolated: bool) -> Message:
    """Make bridge port `name` a hairpin, so that its owner reaches itself by a translated address of the host.

    `isolated`: it reaches the bridge itself, but no other isolated port.
    """
    modes = attribute(BRPORT_MODE, b"\1") + attribute(BRPORT_ISOLATED, bytes([isolated]))
    info = nested(IFLA_LINKINFO, attribute(INFO_SLAVE_KIND, string("bridge")), nested(INFO_SLAVE_DATA, modes))
    return Message(
        RTM_NEWLINK, 0, link_body() + attribute(IFLA_IFNAME, string(name)) + info, f"set up bridge port {name}"
    )


def set_up(index: int, name: str) -> Message:
    return Message(RTM_NEWLINK, 0, link_body(index, IFF_UP, IFF_UP), f"set interface {name} up")


def set_mtu(index: int, name: str, mtu: int) -> Message:
    body = link_body(index) + attribute(IFLA_MTU, struct.pack("=I", mtu))
    return Message(RTM_NEWLINK, 0, body, f"set the MTU of {name} to {mtu}")


def set_master(index: int, name: str, *, bridge: int) -> Message:
    body = link_body(index) + attribute(IFLA_MASTER, struct.pack("=I", bridge))
    return Message(RTM_NEWLINK, 0, body, f"make {name} a bridge port")


def delete_link(name: str) -> Message:
    """Slow (15-22 ms of RCU grace periods, with the RTNL lock held): never on a request's path."""
    return Message(RTM_DELLINK, 0, link_body() + attribute(IFLA_IFNAME, string(name)), f"delete interface {name}")


def _address(index: int, interface: Interface, flags: int = 0) -> bytes:
    family = FAMILIES[interface.version]
    body = struct.pack("=BBBBI", family, interface.network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
    return body + attribute(IFA_LOCAL, interface.ip.packed) + attribute(IFA_ADDRESS, interface.ip.packed)


def add_address(index: int, name: str, interface: Interface) -> Message:
    """With the subnet's broadcast address, as Docker does; an IPv6 one can be used at once. EEXIST when it is there."""
    if interface.version == 6:
        body = _address(index, interface, IFA_F_NODAD)
    else:
        body = _address(index, interface)
        if interface.network.prefixlen < 31:
            body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, F_CREATE | F_EXCL, body, f"add address {interface} to {name}")


def delete_address(index: int, name: str, interface: Interface) -> Message:
    return Message(RTM_DELADDR, 0, _address(index, interface), f"delete address {interface} from {name}")


def _default_route(index: int, version: int, gateway: IPAddress | None, metric: int = 0) -> bytes:
    scope = RT_SCOPE_LINK if gateway is None and version == 4 else RT_SCOPE_UNIVERSE
    route = (FAMILIES[version], 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    body = struct.pack("=BBBBBBBBI", *route) + attribute(RTA_OIF, struct.pack("=I", index))
    if gateway is not None:
        body += attribute(RTA_GATEWAY, gateway.packed)
    return body + (attribute(RTA_PRIORITY, struct.pack("=I", metric)) if metric else b"")


def _new_default_route(flags: int, index: int, name: str, gateway: IPAddress | None, version: int) -> Message:
    if gateway is not None:
        version = gateway.version
    way = f"through {gateway} on {name}" if gateway is not None else f"of IPv{version} on {name}"
    return Message(RTM_NEWROUTE, flags, _default_route(index, version, gateway), f"add default route {way}")


def add_default_route(index: int, name: str, gateway: IPAddress | None, *, version: int = 4) -> Message:
    """Without a gateway everybody is on the link. EEXIST when there is such a route."""
    return _new_default_route(F_CREATE | F_EXCL, index, name, gateway, version)


def put_default_route(index: int, name: str, gateway: IPAddress | None, *, version: int = 4) -> Message:
    """In the place of the one that is there."""
    return _new_default_route(F_CREATE | F_REPLACE, index, name, gateway, version)


def delete_default_route(route: Route) -> Message:
    """This one of several. ESRCH when it is gone."""
    gateway = ipaddress.ip_address(route.gateway) if route.gateway else None
    body = _default_route(route.index, route.destination.version, gateway, route.metric)
    return Message(RTM_DELROUTE, 0, body, f"delete default route through {gateway or 'the link'}")


def place_mac(index: int, name: str, mac: str) -> Message:
    """Tell the bridge that `mac` lives behind port `name`, replacing what it learned about an earlier owner."""
    body = struct.pack("=BxxxiHBB", AF_BRIDGE, index, NUD_NOARP, NTF_MASTER, 0)
    body += attribute(NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_NEWNEIGH, F_CREATE | F_REPLACE, body, f"place {mac} at bridge port {name}")


def _as_link(body: memoryview) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
    found = attributes(body[16:])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = info.get(INFO_KIND, b"")
    port = attributes(info.get(INFO_SLAVE_DATA, b"")) if info.get(INFO_SLAVE_KIND) == b"bridge\0" else {}
    forwarding = port.get(BRPORT_STATE, bytes([BR_STATE_FORWARDING]))[0] == BR_STATE_FORWARDING
    return Link(
        index=index,
        name=os.fsdecode(found.get(IFLA_IFNAME, b"").rstrip(b"\0")),
        kind=kind.rstrip(b"\0").decode(),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=int.from_bytes(found.get(IFLA_MTU, b"\0"), "little"),
        master=int.from_bytes(found.get(IFLA_MASTER, b"\0"), "little"),
        up=bool(flags & IFF_UP),
        passing=bool(flags & IFF_RUNNING) and forwarding,
        alias=os.fsdecode(found.get(IFLA_IFALIAS, b"").rstrip(b"\0")),
    )


def links(netlink: Netlink) -> list[Link]:
    return [_as_link(body) for body in netlink.dump(Message(RTM_GETLINK, 0, link_body(), "list interfaces"))]


def find_link(netlink: Netlink, name: str) -> Link | None:
    """The link of that name; None when there is none."""
    body = link_body() + attribute(IFLA_IFNAME, string(name))
    try:
        return _as_link(netlink.get(Message(RTM_GETLINK, 0, body, f"look up interface {name}")))
    except OSError as exc:
        if exc.errno == 19:  # ENODEV
            return None
        raise


def addresses(netlink: Netlink, version: int = 4) -> list[Address]:
    """All addresses of IPv4 or IPv6."""
    request = Message(RTM_GETADDR, 0, struct.pack("=BBBBI", FAMILIES[version], 0, 0, 0, 0), "list addresses")
    result = []
    for body in netlink.dump(request):
        family, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
        found = attributes(body[8:])
        packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
        if family == FAMILIES[version] and packed:
            result.append(Address(index=index, interface=_interface(packed, prefix)))
    return result


def _interface(packed: bytes, prefix: int) -> Interface:
    if len(packed) == 4:
        return ipaddress.IPv4Interface((packed, prefix))
    return ipaddress.IPv6Interface((packed, prefix))


def main_routes(netlink: Netlink, version: int = 4) -> list[Route]:
    """The main table's routes of IPv4 or IPv6."""
    family = FAMILIES[version]
    request = Message(RTM_GETROUTE, 0, struct.pack("=BBBBBBBBI", family, *[0] * 8), "list routes")
    result = []
    for body in netlink.dump(request):
        kind, prefix, _, _, table, protocol, _, _, flags = struct.unpack_from("=BBBBBBBBI", body)
        found = attributes(body[12:])
        if RTA_TABLE in found:
            (table,) = struct.unpack("=I", found[RTA_TABLE])
        if kind != family or table != RT_TABLE_MAIN or flags & RTM_F_CLONED:
            continue
        result.append(
            Route(
                destination=_interface(found.get(RTA_DST, bytes(4 if version == 4 else 16)), prefix).network,
                index=int.from_bytes(found.get(RTA_OIF, b"\0"), "little"),
                gateway=str(ipaddress.ip_address(found[RTA_GATEWAY])) if RTA_GATEWAY in found else "",
                metric=int.from_bytes(found.get(RTA_PRIORITY, b"\0"), "little"),
                protocol=protocol,
            )
        )
    return result


def routes(netlink: Netlink, version: int = 4) -> list[tuple[IPNetwork, int]]:
    """Destinations of the main table's routes, and the link each leaves by (0 = several or none)."""
    return [(route.destination, route.index) for route in main_routes(netlink, version)]
