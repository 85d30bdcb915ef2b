"""The bridge driver: bridges of the host, and an interface pair from one into a container's network namespace.

A bridge that we made for a user's network carries the network's id as its alias: only such a one is ever deleted, and
nobody has to remember who made it. The default bridge is prepared by functions of its own (`prepare`, `remove`), for
its address is looked for anew at every start, and it may be somebody else's.
Knows links, addresses and sysctls, nothing of containers, ports or state. Blocking: the async verbs go through
`aio.settle`. An attachment has no undo of its own: the pair dies with the namespace, which dies with its last fd.
"""

import errno
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wherry.errors import Failed, Forbidden, InvalidParameter
from wherry.kernel import links, netlink
from wherry.kernel.netlink import Link, Netlink
from wherry.network import ipam
from wherry.network.drivers import options, sysctls
from wherry.network.drivers.interface import ALIAS, alias_of, check_place, configure
from wherry.network.places import Interface, IPNetwork, Namespace, Place
from wherry.network.records import BRIDGE, NetworkRecord

log = logging.getLogger(__name__)

PASSING_LOOKS, PASSING_PAUSE = 200, 0.0005  # times, s
FORWARDING = sysctls.ROOT / "ipv4/ip_forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    name: str
    foreign: bool = False  # somebody else's: never made, renumbered or deleted by us
    mtu: int = 1500
    icc: bool = True


def busy_subnets(*, but: str = "") -> list[IPNetwork]:
    """What a new network must not overlap: the host's routes, addresses and name servers, those of link `but` aside."""
    found: list[IPNetwork] = []
    with Netlink() as nl:
        own = netlink.find_link(nl, but) if but else None
        index = own.index if own else -1
        for version in (4, 6):
            found += [a.interface.network for a in netlink.addresses(nl, version) if a.index != index]
            found += [network for network, link in netlink.routes(nl, version) if link != index and network.prefixlen]
    return found + [ipaddress.ip_network(address) for address in _name_servers()]


def _name_servers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    result = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                result.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
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
        present = _addresses_of(nl, link) if link is not None else []
        wanted = bip or _adopted(present, last) or _free(config, last, pools)
        if wanted not in present:
            _refuse_overlap(nl, config, wanted)
        if link is None:
            link = _make(nl, config.name, mac=ipam.mac_of(wanted.ip), mtu=config.mtu)
        elif not config.foreign and link.mtu != config.mtu:
            nl.transact(netlink.set_mtu(link.index, config.name, config.mtu))
        nl.transact(netlink.set_up(link.index, config.name))
        if wanted not in present:
            nl.transact(netlink.add_address(link.index, config.name, wanted))
        for old in present:
            if old != wanted and not config.foreign and not any(address in old.network for address in in_use):
                nl.transact(netlink.delete_address(link.index, config.name, old))
    return wanted


def _addresses_of(nl: Netlink, link: Link) -> list[ipaddress.IPv4Interface]:
    return [
        each.interface
        for each in netlink.addresses(nl)
        if each.index == link.index and isinstance(each.interface, ipaddress.IPv4Interface)
    ]


def _make(nl: Netlink, name: str, *, mac: str, mtu: int) -> Link:
    nl.transact(netlink.create_bridge(name, mac=mac, mtu=mtu))
    link = netlink.find_link(nl, name)
    if link is None:
        raise Failed(f"bridge {name} vanished while it was set up")
    with suppress(FileNotFoundError):  # a kernel without IPv6
        # what containers advertise is not the host's way out
        (sysctls.ROOT / "ipv6/conf" / name / "accept_ra").write_text("0")
    return link


def _adopted(
    present: Sequence[ipaddress.IPv4Interface], last: ipaddress.IPv4Interface | None
) -> ipaddress.IPv4Interface | None:
    """The bridge's address that is kept: the one of the earlier run among several."""
    usable = [interface for interface in present if interface.network.prefixlen <= ipam.LARGEST_PREFIX]
    if last in usable:
        return last
    return usable[0] if usable else None


def _free(
    config: BridgeConfig,
    last: ipaddress.IPv4Interface | None,
    pools: Sequence[tuple[ipaddress.IPv4Network, int]],
) -> ipaddress.IPv4Interface:
    busy = busy_subnets(but=config.name)
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
    return sysctls.write(sysctls.ROOT / "ipv4/conf" / name / "route_localnet", "1" if enable else "0")


def set_forwarding(*, enable: bool) -> bool:
    """Make the host route IPv4; True when that changed something."""
    return sysctls.write(FORWARDING, "1" if enable else "0")


def forwarding() -> bool:
    return FORWARDING.read_text().strip() == "1"


def await_passing(nl: Netlink, *names: str) -> None:
    """Wait for the kernel's worker that notices the carrier: until then packets are dropped, and the first connection
    takes a second. Mostly it was faster than we; when it is stuck, that second is the worst there is."""
    for _ in range(PASSING_LOOKS):
        links = [netlink.find_link(nl, name) for name in names]
        if all(link is None or link.passing for link in links):
            return
        time.sleep(PASSING_PAUSE)
    log.debug("interfaces %s do not pass packets yet", ", ".join(names))


def filters_bridged() -> bool:
    """True when frames between ports pass the firewall, which then keeps containers apart (`--icc=false`) and still
    lets them use each other's published ports. Otherwise the bridge itself must keep them apart."""
    try:
        return (sysctls.ROOT / "bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def remove(config: BridgeConfig) -> None:
    """Delete the default bridge if it is ours; idempotent. Slow: at shut-down only."""
    if config.foreign:
        return
    with Netlink() as nl:
        _delete(nl, config.name)


def _delete(nl: Netlink, name: str) -> None:
    """Idempotent."""
    try:
        nl.transact(netlink.delete_link(name))
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise


def docker_present() -> bool:
    """True when a dockerd uses this network namespace: it relies on forwarding as well."""
    return "docker0" in (name for _, name in socket.if_nameindex())


class BridgeDriver:
    def __init__(self, device: Callable[[NetworkRecord], str]) -> None:
        """`device`: the host's interface of a network."""
        self._device = device

    # -- the host's side

    def check(self, network: NetworkRecord) -> None:
        if network.name == BRIDGE:
            return
        options.check_bridge(network)
        name = self._device(network)
        if name == "wherry0" or name.startswith("wh-"):
            raise InvalidParameter(f"invalid bridge name {name}: it belongs to the default network of an engine")
        options.check_interface_name(name, "bridge name")

    def create(self, network: NetworkRecord) -> None:
        if network.name == BRIDGE:
            return  # made by `prepare`
        name = self._device(network)
        with Netlink() as nl, ExitStack() as undo:
            link = netlink.find_link(nl, name)
            if link is None:
                link = _make(nl, name, mac=_bridge_mac(network), mtu=options.mtu(network))
                undo.callback(_delete, nl, name)
                nl.transact(links.set_alias(link.index, name, alias_of(network)))
                link = replace(link, alias=alias_of(network))
            else:
                _refuse_others(link, network)
                if _is_ours(link, network) and link.mtu != options.mtu(network):
                    nl.transact(netlink.set_mtu(link.index, name, options.mtu(network)))
            self._number(nl, link, network)
            undo.pop_all()

    def _number(self, nl: Netlink, link: Link, network: NetworkRecord) -> None:
        """Addresses, sysctls, up."""
        settings = sysctls.ROOT / "ipv6/conf" / link.name
        if network.ipv6:
            if not settings.exists():
                raise Failed(f"network {network.name} cannot have IPv6: the host's kernel has none (ipv6.disable=1?)")
            sysctls.use_six(link.name)
        elif _is_ours(link, network) and settings.exists():
            sysctls.write(settings / "disable_ipv6", "1")
        wanted = options.bridge_addresses(network)
        present = {each.interface: each.index for version in (4, 6) for each in netlink.addresses(nl, version)}
        missing = [interface for interface in wanted if present.get(interface) != link.index]
        for interface in missing:
            _refuse_subnet_of_others(nl, link, interface)
        nl.transact(netlink.set_up(link.index, link.name))
        for interface in missing:
            nl.transact(netlink.add_address(link.index, link.name, interface))
        if _is_ours(link, network):
            for old, index in present.items():
                if index == link.index and old not in wanted and not old.is_link_local:
                    nl.transact(netlink.delete_address(link.index, link.name, old))
        if network.ipv4:
            route_loopback(link.name)

    def remove(self, network: NetworkRecord) -> None:
        if network.name == BRIDGE:
            return
        with Netlink() as nl:
            link = netlink.find_link(nl, self._device(network))
            if link is not None and _is_ours(link, network):
                _delete(nl, link.name)

    # -- containers

    def attach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        """1.3 ms with the namespace's making; 0.3 ms more where the network has IPv6."""
        check_place(place)
        name = self._device(network)
        with Netlink() as nl, ExitStack() as undo:
            bridge = netlink.find_link(nl, name)
            if bridge is None:
                raise Failed(f"bridge {name} is gone: somebody deleted it; restart the daemon to make it again")
            pair = netlink.create_veth(
                place.host_name,
                bridge=bridge.index,
                peer=place.interface,
                peer_mac=place.mac,
                netns=namespace.fd,
                mtu=options.mtu(network),
            )
            nl.transact(pair)
            undo.callback(_delete, nl, place.host_name)
            host = netlink.find_link(nl, place.host_name)
            if host is None:
                raise Failed(f"interface pair {place.host_name} vanished while it was set up")
            # The address may have been another container's a moment ago, whose port the kernel is still taking down.
            nl.transact(_port(network, host.name), netlink.place_mac(host.index, host.name, place.mac))
            configure(place, namespace)
            await_passing(nl, name, place.host_name)
            undo.pop_all()

    def detach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        with Netlink() as nl:
            _delete(nl, place.host_name)

    def reattach(self, network: NetworkRecord, places: Sequence[Place]) -> None:
        """Interfaces back on a bridge that was deleted and made again, or whose flags changed; those that are gone are
        passed over."""
        with Netlink() as nl:
            bridge = netlink.find_link(nl, self._device(network))
            for place in places:
                link = netlink.find_link(nl, place.host_name)
                if bridge is None or link is None:
                    continue
                if link.master != bridge.index:
                    nl.transact(netlink.set_master(link.index, link.name, bridge=bridge.index))
                nl.transact(_port(network, link.name), netlink.place_mac(link.index, link.name, place.mac))


def _port(network: NetworkRecord, veth: str) -> netlink.Message:
    return netlink.set_port(veth, isolated=not options.icc(network) and not filters_bridged())


def _bridge_mac(network: NetworkRecord) -> str:
    for address in options.bridge_addresses(network):
        if isinstance(address, ipaddress.IPv4Interface):
            return ipam.mac_of(address.ip)
    return "02:42:" + bytes.fromhex(network.id[:8]).hex(":")


def _is_ours(link: Link, network: NetworkRecord) -> bool:
    return link.alias == alias_of(network)


def _refuse_others(link: Link, network: NetworkRecord) -> None:
    """Raises Forbidden when another network has this bridge, Failed when it is none."""
    if link.kind != "bridge":
        raise Failed(f"existing interface {link.name} is not a bridge: delete it, or choose another bridge name")
    if link.alias.startswith(ALIAS) and not _is_ours(link, network):
        other = link.alias.removeprefix(ALIAS)
        raise Forbidden(
            f"cannot create network {network.id} ({link.name}): conflicts with network {other} ({link.name}): "
            "networks have same bridge name"
        )


def _refuse_subnet_of_others(nl: Netlink, link: Link, wanted: Interface) -> None:
    """As Docker's check of a bridge's addresses: two links with one subnet get each other's packets."""
    names = {each.index: each.name for each in netlink.links(nl)}
    for address in netlink.addresses(nl, wanted.version):
        name = names.get(address.index, "")
        if name not in (link.name, "lo") and address.interface.network == wanted.network:
            raise Failed(
                f"cannot give bridge {link.name} the address {wanted}: interface {name} has {address.interface}; "
                "choose another subnet"
            )
