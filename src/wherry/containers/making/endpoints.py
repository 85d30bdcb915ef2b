"""The networks a container is to be on: what was asked for, checked in Docker's words; as the network room gets it."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from wherry.containers.attached import NONE, Asked, asked, dns_names, is_users, with_asked
from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.errors import Forbidden, InvalidParameter, NotFound
from wherry.network import ipam, plan
from wherry.network.egress.gates import Gates
from wherry.network.endpoint import Endpoint, EndpointRequest
from wherry.network.networks import Networks
from wherry.network.records import BRIDGE, EGRESS, HOST, NetworkRecord
from wherry.spec.engine import ContainerConfig, EndpointIPAMConfig, EndpointSettings, HostConfig, NetworkingConfig

SHARING = "container sharing network namespace with another container or host cannot be connected to any other network"
HOST_IS_FIXED = "container cannot be disconnected from host network or connected to host network"
PRIVATE = "container cannot be connected to multiple networks with one of the networks in private (none) mode"
_USER_ONLY = "user specified IP address is supported on user defined networks only"
_SUBNET_ONLY = "user specified IP address is supported only when connecting to networks with user configured subnets"
_ALIAS_ONLY = "network-scoped alias is supported only for containers in user defined networks"


# -- create


def draft(networks: Networks, config: ContainerConfig, host: HostConfig, given: NetworkingConfig) -> NetworkingConfig:
    """What create is asked for, by the networks' own names, the mode's first. Raises InvalidParameter.

    As in Docker a network that is not there is no error yet: it is when the container starts.
    """
    if host.network_mode.startswith("container:") or config.network_disabled is True:
        return NetworkingConfig(endpoints_config={})
    main = name_of(networks, host.network_mode)
    found: Asked = {name_of(networks, key): settings for key, settings in (given.endpoints_config or {}).items()}
    if not found:
        found[main] = EndpointSettings()
    if main in found:
        found = {main: _with_mac(found.pop(main), config), **found}
    _check_together(found)
    for network, settings in found.items():
        try:
            Gates.check_attachment(check(networks, network, settings), _options(config, settings))
        except NotFound:
            continue
        except InvalidParameter as exc:
            raise InvalidParameter(f"invalid config for network {network}: {exc.message}") from exc
    return NetworkingConfig(endpoints_config=found)


def name_of(networks: Networks, text: str) -> str:
    """The network's own name for what was typed; that itself when there is no such network."""
    try:
        return networks.resolve(text).name
    except NotFound:
        return text


def _with_mac(settings: EndpointSettings, config: ContainerConfig) -> EndpointSettings:
    """With the container-wide address, which is meant for the main network."""
    wide = config.mac_address or ""
    if not wide:
        return settings
    if settings.mac_address and settings.mac_address != wide:
        raise InvalidParameter(
            "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be "
            "left empty"
        )
    return msgspec.structs.replace(settings, mac_address=wide)


def _check_together(networks: Iterable[str]) -> None:
    names = list(networks)
    if len(names) < 2:
        return
    if HOST in names:
        raise InvalidParameter(SHARING)
    if NONE in names:
        raise InvalidParameter(PRIVATE)


def check(networks: Networks, network: str, settings: EndpointSettings) -> NetworkRecord:
    """The network, which can take such an endpoint. Raises NotFound, Forbidden, InvalidParameter in Docker's words."""
    record = networks.resolve(network)
    if settings.mac_address:
        _check_mac(settings.mac_address)
    if problems := _problems(record, settings):
        text = problems[0] if len(problems) == 1 else "\n".join(f"* {problem}" for problem in problems)
        raise InvalidParameter(f"invalid endpoint settings:\n{text}")
    return record


def with_network(settings: EndpointSettings, record: NetworkRecord) -> EndpointSettings:
    """Remembering the network's id, which inspect shows also of a container that does not run."""
    return msgspec.structs.replace(settings, network_id=record.id)


def refuse_configuration(record: NetworkRecord) -> None:
    if record.config_only:
        raise Forbidden("cannot create endpoint on configuration-only network")


def _check_mac(text: str) -> None:
    try:
        ipam.parse_mac(text)
    except InvalidParameter as exc:
        raise InvalidParameter(f"invalid MAC address {text}") from exc


def _problems(record: NetworkRecord, settings: EndpointSettings) -> list[str]:
    """Everything that is wrong, in Docker's order."""
    users = is_users(record.name)
    ipam_config = settings.ipam_config or EndpointIPAMConfig()
    addresses = ((4, ipam_config.ipv4_address), (6, ipam_config.ipv6_address))
    found = [
        f"invalid IPv{version} address: {text}" for version, text in addresses if text and _version(text) != version
    ]
    found += [
        f"invalid link-local IP address: {text}" for text in ipam_config.link_local_ips or () if not _version(text)
    ]
    if settings.aliases and not users:
        found.append(_ALIAS_ONLY)
    if not users and any(text for _, text in addresses):
        found.append(_USER_ONLY)
    return found + [
        _outside(record, version, text) for version, text in addresses if text and _is_outside(record, text)
    ]


def _version(text: str) -> int:
    """4, 6, or 0 for what is no address."""
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return 0


def _configured(record: NetworkRecord, version: int) -> bool:
    """A subnet of that family was chosen by somebody; the default bridge's counts, as in Docker."""
    return any(subnet.version == version and (subnet.asked or record.name == BRIDGE) for subnet in record.subnets)


def _is_outside(record: NetworkRecord, text: str) -> bool:
    version = _version(text)
    return not version or not any(
        subnet.version == version
        and (subnet.asked or record.name == BRIDGE)
        and ipaddress.ip_address(text) in ipaddress.ip_network(subnet.subnet)
        for subnet in record.subnets
    )


def _outside(record: NetworkRecord, version: int, text: str) -> str:
    if not _configured(record, version):
        return _SUBNET_ONLY
    return f"no configured subnet or ip-range contain the IP address {text}"


# -- what the network room is told


def endpoint_request(deps: Deps, container: Container, network: str, settings: EndpointSettings) -> EndpointRequest:
    config = settings.ipam_config or EndpointIPAMConfig()
    return EndpointRequest(
        network=network,
        ip=config.ipv4_address,
        ip6=config.ipv6_address,
        link_local_ips=tuple(config.link_local_ips or ()),
        mac=settings.mac_address,
        aliases=tuple(alias for alias in settings.aliases or () if alias),
        names=tuple(dns_names(container)),
        links=_links(deps, settings.links or ()),
        gw_priority=settings.gw_priority,
        options=_options(container.config, settings),
    )


def _options(config: ContainerConfig, settings: EndpointSettings) -> Mapping[str, str]:
    """With the container's egress policy, which its label gives to all its attachments."""
    label = (config.labels or {}).get(EGRESS)
    return {**({EGRESS: label} if label is not None else {}), **(settings.driver_opts or {})}


def _links(deps: Deps, links: Sequence[str]) -> Mapping[str, str]:
    """Alias to id. As in Docker a link to a container that is not there is passed over."""
    found = {}
    for text in links:
        name, _, alias = text.partition(":")
        try:
            found[alias or name] = str(deps.store.resolve(name).id)
        except (NotFound, InvalidParameter):
            continue
    return found


def note_started(container: Container, endpoints: Iterable[Endpoint]) -> None:
    """Remember the ids of the networks it is on, as Docker shows them of a container that has ended."""
    wanted = asked(container)
    changed = {
        endpoint.network: msgspec.structs.replace(wanted[endpoint.network], network_id=endpoint.network_id)
        for endpoint in endpoints
        if endpoint.network in wanted
    }
    container.networking = with_asked(container, {**wanted, **changed})


def absent(networks: Networks, network: str, network_id: str) -> Endpoint:
    """For the news of a container that was only to be on a network, which may be gone itself."""
    try:
        return plan.bare(networks.resolve(network))
    except NotFound:
        return plan.bare(NetworkRecord(id=network_id, name=network, driver=BRIDGE, created=0))
