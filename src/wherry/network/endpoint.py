"""What a container has on the network while it runs: values, shared with the container's record."""

from dataclasses import dataclass


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
    ip: str
    prefix: int
    gateway: str
    ip6: str = ""
    prefix6: int = 0
    gateway6: str = ""
