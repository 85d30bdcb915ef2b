"""Port requests, and holding ports of the host: real sockets on loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.network.ports import (
    Held,
    HostPorts,
    PortRequest,
    PortTaken,
    ephemeral_range,
    parse_port,
    parse_ports,
    show,
)
from wherry.spec.engine import PortBinding


def bind(host_port: str = "", host_ip: str = "") -> list[PortBinding]:
    return [PortBinding(host_port=host_port, host_ip=host_ip)]


def wanted(container_port: int, first: int = 0, last: int = 0, host_ip: str = "", protocol: str = "tcp") -> PortRequest:
    return PortRequest(
        container_port=container_port, protocol=protocol, host_ip=host_ip, first=first, last=last or first
    )


@pytest.mark.parametrize(
    ("bindings", "requests"),
    [
        (None, []),
        ({"80/tcp": None}, []),
        ({"80/tcp": []}, []),
        ({"80": bind("8080")}, [wanted(80, 8080)]),
        ({"80/TCP": bind("8080")}, [wanted(80, 8080)]),
        ({"80/tcp": bind("")}, [wanted(80)]),
        ({"80/tcp": bind("0")}, [wanted(80)]),
        ({"80/tcp": bind("8000-8010")}, [wanted(80, 8000, 8010)]),
        ({"53/udp": bind("53", "127.0.0.1")}, [wanted(53, 53, host_ip="127.0.0.1", protocol="udp")]),
        ({"80/tcp": bind("80", "[::1]")}, [wanted(80, 80, host_ip="::1")]),
        ({"80/tcp": bind("8080") + bind("8081")}, [wanted(80, 8080), wanted(80, 8081)]),
        ({"1/sctp": bind("1")}, [wanted(1, 1, protocol="sctp")]),
    ],
)
def test_bindings_become_requests(bindings: dict[str, list[PortBinding] | None], requests: list[PortRequest]) -> None:
    assert parse_ports(None, bindings, False) == requests


def test_publish_all_takes_every_exposed_port_that_is_not_bound() -> None:
    exposed = ["80/tcp", "443", "53/udp"]
    found = parse_ports(exposed, {"80/tcp": bind("8080"), "99/tcp": None}, True)
    assert found == [wanted(80, 8080), wanted(53, protocol="udp"), wanted(99), wanted(443)]
    assert parse_ports(exposed, None, False) == []


def test_particular_ports_come_before_ranges_and_ephemeral_ones() -> None:
    bindings: dict[str, list[PortBinding] | None] = {"1": bind(""), "2": bind("8000-8001"), "3": bind("8000")}
    assert [request.container_port for request in parse_ports(None, bindings, False)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"x/tcp": bind("1")}, 'invalid port specification: "x/tcp"'),
        ({"0/tcp": bind("1")}, 'invalid port specification: "0/tcp"'),
        ({"65536/tcp": bind("1")}, 'invalid port specification: "65536/tcp"'),
        ({"": bind("1")}, 'invalid port specification: ""'),
        ({"80/icmp": bind("1")}, "invalid proto: icmp"),
        ({"80/": bind("1")}, "invalid proto: "),
        ({"80": bind("http")}, 'invalid port specification: "http"'),
        ({"80": bind("-1")}, 'invalid port specification: "-1"'),
        ({"80": bind("١٢")}, 'invalid port specification: "١٢"'),
        ({"80": bind("99999")}, 'invalid port specification: "99999"'),
        ({"80": bind("9-8")}, 'invalid port specification: "9-8": the range ends before it begins'),
        ({"80": bind("8-")}, 'invalid port specification: "8-"'),
        ({"80": bind("1", "1.2.3")}, "invalid host IP address: 1.2.3"),
    ],
)
def test_wrong_ports_are_refused_in_dockers_words(bindings: dict[str, list[PortBinding] | None], message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_ports(None, bindings, False)
    assert refused.value.message == message


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_text_breaks_the_parser(key: str, port: str, address: str) -> None:
    try:
        requests = parse_ports([key], {key: bind(port, address)}, True)
    except WherryError:
        return
    assert all(0 < request.container_port < 65536 for request in requests)


def test_addresses_are_shown_with_brackets_where_needed() -> None:
    assert show("::", 80) == "[::]:80"
    assert show("0.0.0.0", 80) == "0.0.0.0:80"
    assert parse_port("80") == (80, "tcp")


def test_the_kernels_ephemeral_range_is_used_or_dockers(tmp_path: Path) -> None:
    file = tmp_path / "range"
    file.write_text("40000\t50000\n")
    assert ephemeral_range(file) == (40000, 50000)
    file.write_text("nonsense")
    assert ephemeral_range(file) == (49153, 65535)
    assert ephemeral_range(tmp_path / "missing") == (49153, 65535)


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports nobody has, below the ephemeral range."""
    for first in range(20000, 30000, count):
        held: list[socket.socket] = []
        try:
            for number in range(first, first + count):
                for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                    held.append(socket.socket(family))
                    if family == socket.AF_INET6:
                        held[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    held[-1].bind((address, number))
            return first
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    pytest.fail("no free ports")


FOUR, BOTH, SIX = ("10.0.0.2", ""), ("10.0.0.2", "fd00::2"), ("", "fd00::2")  # a container's addresses
ANY = "0.0.0.0"


class Ports(HostPorts):
    """Closes what a test leaves; on loopback unless told otherwise."""

    def take(
        self, request: PortRequest, addresses: tuple[str, str] = FOUR, default_bind: str = "127.0.0.1"
    ) -> tuple[Held, ...]:
        return self.acquire(request, addresses, default_bind)

    def close(self) -> None:
        for by_address in list(self._held.values()):
            self.release(list(by_address.values()))


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.close()


def test_a_port_is_held_until_released(ports: Ports) -> None:
    number = free_ports(1)
    held = ports.take(wanted(80, number))
    with socket.socket() as program, pytest.raises(OSError, match="in use"):
        program.bind(("127.0.0.1", number))
    ports.release(held)
    ports.release(held)
    assert len(ports) == 0
    with socket.socket() as program:
        program.bind(("127.0.0.1", number))


def test_one_address_of_several_collides_only_with_itself_and_with_any() -> None:
    number = free_ports(1)
    ports = Ports()
    try:
        ports.take(wanted(80, number, host_ip="127.0.0.1"))
        ports.take(wanted(80, number, host_ip="127.0.0.2"))
        ports.take(wanted(80, number, host_ip="127.0.0.1", protocol="udp"))
        for host_ip in ("127.0.0.1", "0.0.0.0", ""):
            with pytest.raises(PortTaken, match="port is already allocated"):
                ports.take(wanted(80, number, host_ip=host_ip), default_bind=ANY)
        assert len(ports) == 3
    finally:
        ports.close()


def test_any_address_is_held_for_both_families() -> None:
    number = free_ports(1)
    ports = Ports()
    try:
        held = ports.take(wanted(80, number), default_bind=ANY)
        assert [one.port.host_ip for one in held] == ["0.0.0.0", "::"]
        assert [one.relayed for one in held] == [False, True]
        also = ports.take(wanted(80, number, protocol="udp"), default_bind=ANY)
        assert [(one.port.host_ip, one.relayed) for one in also] == [("0.0.0.0", False), ("::", True)]
    finally:
        ports.close()


@pytest.mark.parametrize(
    ("addresses", "host_ip", "respect", "relayed"),
    [
        (FOUR, "127.0.0.1", False, False),
        (FOUR, "::1", False, True),
        (BOTH, "::1", False, True),  # the kernel does not route it
        (BOTH, "::", False, True),  # for ::1
        (SIX, "127.0.0.1", False, True),
        (SIX, "0.0.0.0", False, True),
        (FOUR, "0.0.0.0", True, True),
        (BOTH, "0.0.0.0", True, True),
        (FOUR, "127.0.0.1", True, False),  # nobody from outside comes this way
    ],
)
def test_a_relay_serves_what_the_firewall_cannot(
    addresses: tuple[str, str], host_ip: str, respect: bool, relayed: bool
) -> None:
    ports = Ports(respect=respect)
    try:
        for protocol in ("tcp", "udp"):
            (held,) = ports.take(wanted(80, free_ports(1), host_ip=host_ip, protocol=protocol), addresses)
            assert held.relayed == relayed
            assert held.socket is not None
            if protocol == "tcp" and relayed:
                assert held.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    finally:
        ports.close()


def test_sctp_is_never_relayed() -> None:
    ports = Ports()
    try:
        both = ports.take(wanted(80, free_ports(1), protocol="sctp"), BOTH, default_bind=ANY)
        assert [(one.port.host_ip, one.relayed) for one in both] == [("0.0.0.0", False), ("::", False)]
        six = ports.take(wanted(80, free_ports(2) + 1, protocol="sctp"), SIX, default_bind=ANY)
        assert [one.port.host_ip for one in six] == ["::"]
        with pytest.raises(NotSupported, match="the container has not an IPv6 address"):
            ports.take(wanted(80, free_ports(1), host_ip="::1", protocol="sctp"), FOUR)
    finally:
        ports.close()
    with pytest.raises(NotSupported, match="only tcp and udp can be judged"):
        Ports(respect=True).take(wanted(80, free_ports(1), protocol="sctp"), FOUR)


def test_when_one_family_is_taken_neither_is_held() -> None:
    number = free_ports(1)
    ports = Ports()
    with socket.socket(socket.AF_INET6) as program:
        program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        program.bind(("::", number))
        program.listen()
        with pytest.raises(PortTaken, match=rf"failed to bind host port for \[::\]:{number}:10.0.0.2:80/tcp: address"):
            ports.take(wanted(80, number), default_bind=ANY)
    assert len(ports) == 0
    with socket.socket() as program:
        program.bind(("0.0.0.0", number))


def test_ephemeral_ports_go_round_and_skip_what_is_taken() -> None:
    first = free_ports(3)
    ports = Ports(ephemeral=(first, first + 2))
    try:
        with socket.socket() as program:
            program.bind(("127.0.0.1", first + 1))
            one, two = (ports.take(wanted(80)) for _ in range(2))
            assert [held[0].port.host_port for held in (one, two)] == [first, first + 2]
            with pytest.raises(PortTaken, match=r"Bind for 127\.0\.0\.1:0 failed: all ports are allocated"):
                ports.take(wanted(80))
        ports.release(one)
        (again,) = ports.take(wanted(80))
        assert again.port.host_port in (first, first + 1)
    finally:
        ports.close()
