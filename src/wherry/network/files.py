"""The three files a container gets from its network: hosts, hostname, resolv.conf. Pure, as Docker renders them.

`host_resolv_conf` and `host_hosts` read the host's own, which the others take as text.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from wherry.errors import InvalidParameter
from wherry.network.endpoint import NameServers

HOST_GATEWAY = "host-gateway"  # in --add-host: the host as containers see it
FALLBACK_DNS = ("8.8.8.8", "8.8.4.4")  # Docker's, for a host that has only loopback name servers
RESOLVED_STUB = "127.0.0.53"
RESOLVED_CONF = Path("/run/systemd/resolve/resolv.conf")
FILE_LIMIT = 1 << 20  # bytes read of a host's file

DEFAULT_HOSTS = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)

_HOST = re.compile(r"[^\s:#]+\Z")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT).decode(errors="replace")
    except OSError:
        return ""


def host_resolv_conf(path: Path = Path("/etc/resolv.conf"), resolved: Path = RESOLVED_CONF) -> str:
    """The host's resolv.conf; the real one of systemd-resolved where the usual one names only its stub."""
    text = _read(path)
    if name_servers(text) == [RESOLVED_STUB]:
        return _read(resolved) or text
    return text


def host_hosts(path: Path = Path("/etc/hosts")) -> str:
    return _read(path)


def _values(text: str, keyword: str) -> list[list[str]]:
    """Words after `keyword` on each line that begins with it."""
    lines = (re.split(r"[#;]", line, maxsplit=1)[0].split() for line in text.splitlines())
    return [words[1:] for words in lines if words[:1] == [keyword]]


def name_servers(text: str) -> list[str]:
    return [words[0] for words in _values(text, "nameserver") if words]


def search_domains(text: str) -> list[str]:
    """Of the last `search` or `domain` line, which is the one that counts."""
    found = _values(text, "search") or _values(text, "domain")
    return found[-1] if found else []


def resolver_options(text: str) -> list[str]:
    return [word for words in _values(text, "options") for word in words]


def resolv_conf(
    host: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    own_network: bool = True,
) -> str:
    """resolv.conf of a container. `host` is the host's; what is given replaces that part of it.

    With a network of its own a container reaches neither the host's loopback nor (the network having none) IPv6: such
    name servers are left out, and Docker's fall-back takes their place when none remains. A search domain of `.` means
    none at all.
    """
    servers = list(dns)
    if not servers:
        servers = name_servers(host)
        if own_network:
            servers = [server for server in servers if _reachable(server)] or list(FALLBACK_DNS)
        elif not (search or options):
            return host
    domains = list(search) or search_domains(host)
    settings = list(options) or resolver_options(host)
    lines = [f"nameserver {server}" for server in servers]
    if domains and domains != ["."]:
        lines.append(f"search {' '.join(domain for domain in domains if domain != '.')}")
    if settings:
        lines.append(f"options {' '.join(settings)}")
    return "".join(f"{line}\n" for line in lines)


def upstream(
    host: str, *, dns: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()
) -> NameServers:
    """Whom the resolver at 127.0.0.11 asks what it does not know. `host` is the host's resolv.conf.

    What is given is asked from the container's own network, and so are the host's name servers, but for those it may
    not reach from there: the host's loopback, and IPv6.
    """
    found = [] if dns else name_servers(host)
    domains = list(search) or search_domains(host)
    return NameServers(
        servers=tuple(dns) or tuple(server for server in found if _reachable(server)),
        from_host=tuple(server for server in found if not _reachable(server)),
        search=tuple(domain for domain in domains if domain != "."),
        options=tuple(options or resolver_options(host)),
    )


def _reachable(server: str) -> bool:
    try:
        return not ipaddress.IPv4Address(server).is_loopback
    except ValueError:
        return False


def check_dns(servers: Iterable[str]) -> None:
    """Raises InvalidParameter in Docker's words for what is not an address."""
    for server in servers:
        try:
            ipaddress.ip_address(server)
        except ValueError as exc:
            raise InvalidParameter(f"bad nameserver address: {server}") from exc


def parse_extra_host(text: str) -> tuple[str, str]:
    """`name:address` (the address may be IPv6 in brackets or bare, or `host-gateway`) to name and address.

    Raises InvalidParameter in Docker's words.
    """
    name, colon, address = text.partition(":")
    if not colon or not _HOST.match(name):
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    if address == HOST_GATEWAY:
        return name, address
    try:
        return name, str(ipaddress.ip_address(address.removeprefix("[").removesuffix("]")))
    except ValueError as exc:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from exc


def extra_host_lines(extra: Iterable[str], gateways: Sequence[str]) -> list[str]:
    """`--add-host` entries as lines of /etc/hosts; `gateways` are the host's addresses, of either family, or none."""
    lines = []
    for text in extra:
        name, address = parse_extra_host(text)
        if address == HOST_GATEWAY and not gateways:
            raise InvalidParameter(
                f"unable to derive the IP value for host-gateway ({text}): the daemon has no default bridge"
            )
        lines += [f"{each}\t{name}\n" for each in (gateways if address == HOST_GATEWAY else (address,))]
    return lines


def hosts(
    *,
    hostname: str,
    domainname: str = "",
    addresses: Sequence[str] = (),
    extra_hosts: Iterable[str] = (),
    gateways: Sequence[str] = (),
    links: Iterable[tuple[str, str]] = (),
) -> str:
    """/etc/hosts of a container with a network of its own; `addresses` are its own, "" ones are passed over.

    `links`: addresses of other containers, each with its names.
    """
    lines = [f"{address}\t{name}\n" for address, name in DEFAULT_HOSTS]
    lines += extra_host_lines(extra_hosts, gateways)
    lines += [f"{address}\t{names}\n" for address, names in links]
    lines += own_lines(addresses, hostname=hostname, domainname=domainname)
    return "".join(lines)


def own_lines(addresses: Iterable[str], *, hostname: str, domainname: str = "") -> list[str]:
    """Lines of /etc/hosts for a container's own addresses."""
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    return [f"{address}\t{names}\n" for address in addresses if address]


def change_hosts(text: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> str:
    """/etc/hosts with some lines added at its end, and without those that begin with address and first name of one of
    `remove`; what else stands there, by whomever, is kept."""
    gone = [line.split()[:2] for line in remove]
    kept = [line for line in text.splitlines(keepends=True) if not gone or line.split()[:2] not in gone]
    if kept and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    return "".join([*kept, *(line for line in add if line not in kept)])


def move_host(text: str, name: str, address: str) -> str:
    """/etc/hosts with another address on the lines that begin with this name; the rest is kept."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        old, _, names = line.partition("\t")
        if names.split()[:1] == [name] and not old.startswith("#"):
            lines[number] = f"{address}\t{names}"
    return "".join(lines)


def hosts_on_host_network(host: str, *, extra_hosts: Iterable[str] = (), gateways: Sequence[str] = ()) -> str:
    """/etc/hosts with `--network host`: the host's own, and the extra lines.

    `host-gateway` is the default bridge's address there too, as in Docker.
    """
    if host and not host.endswith("\n"):
        host += "\n"
    return host + "".join(extra_host_lines(extra_hosts, gateways))


def hostname_file(hostname: str) -> str:
    return f"{hostname}\n"
