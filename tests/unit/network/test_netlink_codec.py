import errno
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.kernel import netlink
from wherry.kernel.netlink import Message


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_survive_encoding(found: dict[int, bytes]) -> None:
    encoded = b"".join(netlink.attribute(kind, data) for kind, data in found.items())
    assert len(encoded) % 4 == 0
    assert netlink.attributes(encoded) == found


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoders(data: bytes) -> None:
    assert all(isinstance(value, bytes) for value in netlink.attributes(data).values())
    assert sum(16 + len(body) for *_, body in netlink.decode(data)) <= len(data)


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_a_datagram_of_several_messages_is_taken_apart(bodies: list[bytes]) -> None:
    data = b"".join(netlink.encode(Message(7, 4, body, "x"), number) for number, body in enumerate(bodies))
    found = [(kind, flags, sequence, bytes(body)) for kind, flags, sequence, body in netlink.decode(data)]
    assert found == [(7, 5, number, body) for number, body in enumerate(bodies)]


def test_nested_attributes_are_marked_and_read_without_the_mark() -> None:
    encoded = netlink.nested(18, netlink.attribute(1, b"veth\0"))
    assert struct.unpack_from("=HH", encoded) == (16, 18 | 0x8000)
    assert netlink.attributes(netlink.attributes(encoded)[18])[1] == b"veth\0"


def test_the_kernels_words_are_found_with_and_without_the_request() -> None:
    words = netlink.attribute(1, b"Address already assigned\0")
    capped = memoryview(struct.pack("=i", -errno.EEXIST) + bytes(16) + words)
    assert netlink.error_of(netlink.F_CAPPED | netlink.F_ACK_TLVS, capped) == (17, "Address already assigned")
    request = struct.pack("=IHHII", 22, 20, 0, 1, 0) + bytes(6)
    whole = memoryview(struct.pack("=i", -errno.EEXIST) + request + bytes(2) + words)
    assert netlink.error_of(netlink.F_ACK_TLVS, whole) == (17, "Address already assigned")
    assert netlink.error_of(0, whole) == (17, "")


def test_an_error_says_what_was_tried() -> None:
    error = netlink.as_error(errno.EEXIST, "add address 10.0.0.1/24 to br0", "already assigned")
    assert error.errno == errno.EEXIST
    assert error.strerror == "cannot add address 10.0.0.1/24 to br0: File exists (already assigned)"


@pytest.mark.parametrize(("prefix", "broadcast"), [(16, True), (30, True), (31, False), (32, False)])
def test_a_broadcast_address_is_set_where_the_subnet_has_one(prefix: int, broadcast: bool) -> None:
    interface = ipaddress.IPv4Interface(f"172.17.0.1/{prefix}")
    found = netlink.attributes(netlink.add_address(3, "br0", interface).body[8:])
    assert found[netlink.IFA_LOCAL] == interface.ip.packed
    assert (netlink.IFA_BROADCAST in found) == broadcast
