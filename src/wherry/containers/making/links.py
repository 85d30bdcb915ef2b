"""Links of the default bridge (`--link`, long deprecated): a linked container's address in /etc/hosts, its ports and
variables in the environment, as Docker still has them. On networks of users a link is an alias, see `endpoints`.
"""

from collections.abc import Iterable, Sequence

import msgspec

from wherry.containers.attached import DEFAULT, linked
from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.errors import Failed, InvalidParameter, NotFound
from wherry.network.endpoint import Endpoint
from wherry.network.ports import parse_port
from wherry.network.records import BRIDGE
from wherry.spec.engine import HostConfig

_NOT_PASSED_ON = ("HOME", "PATH")


def resolve(deps: Deps, host: HostConfig) -> HostConfig:
    """With its links by id; without any where the network is not the default one. Raises InvalidParameter."""
    if not host.links:
        return host
    if host.network_mode not in (*DEFAULT, BRIDGE):
        return msgspec.structs.replace(host, links=None)
    found = []
    for text in host.links:
        name, alias = parse(text)
        try:
            other = deps.store.resolve(name)
        except NotFound as exc:
            raise InvalidParameter(f"could not get container for {name}: {exc.message}") from exc
        if other.host_config.network_mode == "host":
            raise InvalidParameter(
                "conflicting options: host type networking can't be used with links. This would result in undefined "
                "behavior"
            )
        found.append(f"{other.id}:{alias or other.name}")
    return msgspec.structs.replace(host, links=found)


def parse(text: str) -> tuple[str, str]:
    """`name`, `name:alias` to both; the alias is "" where none was given."""
    name, _, alias = text.partition(":")
    alias = alias.rpartition("/")[2]  # `/other:/mine/alias` is how inspect shows it
    if not name or text.count(":") > 1:
        raise InvalidParameter(f"bad format for links: {text}")
    return name.removeprefix("/"), alias if ":" in text else name.removeprefix("/")


def hosts(deps: Deps, container: Container) -> list[tuple[str, str]]:
    """Address and names of each linked container. Raises Failed, in Docker's words, for one that cannot be linked."""
    found = []
    for other, alias in linked(deps.store, container):
        endpoint = _endpoint(other)
        if not other.running:
            raise Failed(f"Cannot link to a non running container: /{other.name} AS /{container.name}/{alias}")
        if endpoint is None:
            raise Failed(f"Cannot link to /{other.name}, as it does not belong to the default network")
        found.append((endpoint.ip, names(other, alias)))
    return found


def lines(other: Container, alias: str) -> list[str]:
    """Its lines in /etc/hosts of a container that is linked to it."""
    endpoint = _endpoint(other)
    return [f"{endpoint.ip}\t{names(other, alias)}\n"] if endpoint is not None else []


def names(other: Container, alias: str) -> str:
    """What follows the address in /etc/hosts."""
    return " ".join(dict.fromkeys([alias, other.config.hostname, other.name]))


def address(other: Container) -> str:
    """Where others find it on the default network; "" when it is not there."""
    endpoint = _endpoint(other)
    return endpoint.ip if endpoint is not None else ""


def _endpoint(other: Container) -> Endpoint | None:
    return next((each for each in other.endpoints if each.network == BRIDGE), None)


def environment(deps: Deps, container: Container) -> list[str]:
    """The variables that tell of linked containers: `DB_PORT`, `DB_NAME`, `DB_ENV_X`."""
    found: list[str] = []
    for other, alias in linked(deps.store, container):
        endpoint = _endpoint(other)
        if endpoint is not None:
            found += _variables(other, endpoint.ip, alias, f"/{container.name}/{alias}")
    return found


def _variables(other: Container, ip: str, alias: str, path: str) -> Sequence[str]:
    prefix = alias.upper().replace("-", "_")
    ports = _ports(other.config.exposed_ports or ())
    found = [f"{prefix}_PORT={ports[0][1]}://{ip}:{ports[0][0]}"] if ports else []
    for port, protocol in ports:
        one = f"{prefix}_PORT_{port}_{protocol.upper()}"
        found += [
            f"{one}={protocol}://{ip}:{port}",
            f"{one}_ADDR={ip}",
            f"{one}_PORT={port}",
            f"{one}_PROTO={protocol}",
        ]
    found.append(f"{prefix}_NAME={path}")
    for entry in other.config.env or ():
        name, equals, value = entry.partition("=")
        if equals and name not in _NOT_PASSED_ON:
            found.append(f"{prefix}_ENV_{name}={value}")
    return found


def _ports(exposed: Iterable[str]) -> list[tuple[int, str]]:
    """TCP first, then by number."""
    found = []
    for text in exposed:
        try:
            found.append(parse_port(text))
        except InvalidParameter:
            continue  # a range
    return sorted(found, key=lambda port: (port[1] != "tcp", port[0]))
