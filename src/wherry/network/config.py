"""The daemon's flags about networks, checked."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.errors import InvalidParameter
from wherry.network import ipam
from wherry.network.ports import ANY4

NAME_LIMIT = 15  # bytes of an interface's name
INSTANCE_LIMIT = NAME_LIMIT - len("wh-")
_INSTANCE = re.compile(r"[a-z0-9]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The `dns` ones are for `files.resolv_conf`."""

    instance: str = ""  # tells several daemons of a host apart: part of the bridge's and the firewall table's names
    bridge: str = ""  # "" = our own, "none" = no default bridge, else an existing one
    bip: str = ""  # 172.31.0.1/24
    address_pools: Sequence[tuple[str, int]] = ipam.DEFAULT_POOLS
    mtu: int = 1500
    ip_forward: bool = True
    ip_masq: bool = True
    icc: bool = True
    default_bind: str = ANY4
    network_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by driver: for new networks
    respect_firewall: bool = False
    host_dns: str = ""  # 127.0.0.153:53: where the host may ask for names of containers; "" = nowhere
    host_gateways: Sequence[str] = ()  # what `host-gateway` means; none = the default bridge's address
    dns: Sequence[str] = ()
    dns_search: Sequence[str] = ()
    dns_options: Sequence[str] = ()

    @property
    def table(self) -> str:
        """Name of the firewall's table."""
        return f"wherry_{self.instance}" if self.instance else "wherry"


def check(config: NetworkConfig) -> None:
    """Raises InvalidParameter naming the flag."""
    if config.instance and (not _INSTANCE.match(config.instance) or len(config.instance) > INSTANCE_LIMIT):
        raise InvalidParameter(
            f"invalid instance tag {config.instance!r}: at most {INSTANCE_LIMIT} lower-case letters and digits"
        )
    if config.bridge != "none" and len(config.bridge.encode()) > NAME_LIMIT:
        raise InvalidParameter(f"invalid bridge name {config.bridge!r}: longer than {NAME_LIMIT} bytes")
    if config.bridge and config.bip:
        raise InvalidParameter("You specified -b & --bip, mutually exclusive options. Please specify only one")
    if not 68 <= config.mtu <= 65535:
        raise InvalidParameter(f"invalid MTU {config.mtu}: not between 68 and 65535")
    try:
        ipaddress.ip_address(config.default_bind)
    except ValueError as exc:
        raise InvalidParameter(f"invalid default address for published ports (--ip): {config.default_bind!r}") from exc
