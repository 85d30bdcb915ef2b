"""The firewall of this daemon: one nftables table, written whole at start and then changed element by element.

What is in it: rules.py. Blocking (some ms for the whole, 0.1 ms for elements); callable from several threads. Holds
what ought to be there, so that a table that somebody flushed is put back. Keeps its socket: closing one after a
deletion waits for the kernel to free what was deleted (10-25 ms).
"""

import errno
import ipaddress
import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from wherry.errors import Failed, InvalidParameter
from wherry.kernel import conntrack, nftables
from wherry.kernel.netlink import Message
from wherry.kernel.nftables import Element, Family, Nftables
from wherry.network.places import IPAddress, NetworkRules, Publication
from wherry.network.wall import rules
from wherry.network.wall.neighbours import Neighbours
from wherry.network.wall.rules import EgressRules, Entry

log = logging.getLogger(__name__)

PREFIX = "wherry"  # of every table of ours, whichever daemon's
WALKS = 16  # walks of the kernel through its flows before we look at them ourselves
INET = Family.INET
Key = tuple[str, tuple[rules.Value, ...]]  # of an entry: its set, its key there


class Firewall:
    def __init__(self, table: str, *, respect: bool = False) -> None:
        """`respect`: published ports are left to relays, which the host's input rules judge."""
        self.table = table
        self.respect = respect
        self._lock = threading.Lock()
        self._socket: Nftables | None = None
        self._neighbours = Neighbours(table)
        self._networks: dict[str, NetworkRules] = {}  # by bridge
        self._published: dict[Key, Entry] = {}
        self._egress: dict[str, EgressRules] = {}
        self._allowed: dict[str, dict[IPAddress, float]] = {}  # by egress key: until when
        self._guarded = self._guarded6 = False
        self._generation = -1  # of the namespace's ruleset after our own last look: another means a stranger wrote

    # -- the whole

    def load(
        self,
        networks: Sequence[NetworkRules],
        published: Iterable[Publication],
        egress: Iterable[EgressRules],
        *,
        guarded: bool,
        guarded6: bool = False,
    ) -> None:
        """Put the whole table in place. Raises Failed, NotSupported, OSError."""
        with self._lock:
            self._networks = {each.bridge: each for each in networks}
            self._guarded, self._guarded6 = guarded, guarded6
            self._published = _by_key(self._entry(each) for each in published)
            self._egress = {each.key: each for each in egress}
            self._allowed = {key: self._allowed.get(key, {}) for key in self._egress}
            self._load()
            self._neighbours.claim(self._nft(), list(self._networks))
            self._generation = self._nft().generation()

    def _load(self) -> None:
        entries = [entry for network in self._networks.values() for entry in rules.network_entries(network)]
        text = rules.render(
            self.table,
            [*entries, *self._published.values()],
            [(each, self._left(each.key)) for each in self._egress.values()],
            guarded=self._guarded,
            guarded6=self._guarded6,
            respect=self.respect,
        )
        before = [f"delete table ip {self.table}\n"] if self.table in self._nft().tables(Family.IP) else []
        nftables.run("".join([*before, *self._unpinned(), text]))

    def _unpinned(self) -> list[str]:
        """The command that takes our table of family bridge away, where there is one."""
        try:
            found = self.table in self._nft().tables(Family.BRIDGE)
        except OSError:  # a kernel that has no such family: only who wants a policy of one container needs it
            return []
        return [f"delete table bridge {self.table}\n"] if found else []

    def _nft(self) -> Nftables:
        if self._socket is None:
            self._socket = Nftables()
        return self._socket

    def _look(self) -> None:
        """See to it that nobody removed the table or shut FORWARD since the last look. Costs one question (0.02 ms)
        as long as only we write; several daemons on a host make each other look more often (0.2 ms)."""
        nft = self._nft()
        generation = nft.generation()
        if generation == self._generation:
            return
        if self.table not in nft.tables(INET):
            log.warning("firewall table %s is gone: somebody flushed the ruleset; writing it again", self.table)
            self._load()
        self._neighbours.claim(nft, list(self._networks))
        self._generation = nft.generation()

    def _exchange(self, add: Iterable[Entry], delete: Iterable[Entry]) -> None:
        """One transaction. When something of ours is not there any more, what ought to be is written anew."""
        added, deleted = _elements(add), _elements(delete)
        if not added and not deleted:
            return
        try:
            self._nft().change(INET, self.table, add=added, delete=deleted)
            self._generation += 1
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            self._load()

    def guard(self, version: int) -> None:
        """From now on the host routes this address family, for containers only. Idempotent. Raises Failed, OSError."""
        with self._lock:
            if not (self._guarded6 if version == 6 else self._guarded):
                self._guarded, self._guarded6 = self._guarded or version == 4, self._guarded6 or version == 6
                self._load()
                self._generation = self._nft().generation()

    # -- networks

    def add_network(self, network: NetworkRules) -> None:
        """Also for one that is there and changed. Idempotent. Raises OSError, Failed."""
        self._set_network(network.bridge, network)

    def remove_network(self, bridge: str) -> None:
        """Idempotent. Raises OSError, Failed."""
        self._set_network(bridge, None)

    def _set_network(self, bridge: str, network: NetworkRules | None) -> None:
        with self._lock:
            self._look()
            present = self._networks.get(bridge)
            if present == network:
                return
            old = rules.network_entries(present) if present else []
            new = rules.network_entries(network) if network else []
            before = self._networks
            self._networks = {name: each for name, each in before.items() if name != bridge}
            if network:
                self._networks[bridge] = network
            try:
                self._exchange([each for each in new if each not in old], [each for each in old if each not in new])
            except BaseException:
                self._networks = before
                raise
            self._generation += self._neighbours.claim(self._nft(), list(self._networks))

    # -- published ports

    def _entry(self, publication: Publication) -> Entry:
        return rules.publication_entry(publication, self._networks.get(publication.bridge))

    def publish(self, published: Sequence[Publication]) -> None:
        """After making sure that the table is there. Raises OSError, Failed."""
        self.change(add=published)

    def withdraw(self, published: Sequence[Publication]) -> None:
        """Idempotent. Raises OSError, Failed."""
        self.change(remove=published)

    def change(self, *, add: Sequence[Publication] = (), remove: Sequence[Publication] = ()) -> None:
        """Both in one transaction. Raises OSError, Failed; then nothing has changed."""
        with self._lock:
            if add or not remove:  # a container without ports needs the table as well
                self._look()
            before = dict(self._published)
            leaving = [each for each in map(self._entry, remove) if before.get((each.set, each.key)) == each]
            coming = [self._entry(each) for each in add]
            for each in leaving:
                del self._published[each.set, each.key]
            self._published |= _by_key(coming)
            try:
                self._exchange(coming, leaving)
            except BaseException:
                self._published = before
                raise

    # -- egress

    def set_egress(self, policy: EgressRules) -> None:
        """Bind the sources of `policy` to what it allows, instead of an earlier policy of that key. Idempotent.

        Raises InvalidParameter, OSError, Failed.
        """
        if not policy.key.isprintable() or not 0 < len(policy.key.encode()) <= rules.KEY_LIMIT or '"' in policy.key:
            raise InvalidParameter(f"invalid egress key {policy.key!r}")
        with self._lock:
            self._look()
            present = self._egress.get(policy.key)
            if present == policy:
                return
            text = rules.unbind(self.table, present) if present else ""
            self._egress[policy.key] = policy
            try:
                nftables.run(text + rules.bind(self.table, policy, self._left(policy.key)))
            except BaseException:
                if present:
                    self._egress[policy.key] = present
                else:
                    del self._egress[policy.key]
                raise
            self._allowed.setdefault(policy.key, {})
            self._generation += 1

    def clear_egress(self, key: str) -> None:
        """Idempotent. Raises OSError, Failed."""
        with self._lock:
            present = self._egress.pop(key, None)
            self._allowed.pop(key, None)
            if present is None:
                return
            try:
                nftables.run(rules.unbind(self.table, present))
            except Failed:
                self._load()  # somebody took something away: write what ought to be there
            self._generation += 1

    def allow_egress(self, key: str, addresses: Iterable[str], seconds: int) -> None:
        """Let the sources of a policy reach `addresses`, for as long. Nothing when there is no such policy.

        Raises OSError (ENFILE: too many at once), Failed.
        """
        with self._lock:
            self._look()
            if key not in self._egress:
                return
            now = time.monotonic()
            known = {address: end for address, end in self._allowed[key].items() if end > now}
            until = now + seconds
            fresh = {ipaddress.ip_address(text) for text in addresses}
            longer = [address for address in fresh if known.get(address, 0) < until]
            try:
                self._prolong(key, longer, {address for address in longer if address in known}, seconds)
            finally:
                self._allowed[key] = known
            self._allowed[key] = known | dict.fromkeys(longer, until)

    def _prolong(self, key: str, addresses: Iterable[IPAddress], known: Collection[IPAddress], seconds: int) -> None:
        """An element's timeout cannot be changed in older kernels: it is taken out and put in, in one transaction."""

        def element(address: IPAddress) -> Element:
            return Element(rules.allowed_set(key, address.version), address.packed, timeout=seconds * 1000)

        added = [element(address) for address in addresses]
        try:
            self._nft().change(INET, self.table, add=added, delete=[element(address) for address in known])
        except FileNotFoundError:  # one ended in this moment
            self._nft().change(INET, self.table, add=added)
        self._generation += 1

    def _left(self, key: str) -> Mapping[IPAddress, int]:
        now = time.monotonic()
        return {address: int(end - now) + 1 for address, end in self._allowed.get(key, {}).items() if end > now}

    # -- relays speak for their clients

    def speak_for(self, protocol: int, address: str, port: int, client: str) -> None:
        """What we send to containers from `address` and `port` seems to come from `client`. Raises OSError."""
        with self._lock:
            self._exchange([_client(protocol, address, port, client)], [])

    def fall_silent(self, protocol: int, address: str, port: int, client: str) -> None:
        """No longer, for connections to come. Idempotent. Raises OSError."""
        with self._lock, suppress(FileNotFoundError):
            self._nft().change(INET, self.table, delete=_elements([_client(protocol, address, port, client)]))
            self._generation += 1

    def is_ours(self, address: str) -> bool:
        """True for an address on a network of ours."""
        wanted = ipaddress.ip_address(address)
        return any(wanted in subnet for network in self._networks.values() for subnet in network.subnets)

    # -- others

    def others(self) -> tuple[bool, bool]:
        """Whether other daemons of ours have tables here, and whether one of these guards the forwarding.

        Raises OSError.
        """
        with self._lock:
            nft = self._nft()
            tables = [name for name in nft.tables(INET) if name.startswith(PREFIX) and name != self.table]
            guard = rules.GUARD.encode()
            return bool(tables), any(
                guard in rule.comment for table in tables for rule in nft.rules(INET, table, "forward")
            )

    # -- flows

    def forget_port_flows(self, protocol: int, ports: Collection[int]) -> None:
        """Let the next packet to any of these ports be looked at afresh, whatever became of earlier ones.

        The kernel walks all flows for each port: many are better sought here. Raises OSError.
        """
        with self._lock:
            if len(ports) <= WALKS:
                messages = [conntrack.forget_port(protocol, port, version) for port in ports for version in (4, 6)]
            else:
                known = conntrack.flows(self._nft())
                messages = [
                    conntrack.forget_flow(flow) for flow in known if flow.protocol == protocol and flow.port in ports
                ]
            self._forget(messages)

    def forget_answers(self, protocol: int, address: str) -> None:
        """Forget every flow that a container answers. Raises OSError."""
        with self._lock:
            self._forget([conntrack.forget_answers(protocol, ipaddress.ip_address(address))])

    def _forget(self, messages: Iterable[Message]) -> None:
        for message in messages:
            with suppress(FileNotFoundError):  # no such flow, or no more
                self._nft().transact(message)

    # -- the end

    def remove(self) -> None:
        """Take everything of ours away; idempotent. Raises Failed, OSError."""
        with self._lock:
            self._neighbours.leave(self._nft())
            nftables.run("".join([*self._unpinned(), f"table inet {self.table}\ndelete table inet {self.table}"]))
            self._networks, self._published, self._egress, self._allowed = {}, {}, {}, {}
            self._generation = -1

    def close(self) -> None:
        """Close the socket; the rules stay. Idempotent: the next call opens another."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _by_key(entries: Iterable[Entry]) -> dict[Key, Entry]:
    return {(entry.set, entry.key): entry for entry in entries}


def _elements(entries: Iterable[Entry]) -> list[Element]:
    return [element for entry in entries for element in rules.elements(entry)]


def _client(protocol: int, address: str, port: int, client: str) -> Entry:
    here, there = ipaddress.ip_address(address), ipaddress.ip_address(client)
    return Entry(f"clients{here.version}", (here, protocol, port), (there,))
