"""The files a container gets from its engine: hosts, hostname and resolv.conf, written at each start.

    <data root>/containers/<id>/{hosts,hostname,resolv.conf}

They are bound over the image's own. A container that joins another's network has that one's files; whatever a mount of
the user's covers is left to the user.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from wherry.containers.record import Container
from wherry.network import files
from wherry.network.networks import NetworkConfig

NAMES = {"hosts": "/etc/hosts", "hostname": "/etc/hostname", "resolv.conf": "/etc/resolv.conf"}


def write_network_files(
    directory: Path, container: Container, *, network: NetworkConfig, addresses: Sequence[str], gateway: str
) -> None:
    """Write all three. `addresses` are the container's own; `gateway` is what `host-gateway` means. Blocking."""
    config, host = container.config, container.host_config
    on_host = host.network_mode == "host"
    hostname = config.hostname or os.uname().nodename
    extra = host.extra_hosts or []
    if on_host:
        hosts = files.hosts_on_host_network(
            files.host_hosts(), extra_hosts=extra, gateways=[gateway] if gateway else []
        )
    else:
        hosts = files.hosts(
            hostname=hostname,
            domainname=config.domainname,
            addresses=addresses,
            extra_hosts=extra,
            gateways=[gateway] if gateway else [],
        )
    resolv_conf = files.resolv_conf(
        files.host_resolv_conf(),
        dns=host.dns or network.dns,
        search=host.dns_search or network.dns_search,
        options=host.dns_options or network.dns_options,
        own_network=not on_host,
    )
    for name, text in (("hosts", hosts), ("hostname", files.hostname_file(hostname)), ("resolv.conf", resolv_conf)):
        _write(directory / name, text)


def _write(path: Path, text: str) -> None:
    """In place: a container that is still going away may have the file mounted."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "w") as file:
        file.write(text)
