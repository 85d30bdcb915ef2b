"""What a container's record says of its networks and links, and under which names it is known there.

What was asked for is kept in the record's `networking`, by network name, the network mode's first. `create` writes it
whole; connect and disconnect change it. No entry at all is a container with nothing but its loopback.
`HostConfig.links` is kept as `<id of the other>:<alias>`, so that a renamed container stays linked.
"""

from collections.abc import Sequence

import msgspec

from wherry.containers.record import Container
from wherry.containers.store import ContainerStore
from wherry.ids import ContainerID, short
from wherry.network.records import BRIDGE, HOST
from wherry.spec.engine import EndpointSettings, NetworkingConfig

Asked = dict[str, EndpointSettings]  # network name to what was asked for

NONE = "none"
DEFAULT = ("", "default")  # network modes that mean the default network


def joined(container: Container) -> str | None:
    """The container whose network this one shares (`--network container:x`), as typed; None otherwise."""
    mode = container.host_config.network_mode
    return mode.removeprefix("container:") if mode.startswith("container:") else None


def is_users(network: str) -> bool:
    """A network that somebody made: its containers find each other by name."""
    return network not in (BRIDGE, HOST, NONE)


def asked(container: Container) -> Asked:
    """By network name. Records that are older than networks of users hold nothing: their mode says all."""
    if joined(container) is not None or container.config.network_disabled is True:
        return {}
    if container.networking.endpoints_config is not None:
        return container.networking.endpoints_config
    mode = container.host_config.network_mode
    return {BRIDGE if mode in DEFAULT else mode: EndpointSettings()}


def with_asked(container: Container, endpoints: Asked) -> NetworkingConfig:
    return msgspec.structs.replace(container.networking, endpoints_config=endpoints)


def on_host(container: Container) -> bool:
    return HOST in asked(container)


def dns_names(container: Container, aliases: Sequence[str] = ()) -> list[str]:
    """All it answers to on a network of a user, in Docker's order."""
    names = [container.name, *aliases, short(container.id), container.config.hostname]
    return list(dict.fromkeys(name for name in names if name))


def linked(store: ContainerStore, container: Container) -> list[tuple[Container, str]]:
    """The containers it is linked to that are still there, each with its alias."""
    found = []
    for text in container.host_config.links or ():
        other_id, _, alias = text.partition(":")
        if (other := store.get(ContainerID(other_id))) is not None:
            found.append((other, alias))
    return found


def linking(store: ContainerStore) -> dict[ContainerID, list[tuple[Container, str]]]:
    """By id of a container those that are linked to it, each with the alias it has there."""
    found: dict[ContainerID, list[tuple[Container, str]]] = {}
    for each in store:
        for other, alias in linked(store, each):
            found.setdefault(other.id, []).append((each, alias))
    return found
