import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st

from wherry.kernel.netlink import attribute
from wherry.network.wall.refusals import PACKET, PACKET_PAYLOAD, PACKET_PREFIX, Refusal, parse

PORTS = struct.pack(">HH", 40000, 443)
FOUR = bytes([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]) + bytes([10, 0, 0, 2]) + bytes([192, 0, 2, 7])


def six(next_header: int, rest: bytes) -> bytes:
    addresses = ipaddress.ip_address("fd00::2").packed + ipaddress.ip_address("2001:db8::7").packed
    return bytes([0x60, 0, 0, 0, 0, len(rest), next_header, 64]) + addresses + rest


def report(packet: bytes, key: str = "network n1", kind: int = PACKET) -> bytes:
    body = bytes(4) + attribute(PACKET_PREFIX, key.encode() + b"\0") + attribute(PACKET_PAYLOAD, packet)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def told(packet: bytes) -> tuple[str, str, str, int]:
    (refusal,) = parse(report(packet))
    assert refusal.key == "network n1"
    return refusal.protocol, refusal.source, refusal.destination, refusal.port


def test_a_refused_packet_is_told_with_its_policy() -> None:
    expected = Refusal(key="network n1", protocol="tcp", source="10.0.0.2", destination="192.0.2.7", port=443)
    assert list(parse(report(FOUR + PORTS) + report(FOUR + PORTS, kind=PACKET + 1))) == [expected]


def test_protocols_without_ports_and_later_fragments_have_none() -> None:
    ping, fragment = bytearray(FOUR), bytearray(FOUR)
    ping[9], fragment[7] = 1, 9
    assert told(bytes(ping) + PORTS) == ("icmp", "10.0.0.2", "192.0.2.7", 0)
    assert told(bytes(fragment) + PORTS) == ("tcp", "10.0.0.2", "192.0.2.7", 0)
    assert told(FOUR) == ("tcp", "10.0.0.2", "192.0.2.7", 0)
    ping[9] = 89
    assert told(bytes(ping))[0] == "89"


def test_extension_headers_of_ipv6_are_passed() -> None:
    assert told(six(17, PORTS)) == ("udp", "fd00::2", "2001:db8::7", 443)
    assert told(six(0, bytes([60, 0]) + bytes(6) + bytes([6, 1]) + bytes(14) + PORTS))[::3] == ("tcp", 443)
    assert told(six(0, bytes(8) * 6))[0] == "0"  # no more than a few


@given(st.binary(max_size=200))
def test_no_packet_breaks_the_reader(data: bytes) -> None:
    list(parse(data))
    assert len(list(parse(report(data)))) <= 1
