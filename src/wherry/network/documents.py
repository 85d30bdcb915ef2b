"""Network documents as Docker's API shows them. Pure."""

import datetime
from collections.abc import Mapping, Sequence

from wherry.network.endpoint import Endpoint
from wherry.network.records import NetworkRecord, Subnet

Attached = Mapping[str, tuple[str, Sequence[Endpoint]]]  # container id to name and endpoints, of those that run


def rfc3339(nanoseconds: int) -> str:
    """UTC, with as many digits of the second as are not zero, as Go writes it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{moment}{fraction}Z"


def network(record: NetworkRecord, containers: Attached) -> dict[str, object]:
    """Body of `GET /networks/{id}`; one of `GET /networks` when `containers` is empty."""
    attached: dict[str, object] = {}
    for container_id, (name, endpoints) in containers.items():
        for endpoint in endpoints:
            if endpoint.network_id == record.id:
                attached[container_id] = {
                    "Name": name,
                    "EndpointID": endpoint.endpoint_id,
                    "MacAddress": endpoint.mac,
                    "IPv4Address": f"{endpoint.ip}/{endpoint.prefix}" if endpoint.ip else "",
                    "IPv6Address": f"{endpoint.ip6}/{endpoint.prefix6}" if endpoint.ip6 else "",
                }
    return {
        "Name": record.name,
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Scope": "local",
        "Driver": record.driver,
        "EnableIPv4": record.ipv4,
        "EnableIPv6": record.ipv6,
        "IPAM": {
            "Driver": record.ipam_driver,
            "Options": dict(record.ipam_options) if record.ipam_options is not None else None,
            "Config": [_subnet(subnet) for subnet in record.subnets] or _nothing(record),
        },
        "Internal": record.internal,
        "Attachable": record.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": record.config_from},
        "ConfigOnly": record.config_only,
        "Containers": attached,
        "Options": dict(record.options),
        "Labels": dict(record.labels),
    }


def _subnet(subnet: Subnet) -> dict[str, object]:
    found: dict[str, object] = {"Subnet": subnet.subnet}
    if subnet.ip_range:
        found["IPRange"] = subnet.ip_range
    if subnet.gateway:
        found["Gateway"] = subnet.gateway
    if subnet.auxiliary:
        found["AuxiliaryAddresses"] = dict(subnet.auxiliary)
    return found


def _nothing(record: NetworkRecord) -> list[object] | None:
    return None if record.predefined else []
