"""The default bridge as `networks` still calls it; everything is in `drivers/`."""

import ipaddress
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from wherry.errors import Failed
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink
from wherry.network.drivers import namespaces
from wherry.network.drivers.bridge import (
    BridgeConfig,
    await_passing,
    docker_present,
    filters_bridged,
    forwarding,
    prepare,
    remove,
    route_loopback,
    set_forwarding,
)
from wherry.network.drivers.options import NAME_LIMIT

__all__ = [
    "NAME_LIMIT",
    "BridgeConfig",
    "docker_present",
    "forwarding",
    "prepare",
    "remove",
    "route_loopback",
    "set_forwarding",
]

INTERFACE = "eth0"  # in the container


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One container's place on a bridge."""

    veth: str  # the host's end
    mac: str
    interface: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address


def empty_netns() -> int:
    namespace = namespaces.empty()
    namespace.netlink.close()
    return namespace.fd


def attach(config: BridgeConfig, attachment: Attachment, made: Callable[[int], None]) -> None:
    """Make a namespace with an interface on the bridge. `made` gets its fd, and owns it, before anything can fail.

    1.3 ms. Raises OSError, Failed.
    """
    with ExitStack() as stack:
        namespace = namespaces.empty()
        fd, inside = namespace.fd, namespace.netlink
        made(fd)
        stack.callback(inside.close)
        nl = stack.enter_context(Netlink())
        bridge = netlink.find_link(nl, config.name)
        if bridge is None:
            raise Failed(f"bridge {config.name} is gone: somebody deleted it; restart the daemon to make it again")
        pair = netlink.create_veth(
            attachment.veth,
            bridge=bridge.index,
            peer=INTERFACE,
            peer_mac=attachment.mac,
            netns=fd,
            mtu=config.mtu,
        )
        nl.transact(pair, _port(config, attachment.veth))
        host = netlink.find_link(nl, attachment.veth)
        peer = netlink.find_link(inside, INTERFACE)
        if host is None or peer is None:
            raise Failed(f"interface pair {attachment.veth} vanished while it was set up")
        # The address may have been another container's a moment ago, whose port the kernel is still taking down.
        nl.transact(netlink.place_mac(host.index, host.name, attachment.mac))
        inside.transact(
            netlink.set_up(peer.index, INTERFACE),
            netlink.add_address(peer.index, INTERFACE, attachment.interface),
            netlink.add_default_route(peer.index, INTERFACE, attachment.gateway),
        )
        await_passing(nl, config.name, attachment.veth)


def _port(config: BridgeConfig, veth: str) -> netlink.Message:
    return netlink.set_port(veth, isolated=not config.icc and not filters_bridged())


def reattach(config: BridgeConfig, ports: Iterable[tuple[str, str]]) -> None:
    """Put interfaces (name, the container's MAC) back on a bridge that was deleted and made again, or whose flags
    changed; those that are gone are passed over. Raises OSError."""
    with Netlink() as nl:
        bridge = netlink.find_link(nl, config.name)
        for name, mac in ports:
            link = netlink.find_link(nl, name)
            if bridge is None or link is None:
                continue
            if link.master != bridge.index:
                nl.transact(netlink.set_master(link.index, name, bridge=bridge.index))
            nl.transact(_port(config, name), netlink.place_mac(link.index, name, mac))
