"""Options of networks as the drivers read them: checked once, by a driver's `check`, in Docker's words."""

import ipaddress
import re
from collections.abc import Mapping

from wherry.errors import InvalidParameter, NotSupported
from wherry.network.places import Interface
from wherry.network.records import NetworkRecord

NAME_LIMIT = 15  # bytes of an interface's name
SMALLEST_MTU, SMALLEST_MTU6, LARGEST_MTU = 68, 1280, 65535
MTU = "com.docker.network.driver.mtu"
_BRIDGE = "com.docker.network.bridge."
NAME = f"{_BRIDGE}name"
ICC = f"{_BRIDGE}enable_icc"
INHIBIT4 = f"{_BRIDGE}inhibit_ipv4"
TRUSTED = f"{_BRIDGE}trusted_host_interfaces"
MODES = {4: f"{_BRIDGE}gateway_mode_ipv4", 6: f"{_BRIDGE}gateway_mode_ipv6"}
BINDINGS = (f"{_BRIDGE}host_binding_ipv4", "com.docker.network.host_ipv4", "com.docker.network.host_ipv6")
SWITCHES = (ICC, INHIBIT4, f"{_BRIDGE}enable_ip_masquerade", f"{_BRIDGE}default_bridge")
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")
_NOT_IN_NAMES = re.compile(r"[/:\s\0]")


def switch(options: Mapping[str, str], key: str, *, default: bool) -> bool:
    """Raises InvalidParameter."""
    value = options.get(key)
    if value is None:
        return default
    if value not in _TRUE + _FALSE:
        raise _unparsed(key, value, f'strconv.ParseBool: parsing "{value}": invalid syntax')
    return value in _TRUE


def _unparsed(key: str, value: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"failed to parse {key} value: {value} ({why})")


def mtu(network: NetworkRecord, *, default: int = 1500) -> int:
    """Raises InvalidParameter."""
    value = network.options.get(MTU)
    if not value:
        return default
    if not _NUMBER.match(value):
        raise _unparsed(MTU, value, f'strconv.Atoi: parsing "{value}": invalid syntax')
    number = int(value)
    smallest = SMALLEST_MTU6 if network.ipv6 else SMALLEST_MTU
    if number and not smallest <= number <= LARGEST_MTU:
        raise InvalidParameter(f"invalid MTU number: {number} is not between {smallest} and {LARGEST_MTU}")
    return number or default


def icc(network: NetworkRecord) -> bool:
    return switch(network.options, ICC, default=True)


def bridge_addresses(network: NetworkRecord) -> list[Interface]:
    """The bridge's own: the gateways, but for the address families in which the host stays out of the network."""
    out = {version for version, key in MODES.items() if network.options.get(key) == "isolated"}
    if switch(network.options, INHIBIT4, default=False):
        out.add(4)
    return [
        ipaddress.ip_interface(f"{subnet.gateway}/{subnet.subnet.partition('/')[2]}")
        for subnet in network.spoken
        if subnet.gateway and subnet.version not in out
    ]


def check_bridge(network: NetworkRecord) -> None:
    """Raises InvalidParameter, NotSupported."""
    options = network.options
    for key in SWITCHES:
        switch(options, key, default=True)
    mtu(network)
    for key in MODES.values():
        mode = options.get(key, "")
        if mode not in ("", "nat", "nat-unprotected", "routed", "isolated"):
            raise _unparsed(key, mode, f"unknown gateway mode {mode}")
        if mode == "isolated" and not network.internal:
            raise InvalidParameter("gateway mode 'isolated' can only be used for an internal network")
    for key in BINDINGS:
        value = options.get(key)
        if value:
            try:
                ipaddress.ip_address(value)
            except ValueError as exc:
                raise _unparsed(key, value, "nil ip") from exc
    if options.get(TRUSTED):
        raise NotSupported(
            f"option {TRUSTED} is not supported by this engine: containers are reached by their published ports, or "
            f"without restriction on a network with {_BRIDGE}gateway_mode_ipv4=nat-unprotected"
        )


def check_interface_name(name: str, what: str) -> None:
    """What the kernel takes for a name. Raises InvalidParameter."""
    if not name or name in (".", "..") or _NOT_IN_NAMES.search(name) or len(name.encode()) > NAME_LIMIT:
        raise InvalidParameter(
            f"invalid {what} {name!r}: an interface's name has 1 to {NAME_LIMIT} bytes, no blank, '/' or ':'"
        )
