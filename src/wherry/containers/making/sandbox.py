"""A container's network as the network room is asked for it."""

from wherry.containers.attached import asked
from wherry.containers.deps import Deps
from wherry.containers.making import endpoints
from wherry.containers.record import Container
from wherry.network import files
from wherry.network.endpoint import NameServers
from wherry.network.networks import NetworkConfig, SandboxRequest
from wherry.network.ports import parse_ports


def request(deps: Deps, container: Container) -> SandboxRequest:
    """Raises InvalidParameter for bad ports, Forbidden for a network that takes no containers."""
    config, host = container.config, container.host_config
    wanted = asked(container)
    return SandboxRequest(
        name=container.name,
        mode=next(iter(wanted), "none"),
        ports=parse_ports(config.exposed_ports, host.port_bindings, host.publish_all_ports),
        endpoints=[endpoints.endpoint_request(deps, container, *each) for each in wanted.items()],
        nameservers=nameservers(container, deps.networks.config),
    )


def nameservers(container: Container, config: NetworkConfig) -> NameServers:
    """Reads the host's resolv.conf."""
    host = container.host_config
    return files.upstream(
        files.host_resolv_conf(),
        dns=host.dns or config.dns,
        search=host.dns_search or config.dns_search,
        options=host.dns_options or config.dns_options,
    )
