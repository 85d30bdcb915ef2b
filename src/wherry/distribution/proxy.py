"""Proxies on the way to a registry: from the daemon's configuration, else its environment.

Which host is reached without one follows what dockerd does (Go's rules): never a proxy to this machine; NO_PROXY lists
`*`, networks, addresses, and names that stand for themselves and what is below them; an entry may end in `:port`.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from wherry.errors import InvalidParameter

PORTS = {"http": 80, "https": 443}
DIRECT = "direct"  # the word for "no proxy" where one registry is configured


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    http: str = ""  # proxy for http:// URLs
    https: str = ""  # proxy for https:// URLs, which are tunnelled through it
    no: str = ""  # hosts reached directly, separated by commas

    def choose(self, url: str) -> str | None:
        """The proxy for `url`; None: go there directly."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        if not proxy or bypasses(self.no, parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


def from_environment(environ: Mapping[str, str]) -> Proxies:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY; upper case wins over lower."""

    def named(name: str) -> str:
        return environ.get(name) or environ.get(name.lower()) or ""

    return Proxies(http=named("HTTP_PROXY"), https=named("HTTPS_PROXY"), no=named("NO_PROXY"))


def bypasses(no: str, host: str, port: int) -> bool:
    """Is `host` reached without a proxy?"""
    host = host.rstrip(".").lower()
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for entry in (entry.strip().lower() for entry in no.split(",")):
        if entry == "*":
            return True
        if entry and _matches(entry, host, address, port):
            return True
    return False


def _matches(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
        return address is not None and address.version == network.version and address in network
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and ("]" in name or ":" not in name):
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    if (listed := _address(entry)) is not None:
        return listed == address
    below = entry.removeprefix("*")
    if below.startswith("."):  # only what is below
        return host.endswith(below)
    return host == entry or host.endswith(f".{entry}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def check_proxy(name: str, url: str) -> None:
    """Raise InvalidParameter for what cannot be used as a proxy; `name` is the setting's."""
    if not url:
        return
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        good = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise InvalidParameter(f"invalid {name} {masked(url)!r}: want http(s)://[user:password@]host[:port]")


def masked(url: str) -> str:
    """As it may be shown: without user and password."""
    scheme, separator, rest = url.rpartition("://")
    before, at, host = rest.partition("/")[0].rpartition("@")
    if not at:
        return url
    path = rest[len(before) + 1 + len(host) :]
    return f"{scheme}{separator}xxxxx:xxxxx@{host}{path}"
