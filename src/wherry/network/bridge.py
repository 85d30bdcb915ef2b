"""The bridge driver: a bridge of the host, and an interface pair from it into each container's network namespace.

Knows links, addresses and sysctls, nothing of containers, ports or state. Blocking: the async verbs go through
`aio.settle`. An attachment has no undo of its own: the pair dies with the namespace, which dies with its last fd.
"""

import errno
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Failed, InvalidParameter
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink
from wherry.kernel.netns import new_netns
from wherry.network import ipam

log = logging.getLogger(__name__)

INTERFACE = "eth0"  # in the container
PASSING_LOOKS, PASSING_PAUSE = 200, 0.0005  # times, s
NAME_LIMIT = 15  # bytes of an interface's name
SYSCTL = Path("/proc/sys/net")
FORWARDING = SYSCTL / "ipv4/ip_forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    name: str
    foreign: bool = False  # somebody else's: never made, renumbered or deleted by us
    mtu: int = 1500
    icc: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One container's place on a bridge."""

    veth: str  # the host's end
    mac: str
    interface: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address


def busy_subnets(nl: Netlink, *, but: str) -> list[ipaddress.IPv4Network]:
    """What a new network must not overlap: the host's routes, addresses and name servers, those of link `but` aside."""
    own = netlink.find_link(nl, but)
    index = own.index if own else -1
    found = [a.interface.network for a in netlink.addresses(nl) if a.index != index]
    found += [network for network, link in netlink.routes(nl) if link != index and network.prefixlen]
    return found + [ipaddress.IPv4Network(address) for address in _name_servers()]


def _name_servers(path: Path = Path("/etc/resolv.conf")) -> list[ipaddress.IPv4Address]:
    result = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                result.append(ipaddress.IPv4Address(words[1]))
            except ValueError:
                continue
    return result


def prepare(
    config: BridgeConfig,
    *,
    bip: ipaddress.IPv4Interface | None,
    last: ipaddress.IPv4Interface | None,
    pools: Sequence[tuple[ipaddress.IPv4Network, int]],
    in_use: Sequence[ipaddress.IPv4Address],
) -> ipaddress.IPv4Interface:
    """Make or adopt the bridge, give it an address and bring it up; the address. Idempotent.

    The address: `bip`, else what the bridge has, else `last` (of an earlier run) when it is still free, else a free
    subnet of the pools. Other addresses on a bridge of ours go away unless a container of `in_use` lives behind them.
    Raises Failed, InvalidParameter, OSError.
    """
    with Netlink() as nl:
        link = netlink.find_link(nl, config.name)
        if link is None and config.foreign:
            raise InvalidParameter(
                f"bridge device with non default name {config.name} must be created manually, or leave --bridge out"
            )
        if link is not None and link.kind != "bridge":
            raise Failed(f"interface {config.name} exists and is not a bridge: delete it, or give another --bridge")
        present = [a.interface for a in netlink.addresses(nl) if link and a.index == link.index]
        wanted = bip or _adopted(present, last) or _free(nl, config, last, pools)
        if wanted not in present:
            _refuse_overlap(nl, config, wanted)
        if link is None:
            nl.transact(netlink.create_bridge(config.name, mac=ipam.mac_of(wanted.ip), mtu=config.mtu))
            link = netlink.find_link(nl, config.name)
            if link is None:
                raise Failed(f"bridge {config.name} vanished while it was set up")
        elif not config.foreign and link.mtu != config.mtu:
            nl.transact(netlink.set_mtu(link.index, config.name, config.mtu))
        nl.transact(netlink.set_up(link.index, config.name))
        if wanted not in present:
            nl.transact(netlink.add_address(link.index, config.name, wanted))
        for old in present:
            if old != wanted and not config.foreign and not any(address in old.network for address in in_use):
                nl.transact(netlink.delete_address(link.index, config.name, old))
    return wanted


def _adopted(
    present: Sequence[ipaddress.IPv4Interface], last: ipaddress.IPv4Interface | None
) -> ipaddress.IPv4Interface | None:
    """The bridge's address that is kept: the one of the earlier run among several."""
    usable = [interface for interface in present if interface.network.prefixlen <= ipam.LARGEST_PREFIX]
    if last in usable:
        return last
    return usable[0] if usable else None


def _free(
    nl: Netlink,
    config: BridgeConfig,
    last: ipaddress.IPv4Interface | None,
    pools: Sequence[tuple[ipaddress.IPv4Network, int]],
) -> ipaddress.IPv4Interface:
    busy = busy_subnets(nl, but=config.name)
    if last is not None and not any(last.network.overlaps(other) for other in busy):
        return last
    return ipam.gateway_of(ipam.choose_subnet(pools, busy))


def _refuse_overlap(nl: Netlink, config: BridgeConfig, wanted: ipaddress.IPv4Interface) -> None:
    """Two links with one subnet: the host would send half of the containers' packets to the wrong one."""
    names = {link.index: link.name for link in netlink.links(nl)}
    for address in netlink.addresses(nl):
        name = names.get(address.index, "")
        if name not in (config.name, "lo") and address.interface.network.overlaps(wanted.network):
            raise Failed(
                f"cannot give bridge {config.name} the address {wanted}: interface {name} has {address.interface}; "
                "choose another subnet with --bip"
            )


def route_loopback(name: str, *, enable: bool = True) -> bool:
    """Let 127.0.0.1 of the host reach published ports through the bridge; True when that changed something."""
    return _write_sysctl(SYSCTL / "ipv4/conf" / name / "route_localnet", "1" if enable else "0")


def set_forwarding(*, enable: bool) -> bool:
    """Make the host route IPv4; True when that changed something."""
    return _write_sysctl(FORWARDING, "1" if enable else "0")


def forwarding() -> bool:
    return FORWARDING.read_text().strip() == "1"


def _write_sysctl(path: Path, value: str) -> bool:
    """Raises Failed where the kernel's settings cannot be written and the value is another."""
    try:
        if path.read_text().strip() == value:
            return False
        path.write_text(value)
    except OSError as exc:
        raise Failed(f"cannot set {path} to {value}, which container networks need: {exc.strerror}") from exc
    return True


def empty_netns() -> int:
    """A namespace with loopback only, up; its fd."""
    fd, inside = new_netns(_loopback)
    inside.close()
    return fd


def _loopback() -> Netlink:
    """In a new namespace: no IPv6 on interfaces to come (as in Docker, the network has none), loopback up.

    The socket stays in the namespace, so that what follows needs no entering.
    """
    with suppress(FileNotFoundError):  # a kernel without IPv6
        (SYSCTL / "ipv6/conf/default/disable_ipv6").write_text("1")
    inside = Netlink()
    try:
        inside.transact(netlink.set_up(1, "lo"))
    except BaseException:
        inside.close()
        raise
    return inside


def attach(config: BridgeConfig, attachment: Attachment, made: Callable[[int], None]) -> None:
    """Make a namespace with an interface on the bridge. `made` gets its fd, and owns it, before anything can fail.

    1.3 ms. Raises OSError, Failed.
    """
    with ExitStack() as stack:
        fd, inside = new_netns(_loopback)
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
        _await_passing(nl, config.name, attachment.veth)


def _port(config: BridgeConfig, veth: str) -> netlink.Message:
    return netlink.set_port(veth, isolated=not config.icc and not _filters_bridged())


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


def _await_passing(nl: Netlink, *names: str) -> None:
    """Wait for the kernel's worker that notices the carrier: until then packets are dropped, and the first connection
    takes a second. Mostly it was faster than we; when it is stuck, that second is the worst there is."""
    for _ in range(PASSING_LOOKS):
        links = [netlink.find_link(nl, name) for name in names]
        if all(link is None or link.passing for link in links):
            return
        time.sleep(PASSING_PAUSE)
    log.debug("interfaces %s do not pass packets yet", ", ".join(names))


def _filters_bridged() -> bool:
    """True when frames between ports pass the firewall, which then keeps containers apart (`--icc=false`) and still
    lets them use each other's published ports. Otherwise the bridge itself must keep them apart."""
    try:
        return (SYSCTL / "bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def remove(config: BridgeConfig) -> None:
    """Delete the bridge if it is ours; idempotent. Slow: at shut-down only."""
    if config.foreign:
        return
    with Netlink() as nl:
        try:
            nl.transact(netlink.delete_link(config.name))
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise


def docker_present() -> bool:
    """True when a dockerd uses this network namespace: it relies on forwarding as well."""
    return "docker0" in (name for _, name in socket.if_nameindex())
