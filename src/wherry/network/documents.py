"""Network documents as Docker's API shows them. Pure."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.network.endpoint import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """A network; row of state table `networks`, keyed by its id."""

    id: str
    name: str
    driver: str  # bridge, host, null
    created: int  # ns since the epoch
    interface: str = ""  # the bridge's address and prefix, when it had one last
    options: Mapping[str, str] = field(default_factory=dict)


def rfc3339(nanoseconds: int) -> str:
    """UTC, with as many digits of the second as are not zero, as Go writes it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{moment}{fraction}Z"


def network(
    record: NetworkRecord, *, subnet: str, gateway: str, containers: Mapping[str, tuple[str, Sequence[Endpoint]]]
) -> dict[str, object]:
    """Body of `GET /networks/{id}`; one of `GET /networks` when `containers` is empty.

    `containers`: id to name and endpoints, of those that run.
    """
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
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [{"Subnet": subnet, "Gateway": gateway}] if subnet else None,
        },
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": attached,
        "Options": dict(record.options),
        "Labels": {},
    }
