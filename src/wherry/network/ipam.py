"""IPAM: which subnet a network gets, and which address in it a container. Pure; the caller keeps what was given."""

import heapq
import ipaddress
import re
from collections.abc import Iterable, Sequence

from wherry.errors import Conflict, Failed, InvalidParameter

DEFAULT_POOLS: Sequence[tuple[str, int]] = (  # Docker's own, for networks of one host
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
LARGEST_PREFIX = 30  # a smaller subnet has no room for a gateway and a container

_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\Z")


def parse_pools(pools: Iterable[tuple[str, int]]) -> list[tuple[ipaddress.IPv4Network, int]]:
    """Check `--default-address-pool`s. Raises InvalidParameter naming the bad one."""
    result = []
    for base, size in pools:
        try:
            network = ipaddress.IPv4Network(base, strict=False)
        except ValueError as exc:
            raise InvalidParameter(f"invalid default address pool {base}: {exc}") from exc
        if not network.prefixlen <= size <= LARGEST_PREFIX:
            raise InvalidParameter(
                f"invalid default address pool {base}: size {size} is not between {network.prefixlen} "
                f"and {LARGEST_PREFIX}"
            )
        result.append((network, size))
    return result


def choose_subnet(
    pools: Sequence[tuple[ipaddress.IPv4Network, int]], busy: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network:
    """The first subnet of the pools that overlaps nothing in `busy`. Raises Failed when there is none."""
    occupied = list(busy)
    for base, size in pools:
        for candidate in base.subnets(new_prefix=size):
            if not any(candidate.overlaps(other) for other in occupied):
                return candidate
    raise Failed(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network; "
        "give one with --bip or --default-address-pool"
    )


def parse_bip(text: str) -> ipaddress.IPv4Interface:
    """The bridge's own address and subnet, as given to `--bip`. Raises InvalidParameter."""
    try:
        interface = ipaddress.IPv4Interface(text)
    except ValueError as exc:
        raise InvalidParameter(f"invalid bridge address {text!r} (--bip): {exc}") from exc
    network = interface.network
    if "/" not in text or network.prefixlen > LARGEST_PREFIX:
        raise InvalidParameter(f"invalid bridge address {text!r} (--bip): give it like 172.31.0.1/24")
    if interface.ip in (network.network_address, network.broadcast_address):
        raise InvalidParameter(f"invalid bridge address {text!r} (--bip): it is the subnet's own or broadcast address")
    return interface


def gateway_of(subnet: ipaddress.IPv4Network) -> ipaddress.IPv4Interface:
    """The bridge's address in a subnet of our choice: the first."""
    return ipaddress.IPv4Interface((subnet.network_address + 1, subnet.prefixlen))


def mac_of(address: ipaddress.IPv4Address) -> str:
    """Docker's MAC for an address: whoever gets the address next has the same, so no neighbour's ARP entry is wrong."""
    return "02:42:" + address.packed.hex(":")


def parse_mac(text: str) -> str:
    """A unicast Ethernet address in the kernel's notation. Raises InvalidParameter in Docker's words."""
    if not _MAC.match(text):
        raise InvalidParameter(f"address {text}: invalid MAC address")
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidParameter(f"address {text}: invalid MAC address (an interface needs a unicast one)")
    return mac


class Pool:
    """Addresses of one subnet. Hands out the lowest that is free."""

    def __init__(self, gateway: ipaddress.IPv4Interface) -> None:
        self.gateway = gateway
        self.subnet = gateway.network
        self._first = int(self.subnet.network_address) + 1
        self._last = int(self.subnet.broadcast_address) - 1
        self._taken = {int(gateway.ip)}
        self._next = self._first  # everything from here on was never given or is in _taken
        self._free: list[int] = []  # heap of addresses below _next that came back

    def allocate(self) -> ipaddress.IPv4Address:
        """Raises Failed when the subnet is full."""
        while self._free:
            number = heapq.heappop(self._free)
            if number not in self._taken:
                return self._take(number)
        while self._next <= self._last:
            number = self._next
            self._next += 1
            if number not in self._taken:
                return self._take(number)
        raise Failed(f"no available IPv4 addresses on this network's address pools: {self.subnet}")

    def _take(self, number: int) -> ipaddress.IPv4Address:
        self._taken.add(number)
        return ipaddress.IPv4Address(number)

    def reserve(self, address: ipaddress.IPv4Address) -> None:
        """Take this one. Raises Conflict when it is taken, InvalidParameter when it is not in the subnet."""
        number = int(address)
        if not self._first <= number <= self._last:
            raise InvalidParameter(f"address {address} is not in subnet {self.subnet}")
        if number in self._taken:
            raise Conflict(f"Address already in use: {address}")
        self._taken.add(number)

    def release(self, address: ipaddress.IPv4Address) -> None:
        """Give back; idempotent. The gateway stays."""
        number = int(address)
        if number in self._taken and address != self.gateway.ip:
            self._taken.discard(number)
            if number < self._next:
                heapq.heappush(self._free, number)
