"""What a container has on the network while it runs: values, shared with the container's record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One published port as it is now."""

    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: str
    host_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One attachment to a network while the container runs."""

    network: str  # name
    network_id: str
    endpoint_id: str
    mac: str
    ip: str  # "" = no IPv4
    prefix: int
    gateway: str  # "" = none
    ip6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    interface: str = "eth0"  # in the container
    driver: str = "bridge"
    link_local_ips: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # as asked for
    names: tuple[str, ...] = ()  # all it answers to on this network: container name, aliases, short id
    on_link: bool = False  # leads out without a gateway: ipvlan's l3
    gw_priority: int = 0  # of those that have a gateway the highest is the default route, then the first by name
    options: Mapping[str, str] = field(default_factory=dict)  # driver_opts of the endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRequest:
    """One attachment as asked for."""

    network: str  # name or id, as typed
    ip: str = ""
    ip6: str = ""
    link_local_ips: Sequence[str] = ()
    mac: str = ""
    aliases: Sequence[str] = ()
    names: Sequence[str] = ()  # container name and short id; the hostname is not one of them, as in Docker
    links: Mapping[str, str] = field(default_factory=dict)  # alias to the full id of the container it means
    gw_priority: int = 0
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServers:
    """Where the container's resolver asks what it does not know itself."""

    servers: Sequence[str] = ()  # upstream, in order; reached from the container's namespace
    from_host: Sequence[str] = ()  # upstream that only the host reaches (its loopback): asked from the host's namespace
    search: Sequence[str] = ()
    options: Sequence[str] = ()  # ndots:1, timeout:2, ...
