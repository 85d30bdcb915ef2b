"""Macvlan and ipvlan: containers on the wire behind an interface of the host.

Kinds of links that this kernel cannot make must be refused by name; where it can make them, they must work.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from driverkit import addresses_of, container, link_of, network, place, reaches
from netkit import World, eventually, interface_names

from wherry.errors import Failed, Forbidden, InvalidParameter, NotSupported
from wherry.kernel import links, netlink
from wherry.kernel.netlink import Netlink
from wherry.network.drivers.lan import IpvlanDriver, MacvlanDriver
from wherry.network.places import NetworkDriver
from wherry.network.records import NetworkRecord

pytestmark = pytest.mark.kernel
FOUR, SIX = "192.0.2.0/24", "fd00:2::/64"
OUTSIDE = "192.0.2.2"


def macvlan(*subnets: str, letter: str = "a", **options: str) -> NetworkRecord:
    return network(*subnets, driver="macvlan", letter=letter, **options)


@contextmanager
def made(driver: NetworkDriver, record: NetworkRecord) -> Iterator[None]:
    driver.check(record)
    driver.create(record)
    try:
        yield
    finally:
        driver.remove(record)


def has(kind: str) -> bool:
    with Netlink() as nl:
        return links.has_kind(nl, kind)


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_a_macvlan_container_is_on_the_parents_wire(world: World, mode: str) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0", macvlan_mode=mode)
    with made(driver, record), container() as one:
        driver.attach(record, place(1, "192.0.2.17/24"), one)
        assert eventually(lambda: reaches(world.outside, one.fd, "192.0.2.17"))
        assert reaches(one.fd, world.outside, OUTSIDE)
        assert interface_names() >= {"up0"}
        driver.detach(record, place(1), one)
        driver.detach(record, place(1), one)
        assert link_of("eth0", one.netlink) is None
    assert "up0" in interface_names()


@pytest.mark.parametrize(("mode", "meet"), [("bridge", True), ("private", False)])
def test_neighbours_meet_as_the_mode_says(world: World, mode: str, meet: bool) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, SIX, parent="up0", macvlan_mode=mode)
    with made(driver, record), container() as one, container() as two:
        driver.attach(record, place(1, "192.0.2.17/24", "fd00:2::17/64"), one)
        driver.attach(record, place(2, "192.0.2.18/24", "fd00:2::18/64"), two)
        assert addresses_of("eth0", one.netlink) == {"192.0.2.17/24", "fd00:2::17/64"}
        for address in ("192.0.2.18", "fd00:2::18"):
            assert reaches(one.fd, two.fd, address) == meet


def test_interfaces_have_the_mac_and_mtu_that_were_asked_for(world: World) -> None:
    driver = MacvlanDriver()
    record = macvlan(FOUR, parent="up0", **{"com.docker.network.driver.mtu": "1300"})
    with made(driver, record), container() as one:
        driver.attach(record, place(7, "192.0.2.17/24", interface="lan0"), one)
        link = link_of("lan0", one.netlink)
        assert link is not None
        assert (link.mac, link.mtu, link.kind) == ("02:42:00:00:00:07", 1300, "macvlan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parent": "lo"}, "loopback interface is not a valid macvlan parent link"),
        ({"parent": "nope"}, "invalid subinterface vlan name nope, example formatting is eth0.10"),
        ({"parent": "a.b.10"}, "invalid subinterface vlan name a.b.10, example formatting is eth0.10"),
        ({"parent": "up0.abc"}, "unable to parse a valid vlan id from: abc (ex. eth0.10 for vlan 10)"),
        ({"parent": "up0."}, "unable to parse a valid vlan id from:  (ex. eth0.10 for vlan 10)"),
        ({"parent": "up0.0"}, "vlan id must be between 1-4094, received: 0"),
        ({"parent": "up0.5000"}, "vlan id must be between 1-4094, received: 5000"),
        ({"parent": "nope.10"}, "-o parent interface was not found on the host: nope"),
        ({"parent": "../../x"}, "invalid parent interface"),
        (
            {"parent": "up0", "macvlan_mode": "foo"},
            "requested macvlan mode 'foo' is not valid, 'bridge' mode is the macvlan driver default",
        ),
        ({"parent": "up0", "macvlan_mode": "BRIDGE"}, "requested macvlan mode 'BRIDGE' is not valid"),
    ],
)
def test_what_cannot_be_is_refused_in_dockers_words(world: World, options: dict[str, str], message: str) -> None:
    before = interface_names()
    with pytest.raises(InvalidParameter) as refused:
        MacvlanDriver().check(macvlan(FOUR, **options))
    assert message in refused.value.message
    assert interface_names() == before


def test_a_parent_serves_one_network_until_that_is_removed(world: World) -> None:
    driver = MacvlanDriver()
    first, second = macvlan(FOUR, parent="up0"), macvlan("192.0.9.0/24", parent="up0", letter="b")
    with made(driver, first):
        driver.check(first)
        driver.create(first)
        for refused in (driver.check, driver.create):
            with pytest.raises(Forbidden, match="network dm-aaaaaaaaaaaa is already using parent interface up0"):
                refused(second)
        driver.remove(second)  # nothing of the first one's
        with pytest.raises(Forbidden):
            driver.check(second)
    driver.check(second)


def test_a_parent_that_is_down_or_gone_is_named(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0")
    with made(driver, record), container() as one, Netlink() as nl:
        link = link_of("up0")
        assert link is not None
        down = netlink.Message(netlink.RTM_NEWLINK, 0, netlink.link_body(link.index, 0, netlink.IFF_UP), "down")
        nl.transact(down)
        with pytest.raises(Failed, match="parent interface up0 of network web is down"):
            driver.attach(record, place(1, "192.0.2.17/24"), one)
        nl.transact(netlink.delete_link("up0"))
        with pytest.raises(Failed, match="parent interface up0 of network web is gone"):
            driver.attach(record, place(1, "192.0.2.17/24"), one)


def test_a_passthru_parent_serves_one_container(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0", macvlan_mode="passthru")
    with made(driver, record), container() as one, container() as two:
        driver.attach(record, place(1, "192.0.2.17/24"), one)
        with pytest.raises(Failed, match="in mode passthru it serves one container only"):
            driver.attach(record, place(2, "192.0.2.18/24"), two)


def test_a_bridges_port_is_no_parent(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0")
    with made(driver, record), container() as one, Netlink() as nl:
        nl.transact(netlink.create_bridge("lan0", mac="02:00:00:00:00:07", mtu=1500))
        bridge, link = link_of("lan0"), link_of("up0")
        assert bridge is not None
        assert link is not None
        nl.transact(netlink.set_master(link.index, "up0", bridge=bridge.index))
        with pytest.raises(Failed, match="it is in use by a bridge"):
            driver.attach(record, place(1, "192.0.2.17/24"), one)


def test_an_attachment_that_fails_leaves_nothing(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0")
    with made(driver, record), container() as one:
        with pytest.raises(InvalidParameter, match="the kernel has no such setting"):
            driver.attach(record, place(1, "192.0.2.17/24", sysctls=[("ipv4.conf.IFNAME.nonsense", "1")]), one)
        assert {link.name for link in netlink.links(one.netlink)} == {"lo"}


def test_a_vlan_is_made_when_missing_and_goes_with_its_network(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR, parent="up0.10")
    if not has("vlan"):
        with pytest.raises(NotSupported, match=r"needs the kernel's module 8021q \(CONFIG_VLAN_8021Q\)"):
            driver.check(record)
        with pytest.raises(NotSupported, match="8021q"):
            driver.create(record)
    else:
        with made(driver, record), container() as one:
            driver.attach(record, place(1, "192.0.2.17/24"), one)
            assert "up0.10" in interface_names()
    assert "up0.10" not in interface_names()


def test_without_a_parent_containers_meet_by_a_dummy_interface(world: World) -> None:
    driver, record = MacvlanDriver(), macvlan(FOUR)
    driver.check(record)
    refusal = ""
    try:
        driver.create(record)
    except NotSupported as exc:
        refusal = exc.message
    if refusal:
        assert "needs the kernel's module dummy (CONFIG_DUMMY)" in refusal
        assert "name a parent interface" in refusal
    else:
        with container() as one, container() as two:
            driver.attach(record, place(1, "192.0.2.17/24"), one)
            driver.attach(record, place(2, "192.0.2.18/24"), two)
            assert reaches(one.fd, two.fd, "192.0.2.18")
        driver.remove(record)
    assert "dm-aaaaaaaaaaaa" not in interface_names()


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_ipvlan_works_or_names_its_module(world: World, mode: str) -> None:
    driver = IpvlanDriver()
    record = network(FOUR, driver="ipvlan", parent="up0", ipvlan_mode=mode)
    if not has("ipvlan"):
        with pytest.raises(NotSupported, match=r"needs the kernel's module ipvlan \(CONFIG_IPVLAN\)"):
            driver.check(record)
        driver.create(record)
        with container() as one, pytest.raises(NotSupported, match="ipvlan"):
            driver.attach(record, place(1, "192.0.2.17/24"), one)
    else:
        with made(driver, record), container() as one, container() as two:
            driver.attach(record, place(1, "192.0.2.17/24"), one)
            driver.attach(record, place(2, "192.0.2.18/24"), two)
            assert reaches(one.fd, two.fd, "192.0.2.18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipvlan_mode": "zz"}, "requested ipvlan mode 'zz' is not valid, 'l2' mode is the ipvlan driver default"),
        ({"ipvlan_flag": "zz"}, "requested ipvlan flag 'zz' is not valid, 'bridge' is the ipvlan driver default"),
    ],
)
def test_modes_of_ipvlan_are_checked(world: World, options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        IpvlanDriver().check(network(FOUR, driver="ipvlan", parent="up0", **options))
    assert refused.value.message == message
