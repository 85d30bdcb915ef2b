"""Trouble on a link, as the kernel keeps it and as packets meet it."""

import errno
import socket
import time
from collections.abc import Iterator

import pytest
from driverkit import container, link_of, network, place, reaches
from netkit import World, make_socket

from wherry.errors import Failed, InvalidParameter, NotSupported
from wherry.kernel import traffic
from wherry.kernel.netlink import Netlink
from wherry.network import lab
from wherry.network.drivers.bridge import BridgeDriver
from wherry.network.drivers.lan import MacvlanDriver
from wherry.network.lab import Trouble
from wherry.network.places import Namespace

pytestmark = pytest.mark.kernel
PLACE = place(1, "172.30.0.2/24")
WEB = network("172.30.0.0/24")


@pytest.fixture
def one(world: World) -> Iterator[Namespace]:
    """A container on a bridge, reachable."""
    driver = BridgeDriver(lambda record: "br-web")
    driver.create(WEB)
    with container() as made:
        driver.attach(WEB, PLACE, made)
        assert reaches(None, made.fd, "172.30.0.2")
        yield made


def has_netem() -> bool:
    with Netlink() as nl:
        link = link_of("up0")
        assert link is not None
        try:
            nl.transact(traffic.put(link.index, "up0", traffic.Discipline(kind="netem"), mtu=1500))
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return False
            raise
        traffic.delete(nl, link.index, "up0")
        return True


def kinds(inside: Namespace) -> list[str]:
    found = []
    for name, side in (("eth0", inside.netlink), ("veth0000001", None)):
        with Netlink() as host:
            link = link_of(name, side)
            assert link is not None
            discipline = traffic.find(side or host, link.index)
            found.append(discipline.kind if discipline else "")
    return found


def test_a_partition_stops_everything_in_both_directions_until_it_is_cleared(one: Namespace) -> None:
    lab.set_trouble(one, PLACE, Trouble(partition=True))
    assert lab.trouble_of(one, PLACE) == Trouble(partition=True)
    assert not reaches(None, one.fd, "172.30.0.2")
    with make_socket(one.fd, socket.SOCK_DGRAM) as server, make_socket(None, socket.SOCK_DGRAM) as client:
        server.bind(("172.30.0.2", 99))
        client.sendto(b"x", ("172.30.0.2", 99))
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.recv(10)
    lab.clear(one, PLACE)
    lab.clear(one, PLACE)
    assert lab.trouble_of(one, PLACE) == lab.NONE
    assert reaches(None, one.fd, "172.30.0.2")


@pytest.mark.parametrize("rate", [8_000, 1_000_000, 100_000_000_000])
def test_a_rate_is_kept_at_both_ends_and_read_back(one: Namespace, rate: int) -> None:
    lab.set_trouble(one, PLACE, Trouble(rate=rate))
    assert lab.trouble_of(one, PLACE) == Trouble(rate=rate)
    assert kinds(one) == ["tbf", "tbf"]


def test_a_slow_line_is_slow_and_whole(one: Namespace) -> None:
    data = bytes(60_000)
    lab.set_trouble(one, PLACE, Trouble(rate=2_000_000))  # 60 kB: 0.24 s, less what is sent at once
    with make_socket(one.fd) as server, make_socket(None) as client:
        server.bind(("172.30.0.2", 80))
        server.listen()
        client.connect(("172.30.0.2", 80))
        accepted, _ = server.accept()
        with accepted:
            begun = time.monotonic()
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            got = 0
            while piece := accepted.recv(1 << 16):
                got += len(piece)
            took = time.monotonic() - begun
    assert got == len(data)
    assert took > 0.15


def test_one_trouble_takes_the_place_of_another(one: Namespace) -> None:
    lab.set_trouble(one, PLACE, Trouble(rate=1_000_000))
    lab.set_trouble(one, PLACE, Trouble(rate=2_000_000))
    lab.set_trouble(one, PLACE, Trouble(partition=True))
    assert kinds(one) == ["blackhole", "blackhole"]
    lab.set_trouble(one, PLACE, Trouble(rate=3_000_000))
    assert lab.trouble_of(one, PLACE) == Trouble(rate=3_000_000)
    lab.set_trouble(one, PLACE, lab.NONE)
    assert kinds(one) == ["", ""]


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(latency=50_000_000, jitter=10_000_000, loss=2.5, rate=8_000_000),
        Trouble(loss=12.5),
        Trouble(latency=50_000_000),
    ],
)
def test_latency_and_loss_work_or_name_what_the_kernel_lacks(one: Namespace, trouble: Trouble) -> None:
    if has_netem():
        lab.set_trouble(one, PLACE, trouble)
        assert lab.trouble_of(one, PLACE) == trouble
        assert kinds(one) == ["netem", "netem"]
        return
    with pytest.raises(NotSupported, match=r"module sch_netem \(CONFIG_NET_SCH_NETEM\)") as refused:
        lab.set_trouble(one, PLACE, trouble)
    assert ("latency" in refused.value.message) == bool(trouble.latency)
    assert kinds(one) == ["", ""]
    assert reaches(None, one.fd, "172.30.0.2")


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(latency=-1),
        Trouble(latency=1 << 63),
        Trouble(latency=5, jitter=6),
        Trouble(loss=101),
        Trouble(loss=float("nan")),
        Trouble(rate=7),
        Trouble(rate=1 << 62),
    ],
)
def test_nonsense_is_refused(one: Namespace, trouble: Trouble) -> None:
    with pytest.raises(InvalidParameter):
        lab.set_trouble(one, PLACE, trouble)
    assert kinds(one) == ["", ""]


def test_without_an_end_on_the_host_what_leaves_the_container_is_troubled(world: World) -> None:
    driver, record = MacvlanDriver(), network("192.0.2.0/24", driver="macvlan", parent="up0")
    driver.create(record)
    with container() as one:
        driver.attach(record, place(1, "192.0.2.17/24"), one)
        assert reaches(one.fd, world.outside, "192.0.2.2")
        lab.set_trouble(one, PLACE, Trouble(partition=True))
        assert not reaches(one.fd, world.outside, "192.0.2.2")
        lab.clear(one, PLACE)
        assert reaches(one.fd, world.outside, "192.0.2.2")


def test_an_interface_that_is_gone_is_named(one: Namespace) -> None:
    with pytest.raises(Failed, match="no interface eth7 in the container"):
        lab.trouble_of(one, place(1, interface="eth7"))
