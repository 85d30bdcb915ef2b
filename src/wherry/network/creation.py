"""From a request to a network's record: names, options and subnets checked in Docker's words. Pure."""

import ipaddress
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wherry.errors import Conflict, Failed, Forbidden, InvalidParameter, NotFound, Unavailable
from wherry.ids import generate
from wherry.network import ipam
from wherry.network.places import IPNetwork
from wherry.network.records import BRIDGE, HOST, IPVLAN, MACVLAN, NULL, NetworkRecord, Subnet
from wherry.spec.engine import CreateNetwork, IPAMPool

PREDEFINED = frozenset({"bridge", "host", "none", "default", "container"})
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_DRIVERS = frozenset({BRIDGE, HOST, NULL, MACVLAN, IPVLAN})


def check_name(name: str) -> None:
    """Raises InvalidParameter or Forbidden."""
    if not name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if not _NAME.match(name):
        raise InvalidParameter(
            f"invalid network name {name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed in a network's name"
        )


def draft(body: CreateNetwork, defaults: Mapping[str, Mapping[str, str]]) -> NetworkRecord:
    """The record as asked for, subnets still open where none was given. `defaults`: options of new networks by driver.

    Raises InvalidParameter, Forbidden, NotFound (no such driver).
    """
    check_name(body.name)
    driver = body.driver or BRIDGE
    if driver == "overlay":
        raise Unavailable(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to '
            "swarm and try again."
        )
    if driver not in _DRIVERS:
        raise NotFound(f'could not find plugin {driver}: plugin "{driver}" not found')
    if driver in (HOST, NULL):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    ipam_driver = (body.ipam.driver if body.ipam is not None else "") or "default"
    if ipam_driver != "default":
        raise NotFound(f'could not find IPAM plugin {ipam_driver}: plugin "{ipam_driver}" not found')
    if body.ingress:
        raise Forbidden("ingress network cannot be created: this engine is not part of a swarm")
    if body.config_from is not None and body.config_from.network and body.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    pools = body.ipam.config if body.ipam is not None and body.ipam.config else []
    subnets = _subnets(pools)
    options = {**defaults.get(driver, {}), **(body.options or {})}
    ipv6 = bool(body.enable_ipv6) or (body.enable_ipv6 is None and _switched(options, "com.docker.network.enable_ipv6"))
    ipv4 = body.enable_ipv4 is not False
    if not ipv4 and not ipv6 and not body.config_only:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    return NetworkRecord(
        id=generate(),
        name=body.name,
        driver=driver,
        created=time.time_ns(),
        subnets=subnets,
        ipam_driver=ipam_driver,
        ipam_options=body.ipam.options if body.ipam is not None else None,
        ipv4=ipv4,
        ipv6=ipv6,
        internal=body.internal,
        attachable=body.attachable,
        config_only=body.config_only,
        config_from=body.config_from.network if body.config_from is not None else "",
        options=options,
        labels=body.labels or {},
    )


def _switched(options: Mapping[str, str], key: str) -> bool:
    return options.get(key, "").lower() in ("1", "true")


def _subnets(pools: Iterable[IPAMPool]) -> tuple[Subnet, ...]:
    found = []
    problems: list[str] = []
    for pool in pools:
        if not pool.subnet:
            if pool.gateway or pool.ip_range or pool.auxiliary_addresses:
                problems.append("a gateway, a range or an auxiliary address needs a subnet")
            continue
        try:
            found.append(_subnet(pool))
        except InvalidParameter as exc:
            problems.append(exc.message)
    networks = [ipaddress.ip_network(each.subnet) for each in found]
    for index, one in enumerate(networks):
        if any(one.version == other.version and one.overlaps(other) for other in networks[:index]):
            problems.append(f"subnet {one} overlaps another subnet of the same network")
    if problems:
        raise InvalidParameter("invalid network config:\n" + "\n".join(problems))
    return tuple(found)


def _subnet(pool: IPAMPool) -> Subnet:
    try:
        network = ipaddress.ip_network(pool.subnet)
    except ValueError as exc:
        try:
            masked = ipaddress.ip_network(pool.subnet, strict=False)
        except ValueError:
            raise InvalidParameter(f"invalid subnet {pool.subnet}: invalid CIDR block notation") from exc
        if "/" not in pool.subnet:
            raise InvalidParameter(f"invalid subnet {pool.subnet}: invalid CIDR block notation") from exc
        raise InvalidParameter(f"invalid subnet {pool.subnet}: it should be {masked}") from exc
    if "/" not in pool.subnet:
        raise InvalidParameter(f"invalid subnet {pool.subnet}: invalid CIDR block notation")
    largest = ipam.LARGEST_PREFIX if network.version == 4 else ipam.LARGEST_PREFIX6
    if network.prefixlen > largest:
        raise InvalidParameter(
            f"invalid subnet {pool.subnet}: no room for a gateway and a container: at most /{largest}"
        )
    if network.is_multicast or network.is_loopback:
        raise InvalidParameter(f"invalid subnet {pool.subnet}: containers cannot have such addresses")
    return Subnet(
        subnet=str(network),
        gateway=_address(pool.gateway, network, "gateway") if pool.gateway else "",
        ip_range=_range(pool.ip_range, network) if pool.ip_range else "",
        auxiliary={
            name: _address(text, network, "auxiliary address", named=name)
            for name, text in (pool.auxiliary_addresses or {}).items()
        },
    )


def _address(text: str, network: IPNetwork, what: str, *, named: str = "") -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise InvalidParameter(f"invalid {what} {named or text}: invalid address") from exc
    if address not in network:
        raise InvalidParameter(f"invalid {what} {named or text}: parent subnet {network} doesn't contain this address")
    return str(address)


def _range(text: str, network: IPNetwork) -> str:
    try:
        inside = ipaddress.ip_network(text)
    except ValueError as exc:
        try:
            masked = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidParameter(f"invalid ip-range {text}: invalid CIDR block notation") from exc
        raise InvalidParameter(f"invalid ip-range {text}: it should be {masked}") from exc
    if inside.version == network.version and inside.prefixlen < network.prefixlen:
        raise InvalidParameter(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {network}")
    if inside.version != network.version or not (
        int(network.network_address) <= int(inside.network_address)
        and int(inside.broadcast_address) <= int(network.broadcast_address)
    ):
        raise InvalidParameter(f"invalid ip-range {text}: parent subnet {network} doesn't contain ip-range")
    return str(inside)


def inherit(record: NetworkRecord, origin: NetworkRecord) -> NetworkRecord:
    """`--config-from`: what a config-only network says. Raises Forbidden when both say something."""
    if record.subnets or record.options or record.internal or record.ipv6:
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    return replace(
        record,
        subnets=origin.subnets,
        ipv4=origin.ipv4,
        ipv6=origin.ipv6,
        internal=origin.internal,
        options=origin.options,
        ipam_driver=origin.ipam_driver,
        ipam_options=origin.ipam_options,
        labels={**origin.labels, **record.labels},
    )


def fill(
    record: NetworkRecord,
    *,
    pools: Sequence[tuple[IPNetwork, int]],
    own: Iterable[IPNetwork],
    busy: Iterable[IPNetwork],
) -> NetworkRecord:
    """Give the network the subnets it lacks, and every subnet a gateway.

    `own`: subnets of the engine's other networks, which nothing may overlap; `busy`: what the host uses besides, which
    a subnet of our choice must not overlap. Raises Forbidden for an overlap, Failed when the pools are exhausted.
    """
    own, busy = list(own), list(busy)
    subnets = list(record.subnets)
    for subnet in subnets:
        network = ipaddress.ip_network(subnet.subnet)
        if any(other.version == network.version and network.overlaps(other) for other in own):
            raise Forbidden("Pool overlaps with other one on this address space")
    for version, on in ((4, record.ipv4), (6, record.ipv6)):
        if on and not any(subnet.version == version for subnet in subnets):
            family = [(base, size) for base, size in pools if base.version == version]
            chosen = ipam.choose_subnet(family, [*own, *busy])
            subnets.append(Subnet(subnet=str(chosen), asked=False))
    completed = tuple(_with_gateway(subnet) for subnet in subnets)
    for subnet in completed:
        _refuse_taken_addresses(subnet)
    return replace(record, subnets=completed)


def _refuse_taken_addresses(subnet: Subnet) -> None:
    """Gateway and auxiliary addresses are each somebody's own. Raises Failed."""
    network = ipaddress.ip_network(subnet.subnet)
    taken = {str(network.network_address)}
    if network.version == 4:
        taken.add(str(network.broadcast_address))
    wanted = [(f"gateway ({subnet.gateway})", subnet.gateway)]
    wanted += [(f"secondary ip address ({name}:{text})", text) for name, text in subnet.auxiliary.items()]
    for what, address in wanted:
        if address in taken:
            raise Failed(f"failed to allocate {what}: Address already in use")
        taken.add(address)


def _with_gateway(subnet: Subnet) -> Subnet:
    if subnet.gateway:
        return subnet
    network = ipaddress.ip_network(subnet.subnet)
    number = int(network.network_address)
    inside = ipaddress.ip_network(subnet.ip_range) if subnet.ip_range else network
    candidate = max(number + 1, int(inside.network_address))
    taken = {int(ipaddress.ip_address(text)) for text in subnet.auxiliary.values()}
    while candidate in taken:
        candidate += 1
    return replace(subnet, gateway=str(type(network.network_address)(candidate)))


def pool_of(subnet: Subnet) -> ipam.Pool:
    """The addresses of a subnet that has its gateway."""
    prefix = subnet.subnet.partition("/")[2]
    return ipam.Pool(
        ipaddress.ip_interface(f"{subnet.gateway}/{prefix}"),
        within=ipaddress.ip_network(subnet.ip_range) if subnet.ip_range else None,
        auxiliary=[ipaddress.ip_address(text) for text in subnet.auxiliary.values()],
    )


def refuse_taken(name: str, records: Iterable[NetworkRecord]) -> None:
    """Raises Conflict."""
    if any(record.name == name for record in records):
        raise Conflict(f"network with name {name} already exists")
