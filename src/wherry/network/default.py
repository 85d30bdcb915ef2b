"""The default bridge, and what the host must be for containers to be routed: blocking."""

import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from wherry.network import ipam
from wherry.network.config import NetworkConfig
from wherry.network.drivers import bridge
from wherry.network.drivers.bridge import BridgeConfig
from wherry.network.places import IPNetwork, NetworkRules
from wherry.network.records import NetworkRecord, Subnet
from wherry.network.wall.table import Firewall
from wherry.state import Delete, Put, State

FORWARDING_KEY = "network/forwarding"  # in table settings: the boot in which we made the host a router
_PREFIX = "com.docker.network"


def bridge_config(config: NetworkConfig) -> BridgeConfig | None:
    """None when the daemon is to have no default bridge."""
    if config.bridge == "none":
        return None
    own = f"wh-{config.instance}" if config.instance else "wherry0"
    name = config.bridge or own
    return BridgeConfig(name=name, foreign=name != own, mtu=config.mtu, icc=config.icc)


class DefaultBridge:
    """The bridge of the network `bridge`, and the host's forwarding."""

    def __init__(self, config: NetworkConfig, state: State, wall: Firewall) -> None:
        self._config = config
        self._state = state
        self._wall = wall
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

    def guards(self) -> bool:
        """True when the host routes only because of us: since now, an earlier run, or another daemon of ours.

        Remembered in the state for as long as the host is up: after that its settings are its own again.
        """
        if not self._config.ip_forward:
            return False
        boot = _boot_id()
        guarded = (
            not bridge.forwarding()
            or self._state.rows("settings").get(FORWARDING_KEY) == boot
            or self._wall.others()[1]
        )
        if guarded:
            self._state.write(Put("settings", FORWARDING_KEY, boot))
        return guarded

    def forward(self) -> None:
        """The firewall first: from the moment the host routes, it must be guarded."""
        if self._config.ip_forward:
            bridge.set_forwarding(enable=True)

    def take_back(self) -> None:
        """Bridge, firewall, sysctls; each is tried, whatever becomes of the others; in reverse order."""
        with ExitStack() as steps:
            if self.device is not None:
                steps.callback(bridge.remove, self.device)
                if self.device.foreign and self._routed_loopback:
                    steps.callback(bridge.route_loopback, self.device.name, enable=False)
            steps.callback(self._wall.remove)
            steps.callback(self._stop_forwarding)
        self._routed_loopback = False

    def _stop_forwarding(self) -> None:
        """The last of us switches it off."""
        if self._state.rows("settings").get(FORWARDING_KEY) != _boot_id():
            return
        if not self._wall.others()[0] and not bridge.docker_present():
            bridge.set_forwarding(enable=False)
        self._state.write(Delete("settings", FORWARDING_KEY))


def rules(record: NetworkRecord, device: str) -> NetworkRules:
    """What the firewall must know of a bridge network; `device` is the host's interface."""
    option = record.options.get
    return NetworkRules(
        network=record.id,
        bridge=device,
        subnets=[ipaddress.ip_network(subnet.subnet) for subnet in record.subnets],
        gateways=[subnet.gateway for subnet in record.subnets if subnet.gateway],
        masquerade=option(f"{_PREFIX}.bridge.enable_ip_masquerade", "true") != "false",
        masquerade6=option(f"{_PREFIX}.bridge.enable_ip_masquerade", "true") != "false",
        icc=option(f"{_PREFIX}.bridge.enable_icc", "true") != "false",
        internal=record.internal,
        mode4=option(f"{_PREFIX}.bridge.gateway_mode_ipv4", "nat"),
        mode6=option(f"{_PREFIX}.bridge.gateway_mode_ipv6", "nat"),
        source4=option(f"{_PREFIX}.host_ipv4", ""),
        source6=option(f"{_PREFIX}.host_ipv6", ""),
    )


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
