"""The firewall and the ports of IPv4 networks, until those of both families are there."""

import ipaddress
from collections.abc import Collection, Iterable, Sequence

from wherry.kernel.nftables import Element
from wherry.network.endpoint import Port
from wherry.network.firewall import BridgeRules, published_element
from wherry.network.firewall import Firewall as Old
from wherry.network.places import NetworkRules, Publication
from wherry.network.ports import Held, PortRequest
from wherry.network.ports import HostPorts as OldPorts


def _element(each: Publication) -> Element:
    return published_element(each.port, each.address)


class Firewall:
    def __init__(self, table: str, *, respect: bool = False) -> None:
        self._old = Old(table)
        self._networks: dict[str, NetworkRules] = {}
        self._published: list[Publication] = []
        self._guarded = False

    def load(
        self,
        networks: Sequence[NetworkRules],
        published: Iterable[Publication],
        egress: Iterable[object],
        *,
        guarded: bool,
    ) -> None:
        self._networks = {rules.bridge: rules for rules in networks}
        self._published = list(published)
        self._guarded = guarded
        self._load()

    def _load(self) -> None:
        rules = [
            BridgeRules(
                bridge=each.bridge,
                subnets=[subnet for subnet in each.subnets if isinstance(subnet, ipaddress.IPv4Network)],
                masquerade=each.masquerade and not each.internal,
                icc=each.icc,
            )
            for each in self._networks.values()
        ]
        self._old.load(rules, [_element(each) for each in self._published], guarded=self._guarded)

    def add_network(self, rules: NetworkRules) -> None:
        self._networks[rules.bridge] = rules
        self._load()

    def remove_network(self, bridge: str) -> None:
        if self._networks.pop(bridge, None) is not None:
            self._load()

    def publish(self, published: Sequence[Publication]) -> None:
        self._old.publish([_element(each) for each in published])
        self._published += published

    def withdraw(self, published: Sequence[Publication]) -> None:
        self._old.withdraw([_element(each) for each in published])
        self._published = [each for each in self._published if each not in published]

    def change(self, *, add: Sequence[Publication] = (), remove: Sequence[Publication] = ()) -> None:
        self.withdraw(remove)
        self.publish(add)

    def forget_port_flows(self, protocol: int, ports: Collection[int]) -> None:
        self._old.forget_port_flows(protocol, ports)

    def forget_answers(self, protocol: int, address: str) -> None:
        if ":" not in address:
            self._old.forget_answers(protocol, address)

    def others(self) -> tuple[bool, bool]:
        return self._old.others()

    def remove(self) -> None:
        self._old.remove()

    def close(self) -> None:
        self._old.close()


class HostPorts(OldPorts):
    def acquire(self, request: PortRequest, addresses: tuple[str, str], bind: str = "") -> tuple[Held, ...]:  # type: ignore[override]
        return super().acquire(request, addresses[0])

    def adopt(self, port: Port, addresses: tuple[str, str]) -> Held:  # type: ignore[override]
        return super().adopt(port, addresses[0])
