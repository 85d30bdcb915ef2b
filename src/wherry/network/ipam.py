"""IPAM: which subnet a network gets, and which address in it a container. Pure; the caller keeps what was given."""

import hashlib
import heapq
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.network.places import Interface, IPAddress, IPNetwork

DEFAULT_POOLS: Sequence[tuple[str, int]] = (  # Docker's own, for networks of one host
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
LARGEST_PREFIX6 = 126
ULA_PREFIX, ULA_SIZE = 48, 64  # of our own IPv6 pool, and of each network's share
LARGEST_PREFIX = 30  # a smaller subnet has no room for a gateway and a container

N = TypeVar("N", bound=IPNetwork)

_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\Z")


def parse_pools(pools: Iterable[tuple[str, int]]) -> list[tuple[IPNetwork, int]]:
    """Check `--default-address-pool`s. Raises InvalidParameter naming the bad one."""
    result = []
    for base, size in pools:
        try:
            network = ipaddress.ip_network(base, strict=False)
        except ValueError as exc:
            raise InvalidParameter(f"invalid default address pool {base}: {exc}") from exc
        largest = LARGEST_PREFIX if network.version == 4 else LARGEST_PREFIX6
        if not network.prefixlen <= size <= largest:
            raise InvalidParameter(
                f"invalid default address pool {base}: size {size} is not between {network.prefixlen} and {largest}"
            )
        result.append((network, size))
    return result


def unique_local(seed: bytes) -> tuple[IPNetwork, int]:
    """A pool of IPv6 subnets that no other engine has: RFC 4193, the global id drawn from `seed`."""
    packed = b"\xfd" + hashlib.sha256(seed).digest()[:5] + bytes(10)
    return ipaddress.IPv6Network((packed, ULA_PREFIX)), ULA_SIZE


def choose_subnet(pools: Sequence[tuple[N, int]], busy: Iterable[IPNetwork]) -> N:
    """The first subnet of the pools that overlaps nothing in `busy`. Raises Failed when there is none.

    Walks over a busy network at once, however many subnets it covers.
    """
    occupied = sorted((int(other.network_address), int(other.broadcast_address), other.version) for other in busy)
    for base, size in pools:
        step = 1 << (base.max_prefixlen - size)
        number, end = int(base.network_address), int(base.broadcast_address)
        for first, last, version in occupied:
            if version == base.version and first < number + step and last >= number:
                number = (last // step + 1) * step
        if number + step - 1 <= end:
            return type(base)((number, size))
    raise Failed(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network; "
        "give one with --subnet (--bip for the default bridge) or --default-address-pool"
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


def mac_of(address: ipaddress.IPv4Address | str) -> str:
    """Docker's MAC for an address: whoever gets the address next has the same, so no neighbour's ARP entry is wrong."""
    return "02:42:" + ipaddress.IPv4Address(address).packed.hex(":")


def parse_mac(text: str) -> str:
    """A unicast Ethernet address in the kernel's notation. Raises InvalidParameter in Docker's words."""
    if not _MAC.match(text):
        raise InvalidParameter(f"address {text}: invalid MAC address")
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidParameter(f"address {text}: invalid MAC address (an interface needs a unicast one)")
    return mac


class Pool:
    """Addresses of one subnet, of either family. Hands out the lowest that is free."""

    def __init__(
        self, gateway: Interface, *, within: IPNetwork | None = None, auxiliary: Iterable[IPAddress] = ()
    ) -> None:
        """`within`: only addresses from there are handed out; any of the subnet can be reserved."""
        self.gateway = gateway
        self.subnet = gateway.network
        self._make = type(gateway.ip)
        self._lowest = int(self.subnet.network_address) + 1
        self._highest = int(self.subnet.broadcast_address) - (self.subnet.version == 4)
        inside = within or self.subnet
        self._next = max(self._lowest, int(inside.network_address))  # from here on: never given, or in _taken
        self._last = min(self._highest, int(inside.broadcast_address))
        self._start = self._next
        self._fixed = {int(gateway.ip), *map(int, auxiliary)}
        self._taken = set(self._fixed)
        self._free: list[int] = []  # heap of addresses below _next that came back

    def allocate(self) -> IPAddress:
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
        raise Failed(f"no available IPv{self.subnet.version} addresses on this network's address pools: {self.subnet}")

    def _take(self, number: int) -> IPAddress:
        self._taken.add(number)
        return self._make(number)

    def reserve(self, address: IPAddress) -> None:
        """Take this one. Raises Conflict when it is taken, InvalidParameter when it is not in the subnet."""
        number = int(address)
        if address.version != self.subnet.version or not self._lowest <= number <= self._highest:
            raise InvalidParameter(f"address {address} is not in subnet {self.subnet}")
        if number in self._taken:
            raise Conflict(f"Address already in use: {address}")
        self._taken.add(number)

    def release(self, address: IPAddress) -> None:
        """Give back; idempotent. Gateway and auxiliary addresses stay."""
        number = int(address)
        if number in self._taken and number not in self._fixed:
            self._taken.discard(number)
            if self._start <= number < self._next:
                heapq.heappush(self._free, number)
