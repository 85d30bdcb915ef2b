"""The firewall of this daemon: one nftables table, written whole at start and then changed element by element.

    table ip wherry[_<instance>]
      set bridges        ifname                          bridges of ours
      set private        ifname                          those whose containers do not talk to each other (--icc=false)
      set subnets        ipv4_addr, interval             their subnets
      set masqueraded    ipv4_addr, interval             subnets that leave under the host's address
      map published      proto . port : ip . port        ports on any address of the host
      map published_at   proto . ip . port : ip . port   ports on one address

Blocking (1 ms for the whole, 0.1 ms for elements); callable from several threads. Holds what ought to be there, so that
a table that somebody flushed is put back. Keeps its socket: closing one after a deletion waits for the kernel to free
what was deleted (10-25 ms).
Other tables judge the same packets, and a drop anywhere is final. Where iptables' own FORWARD chain drops what nobody
claimed (dockerd and ufw set that policy), two rules at its end claim our bridges; this table then decides about them.
"""

import errno
import ipaddress
import logging
import struct
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from wherry.kernel import conntrack, nftables
from wherry.kernel.netlink import Message
from wherry.kernel.nftables import Element, Family, Nftables
from wherry.network.endpoint import Port
from wherry.network.ports import ANY4, PROTOCOLS

log = logging.getLogger(__name__)

PREFIX = "wherry"  # of every table of ours, whichever daemon's
GUARD = "the host routes for containers only"
WALKS = 16  # walks of the kernel through its flows before we look at them ourselves
FOREIGN_TABLE, FOREIGN_CHAIN = "filter", "FORWARD"  # what iptables-nft writes


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRules:
    """What the firewall knows of one bridge network."""

    bridge: str
    subnets: Sequence[ipaddress.IPv4Network]
    masquerade: bool = True
    icc: bool = True


def published_element(port: Port, address: str) -> Element:
    """The map entry that sends a port of the host to the container with `address`. IPv4 only."""
    target = ipaddress.IPv4Address(address).packed + struct.pack(">Hxx", port.container_port)
    protocol, number = bytes([PROTOCOLS[port.protocol], 0, 0, 0]), struct.pack(">Hxx", port.host_port)
    if port.host_ip == ANY4:
        return Element("published", protocol + number, target)
    return Element("published_at", protocol + ipaddress.IPv4Address(port.host_ip).packed + number, target)


def _elements(words: Iterable[str]) -> str:
    """An `elements` line; nothing for none, which nft's grammar does not know."""
    listed = ", ".join(sorted(set(words)))
    return f"elements = {{ {listed} }};" if listed else ""


def _entry(element: Element) -> str:
    protocol = element.key[0]
    (number,) = struct.unpack(">H", element.key[-4:-2])
    at = f"{ipaddress.IPv4Address(element.key[4:8])} . " if element.set == "published_at" else ""
    target, (container_port,) = ipaddress.IPv4Address(element.value[:4]), struct.unpack(">H", element.value[4:6])
    return f"{protocol} . {at}{number} : {target} . {container_port}"


def render(table: str, networks: Sequence[BridgeRules], published: Iterable[Element], *, guarded: bool) -> str:
    """The whole table as one nft transaction that replaces what is there.

    `guarded`: it was we who made the host a router, so what is routed between other interfaces than bridges, and was
    not before, is dropped.
    """
    entries = list(published)
    bridges = _elements(f'"{n.bridge}"' for n in networks)
    private = _elements(f'"{n.bridge}"' for n in networks if not n.icc)
    subnets = _elements(str(subnet) for n in networks for subnet in n.subnets)
    masqueraded = _elements(str(subnet) for n in networks if n.masquerade for subnet in n.subnets)
    anywhere = _elements(_entry(e) for e in entries if e.set == "published")
    somewhere = _elements(_entry(e) for e in entries if e.set == "published_at")
    guard = f'meta iifkind != "bridge" meta oifkind != "bridge" drop comment "{GUARD}"' if guarded else ""
    return f"""\
table ip {table}
delete table ip {table}
table ip {table} {{
  set bridges {{ type ifname; {bridges} }}
  set private {{ type ifname; {private} }}
  set subnets {{ type ipv4_addr; flags interval; {subnets} }}
  set masqueraded {{ type ipv4_addr; flags interval; {masqueraded} }}
  map published {{ type inet_proto . inet_service : ipv4_addr . inet_service; {anywhere} }}
  map published_at {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; {somewhere} }}

  chain raw {{
    type filter hook prerouting priority raw
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }}
  chain prerouting {{
    type nat hook prerouting priority -100
    fib daddr type local jump destination
  }}
  chain output {{
    type nat hook output priority -100
    fib daddr type local jump destination
  }}
  chain destination {{
    dnat ip to meta l4proto . ip daddr . th dport map @published_at
    dnat ip to meta l4proto . th dport map @published
  }}
  chain postrouting {{
    type nat hook postrouting priority 100
    oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade
    oifname @bridges ct status dnat ip saddr @subnets masquerade
    oifname != @bridges ip saddr @masqueraded masquerade
  }}
  chain forward {{
    type filter hook forward priority 0
    ct state established,related accept
    oifname @bridges ct status dnat accept
    iifname @private oifname @private drop
    iifname @bridges accept
    oifname @bridges drop
    {guard}
  }}
}}
"""


class Firewall:
    def __init__(self, table: str) -> None:
        self.table = table
        self._lock = threading.Lock()
        self._socket: Nftables | None = None
        self._networks: Sequence[BridgeRules] = ()
        self._published: dict[tuple[str, bytes], Element] = {}
        self._guarded = False
        self._generation = (
            -1
        )  # of the namespace's ruleset after our own last look; anything else means a stranger wrote

    def load(self, networks: Sequence[BridgeRules], published: Iterable[Element], *, guarded: bool) -> None:
        """Put the whole table in place. Raises Failed, NotSupported, OSError."""
        with self._lock:
            self._networks, self._guarded = networks, guarded
            self._published = {(element.set, element.key): element for element in published}
            self._load()
            self._look()

    def _load(self) -> None:
        nftables.run(render(self.table, self._networks, self._published.values(), guarded=self._guarded))

    def _nft(self) -> Nftables:
        if self._socket is None:
            self._socket = Nftables()
        return self._socket

    def publish(self, elements: Sequence[Element]) -> None:
        """Add map entries, after making sure that the table is there. Raises OSError, Failed."""
        with self._lock:
            self._look()
            if not elements:
                return
            self._published.update({(element.set, element.key): element for element in elements})
            try:
                self._nft().change(Family.IP, self.table, add=elements)
                self._generation += 1
            except FileNotFoundError:
                self._load()  # somebody took the maps away: write what ought to be there
            except BaseException:
                for element in elements:
                    self._published.pop((element.set, element.key), None)
                raise

    def withdraw(self, elements: Sequence[Element]) -> None:
        """Remove map entries; idempotent. Raises OSError, Failed."""
        with self._lock:
            present = [element for element in elements if self._published.pop((element.set, element.key), None)]
            if not present:
                return
            try:
                self._nft().change(Family.IP, self.table, delete=present)
                self._generation += 1
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                self._load()  # somebody took something away: write what ought to be there

    def others(self) -> tuple[bool, bool]:
        """Whether other daemons of ours have tables here, and whether one of these guards the forwarding.

        Raises OSError.
        """
        with self._lock:
            nft = self._nft()
            tables = [name for name in nft.tables(Family.IP) if name.startswith(PREFIX) and name != self.table]
            guard = any(
                GUARD.encode() in rule.comment for table in tables for rule in nft.rules(Family.IP, table, "forward")
            )
            return bool(tables), guard

    def forget_port_flows(self, protocol: int, ports: Collection[int]) -> None:
        """Let the next packet to any of these ports be looked at afresh, whatever became of earlier ones.

        The kernel walks all flows for each port: many are better sought here. Raises OSError.
        """
        with self._lock:
            if len(ports) <= WALKS:
                messages = [conntrack.forget_port(protocol, port, 4) for port in ports]
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

    def _look(self) -> None:
        """See to it that nobody removed the table or shut FORWARD since the last look. Costs one question (0.02 ms)
        as long as only we write; several daemons on a host make each other look more often (0.1 ms)."""
        nft = self._nft()
        generation = nft.generation()
        if generation == self._generation:
            return
        if self.table not in nft.tables(Family.IP):
            log.warning("firewall table %s is gone: somebody flushed the ruleset; writing it again", self.table)
            self._load()
        self._claim(nft)
        self._generation = nft.generation()

    def _claim(self, nft: Nftables) -> None:
        if not self._networks or not nft.drops(Family.IP, FOREIGN_TABLE, FOREIGN_CHAIN) or self._claims(nft):
            return
        commands = [
            f'add rule ip {FOREIGN_TABLE} {FOREIGN_CHAIN} {way} "{network.bridge}" counter accept'
            f' comment "{self.table}"'
            for network in self._networks
            for way in ("iifname", "oifname")
        ]
        nftables.run("\n".join(commands))

    def _claims(self, nft: Nftables) -> list[int]:
        """Handles of our rules in the foreign chain."""
        mine = self.table.encode() + b"\0"
        rules = nft.rules(Family.IP, FOREIGN_TABLE, FOREIGN_CHAIN)
        return [rule.handle for rule in rules if rule.comment[2:] == mine]

    def remove(self) -> None:
        """Take everything of ours away; idempotent. Raises Failed, OSError."""
        with self._lock:
            commands = [
                f"delete rule ip {FOREIGN_TABLE} {FOREIGN_CHAIN} handle {handle}"
                for handle in self._claims(self._nft())
            ]
            nftables.run("\n".join([*commands, f"table ip {self.table}", f"delete table ip {self.table}"]))
            self._networks, self._published, self._generation = (), {}, -1

    def close(self) -> None:
        """Close the socket; the rules stay. Idempotent: the next call opens another."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
