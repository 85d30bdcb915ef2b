"""A container's network as the network room is asked for it."""

from wherry.containers.record import Container
from wherry.ids import short
from wherry.network.endpoint import EndpointRequest
from wherry.network.networks import SandboxRequest
from wherry.network.ports import parse_ports


def joined(container: Container) -> str | None:
    """The container whose network this one shares (`--network container:x`), as typed; None otherwise."""
    mode = container.host_config.network_mode
    return mode.removeprefix("container:") if mode.startswith("container:") else None


def request(container: Container) -> SandboxRequest:
    """Raises InvalidParameter for bad ports."""
    config, host = container.config, container.host_config
    wanted = next(iter((container.networking.endpoints_config or {}).values()), None)
    mode = "none" if config.network_disabled is True else host.network_mode
    return SandboxRequest(
        name=container.name,
        mode=mode,
        ports=parse_ports(config.exposed_ports, host.port_bindings, host.publish_all_ports),
        endpoints=[
            EndpointRequest(
                network=mode,
                ip=wanted.ipam_config.ipv4_address if wanted and wanted.ipam_config else "",
                mac=(wanted.mac_address if wanted else "") or config.mac_address or "",
                names=(container.name, short(container.id)),
                aliases=tuple((wanted.aliases if wanted else None) or ()),
            )
        ],
    )
