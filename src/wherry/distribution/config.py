"""How registries are reached: which may be spoken to insecurely, where docker.io is mirrored, whose word is trusted.

An insecure registry is tried by https without checking its certificate, then by http. As in Docker every loopback
address is one (127.0.0.0/8, ::1), and so are those the daemon was told of, by `host[:port]` or by network.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Failed, InvalidParameter
from wherry.reference import DEFAULT_DOMAIN

HUB = "registry-1.docker.io"  # where docker.io's registry really is
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
LOOKUP_TIME = 10  # seconds for finding out whether a name is in an insecure network

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    insecure: Sequence[str] = ()  # CIDRs and host[:port]
    mirrors: Sequence[str] = ()  # of docker.io: https://host[:port][/path]
    certificates: Path = Path("/etc/docker/certs.d")  # <host:port>/{*.crt, *.cert + *.key}, as Docker keeps them
    user_agent: str = "wherry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place to try: `base` is the URL before `/v2/`."""

    base: str
    host: str  # host[:port]: whose certificates apply
    verify: bool = True  # check the certificate
    mirror: bool = False

    @property
    def plain(self) -> bool:
        return self.base.startswith("http:")

    @property
    def loopback(self) -> bool:
        address = _address(_host_part(self.host))
        return self.host.split(":")[0] == "localhost" or (address is not None and _within(address, LOOPBACK))


def check(config: RegistryConfig) -> None:
    """Raise InvalidParameter for an entry that can never be right; called once, at start."""
    for mirror in config.mirrors:
        scheme, separator, rest = mirror.partition("://")
        if not separator or scheme not in ("http", "https") or not rest or "?" in rest or "#" in rest or "@" in rest:
            raise InvalidParameter(f"invalid mirror: {mirror!r}: want http(s)://host[:port][/path]")
    for entry in config.insecure:
        if "://" in entry:
            raise InvalidParameter(f"insecure registry {entry} should not contain '://'")
        if "/" in entry:
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError as exc:
                raise InvalidParameter(
                    f"insecure registry {entry} is neither host[:port] nor a network: {exc}"
                ) from exc


async def endpoints(config: RegistryConfig, domain: str) -> list[Endpoint]:
    """Where to look for repositories of `domain`, in order: mirrors first, http after https."""
    if domain == DEFAULT_DOMAIN:
        mirrors = [await _mirror(config, mirror) for mirror in config.mirrors]
        return [*mirrors, Endpoint(base=f"https://{HUB}", host=HUB)]
    if not await is_insecure(config, domain):
        return [Endpoint(base=f"https://{domain}", host=domain)]
    return [
        Endpoint(base=f"https://{domain}", host=domain, verify=False),
        Endpoint(base=f"http://{domain}", host=domain, verify=False),
    ]


async def _mirror(config: RegistryConfig, url: str) -> Endpoint:
    host = url.partition("://")[2].partition("/")[0]
    return Endpoint(base=url.rstrip("/"), host=host, verify=not await is_insecure(config, host), mirror=True)


async def is_insecure(config: RegistryConfig, domain: str) -> bool:
    """By name, by address, or by what the name resolves to. A name that does not resolve is secure."""
    host = _host_part(domain)
    if host == "localhost" or domain in config.insecure or host in config.insecure:
        return True
    networks = [*LOOPBACK, *(ipaddress.ip_network(entry, strict=False) for entry in config.insecure if "/" in entry)]
    address = _address(host)
    if address is not None:
        return _within(address, networks)
    return any(_within(found, networks) for found in await _resolve(host))


async def _resolve(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_TIME):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    addresses = (_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return [address for address in addresses if address is not None]


def _host_part(domain: str) -> str:
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def tls(config: RegistryConfig, endpoint: Endpoint) -> ssl.SSLContext:
    """The TLS setting for `endpoint`, with the certificates kept for it (blocking). Raises Failed naming the file."""
    context = ssl.create_default_context()
    if not endpoint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder = config.certificates / endpoint.host
    if "/" in endpoint.host or not folder.is_dir():
        return context
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                key = path.with_suffix(".key")
                if not key.exists():
                    raise Failed(
                        f"missing key {key.name} for client certificate {path.name}: CA certificates end in .crt"
                    )
                context.load_cert_chain(path, key)
        except (OSError, ssl.SSLError) as exc:
            raise Failed(f"cannot use certificate {path}: {exc}") from exc
    return context
