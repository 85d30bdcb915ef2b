"""The text of the firewall's table, and what stands in its sets: pure.

    table inet wherry[_<instance>]
      bridges                 interfaces of ours
      friends                 those whose containers talk to each other, each paired with itself
      internal                family and interface: nothing in or out, but the host itself
      open                    family and interface: every port may be reached from outside
      routed                  family and interface: reached by its own addresses, so pings come in
      masqueraded             family and interface: leaves under the host's address
      sources4/6              interface to the host's address it leaves under instead
      subnets4/6              of all networks of ours
      published4/6            proto . port to the container's address . port, on any address of the host
      published_at4/6         the same on one address
      routed4/6               address . proto . port that may be reached by the container's own address
      clients4/6              address . proto . port of a relay's end to the address it speaks for
      bound_bridges, bound4/6, bound_subnets4/6    who may reach only what is allowed, and the chain that knows
      egress_<key>, allowed4/6_<key>, networks4/6_<key>    such a chain, answers of name servers, fixed networks

    table bridge wherry[_<instance>], while a policy is of one interface only
      pins                    interface to the chain that knows what it may send from: policies go by source address

Names are hashed: a network and a port cost an element, and no packet walks through a list.
"""

import ipaddress
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from wherry.kernel.nftables import Element, Family
from wherry.network.places import IPAddress, IPNetwork, NetworkRules, Publication
from wherry.network.ports import ANY4, ANY6, PROTOCOLS

GUARD = "the host routes for containers only"
LIMIT = 65535  # names' addresses one may reach at a time
NEIGHBOURS = (  # what a link needs for IPv6 to work on it
    "nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, "
    "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report"
)
LOG_RATE = "10/second burst 50 packets"
SNAP = 80  # bytes of a refused packet: both headers
KEY_LIMIT = 90  # characters of an egress key: the kernel's log prefix takes 127
PUBLIC_MODES = ("nat-unprotected", "routed")  # what they differ in from nat
Value = str | int | IPAddress | IPNetwork


@dataclass(frozen=True, slots=True)
class Shape:
    """Types of a set's keys, and of its values when it is a map, in nft's words."""

    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    interval: bool = False


_PORT = ("inet_proto", "inet_service")
_BY_FAMILY = ("nf_proto", "ifname")
SETS: Mapping[str, Shape] = {
    "bridges": Shape(("ifname",)),
    "friends": Shape(("ifname", "ifname")),
    "internal": Shape(_BY_FAMILY),
    "open": Shape(_BY_FAMILY),
    "routed": Shape(_BY_FAMILY),
    "masqueraded": Shape(_BY_FAMILY),
    "bound_bridges": Shape(("ifname",), ("verdict",)),
    **{
        f"{name}{version}": shape
        for version, address in ((4, "ipv4_addr"), (6, "ipv6_addr"))
        for name, shape in {
            "sources": Shape(("ifname",), (address,)),
            "subnets": Shape((address,), interval=True),
            "published": Shape(_PORT, (address, "inet_service")),
            "published_at": Shape((_PORT[0], address, _PORT[1]), (address, "inet_service")),
            "routed": Shape((address, *_PORT)),
            "clients": Shape((address, *_PORT), (address,)),
            "bound": Shape((address,), ("verdict",)),
            "bound_subnets": Shape((address,), ("verdict",), interval=True),
        }.items()
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One element of a set or map of `SETS`."""

    set: str
    key: tuple[Value, ...]
    value: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRules:
    """Who may reach only what is allowed: `networks`, and what `allow_egress` adds for a time.

    What stays on the bridge is not egress; the host itself is. Who is bound twice (a container and its network) reaches
    what both allow.
    """

    key: str  # names it in reports: at most KEY_LIMIT printable characters
    sources: Sequence[IPNetwork] = ()  # subnets of a network, addresses of a container
    networks: Sequence[IPNetwork] = ()  # always allowed
    bridge: str = ""  # a whole network: whatever comes from this interface, whichever source address it claims
    link: str = ""  # one container: the host's end of its interface, which may send from `sources` only


def network_entries(rules: NetworkRules) -> list[Entry]:
    bridge = rules.bridge
    found = [Entry("bridges", (bridge,))]
    found += [Entry(f"subnets{subnet.version}", (subnet,)) for subnet in rules.subnets]
    if rules.icc:
        found.append(Entry("friends", (bridge, bridge)))
    families = (
        (Family.IP, 4, rules.mode4, rules.masquerade, rules.source4),
        (Family.IP6, 6, rules.mode6, rules.masquerade6, rules.source6),
    )
    for family, version, mode, masquerade, source in families:
        key = (int(family), bridge)
        if rules.internal or mode == "isolated":
            found.append(Entry("internal", key))
        elif mode == "routed":
            found.append(Entry("routed", key))
        else:
            if mode == "nat-unprotected":
                found.append(Entry("open", key))
            if masquerade and source:
                found.append(Entry(f"sources{version}", (bridge,), (ipaddress.ip_address(source),)))
            elif masquerade:
                found.append(Entry("masqueraded", key))
    return found


def publication_entry(publication: Publication, network: NetworkRules | None) -> Entry:
    """On a routed network the container's own port is opened, else the host's leads to it."""
    port, address = publication.port, ipaddress.ip_address(publication.address)
    version, protocol = address.version, PROTOCOLS[port.protocol]
    if network is not None and (network.mode4 if version == 4 else network.mode6) == "routed":
        return Entry(f"routed{version}", (address, protocol, port.container_port))
    target = (address, port.container_port)
    if port.host_ip in (ANY4, ANY6):
        return Entry(f"published{version}", (protocol, port.host_port), target)
    where = ipaddress.ip_address(port.host_ip)
    return Entry(f"published_at{version}", (protocol, where, port.host_port), target)


# -- as the kernel holds them


def elements(entry: Entry) -> list[Element]:
    """What is sent to the kernel: two elements for an interval."""
    shape = SETS[entry.set]
    value = _pack(shape.value, entry.value)
    if not shape.interval:
        return [Element(entry.set, _pack(shape.key, entry.key), value)]
    (network,) = entry.key
    assert isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)
    found = [Element(entry.set, network.network_address.packed, value)]
    if int(network.broadcast_address) + 1 < 1 << network.max_prefixlen:
        found.append(Element(entry.set, (network.broadcast_address + 1).packed, ends=True))
    return found


def _pack(types: Sequence[str], values: Sequence[Value]) -> bytes:
    return b"".join(_bytes(kind, value) for kind, value in zip(types, values, strict=True))


def _bytes(kind: str, value: Value) -> bytes:
    match kind, value:
        case "ifname", str():
            return value.encode().ljust(16, b"\0")
        case "inet_service", int():
            return struct.pack(">Hxx", value)
        case (("nf_proto" | "inet_proto"), int()):
            return bytes([value, 0, 0, 0])
        case _, ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return value.packed
    raise TypeError(f"{value!r} is no {kind}")


# -- as text


def _word(kind: str, value: Value) -> str:
    if kind == "ifname":
        return f'"{value}"'
    if kind == "nf_proto":
        return "ipv6" if value == Family.IP6 else "ipv4"
    return str(value)


def show(entry: Entry) -> str:
    """In nft's grammar: `6 . 8080 : 172.17.0.2 . 80`."""
    shape = SETS[entry.set]
    key = " . ".join(_word(kind, value) for kind, value in zip(shape.key, entry.key, strict=True))
    if not shape.value:
        return key
    return f"{key} : " + " . ".join(_word(kind, value) for kind, value in zip(shape.value, entry.value, strict=True))


def _declare(name: str, shape: Shape, entries: Iterable[Entry]) -> str:
    listed = ", ".join(sorted({show(entry) for entry in entries}))
    kind, value = ("map", " : " + " . ".join(shape.value)) if shape.value else ("set", "")
    flags = " flags interval;" if shape.interval else ""
    return f"  {kind} {name} {{ type {' . '.join(shape.key)}{value};{flags}{_contents(listed)} }}"


def render(
    table: str,
    entries: Iterable[Entry],
    egress: Iterable[tuple[EgressRules, Mapping[IPAddress, int]]] = (),
    *,
    guarded: bool,
    guarded6: bool = False,
    respect: bool = False,
) -> str:
    """The whole table as commands that replace what is there.

    `guarded`: it was we who made the host a router, so what is routed between other interfaces than bridges, and was
    not before, is dropped. `respect`: published ports are left to relays, but for what the host itself sends.
    """
    by_set: dict[str, list[Entry]] = {name: [] for name in SETS}
    policies = list(egress)
    for entry in (*entries, *(entry for rules, _ in policies for entry in _bound_entries(rules))):
        by_set[entry.set].append(entry)
    chains = "".join(_egress(table, rules, allowed) for rules, allowed in policies)
    pins = "".join(_pin(table, rules) for rules, _ in policies)
    sets = "\n".join(_declare(name, SETS[name], found) for name, found in by_set.items())
    guards = "\n    ".join(
        f'meta nfproto {family} meta iifkind != "bridge" meta oifkind != "bridge" drop comment "{GUARD}"'
        for family, on in (("ipv4", guarded), ("ipv6", guarded6))
        if on
    )
    arriving = "# the host's input decides" if respect else "fib daddr type local jump destination"
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
{sets}
{chains}
  chain raw {{
    type filter hook prerouting priority raw
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }}
  chain prerouting {{
    type nat hook prerouting priority -100
    {arriving}
  }}
  chain output {{
    type nat hook output priority -100
    ip6 daddr ::1 accept
    fib daddr type local jump destination
  }}
  chain destination {{
    dnat ip to meta l4proto . ip daddr . th dport map @published_at4
    dnat ip to meta l4proto . th dport map @published4
    dnat ip6 to meta l4proto . ip6 daddr . th dport map @published_at6
    dnat ip6 to meta l4proto . th dport map @published6
  }}
  chain postrouting {{
    type nat hook postrouting priority 100
    oifname != @bridges jump leaving
    oifname @bridges ct status dnat jump returning
    oifname @bridges snat ip to ip saddr . meta l4proto . th sport map @clients4
    oifname @bridges snat ip6 to ip6 saddr . meta l4proto . th sport map @clients6
  }}
  chain leaving {{
    snat ip to iifname map @sources4
    snat ip6 to iifname map @sources6
    meta nfproto . iifname @masqueraded masquerade
  }}
  chain returning {{
    ip saddr 127.0.0.0/8 masquerade
    ip saddr @subnets4 masquerade
    ip6 saddr @subnets6 masquerade
  }}
  chain input {{
    type filter hook input priority filter
    iifname != @bridges accept
    ct state established,related accept
    icmpv6 type {{ {NEIGHBOURS} }} accept
    jump bound
  }}
  chain forward {{
    type filter hook forward priority filter
    ct state established,related accept
    iifname . oifname @friends accept
    iifname @bridges jump bound
    meta nfproto . iifname @internal drop
    meta nfproto . oifname @internal drop
    oifname @bridges ct status dnat accept
    ip daddr . meta l4proto . th dport @routed4 accept
    ip6 daddr . meta l4proto . th dport @routed6 accept
    iifname @bridges oifname @bridges drop
    iifname @bridges accept
    meta nfproto . oifname @open accept
    meta nfproto . oifname @routed meta l4proto {{ icmp, ipv6-icmp }} accept
    oifname @bridges drop
    {guards}
  }}
  chain bound {{
    iifname vmap @bound_bridges
    ip saddr vmap @bound4
    ip6 saddr vmap @bound6
    ip saddr vmap @bound_subnets4
    ip6 saddr vmap @bound_subnets6
  }}
}}
{pins}"""


def log_group(table: str) -> int:
    """Of this table's reports in the kernel's log: each daemon of a host listens to its own."""
    return 0x4000 | zlib.crc32(table.encode()) & 0x3FFF


def _tag(key: str) -> str:
    return blake2b(key.encode(), digest_size=8).hexdigest()


def allowed_set(key: str, version: int) -> str:
    return f"allowed{version}_{_tag(key)}"


def _bound_entries(rules: EgressRules) -> list[Entry]:
    verdict = (f"jump egress_{_tag(rules.key)}",)
    found = [Entry("bound_bridges", (rules.bridge,), verdict)] if rules.bridge else []
    for source in rules.sources:
        if source.prefixlen == source.max_prefixlen:
            found.append(Entry(f"bound{source.version}", (source.network_address,), verdict))
        else:
            found.append(Entry(f"bound_subnets{source.version}", (source,), verdict))
    return found


def _egress(table: str, rules: EgressRules, allowed: Mapping[IPAddress, int]) -> str:
    """Sets and chain of a policy; `allowed`: addresses and the seconds they are still good for.

    What is refused is answered at once and reported, not more often than LOG_RATE.
    """
    tag = _tag(rules.key)
    lines = []
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        good = ", ".join(
            f"{address} timeout {left}s" for address, left in allowed.items() if address.version == version
        )
        fixed = ", ".join(str(network) for network in _collapse(rules.networks, version))
        name = allowed_set(rules.key, version)
        lines += [
            f"  set {name} {{ type {kind}; flags timeout; size {LIMIT};{_contents(good)} }}",
            f"  set networks{version}_{tag} {{ type {kind}; flags interval;{_contents(fixed)} }}",
        ]
    return f"""\
{lines[0]}
{lines[1]}
{lines[2]}
{lines[3]}
  chain egress_{tag} {{
    ip daddr @networks4_{tag} return
    ip6 daddr @networks6_{tag} return
    ip daddr @{allowed_set(rules.key, 4)} return
    ip6 daddr @{allowed_set(rules.key, 6)} return
    limit rate {LOG_RATE} log group {log_group(table)} snaplen {SNAP} prefix "{rules.key}"
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
"""


def bind(table: str, rules: EgressRules, allowed: Mapping[IPAddress, int]) -> str:
    """Commands that add a policy to the table. One block: nft sends a chain before the elements that lead to it only
    where both stand in the same."""
    entries = _bound_entries(rules)
    maps = "\n".join(
        _declare(name, SETS[name], [entry for entry in entries if entry.set == name])
        for name in sorted({entry.set for entry in entries})
    )
    return f"table inet {table} {{\n{_egress(table, rules, allowed)}{maps}\n}}\n{_pin(table, rules)}"


def _pin(table: str, rules: EgressRules) -> str:
    """Commands that hold an interface to its addresses: who may write raw packets could forge another one's.

    The hook's own rule is written anew each time, so that it is there once whoever was first.
    """
    if not rules.link:
        return ""
    tag = _tag(rules.key)
    four = ", ".join(str(each.network_address) for each in rules.sources if each.version == 4)
    six = ", ".join(str(each.network_address) for each in rules.sources if each.version == 6)
    lines = [
        *(
            [f"ether type arp arp saddr ip {{ 0.0.0.0, {four} }} accept", f"ip saddr {{ {four} }} accept"]
            if four
            else []
        ),
        *([f"ip6 saddr {{ {six} }} accept"] if six else []),
        f"ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ {NEIGHBOURS} }} accept",
        "drop",
    ]
    body = "\n    ".join(lines)
    return f"""\
table bridge {table} {{
  map pins {{ type ifname : verdict; }}
  chain prerouting {{ type filter hook prerouting priority -300; }}
  chain pin_{tag} {{ }}
}}
flush chain bridge {table} prerouting
flush chain bridge {table} pin_{tag}
table bridge {table} {{
  chain pin_{tag} {{
    {body}
  }}
  chain prerouting {{ iifname vmap @pins; }}
  map pins {{ type ifname : verdict; elements = {{ "{rules.link}" : goto pin_{tag} }}; }}
}}
"""


def _unpin(table: str, rules: EgressRules) -> str:
    if not rules.link:
        return ""
    chain = f"chain bridge {table} pin_{_tag(rules.key)}"
    return f'delete element bridge {table} pins {{ "{rules.link}" }}\nflush {chain}\ndelete {chain}\n'


def _contents(listed: str) -> str:
    return f" elements = {{ {listed} }};" if listed else ""  # nft's grammar knows no empty list


def _collapse(networks: Iterable[IPNetwork], version: int) -> list[IPNetwork]:
    """Without overlaps, which a set of intervals cannot hold."""
    if version == 4:
        return list(ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network)))
    return list(ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network)))


def unbind(table: str, rules: EgressRules) -> str:
    """Commands that take a policy away."""
    tag = _tag(rules.key)
    lines = [
        f"delete element inet {table} {entry.set} {{ {show(entry).partition(' : ')[0]} }}"
        for entry in _bound_entries(rules)
    ]
    lines += [f"flush chain inet {table} egress_{tag}", f"delete chain inet {table} egress_{tag}"]
    for version in (4, 6):
        lines += [
            f"delete set inet {table} {allowed_set(rules.key, version)}",
            f"delete set inet {table} networks{version}_{tag}",
        ]
    return "\n".join(lines) + "\n" + _unpin(table, rules)
