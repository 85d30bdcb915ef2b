"""The networks this engine knows, with the addresses of each: in memory, and as rows of state table `networks`.

Used from the event loop only. Makes no links: see `networks.py`.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from wherry.aio import settle
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound
from wherry.ids import is_prefix
from wherry.network import creation
from wherry.network.ipam import Pool
from wherry.network.places import Interface, IPNetwork
from wherry.network.records import NetworkRecord
from wherry.state import Delete, Put, State


class Catalog:
    def __init__(self, state: State) -> None:
        self._state = state
        self._by_id: dict[str, NetworkRecord] = {}
        self._pools: dict[str, tuple[Pool, ...]] = {}  # by network id, in the order of its subnets
        self.uses: Counter[str] = Counter()  # network id to attachments of running containers

    def __iter__(self) -> Iterator[NetworkRecord]:
        return iter(list(self._by_id.values()))

    def get(self, network_id: str) -> NetworkRecord | None:
        return self._by_id.get(network_id)

    def named(self, name: str) -> NetworkRecord | None:
        return next((record for record in self._by_id.values() if record.name == name), None)

    def resolve(self, name: str) -> NetworkRecord:
        """By name, id or unambiguous beginning of an id. Raises NotFound, InvalidParameter in Docker's words."""
        found = self._by_id.get(name) or self.named(name)
        if found is not None:
            return found
        matches = [record for key, record in self._by_id.items() if is_prefix(name) and key.startswith(name)]
        if len(matches) > 1:
            raise InvalidParameter(f"network {name} is ambiguous ({len(matches)} matches found on ID prefix)")
        if not matches:
            raise NotFound(f"network {name} not found")
        return matches[0]

    # -- records

    def remember(self, record: NetworkRecord) -> None:
        """In memory only; its addresses are free, those that were given out before aside."""
        before = self._by_id.get(record.id)
        self._by_id[record.id] = record
        if before is None or before.subnets != record.subnets:
            pools = () if record.config_only else tuple(map(creation.pool_of, record.subnets))
            self._pools[record.id] = pools

    def forget(self, record: NetworkRecord) -> None:
        """In memory only."""
        self._by_id.pop(record.id, None)
        self._pools.pop(record.id, None)

    def clear(self) -> None:
        self._by_id.clear()
        self._pools.clear()
        self.uses.clear()

    async def save(self, record: NetworkRecord) -> None:
        await settle(self._state.write, self.row(record))

    async def delete(self, record: NetworkRecord) -> None:
        await settle(self._state.write, self.no_row(record))

    @staticmethod
    def row(record: NetworkRecord) -> Put:
        return Put("networks", record.id, msgspec.json.encode(record))

    @staticmethod
    def no_row(record: NetworkRecord) -> Delete:
        return Delete("networks", record.id)

    def stored(self) -> list[NetworkRecord]:
        """What the state has, oldest first."""
        records = [msgspec.json.decode(raw, type=NetworkRecord) for raw in self._state.rows("networks").values()]
        return sorted(records, key=lambda record: record.created)

    def subnets(self, *, but: str = "") -> list[IPNetwork]:
        """Of all networks, one id aside."""
        return [
            ipaddress.ip_network(subnet.subnet)
            for record in self._by_id.values()
            if record.id != but and not record.config_only
            for subnet in record.subnets
        ]

    # -- addresses

    def pools(self, network_id: str, version: int) -> Sequence[Pool]:
        return [pool for pool in self._pools.get(network_id, ()) if pool.subnet.version == version]

    def allocate(self, record: NetworkRecord, version: int) -> tuple[Pool, Interface]:
        """An address of the first subnet that has one. Raises Failed."""
        failure = Failed(f"network {record.name} has no IPv{version} subnet")
        for pool in self.pools(record.id, version):
            try:
                address = pool.allocate()
            except Failed as exc:
                failure = exc
                continue
            return pool, _interface(pool, str(address))
        raise failure

    def reserve(self, record: NetworkRecord, text: str) -> tuple[Pool, Interface]:
        """This address. Raises InvalidParameter when no subnet has it, Conflict when it is taken."""
        address = ipaddress.ip_address(text)
        for pool in self.pools(record.id, address.version):
            if address in pool.subnet:
                pool.reserve(address)
                return pool, _interface(pool, text)
        raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {text}")

    def adopt(self, network_id: str, text: str) -> None:
        """The address of a container that runs already; in vain where it is nobody's any more."""
        try:
            record = self._by_id[network_id]
            self.reserve(record, text)
        except (KeyError, InvalidParameter, Conflict):
            return

    def release(self, network_id: str, text: str) -> None:
        """Idempotent."""
        address = ipaddress.ip_address(text)
        for pool in self.pools(network_id, address.version):
            if address in pool.subnet:
                pool.release(address)


def _interface(pool: Pool, text: str) -> Interface:
    return ipaddress.ip_interface(f"{text}/{pool.subnet.prefixlen}")
