"""From the daemon's configuration and environment to how registries are reached."""

from collections.abc import Mapping
from pathlib import Path

from wherry.daemon.config import Config, RegistryEntry
from wherry.distribution.config import HostConfig, RegistryConfig, check
from wherry.distribution.proxy import Proxies, from_environment


def registry_config(config: Config, environ: Mapping[str, str]) -> RegistryConfig:
    """As configured; for proxies that are not, what the environment says. Raises InvalidParameter for nonsense."""
    said, given = config.proxies, from_environment(environ)
    found = RegistryConfig(
        mirrors=config.registry_mirrors,
        insecure=config.insecure_registries,
        foreign=config.allow_nondistributable_artifacts,
        hosts={name: _host(entry) for name, entry in config.registries.items()},
        proxies=Proxies(
            http=said.http_proxy or given.http, https=said.https_proxy or given.https, no=said.no_proxy or given.no
        ),
    )
    check(found)
    return found


def _host(entry: RegistryEntry) -> HostConfig:
    return HostConfig(
        mirrors=entry.mirrors,
        insecure=entry.insecure,
        ca=Path(entry.ca) if entry.ca else None,
        proxy=entry.proxy,
    )
