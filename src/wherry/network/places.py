"""What the networks tell drivers, firewall and names about one attachment: values, nothing of containers or state."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wherry.kernel.netlink import Netlink
from wherry.network.endpoint import Port
from wherry.network.records import NetworkRecord

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One interface of a container: what a driver puts into its namespace."""

    host_name: str  # of the host's end of a pair: veth1234567
    interface: str  # eth0, eth1, ...
    mac: str  # "" where the driver gives none (ipvlan)
    addresses: Sequence[Interface]  # its own, of either family, link-local ones among them
    sysctls: Sequence[tuple[str, str]] = ()  # ("ipv4.conf.IFNAME.log_martians", "1"), IFNAME standing for the interface


@dataclass(slots=True)
class Namespace:
    """A network namespace and a netlink socket in it. The owner closes both."""

    fd: int
    netlink: Netlink


class NetworkDriver(Protocol):
    """One kind of network. Blocking; raises OSError, Failed, NotSupported, InvalidParameter in Docker's words.

    Default routes are not the driver's: who knows all attachments of a container sets them.
    """

    def check(self, network: NetworkRecord) -> None:
        """Refuse options that cannot be honoured, before anything is done. Touches nothing."""

    def create(self, network: NetworkRecord) -> None:
        """Make or adopt the host's side. Idempotent: also after a restart, with containers attached."""

    def remove(self, network: NetworkRecord) -> None:
        """Take the host's side away. Idempotent."""

    def attach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        """Put an interface with its addresses, up, into the namespace. When it raises nothing is left."""

    def detach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        """Take the interface out of a live namespace. Idempotent. Not needed when the namespace itself goes."""

    def reattach(self, network: NetworkRecord, places: Sequence[Place]) -> None:
        """After a restart: the host's ends of running containers, back on the host's side where they were lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """What the firewall knows of one bridge network."""

    network: str  # id
    bridge: str  # name of the host's interface
    subnets: Sequence[IPNetwork]
    gateways: Sequence[str] = ()  # the bridge's own addresses
    masquerade: bool = True
    masquerade6: bool = True
    icc: bool = True
    internal: bool = False
    mode4: str = "nat"  # gateway mode: nat, nat-unprotected, routed, isolated
    mode6: str = "nat"
    source4: str = ""  # masquerade under this address of the host (com.docker.network.host_ipv4)
    source6: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A published port and where it leads; of one address family."""

    port: Port
    address: str  # the container's
    bridge: str  # of the network the address is on
