"""Filters of captures, run by the kernel: one on a pair of local sockets sees frames as one on an interface does."""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidParameter
from wherry.kernel import packets
from wherry.network.capture_filter import DEEPEST, compile_filter


def frame(
    source: str, target: str, protocol: int, ports: tuple[int, int] = (0, 0), *, options: int = 0, fragment: int = 0
) -> bytes:
    one, other = ipaddress.ip_address(source), ipaddress.ip_address(target)
    rest = struct.pack("!HH", *ports) + bytes(16)
    if one.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64) + one.packed + other.packed
        return bytes(12) + b"\x86\xdd" + header + rest
    header = struct.pack("!BBHHHBBH", 0x45 + options, 0, 20 + len(rest), 0, fragment, 64, protocol, 0)
    return bytes(12) + b"\x08\0" + header + one.packed + other.packed + bytes(4 * options) + rest


TCP4 = frame("10.0.0.1", "10.0.0.2", 6, (4000, 80))
TCP4_OPTIONS = frame("10.0.0.1", "10.0.0.2", 6, (4000, 80), options=3)
LATER = frame("10.0.0.1", "10.0.0.2", 6, (4000, 80), fragment=100)
UDP4 = frame("10.0.0.2", "10.9.0.1", 17, (53, 5353))
TCP6 = frame("fd00::1", "fd00:0:0:1::2", 6, (4000, 80))
PING4, PING6 = frame("10.0.0.1", "10.0.0.2", 1), frame("fd00::1", "fd00::2", 58)
ARP = bytes(12) + b"\x08\x06" + bytes(28)
FRAMES = {
    "tcp4": TCP4,
    "options": TCP4_OPTIONS,
    "later": LATER,
    "udp4": UDP4,
    "tcp6": TCP6,
    "ping4": PING4,
    "ping6": PING6,
    "arp": ARP,
}
FOURS = {"tcp4", "options", "later", "udp4", "ping4"}
HTTP = {"tcp4", "options", "tcp6"}


def passing(text: str) -> set[str]:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setblocking(False)
        program = compile_filter(text)
        if program:
            packets.attach_filter(receiver, program)
        found = set()
        for name, data in FRAMES.items():
            sender.send(data)
            try:
                assert receiver.recv(1000) == data
            except BlockingIOError:
                continue
            found.add(name)
        return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set(FRAMES)),
        ("ip", FOURS),
        ("ip6", {"tcp6", "ping6"}),
        ("arp", {"arp"}),
        ("tcp", {"tcp4", "options", "later", "tcp6"}),
        ("udp", {"udp4"}),
        ("icmp", {"ping4"}),
        ("icmp6", {"ping6"}),
        ("port 80", HTTP),
        ("tcp port 80", HTTP),
        ("udp port 80", set()),
        ("src port 80", set()),
        ("tcp src port 4000", HTTP),
        ("udp src port 53", {"udp4"}),
        ("dst port 53", set()),
        ("host 10.0.0.2", FOURS),
        ("10.0.0.2", FOURS),
        ("src host 10.0.0.2", {"udp4"}),
        ("src 10.0.0.2", {"udp4"}),
        ("dst 10.0.0.2", FOURS - {"udp4"}),
        ("net 10.9.0.0/16", {"udp4"}),
        ("net 10.9.7.7/16", {"udp4"}),
        ("net 0.0.0.0/0", FOURS),
        ("host fd00:0:0:1::2", {"tcp6"}),
        ("dst net fd00:0:0:1::/63", {"tcp6", "ping6"}),
        ("dst net fd00:0:0:1::/64", {"tcp6"}),
        ("not port 80", set(FRAMES) - HTTP),
        ("! tcp && ! arp", {"udp4", "ping4", "ping6"}),
        ("udp or icmp or arp", {"udp4", "ping4", "arp"}),
        ("ip6 or ip and udp", {"tcp6", "ping6", "udp4"}),
        ("(ip6 or ip) and udp", {"udp4"}),
        ("not (tcp or (udp and not port 54))", {"ping4", "ping6", "arp"}),
        ("not not arp", {"arp"}),
        (" or ".join(f"port {number}" for number in range(50, 81)), HTTP | {"udp4"}),
    ],
)
def test_a_filter_lets_pass_what_it_says(text: str, expected: set[str]) -> None:
    assert passing(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("frobnicate", "'frobnicate' is no address"),
        ("port", "'' is no port"),
        ("port http", "'http' is no port"),
        ("port 65536", "'65536' is no port"),
        ("port -1", "'-1' is no port"),
        ("port ²", "'²' is no port"),
        ("host 10.0.0.0/8", "say net 10.0.0.0/8"),
        ("net 10.0.0.0/40", "'10.0.0.0/40' is no network"),
        ("tcp and", "something is missing at the end"),
        ("(tcp", "a bracket is not closed"),
        ("tcp)", "unexpected ')'"),
        ("tcp udp", "unexpected 'udp'"),
        ("tcp src 10.0.0.1", "tcp goes with a port"),
        ("tcp & udp", "cannot read '& udp'"),
        ("not " * (DEEPEST + 1) + "tcp", "nested too deeply"),
        ("(" * 900 + "tcp", "nested too deeply"),
        ("x" * 2001, "longer than 2000 characters"),
    ],
)
def test_a_wrong_filter_is_refused_with_what_is_understood(text: str, why: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        compile_filter(text)
    assert why in refused.value.message
    assert "understood are: " in refused.value.message or "longer" in why


def test_a_filter_longer_than_the_kernel_takes_is_refused() -> None:
    text = " or ".join(["port 1"] * 200)
    with pytest.raises(InvalidParameter, match="too long for the kernel"):
        compile_filter(text)


words = st.sampled_from("( ) not and or tcp udp port host net src dst 80 10.0.0.1 fd00::/8 ip6 arp ! && || x".split())


@settings(max_examples=200)
@given(st.lists(words, max_size=30).map(" ".join) | st.text(max_size=40))
def test_any_text_is_refused_or_becomes_a_program_the_kernel_takes(text: str) -> None:
    try:
        program = compile_filter(text)
    except InvalidParameter:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if program:
            packets.attach_filter(sock, program)
