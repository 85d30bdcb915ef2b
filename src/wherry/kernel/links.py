"""rtnetlink: kinds of links besides bridges and pairs, which `netlink` has, and what can be told of any link.

A kind that the kernel was built without, and has no module of, is refused with EOPNOTSUPP.
"""

import errno
import os
import struct
from enum import IntEnum

from wherry.kernel.netlink import (
    F_CREATE,
    F_EXCL,
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    INFO_DATA,
    INFO_KIND,
    RTM_NEWLINK,
    Message,
    Netlink,
    attribute,
    link_body,
    mac_bytes,
    nested,
    string,
)

MACVLAN_MODE, IPVLAN_MODE, IPVLAN_FLAGS, VLAN_ID = 1, 1, 2, 1


class MacvlanMode(IntEnum):
    PRIVATE = 1
    VEPA = 2
    BRIDGE = 4
    PASSTHRU = 8


class IpvlanMode(IntEnum):
    L2 = 0
    L3 = 1
    L3S = 2


class IpvlanFlag(IntEnum):
    BRIDGE = 0
    PRIVATE = 1
    VEPA = 2


def has_kind(nl: Netlink, kind: str) -> bool:
    """True when the kernel can make links of this kind that are on another one; its module is loaded. Makes nothing."""
    try:
        nl.transact(_create("probe", kind, b"", f"make links of kind {kind}"))
    except OSError as exc:
        return exc.errno == errno.EINVAL  # no parent given; EOPNOTSUPP where the kind is unknown
    raise AssertionError(f"a {kind} was made without a parent")


def _create(
    name: str, kind: str, data: bytes, what: str, *, parent: int = 0, netns: int = -1, rest: bytes = b""
) -> Message:
    body = link_body() + attribute(IFLA_IFNAME, string(name)) + rest
    if parent:
        body += attribute(IFLA_LINK, struct.pack("=i", parent))
    if netns >= 0:
        body += attribute(IFLA_NET_NS_FD, struct.pack("=I", netns))
    info = [attribute(INFO_KIND, string(kind))] + ([nested(INFO_DATA, data)] if data else [])
    return Message(RTM_NEWLINK, F_CREATE | F_EXCL, body + nested(IFLA_LINKINFO, *info), what)


def create_macvlan(name: str, *, parent: int, mode: MacvlanMode, mac: str, netns: int, mtu: int = 0) -> Message:
    """An interface with a MAC of its own on link `parent` of ours, in the namespace of fd `netns`, down.

    `mtu` 0 is the parent's. EBUSY where the parent is a bridge's port or serves as a passthru parent.
    """
    rest = attribute(IFLA_ADDRESS, mac_bytes(mac)) + (attribute(IFLA_MTU, struct.pack("=I", mtu)) if mtu else b"")
    data = attribute(MACVLAN_MODE, struct.pack("=I", mode))
    return _create(name, "macvlan", data, f"create macvlan interface {name}", parent=parent, netns=netns, rest=rest)


def create_ipvlan(name: str, *, parent: int, mode: IpvlanMode, flag: IpvlanFlag, netns: int, mtu: int = 0) -> Message:
    """An interface that shares the MAC of link `parent` of ours, in the namespace of fd `netns`, down."""
    data = attribute(IPVLAN_MODE, struct.pack("=H", mode)) + attribute(IPVLAN_FLAGS, struct.pack("=H", flag))
    rest = attribute(IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
    return _create(name, "ipvlan", data, f"create ipvlan interface {name}", parent=parent, netns=netns, rest=rest)


def create_vlan(name: str, *, parent: int, tag: int) -> Message:
    """A VLAN sub-interface (802.1Q) that is down."""
    data = attribute(VLAN_ID, struct.pack("=H", tag))
    return _create(name, "vlan", data, f"create VLAN interface {name}", parent=parent)


def create_dummy(name: str) -> Message:
    return _create(name, "dummy", b"", f"create dummy interface {name}")


def set_alias(index: int, name: str, alias: str) -> Message:
    """A remark that the kernel keeps with the link: at most 255 bytes."""
    body = link_body(index) + attribute(IFLA_IFALIAS, os.fsencode(alias))
    return Message(RTM_NEWLINK, 0, body, f"set the alias of {name}")
