"""Networks as they are kept: values of state table `networks`, keyed by the network's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BRIDGE, HOST, NULL, MACVLAN, IPVLAN = "bridge", "host", "null", "macvlan", "ipvlan"  # drivers
EGRESS = "wherry.egress"  # option: what may be reached, "pypi.example,10.0.0.0/8"; see egress/


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """One entry of a network's IPAM config, of either address family."""

    subnet: str  # 172.20.0.0/16, fd00:1::/64
    gateway: str = ""  # "" = the network has none
    ip_range: str = ""  # containers get addresses from here only
    auxiliary: Mapping[str, str] = field(default_factory=dict)  # name to an address that is never given out
    asked: bool = True  # by the user; otherwise the subnet is our choice

    @property
    def version(self) -> int:
        return 6 if ":" in self.subnet else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    id: str
    name: str
    driver: str
    created: int  # ns since the epoch
    interface: str = ""  # the default bridge's own address and prefix, when it had one last
    subnets: Sequence[Subnet] = ()
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] | None = None
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    config_only: bool = False
    config_from: str = ""  # name of a config-only network
    options: Mapping[str, str] = field(default_factory=dict)  # of the driver, as given
    labels: Mapping[str, str] = field(default_factory=dict)
    pending: bool = False  # being made or removed: taken away when a daemon starts and finds it

    @property
    def spoken(self) -> Sequence[Subnet]:
        """The subnets that count: as in Docker one of IPv6 may be named without IPv6 being enabled."""
        return [subnet for subnet in self.subnets if (self.ipv6 if subnet.version == 6 else self.ipv4)]

    @property
    def predefined(self) -> bool:
        return self.name in ("bridge", "host", "none")
