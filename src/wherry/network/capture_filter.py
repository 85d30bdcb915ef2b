"""Filters of captures: a small part of tcpdump's language (pcap-filter(7)), compiled to a program for the kernel.

    [src|dst] host ADDRESS     [src|dst] net 10.0.0.0/8     [tcp|udp|sctp] [src|dst] port NUMBER
    ip  ip6  arp  tcp  udp  sctp  icmp  icmp6               not X   X and Y   X or Y   ( X )

`host` may be left out before an address; `!`, `&&` and `||` are understood; `and` binds closer than `or`, as in every
language but tcpdump's own. Packets are Ethernet frames without a VLAN tag. Pure.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from wherry.errors import InvalidParameter
from wherry.kernel import packets
from wherry.kernel.packets import Instruction

LONGEST = 2000  # characters
DEEPEST = 50  # brackets and `not`s within each other
ETHER_TYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58}
WITH_PORTS = ("tcp", "udp", "sctp")
UNDERSTOOD = (
    "understood are: [src|dst] host ADDRESS, [src|dst] net CIDR, [tcp|udp|sctp] [src|dst] port NUMBER, ip, ip6, arp, "
    "tcp, udp, sctp, icmp, icmp6, joined by and, or, not and brackets"
)
_TOKEN = re.compile(r"\s*(\(|\)|!|&&|\|\||[^\s()!&|]+)")
_SAME = {"!": "not", "&&": "and", "||": "or"}
_ETHER, _PROTO4, _PROTO6 = 12, 23, 20  # offsets in a frame
_HEADER4, _FRAGMENT4, _PORTS6 = 14, 20, 54
_ADDRESSES = {4: (26, 30), 6: (22, 38)}  # source, destination


@dataclass(frozen=True, slots=True)
class Equal:
    """Bytes of the packet, at an offset or that far behind the IPv4 header, are this value."""

    size: int
    offset: int
    value: int
    mask: int | None = None
    behind: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Some:
    parts: tuple["Node", ...]


Node = Equal | Not | All | Some


def compile_filter(text: str) -> list[Instruction]:
    """The program; an empty one for a filter without words. Raises InvalidParameter."""
    if not text.strip():
        return []
    if len(text) > LONGEST:
        raise InvalidParameter(f"invalid filter: longer than {LONGEST} characters")
    program = _generate(_Parser(text).parse())
    if len(program) > packets.LONGEST_FILTER:
        raise InvalidParameter("invalid filter: too long for the kernel; capture more, and choose from it later")
    return program


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._position = 0
        self._depth = 0

    def _split(self, text: str) -> list[str]:
        tokens = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                self._fail(f"cannot read {text[position:].strip()!r}")
            tokens.append(_SAME.get(found[1], found[1]))
            position = found.end()
        return tokens

    def _fail(self, why: str) -> NoReturn:
        raise InvalidParameter(f"invalid filter {self._text!r}: {why}; {UNDERSTOOD}")

    def _next(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._next()
        self._position += 1
        return token

    def _takes(self, *words: str) -> bool:
        if self._next() in words:
            self._position += 1
            return True
        return False

    def parse(self) -> Node:
        node = self._some()
        if self._next():
            self._fail(f"unexpected {self._next()!r}")
        return node

    def _some(self) -> Node:
        parts = [self._all()]
        while self._takes("or"):
            parts.append(self._all())
        return Some(tuple(parts))

    def _all(self) -> Node:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return All(tuple(parts))

    def _one(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail("nested too deeply")
        try:
            if self._takes("not"):
                return Not(self._one())
            if self._takes("("):
                node = self._some()
                if not self._takes(")"):
                    self._fail("a bracket is not closed")
                return node
            return self._primitive()
        finally:
            self._depth -= 1

    def _primitive(self) -> Node:
        first = self._take()
        if first in ETHER_TYPES:
            return _ether(first)
        if first in WITH_PORTS and self._next() in ("port", "src", "dst"):
            sides = self._sides(self._take() if self._next() != "port" else "")
            if not self._takes("port"):
                self._fail(f"{first} goes with a port")
            return self._port((first,), sides)
        if first in PROTOCOLS:
            return _protocol(first)
        sides = self._sides(first)
        if first in ("src", "dst"):
            first = self._take()
        if first == "port":
            return self._port(WITH_PORTS, sides)
        if first in ("host", "net"):
            return self._network(self._take(), sides, whole=first == "host")
        if not first:
            self._fail("something is missing at the end")
        return self._network(first, sides, whole=True)

    @staticmethod
    def _sides(word: str) -> tuple[int, ...]:
        return {"src": (0,), "dst": (1,)}.get(word, (0, 1))

    def _port(self, protocols: tuple[str, ...], sides: tuple[int, ...]) -> Node:
        text = self._take()
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 1 << 16):
            self._fail(f"{text!r} is no port")
        number = int(text)
        four = All(
            (
                _ether("ip"),
                Some(tuple(Equal(1, _PROTO4, PROTOCOLS[name]) for name in protocols)),
                Equal(2, _FRAGMENT4, 0, mask=0x1FFF),  # later fragments have no ports
                Some(tuple(Equal(2, 2 * side, number, behind=True) for side in sides)),
            )
        )
        six = All(
            (
                _ether("ip6"),
                Some(tuple(Equal(1, _PROTO6, PROTOCOLS[name]) for name in protocols)),
                Some(tuple(Equal(2, _PORTS6 + 2 * side, number) for side in sides)),
            )
        )
        return Some((four, six))

    def _network(self, text: str, sides: tuple[int, ...], *, whole: bool) -> Node:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            self._fail(f"{text!r} is no {'address' if whole else 'network'}")
        if whole and "/" in text:
            self._fail(f"{text!r} is a network: say net {text}")
        parts = [All(tuple(_words(network, _ADDRESSES[network.version][side]))) for side in sides]
        kind = _ether("ip" if network.version == 4 else "ip6")
        return All((kind, Some(tuple(parts))))


def _ether(name: str) -> Node:
    return Equal(2, _ETHER, ETHER_TYPES[name])


def _protocol(name: str) -> Node:
    four = All((_ether("ip"), Equal(1, _PROTO4, PROTOCOLS[name])))
    six = All((_ether("ip6"), Equal(1, _PROTO6, PROTOCOLS[name])))
    return {"icmp": four, "icmp6": six}.get(name, Some((four, six)))


def _words(network: ipaddress.IPv4Network | ipaddress.IPv6Network, offset: int) -> Iterator[Node]:
    """An address's words under its mask."""
    address, mask = network.network_address.packed, network.netmask.packed
    for start in range(0, len(address), 4):
        bits = int.from_bytes(mask[start : start + 4], "big")
        if bits:
            word = int.from_bytes(address[start : start + 4], "big")
            yield Equal(4, offset + start, word, mask=None if bits == 0xFFFFFFFF else bits)


def _generate(node: Node) -> list[Instruction]:
    """Conditional jumps reach 255 instructions only: each test is followed by two far ones, whose targets come last."""
    program: list[Instruction] = []
    jumps: dict[int, int] = {}  # position of a far jump to its label
    labels: list[int] = []  # where each is

    def label() -> int:
        labels.append(-1)
        return len(labels) - 1

    def place(number: int) -> None:
        labels[number] = len(program)

    def jump(target: int) -> None:
        jumps[len(program)] = target
        program.append(Instruction(packets.JUMP))

    def emit(node: Node, yes: int, no: int) -> None:
        if isinstance(node, Equal):
            program.extend(_test(node))
            jump(yes)
            jump(no)
        elif isinstance(node, Not):
            emit(node.part, no, yes)
        else:
            for number, part in enumerate(node.parts):
                if number == len(node.parts) - 1:
                    emit(part, yes, no)
                    return
                further = label()
                emit(part, *((further, no) if isinstance(node, All) else (yes, further)))
                place(further)
            jump(yes if isinstance(node, All) else no)

    accept, refuse = label(), label()
    emit(node, accept, refuse)
    place(accept)
    program.append(Instruction(packets.RETURN, packets.WHOLE))
    place(refuse)
    program.append(Instruction(packets.RETURN, 0))
    for position, target in jumps.items():
        program[position] = Instruction(packets.JUMP, labels[target] - position - 1)
    return program


def _test(test: Equal) -> Iterator[Instruction]:
    """Passes over the next instruction when it fails."""
    if test.behind:
        yield Instruction(packets.HEADER_LENGTH, _HEADER4)
        yield Instruction(packets.LOAD_INDEXED[test.size], _HEADER4 + test.offset)
    else:
        yield Instruction(packets.LOAD[test.size], test.offset)
    if test.mask is not None:
        yield Instruction(packets.AND, test.mask)
    yield Instruction(packets.JUMP_EQUAL, test.value, 0, 1)
