"""Egress policies: what containers may reach, and nothing else. Pure.

    pypi.example            this name; not what stands beneath it
    *.example.com           every name beneath example.com; not itself
    10.1.0.0/16, 9.9.9.9    addresses, without a name
    none                    nothing at all

A list of these, with commas. Each entry says no more than it shows: who wants a domain with its subdomains, says both.
Names lead to public addresses only: what a name server says of private ones (DNS rebinding) counts as far as an entry
of the list has the address itself.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from wherry.errors import InvalidParameter
from wherry.network.places import IPAddress, IPNetwork
from wherry.network.records import EGRESS

NOTHING = "none"
ENTRIES = 1000  # of a policy
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMERIC = re.compile(r"[0-9.]+(/.*)?\Z|.*:.*")


@dataclass(frozen=True, slots=True)
class Policy:
    names: frozenset[str] = frozenset()
    above: frozenset[str] = frozenset()  # domains whose subdomains are allowed
    networks: tuple[IPNetwork, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidParameter naming the entry."""
        entries = [entry for entry in re.split(r"[,\s]+", text) if entry]
        if not entries:
            raise InvalidParameter(f"invalid {EGRESS}: nothing is listed; say {NOTHING!r} to forbid everything")
        if len(entries) > ENTRIES:
            raise InvalidParameter(f"invalid {EGRESS}: {len(entries)} entries, more than {ENTRIES}")
        if NOTHING in entries and len(entries) > 1:
            raise InvalidParameter(f"invalid {EGRESS}: {NOTHING!r} stands alone")
        if entries == [NOTHING]:
            return cls()
        names, above, networks = set(), set(), []
        for entry in entries:
            if _NUMERIC.match(entry):
                networks.append(_network(entry))
            elif entry.startswith("*."):
                above.add(_domain(entry, entry[2:]))
            else:
                names.add(_domain(entry, entry))
        return cls(frozenset(names), frozenset(above), tuple(networks))

    def allows(self, name: str) -> bool:
        """`name` in lower case, without the last dot."""
        if name in self.names:
            return True
        while "." in name:
            name = name.partition(".")[2]
            if name in self.above:
                return True
        return False

    def admits(self, address: IPAddress) -> bool:
        """Whether an allowed name may lead there."""
        if any(address in network for network in self.networks):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour or _nat64(address)
            if inner is not None:
                return self.admits(inner)
        return address.is_global and not address.is_multicast


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind 64:ff9b::/96 (RFC 6052)."""
    if address.packed[:12] != b"\0\x64\xff\x9b" + bytes(8):
        return None
    return ipaddress.IPv4Address(address.packed[12:])


def _network(entry: str) -> IPNetwork:
    if "://" in entry:
        raise InvalidParameter(f"invalid {EGRESS} entry {entry!r}: a name is needed, not an address of the web")
    try:
        return ipaddress.ip_network(entry)
    except ValueError as exc:
        try:
            proper = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise InvalidParameter(
                f"invalid {EGRESS} entry {entry!r}: neither an address nor a subnet (ports cannot be told apart)"
            ) from exc
        raise InvalidParameter(f"invalid {EGRESS} entry {entry!r}: the subnet is {proper}") from exc


def _domain(entry: str, name: str) -> str:
    text = name.lower().removesuffix(".")
    if not text.isascii():
        try:
            text = text.encode("idna").decode()
        except UnicodeError as exc:
            raise InvalidParameter(f"invalid {EGRESS} entry {entry!r}: not a domain name") from exc
    labels = text.split(".")
    if "*" in text:
        raise InvalidParameter(f"invalid {EGRESS} entry {entry!r}: * stands for subdomains only, as in *.example.com")
    if len(text) > 253 or not all(_LABEL.match(label) for label in labels):
        raise InvalidParameter(f"invalid {EGRESS} entry {entry!r}: not a domain name, address or subnet")
    return text


@lru_cache(maxsize=256)
def parse(text: str) -> Policy:
    """As `Policy.parse`, remembered."""
    return Policy.parse(text)
