"""Egress policies of running containers: told to the firewall, and asked by their resolvers.

A network's policy (option `wherry.egress`) holds for all on it, an attachment's own (the same as endpoint option) for
that container there; where both are set, both must allow. The firewall refuses everything but what the policies list
and what `admit` opened: the addresses of an allowed name, put there before the container hears of them, for as long as
it may remember them. Connections that exist live on.
A container that also is on a network without a policy that leads out is free there: its names are not looked at.
"""

import ipaddress
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wherry.aio import settle
from wherry.errors import InvalidParameter, WherryError
from wherry.events import Events
from wherry.network import plan
from wherry.network.egress.log import RefusalLog
from wherry.network.egress.policy import Policy, parse
from wherry.network.plan import Attachment
from wherry.network.records import BRIDGE, EGRESS, NULL, NetworkRecord
from wherry.network.wall.rules import EgressRules

log = logging.getLogger(__name__)

SHORTEST = 60  # s an address stays open, whatever its TTL
GRACE = 30  # s beyond the TTL: a client may begin to connect in its last moment
LONGEST = 86400  # s


class Wall(Protocol):
    """The firewall's part in it. Blocking; idempotent."""

    def set_egress(self, rules: EgressRules) -> None: ...

    def clear_egress(self, key: str) -> None: ...

    def allow_egress(self, key: str, addresses: Iterable[str], seconds: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One attachment that leads out: `policies` by the firewall's key, all of which must allow; none = it is free."""

    network: tuple[str, str]  # id and name
    policies: Mapping[str, Policy]

    def allows(self, name: str) -> bool:
        return all(policy.allows(name) for policy in self.policies.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    name: str  # the container's
    rules: tuple[EgressRules, ...]
    ways: tuple[_Way, ...]
    addresses: frozenset[str]


class ContainerGate:
    """What a container's resolver asks; follows the container from network to network. See `dns/gate.py`."""

    def __init__(self, gates: "Gates", container_id: str) -> None:
        self._gates = gates
        self._container_id = container_id

    def _ways(self) -> Sequence[_Way]:
        held = self._gates.held.get(self._container_id)
        return held.ways if held else ()

    @property
    def bound(self) -> bool:
        ways = self._ways()
        return bool(ways) and all(way.policies for way in ways)

    def allows(self, name: str) -> bool:
        ways = self._ways()
        if any(way.allows(name) for way in ways):
            return True
        self._gates.refused(self._container_id, name, "name")
        return False

    async def admit(self, name: str, addresses: Sequence[tuple[str, int]]) -> bool:
        """Open the way where all policies allow the name and every address."""
        if not addresses:
            return True
        found = [ipaddress.ip_address(address) for address, _ in addresses]
        admitted = False
        for way in self._ways():
            strict = [policy for policy in way.policies.values() if not all(policy.admits(one) for one in found)]
            if way.allows(name) and not strict:
                admitted = await self._open(way.policies, addresses)
        if not admitted:
            listed = ", ".join(address for address, _ in addresses)
            self._gates.refused(self._container_id, f"{name} at {listed}", "name")
        return admitted

    async def _open(self, keys: Iterable[str], addresses: Sequence[tuple[str, int]]) -> bool:
        seconds = min(max(SHORTEST, min(ttl for _, ttl in addresses) + GRACE), LONGEST)
        try:
            for key in keys:
                await settle(self._gates.wall.allow_egress, key, [address for address, _ in addresses], seconds)
        except (OSError, WherryError) as exc:
            log.warning("cannot open the way to an allowed name: %s", exc)
            return False
        return True


class Gates:
    """`close_off` and `open_up` block and may be called from several threads, the rest is for the event loop."""

    def __init__(self, wall: Wall, network: Callable[[str], NetworkRecord | None], events: Events) -> None:
        self.wall = wall
        self.held: dict[str, _Held] = {}  # by container id
        self._network = network
        self._log = RefusalLog(events)
        self._lock = threading.Lock()
        self._in_force: dict[str, EgressRules] = {}  # by key

    @staticmethod
    def check(record: NetworkRecord) -> None:
        """Raises InvalidParameter for a policy that cannot be read, or not be enforced."""
        if EGRESS not in record.options:
            return
        parse(record.options[EGRESS])
        if record.driver != BRIDGE:
            raise InvalidParameter(
                f"option {EGRESS} needs a network of driver {BRIDGE}: what containers send on a network of driver "
                f"{record.driver} does not pass the host's firewall"
            )

    @staticmethod
    def check_attachment(record: NetworkRecord, options: Mapping[str, str]) -> None:
        """As `check`, for the option of one attachment.

        Domains need a resolver of ours, which containers on the default bridge do not have.
        """
        if EGRESS not in options:
            return
        policy = parse(options[EGRESS])
        if record.driver == NULL:
            return  # nothing is reached from there
        if record.driver != BRIDGE:
            raise InvalidParameter(
                f"option {EGRESS} needs a network of driver {BRIDGE}: what containers send on network {record.name} "
                "does not pass the host's firewall"
            )
        if record.predefined and (policy.names or policy.above):
            raise InvalidParameter(
                f"option {EGRESS} with domains needs a network of the user's: containers on network {record.name} ask "
                "name servers themselves. Make one with `network create`, or list addresses"
            )

    def rules(self, containers: Mapping[str, tuple[str, Sequence[Attachment]]]) -> list[EgressRules]:
        """All that is in force with these containers (id to name and attachments), for the whole table."""
        found: dict[str, EgressRules] = {}
        for name, attachments in containers.values():
            found |= {rules.key: rules for rules in self._hold(name, attachments).rules}
        return list(found.values())

    def close_off(self, container_id: str, attachments: Sequence[Attachment], name: str = "") -> None:
        """Put the policies of its networks in force; idempotent, and again when it joins or leaves one."""
        held = self._hold(name, attachments)
        with self._lock:
            self.held[container_id] = held
            self._follow()

    def open_up(self, container_id: str) -> None:
        """It has ended: idempotent."""
        with self._lock:
            self.held.pop(container_id, None)
            self._follow()

    def _follow(self) -> None:
        """Bring the firewall to what is held: what comes first, what goes last."""
        wanted = {rules.key: rules for held in self.held.values() for rules in held.rules}
        for key, rules in wanted.items():
            if self._in_force.get(key) != rules:
                self.wall.set_egress(rules)
                self._in_force[key] = rules
        for key in [key for key in self._in_force if key not in wanted]:
            self.wall.clear_egress(key)
            del self._in_force[key]

    def _hold(self, name: str, attachments: Sequence[Attachment]) -> _Held:
        rules: list[EgressRules] = []
        ways: list[_Way] = []
        for attachment in attachments:
            bound = self._rules(attachment)
            rules += [each for each, _ in bound]
            if attachment.endpoint.gateway or attachment.endpoint.gateway6:
                policies = {each.key: policy for each, policy in bound}
                network = attachment.network_id, attachment.endpoint.network
                ways.append(_Way(network=network, policies=policies))
        addresses = frozenset(address for attachment in attachments for address in attachment.addresses)
        return _Held(name=name, rules=tuple(rules), ways=tuple(ways), addresses=addresses)

    def _rules(self, attachment: Attachment) -> list[tuple[EgressRules, Policy]]:
        found = []
        record = self._network(attachment.network_id)
        if record is not None and EGRESS in record.options:
            policy = parse(record.options[EGRESS])
            subnets = [ipaddress.ip_network(subnet.subnet) for subnet in record.spoken]
            rules = EgressRules(
                key=f"network {record.id}",
                sources=subnets,
                networks=policy.networks,
                bridge=plan.bridge_name(record, ""),
            )
            found.append((rules, policy))
        if EGRESS in attachment.endpoint.options:
            policy = parse(attachment.endpoint.options[EGRESS])
            own = [ipaddress.ip_network(interface.ip) for interface in attachment.place().addresses]
            key = f"endpoint {attachment.endpoint.endpoint_id}"
            rules = EgressRules(key=key, sources=own, networks=policy.networks, link=attachment.host_name)
            found.append((rules, policy))
        return found

    def gate(self, container_id: str) -> ContainerGate:
        """For its resolver: good as long as the container lives."""
        return ContainerGate(self, container_id)

    def forget(self, container_id: str) -> None:
        """Nothing more is said about it. Idempotent."""

    # -- refusals

    @property
    def refusals(self) -> int:
        """How many there were."""
        return self._log.count

    def refused(self, container_id: str, destination: str, by: str) -> None:
        held = self.held.get(container_id)
        if held is not None:
            network = next((way.network for way in held.ways if way.policies), ("", ""))
            self._log.refused(container_id, held.name, network, destination, by)

    def refused_packet(self, source: str, protocol: str, destination: str, port: int) -> None:
        """The firewall refused what came from `source`. Nothing when no container has that address."""
        for container_id, held in self.held.items():
            if source in held.addresses:
                where = f"[{destination}]" if ":" in destination else destination
                self.refused(
                    container_id, f"{where}:{port}/{protocol}" if port else f"{destination} {protocol}", "address"
                )
                return
