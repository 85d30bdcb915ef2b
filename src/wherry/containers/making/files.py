"""The files a container gets from its engine: hosts, hostname and resolv.conf, written at each start.

    <data root>/containers/<id>/{hosts,hostname,resolv.conf}

They are bound over the image's own. A container that joins another's network has that one's files; whatever a mount of
the user's covers is left to the user. While it runs they are changed in place, and what the container wrote is kept.
Blocking.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from wherry.containers.attached import is_users, on_host
from wherry.containers.record import Container
from wherry.network import files
from wherry.network.dns.conf import internal_resolv_conf
from wherry.network.endpoint import Endpoint
from wherry.network.networks import NetworkConfig, Networks

NAMES = {"hosts": "/etc/hosts", "hostname": "/etc/hostname", "resolv.conf": "/etc/resolv.conf"}


def host_gateways(networks: Networks) -> list[str]:
    """What `host-gateway` means: configured, or the host as containers on the default bridge see it."""
    if networks.config.host_gateways:
        return list(networks.config.host_gateways)
    return [networks.bridge_gateway] if networks.bridge_gateway else []


def write_network_files(
    directory: Path,
    container: Container,
    *,
    networks: Networks,
    attached: Sequence[Endpoint],
    links: Iterable[tuple[str, str]] = (),
) -> None:
    """Write all three. `attached` are the container's own endpoints; `links` go into hosts, address and names."""
    host = container.host_config
    extra, gateways = host.extra_hosts or [], host_gateways(networks)
    if on_host(container):
        hosts = files.hosts_on_host_network(files.host_hosts(), extra_hosts=extra, gateways=gateways)
    else:
        hosts = files.hosts(
            hostname=_hostname(container),
            domainname=container.config.domainname,
            addresses=_addresses(attached),
            extra_hosts=extra,
            gateways=gateways,
            links=links,
        )
    texts = {
        "hosts": hosts,
        "hostname": files.hostname_file(_hostname(container)),
        "resolv.conf": resolv_conf(container, networks.config, [each.network for each in attached]),
    }
    for name, text in texts.items():
        _write(directory / name, text)


def resolv_conf(container: Container, config: NetworkConfig, networks: Sequence[str]) -> str:
    """Of a container that is on `networks`: on any that somebody made, the engine's own resolver answers."""
    host = container.host_config
    dns = host.dns or config.dns
    search = host.dns_search or config.dns_search
    options = host.dns_options or config.dns_options
    text = files.host_resolv_conf()
    if any(is_users(network) for network in networks):
        return internal_resolv_conf(text, dns=dns, search=search, options=options)
    return files.resolv_conf(text, dns=dns, search=search, options=options, own_network=not on_host(container))


def _hostname(container: Container) -> str:
    return container.config.hostname or os.uname().nodename


def _addresses(attached: Iterable[Endpoint]) -> list[str]:
    return [address for each in attached for address in (each.ip, each.ip6)]


def own_lines(container: Container, endpoint: Endpoint) -> list[str]:
    """Its lines in /etc/hosts for an endpoint of its own."""
    return files.own_lines(
        _addresses([endpoint]), hostname=_hostname(container), domainname=container.config.domainname
    )


def change_hosts(directory: Path, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Change lines of a running container's hosts."""
    _edit(directory / "hosts", lambda text: files.change_hosts(text, add=add, remove=remove))


def move_host(directory: Path, name: str, address: str) -> None:
    """Another address for a name in a running container's hosts."""
    _edit(directory / "hosts", lambda text: files.move_host(text, name, address))


def change_resolv_conf(directory: Path, before: str, after: str) -> None:
    """Exchange a running container's resolv.conf, unless it has been changed by the container."""
    _edit(directory / "resolv.conf", lambda text: after if text == before else text)


def _edit(path: Path, change: Callable[[str], str]) -> None:
    """In place, since it is mounted. The container can write it: nothing that stands there is trusted."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "r+", errors="surrogateescape", newline="") as file:
        before = file.read(files.FILE_LIMIT + 1)
        if len(before) > files.FILE_LIMIT or (after := change(before)) == before:
            return
        file.seek(0)
        file.write(after)
        file.truncate()


def _write(path: Path, text: str) -> None:
    """In place: a container that is still going away may have the file mounted."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "w") as file:
        file.write(text)
