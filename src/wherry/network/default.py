"""The default bridge, and what the firewall must know of a bridge. Blocking."""

import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from wherry.network import ipam
from wherry.network.config import NetworkConfig
from wherry.network.drivers import bridge
from wherry.network.drivers.bridge import BridgeConfig
from wherry.network.places import IPNetwork, NetworkRules
from wherry.network.records import NetworkRecord, Subnet

_PREFIX = "com.docker.network"


def bridge_config(config: NetworkConfig) -> BridgeConfig | None:
    """None when the daemon is to have no default bridge."""
    if config.bridge == "none":
        return None
    own = f"wh-{config.instance}" if config.instance else "wherry0"
    name = config.bridge or own
    return BridgeConfig(name=name, foreign=name != own, mtu=config.mtu, icc=config.icc)


class DefaultBridge:
    """The bridge of the network `bridge`."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._bip = ipam.parse_bip(config.bip) if config.bip else None
        self.device = bridge_config(config)
        self._routed_loopback = False  # we switched route_localnet on

    def prepare(
        self,
        record: NetworkRecord,
        pools: Sequence[tuple[IPNetwork, int]],
        in_use: Sequence[ipaddress.IPv4Address],
    ) -> NetworkRecord:
        """Make or adopt the bridge; the record as it is then. Idempotent. Raises as `bridge.prepare`."""
        device = self.device
        if device is None:
            return replace(record, subnets=())
        last = ipaddress.IPv4Interface(record.interface) if record.interface else None
        four = [(base, size) for base, size in pools if isinstance(base, ipaddress.IPv4Network)]
        interface = bridge.prepare(device, bip=self._bip, last=last, pools=four, in_use=in_use)
        self._routed_loopback = bridge.route_loopback(device.name) or self._routed_loopback
        subnet = Subnet(subnet=str(interface.network), gateway=str(interface.ip), asked=bool(self._bip))
        return replace(record, interface=str(interface), subnets=(subnet,), options=self._options(device))

    def _options(self, device: BridgeConfig) -> Mapping[str, str]:
        return {
            f"{_PREFIX}.bridge.default_bridge": "true",
            f"{_PREFIX}.bridge.enable_icc": str(self._config.icc).lower(),
            f"{_PREFIX}.bridge.enable_ip_masquerade": str(self._config.ip_masq).lower(),
            f"{_PREFIX}.bridge.host_binding_ipv4": self._config.default_bind,
            f"{_PREFIX}.bridge.name": device.name,
            f"{_PREFIX}.driver.mtu": str(device.mtu),
        }

    def take_back(self) -> None:
        """Both are tried, whatever becomes of the other."""
        if self.device is None:
            return
        with ExitStack() as steps:  # in reverse order
            steps.callback(bridge.remove, self.device)
            if self.device.foreign and self._routed_loopback:
                steps.callback(bridge.route_loopback, self.device.name, enable=False)
        self._routed_loopback = False


def rules(record: NetworkRecord, device: str) -> NetworkRules:
    """What the firewall must know of a bridge network; `device` is the host's interface."""
    option = record.options.get
    return NetworkRules(
        network=record.id,
        bridge=device,
        subnets=[ipaddress.ip_network(subnet.subnet) for subnet in record.spoken],
        gateways=[subnet.gateway for subnet in record.spoken if subnet.gateway],
        masquerade=option(f"{_PREFIX}.bridge.enable_ip_masquerade", "true") != "false",
        masquerade6=option(f"{_PREFIX}.bridge.enable_ip_masquerade", "true") != "false",
        icc=option(f"{_PREFIX}.bridge.enable_icc", "true") != "false",
        internal=record.internal,
        mode4=option(f"{_PREFIX}.bridge.gateway_mode_ipv4", "nat"),
        mode6=option(f"{_PREFIX}.bridge.gateway_mode_ipv6", "nat"),
        source4=option(f"{_PREFIX}.host_ipv4", ""),
        source6=option(f"{_PREFIX}.host_ipv6", ""),
    )
