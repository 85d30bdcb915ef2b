"""How registries are reached: where they are mirrored, which may be spoken to insecurely, by which proxy, whose word is
trusted.

An insecure registry is tried by https without checking its certificate, then by http. As in Docker every loopback
address is one (127.0.0.0/8, ::1), and so are those the daemon was told of, by `host[:port]` or by network.

A mirror is asked before the registry itself, always anonymously, and told by `?ns=` whose image is wanted, as
containerd does; a plain cache does not care. What stands behind `/v2/` in a mirror's URL goes before the name of the
repository.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry.distribution.proxy import DIRECT, Proxies, check_proxy
from wherry.errors import Failed, InvalidParameter
from wherry.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN

HUB = "registry-1.docker.io"  # where docker.io's registry really is
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
LOOKUP_TIME = 10  # seconds for finding out whether a name is in an insecure network

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What the daemon was told about one registry, or about a mirror."""

    mirrors: Sequence[str] = ()  # http(s)://host[:port][/path]
    insecure: bool = False
    ca: Path | None = None  # PEM; trusted besides the system's authorities
    proxy: str = ""  # URL, or `direct`; "" as for all others


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    insecure: Sequence[str] = ()  # CIDRs and host[:port]
    mirrors: Sequence[str] = ()  # of docker.io
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)  # by host[:port]
    certificates: Path = Path("/etc/docker/certs.d")  # <host:port>/{*.crt, *.cert + *.key}, as Docker keeps them
    proxies: Proxies = field(default_factory=Proxies)
    foreign: Sequence[str] = ()  # CIDRs and host[:port]: registries that non-distributable layers are pushed to
    user_agent: str = "wherry"

    def host(self, name: str) -> HostConfig:
        """What was said of host[:port]; of docker.io's real addresses what was said of docker.io."""
        found = self.hosts.get(name)
        if found is None and name in (HUB, LEGACY_DOMAIN):
            found = self.hosts.get(DEFAULT_DOMAIN)
        return found or _NOTHING_SAID

    def mirrors_of(self, domain: str) -> list[str]:
        """URLs, in the order they are asked."""
        dockers = self.mirrors if domain == DEFAULT_DOMAIN else ()
        return list(dict.fromkeys([*self.host(domain).mirrors, *dockers]))

    def takes_foreign(self, domain: str) -> bool:
        """Non-distributable layers may be pushed to `domain`."""
        address = _address(_host_part(domain))
        networks = [ipaddress.ip_network(entry, strict=False) for entry in self.foreign if "/" in entry]
        return domain in self.foreign or (address is not None and _within(address, networks))

    def proxy(self, endpoint: "Endpoint", url: str) -> str | None:
        """The proxy for a request to `url` made on behalf of `endpoint`; None: there is none."""
        own = self.host(endpoint.host).proxy
        proxies = Proxies(http=own, https=own) if own else self.proxies
        return None if own == DIRECT else proxies.choose(url)


_NOTHING_SAID = HostConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place to try: `base` is the URL before `/v2/`."""

    base: str
    host: str  # host[:port]: whose certificates and settings apply
    verify: bool = True  # check the certificate
    mirror: bool = False
    namespace: str = ""  # the domain a mirror is asked for
    prefix: str = ""  # goes before repository names, ends with a slash

    @property
    def plain(self) -> bool:
        return self.base.startswith("http:")


def check(config: RegistryConfig) -> None:
    """Raise InvalidParameter for an entry that can never be right; called once, at start."""
    for mirror in config.mirrors:
        _check_mirror(mirror)
    for name, host in config.hosts.items():
        if "/" in name or not name:
            raise InvalidParameter(f"invalid registry {name!r} in registries: want host[:port]")
        if name == LEGACY_DOMAIN:
            raise InvalidParameter(f"registries: {name} is called {DEFAULT_DOMAIN}")
        if name == DEFAULT_DOMAIN and host.insecure:
            raise InvalidParameter(f"registries: {name} cannot be insecure")
        for mirror in host.mirrors:
            _check_mirror(mirror)
        if host.ca is not None and not host.ca.is_file():
            raise InvalidParameter(f"registries: the CA certificate {host.ca} of {name} cannot be read")
        if host.proxy != DIRECT:
            check_proxy(f"proxy of {name} in registries", host.proxy)
    check_proxy("http-proxy", config.proxies.http)
    check_proxy("https-proxy", config.proxies.https)
    for entry in config.insecure:
        _check_place("insecure registry", entry)
    for entry in config.foreign:
        _check_place("allow-nondistributable-artifacts registry", entry)


def _check_place(what: str, entry: str) -> None:
    if "://" in entry:
        raise InvalidParameter(f"{what} {entry} should not contain '://'")
    if "/" in entry:
        try:
            ipaddress.ip_network(entry, strict=False)
        except ValueError as exc:
            raise InvalidParameter(f"{what} {entry} is neither host[:port] nor a network: {exc}") from exc


def _check_mirror(mirror: str) -> None:
    scheme, separator, rest = mirror.partition("://")
    if not separator or scheme not in ("http", "https") or not rest or "?" in rest or "#" in rest or "@" in rest:
        raise InvalidParameter(f"invalid mirror: {mirror!r}: want http(s)://host[:port][/path]")


async def endpoints(config: RegistryConfig, domain: str, *, mirrors: bool = True) -> list[Endpoint]:
    """Where to look for repositories of `domain`, in order: mirrors first, http after https."""
    found = [await _mirror(config, mirror, domain) for mirror in config.mirrors_of(domain)] if mirrors else []
    if domain == DEFAULT_DOMAIN:
        return [*found, Endpoint(base=f"https://{HUB}", host=HUB)]
    if not await is_insecure(config, domain):
        return [*found, Endpoint(base=f"https://{domain}", host=domain)]
    return [
        *found,
        Endpoint(base=f"https://{domain}", host=domain, verify=False),
        Endpoint(base=f"http://{domain}", host=domain, verify=False),
    ]


async def _mirror(config: RegistryConfig, url: str, domain: str) -> Endpoint:
    host = url.partition("://")[2].partition("/")[0]
    base, below, prefix = url.rstrip("/").partition("/v2/") if "/v2/" in f"{url}/" else (url, "", "")
    return Endpoint(
        base=base.rstrip("/").removesuffix("/v2"),
        host=host,
        verify=not await is_insecure(config, host),
        mirror=True,
        namespace=domain,
        prefix=f"{prefix}/" if below else "",
    )


async def is_insecure(config: RegistryConfig, domain: str) -> bool:
    """By name, by address, or by what the name resolves to. A name that does not resolve is secure."""
    host = _host_part(domain)
    if host == "localhost" or domain in config.insecure or host in config.insecure or config.host(domain).insecure:
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
    ca = config.host(endpoint.host).ca
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as exc:
            raise Failed(f"cannot use CA certificate {ca} of {endpoint.host}: {exc}") from exc
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
