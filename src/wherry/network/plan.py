"""Which interfaces a container gets, and which of its networks leads out. Pure."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.ids import generate
from wherry.network.endpoint import Endpoint, NameServers, Port
from wherry.network.places import Interface, Place, Publication
from wherry.network.ports import PortRequest
from wherry.network.records import BRIDGE, NetworkRecord

SYSCTLS = "com.docker.network.endpoint.sysctls"  # endpoint options
IFNAME = "com.docker.network.endpoint.ifname"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One interface of a running container; part of a row in state table `endpoints`."""

    endpoint: Endpoint
    host_name: str  # the host's end
    links: Mapping[str, str] = field(default_factory=dict)  # alias to container id

    @property
    def network_id(self) -> str:
        return self.endpoint.network_id

    @property
    def addresses(self) -> list[str]:
        """Without link-local ones."""
        return [address for address in (self.endpoint.ip, self.endpoint.ip6) if address]

    def place(self) -> Place:
        endpoint = self.endpoint
        found: list[Interface] = []
        if endpoint.ip:
            found.append(ipaddress.ip_interface(f"{endpoint.ip}/{endpoint.prefix}"))
        if endpoint.ip6:
            found.append(ipaddress.ip_interface(f"{endpoint.ip6}/{endpoint.prefix6}"))
        for text in endpoint.link_local_ips:
            found.append(ipaddress.ip_interface(f"{text}/{64 if ':' in text else 16}"))
        return Place(
            host_name=self.host_name,
            interface=endpoint.interface,
            mac=endpoint.mac,
            addresses=found,
            sysctls=parse_sysctls(endpoint.options.get(SYSCTLS, "")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Value in state table `endpoints`: what a running container has on the network."""

    attachments: tuple[Attachment, ...]
    ports: tuple[Port, ...] = ()
    wanted: tuple[PortRequest, ...] = ()  # held as soon as a network leads out
    nameservers: NameServers = field(default_factory=NameServers)
    name: str = ""  # the container's


def parse_sysctls(text: str) -> tuple[tuple[str, str], ...]:
    """`net.ipv4.conf.IFNAME.log_martians=1,…` without the `net.`."""
    pairs = (entry.partition("=") for entry in text.split(",") if entry)
    return tuple((key.strip().removeprefix("net."), value.strip()) for key, _, value in pairs)


def next_interface(taken: Sequence[str], wanted: str = "") -> str:
    """The first of eth0, eth1, … that is free."""
    if wanted and wanted not in taken:
        return wanted
    number = 0
    while f"eth{number}" in taken:
        number += 1
    return f"eth{number}"


def ways_out(attachments: Sequence[Attachment]) -> tuple[Attachment | None, Attachment | None]:
    """The networks that have the default routes of IPv4 and IPv6: of the highest priority, then the first by name."""
    four = [each for each in attachments if each.endpoint.gateway]
    six = [each for each in attachments if each.endpoint.gateway6]
    return min(four, key=_rank, default=None), min(six, key=_rank, default=None)


def _rank(attachment: Attachment) -> tuple[int, str]:
    return -attachment.endpoint.gw_priority, attachment.endpoint.network


def routes(attachments: Sequence[Attachment]) -> list[tuple[str, str]]:
    """Interface and gateway of each default route."""
    four, six = ways_out(attachments)
    if four is None and six is None:
        direct = min((each for each in attachments if each.endpoint.on_link), key=_rank, default=None)
        return [(direct.endpoint.interface, "")] if direct else []
    found = [(four.endpoint.interface, four.endpoint.gateway)] if four else []
    return found + ([(six.endpoint.interface, six.endpoint.gateway6)] if six else [])


def targets(attachments: Sequence[Attachment]) -> tuple[Attachment | None, Attachment | None]:
    """Where published ports lead, for IPv4 and IPv6: a bridge network that leads out."""
    bridged = [each for each in attachments if each.endpoint.driver == BRIDGE]
    return ways_out(bridged)


def bridge_name(record: NetworkRecord, default: str) -> str:
    """The host's interface of a bridge network; `default` is the default network's."""
    if record.name == BRIDGE:
        return default
    return record.options.get("com.docker.network.bridge.name") or f"br-{record.id[:12]}"


def publications(
    attachments: Sequence[Attachment], ports: Sequence[Port], bridges: Mapping[str, str]
) -> list[Publication]:
    """What the firewall is told; `bridges`: network id to the host's interface.

    A port on an IPv6 address of the host leads to the container's IPv6 address, if it has one.
    """
    four, six = targets(attachments)
    found = []
    for port in ports:
        if ":" not in port.host_ip and four is not None:
            found.append(Publication(port=port, address=four.endpoint.ip, bridge=bridges[four.network_id]))
        elif ":" in port.host_ip and six is not None:
            found.append(Publication(port=port, address=six.endpoint.ip6, bridge=bridges[six.network_id]))
    return found


def bare(record: NetworkRecord) -> Endpoint:
    """An attachment without an address: host, none."""
    return Endpoint(
        network=record.name,
        network_id=record.id,
        endpoint_id=generate(),
        mac="",
        ip="",
        prefix=0,
        gateway="",
        driver=record.driver,
    )
