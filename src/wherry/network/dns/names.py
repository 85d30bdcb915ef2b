"""The table of names: which container answers to what, on which network. In memory; used from the event loop only.

A name counts on its own network, and for who is on that network. `name.network` chooses one of a container's networks.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What one container alone calls another."""

    network: str  # id
    alias: str
    target: str  # a name of the other on that network


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a container sees."""

    networks: Sequence[tuple[str, str]] = ()  # id and name of those it is on, in order
    links: Sequence[Link] = ()
    outside: bool = True  # one of its networks leads out; otherwise nobody else is asked through the host


@dataclass(slots=True)
class _Service:
    """All that answer to one name, in the order they came."""

    members: dict[str, None] = field(default_factory=dict)  # endpoint ids
    turns: dict[int, int] = field(default_factory=dict)  # by address family: who is first in the next answer


@dataclass(frozen=True, slots=True)
class _Endpoint:
    names: tuple[str, ...]  # in lower case
    shown: str  # the first of them, as given
    four: tuple[str, ...]
    six: tuple[str, ...]

    def addresses(self, family: int) -> tuple[str, ...]:
        return self.six if family == 6 else self.four


@dataclass(slots=True)
class _Network:
    endpoints: dict[str, _Endpoint] = field(default_factory=dict)
    services: dict[str, _Service] = field(default_factory=dict)  # by name
    owners: dict[str, str] = field(default_factory=dict)  # address to endpoint id


class Names:
    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}

    def add(self, network_id: str, endpoint_id: str, names: Sequence[str], addresses: Sequence[str]) -> None:
        """The first name is the container's own: reverse records give it. Replaces what the endpoint had."""
        self.remove(network_id, endpoint_id)
        parsed = [ipaddress.ip_address(address) for address in addresses]
        endpoint = _Endpoint(
            names=tuple(dict.fromkeys(name.lower() for name in names)),
            shown=names[0] if names else "",
            four=tuple(str(address) for address in parsed if address.version == 4),
            six=tuple(str(address) for address in parsed if address.version == 6),
        )
        network = self._networks.setdefault(network_id, _Network())
        network.endpoints[endpoint_id] = endpoint
        for name in endpoint.names:
            network.services.setdefault(name, _Service()).members[endpoint_id] = None
        for address in parsed:
            network.owners[str(address)] = endpoint_id

    def remove(self, network_id: str, endpoint_id: str) -> None:
        """Idempotent."""
        network = self._networks.get(network_id)
        endpoint = network.endpoints.pop(endpoint_id, None) if network else None
        if network is None or endpoint is None:
            return
        for name in endpoint.names:
            service = network.services[name]
            del service.members[endpoint_id]
            if not service.members:
                del network.services[name]
        for address in (*endpoint.four, *endpoint.six):
            if network.owners.get(address) == endpoint_id:
                del network.owners[address]
        if not network.endpoints:
            del self._networks[network_id]

    def lookup(self, view: View, name: str, family: int) -> list[str] | None:
        """Addresses of family 4 or 6, in another order each time; [] = a known name without such an address.

        None = nobody there has that name. Links go before names, earlier networks before later ones, as in Docker.
        """
        name = name.lower()
        known = False
        for wanted, networks in _readings(view, name):
            for network_id in networks:
                found = self._find(network_id, self._meant(view, network_id, wanted), family)
                if found:
                    return found
                known = known or found is not None
        return [] if known else None

    @staticmethod
    def _meant(view: View, network_id: str, name: str) -> str:
        for link in view.links:
            if link.network == network_id and link.alias.lower() == name:
                return link.target.lower()
        return name

    def _find(self, network_id: str, name: str, family: int) -> list[str] | None:
        network = self._networks.get(network_id)
        service = network.services.get(name) if network else None
        if network is None or service is None:
            return None
        found = [address for key in service.members for address in network.endpoints[key].addresses(family)]
        if len(found) > 1:
            turn = service.turns.get(family, 0) % len(found)
            service.turns[family] = turn + 1
            found = found[turn:] + found[:turn]
        return found

    def reverse(self, view: View, address: str) -> str | None:
        """`name.network` of the container with that address on one of the networks seen."""
        for network_id, network_name in view.networks:
            network = self._networks.get(network_id)
            owner = network.owners.get(address) if network else None
            if network is not None and owner is not None and network.endpoints[owner].shown:
                return f"{network.endpoints[owner].shown}.{network_name}"
        return None


def _readings(view: View, name: str) -> Iterator[tuple[str, list[str]]]:
    """`a.b.c` may be a name on any network, or `a.b` on network `c`, or `a` on network `b.c`."""
    yield name, [network_id for network_id, _ in view.networks]
    for network_id, network in view.networks:
        suffix = f".{network.lower()}"
        if name.endswith(suffix) and len(name) > len(suffix):
            yield name[: -len(suffix)], [network_id]
