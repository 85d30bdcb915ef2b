"""Bridges of users' networks, and the interfaces of containers on them."""

import contextlib
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from driverkit import addresses_of, container, link_of, network, place, reaches
from netkit import World, interface_names

from wherry.errors import Failed, Forbidden, InvalidParameter
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink
from wherry.kernel.netns import in_netns
from wherry.network.drivers import bridge, namespaces, sysctls
from wherry.network.drivers.bridge import BridgeDriver
from wherry.network.places import Namespace, Place
from wherry.network.plan import bridge_name
from wherry.network.records import NetworkRecord

pytestmark = pytest.mark.kernel
FOUR, SIX = "172.30.0.0/24", "fd00:30::/64"
B = "com.docker.network.bridge."


@pytest.fixture
def driver(world: World) -> BridgeDriver:
    return BridgeDriver(lambda record: bridge_name(record, "wherry0"))


def make(driver: BridgeDriver, record: NetworkRecord) -> str:
    driver.check(record)
    driver.create(record)
    return bridge_name(record, "wherry0")


def test_a_dual_stack_network_connects_its_containers_and_the_host_at_once(driver: BridgeDriver) -> None:
    record = network(FOUR, "172.31.0.0/24", SIX)
    name = make(driver, record)
    assert name == "br-aaaaaaaaaaaa"
    assert addresses_of(name) == {"172.30.0.1/24", "172.31.0.1/24", "fd00:30::1/64"}
    with container() as one, container() as two:
        driver.attach(record, place(1, "172.30.0.2/24", "fd00:30::2/64", "fe80::77/64"), one)
        driver.attach(record, place(2, "172.31.0.2/24", "fd00:30::3/64"), two)
        namespaces.set_default_routes(one, [("eth0", "172.30.0.1"), ("eth0", "fd00:30::1")])
        namespaces.set_default_routes(two, [("eth0", "172.31.0.1"), ("eth0", "fd00:30::1")])
        assert reaches(two.fd, one.fd, "fd00:30::2")
        assert reaches(None, two.fd, "fd00:30::3")
        assert reaches(None, one.fd, "172.30.0.2")
        assert reaches(one.fd, None, "172.31.0.1")
        link = link_of("eth0", one.netlink)
        assert link is not None
        assert "fe80::77/64" in {
            str(each.interface) for each in netlink.addresses(one.netlink, 6) if each.index == link.index
        }


def test_a_network_of_ipv6_only_works(driver: BridgeDriver) -> None:
    record = network(SIX)
    make(driver, record)
    with container() as one, container() as two:
        driver.attach(record, place(1, "fd00:30::2/64"), one)
        driver.attach(record, place(2, "fd00:30::3/64"), two)
        assert reaches(one.fd, two.fd, "fd00:30::3")
        assert addresses_of("eth0", one.netlink) == {"fd00:30::2/64"}


def test_without_ipv6_neither_bridge_nor_container_has_any(driver: BridgeDriver) -> None:
    record = network(FOUR)
    name = make(driver, record)
    with container() as one, Netlink() as nl:
        driver.attach(record, place(1, "172.30.0.2/24"), one)
        for side, interface in ((nl, name), (one.netlink, "eth0")):
            link = link_of(interface, side)
            assert link is not None
            assert [each for each in netlink.addresses(side, 6) if each.index == link.index] == []


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (network(FOUR, SIX, internal=True), {"172.30.0.1/24", "fd00:30::1/64"}),
        (network(FOUR, SIX, **{f"{B}inhibit_ipv4": "true"}), {"fd00:30::1/64"}),
        (network(FOUR, SIX, internal=True, **{f"{B}gateway_mode_ipv6": "isolated"}), {"172.30.0.1/24"}),
    ],
)
def test_the_bridge_has_the_gateways_the_network_wants(
    driver: BridgeDriver, record: NetworkRecord, expected: set[str]
) -> None:
    assert addresses_of(make(driver, record)) == expected


def test_creating_again_puts_right_what_was_changed(driver: BridgeDriver) -> None:
    record = network(FOUR, **{"com.docker.network.driver.mtu": "1400"})
    name = make(driver, record)
    with Netlink() as nl:
        link = link_of(name)
        assert link is not None
        assert (link.mtu, link.up) == (1400, True)
        nl.transact(
            netlink.set_mtu(link.index, name, 1300),
            netlink.delete_address(link.index, name, ipaddress.ip_interface("172.30.0.1/24")),
            netlink.add_address(link.index, name, ipaddress.ip_interface("172.30.9.1/24")),
        )
    driver.create(record)
    assert addresses_of(name) == {"172.30.0.1/24"}
    again = link_of(name)
    assert again is not None
    assert (again.index, again.mtu) == (link.index, 1400)


def test_containers_have_the_networks_mtu(driver: BridgeDriver) -> None:
    record = network(FOUR, **{"com.docker.network.driver.mtu": "1400"})
    make(driver, record)
    with container() as one:
        driver.attach(record, place(1, "172.30.0.2/24"), one)
        for name, side in (("eth0", one.netlink), ("veth0000001", None)):
            link = link_of(name, side)
            assert link is not None
            assert link.mtu == 1400


def test_a_removed_network_takes_its_bridge_along_and_removing_again_is_nothing(driver: BridgeDriver) -> None:
    record = network(FOUR)
    name = make(driver, record)
    driver.remove(record)
    driver.remove(record)
    assert name not in interface_names()


def test_an_existing_bridge_is_used_and_left_behind(driver: BridgeDriver) -> None:
    with Netlink() as nl:
        nl.transact(netlink.create_bridge("lan0", mac="02:00:00:00:00:07", mtu=1500))
        link = link_of("lan0")
        assert link is not None
        nl.transact(netlink.add_address(link.index, "lan0", ipaddress.ip_interface("10.99.0.1/24")))
    record = network(FOUR, **{f"{B}name": "lan0"})
    make(driver, record)
    assert addresses_of("lan0") == {"10.99.0.1/24", "172.30.0.1/24"}
    driver.remove(record)
    assert "lan0" in interface_names()


def test_two_networks_cannot_have_one_bridge(driver: BridgeDriver) -> None:
    make(driver, network(FOUR, **{f"{B}name": "lan0"}))
    other = network("172.31.0.0/24", letter="b", **{f"{B}name": "lan0"})
    with pytest.raises(Forbidden, match="networks have same bridge name"):
        driver.create(other)
    driver.remove(other)
    assert addresses_of("lan0") == {"172.30.0.1/24"}


def test_an_interface_that_is_no_bridge_is_refused(driver: BridgeDriver) -> None:
    with pytest.raises(Failed, match="existing interface up0 is not a bridge"):
        driver.create(network(FOUR, **{f"{B}name": "up0"}))


def test_a_subnet_that_another_interface_has_is_refused_and_no_bridge_left(driver: BridgeDriver) -> None:
    with pytest.raises(Failed, match=r"interface up0 has 192\.0\.2\.1/24"):
        driver.create(network("192.0.2.0/24"))
    assert "br-aaaaaaaaaaaa" not in interface_names()


@pytest.mark.parametrize("address", ["172.30.0.3", "fd00:30::3"])
def test_without_icc_containers_do_not_meet(driver: BridgeDriver, address: str) -> None:
    filtered = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if filtered.exists():
        filtered.write_text("0")  # otherwise it is the firewall that keeps them apart
    record = network(FOUR, SIX, **{f"{B}enable_icc": "false"})
    make(driver, record)
    with container() as one, container() as two:
        driver.attach(record, place(1, "172.30.0.2/24", "fd00:30::2/64"), one)
        driver.attach(record, place(2, "172.30.0.3/24", "fd00:30::3/64"), two)
        assert reaches(None, two.fd, address)
        assert not reaches(one.fd, two.fd, address)


def take_name(one: Namespace, driver: BridgeDriver) -> Place:
    driver.attach(network(FOUR), place(7, "172.30.0.7/24"), one)
    return place(1, "172.30.0.2/24")


def bad_sysctl(one: Namespace, driver: BridgeDriver) -> Place:
    return place(1, "172.30.0.2/24", sysctls=[("ipv4.conf.IFNAME.nonsense", "1")])


def same_address_twice(one: Namespace, driver: BridgeDriver) -> Place:
    return place(1, "172.30.0.2/24", "172.30.0.2/24")


@pytest.mark.parametrize("trouble", [take_name, bad_sysctl, same_address_twice])
def test_an_attachment_that_fails_leaves_nothing(
    driver: BridgeDriver, trouble: Callable[[Namespace, BridgeDriver], Place]
) -> None:
    record = network(FOUR)
    make(driver, record)
    with container() as one:
        wanted = trouble(one, driver)
        before = interface_names(), {link.name for link in netlink.links(one.netlink)}
        with pytest.raises((OSError, InvalidParameter)):
            driver.attach(record, wanted, one)
        assert (interface_names(), {link.name for link in netlink.links(one.netlink)}) == before


def test_another_containers_pair_is_not_harmed_by_a_clash_of_names(driver: BridgeDriver) -> None:
    record = network(FOUR)
    make(driver, record)
    with container() as one, container() as two:
        driver.attach(record, place(1, "172.30.0.2/24"), one)
        driver.attach(record, place(2, "172.30.0.3/24"), two)
        with pytest.raises(OSError, match="File exists"):
            driver.attach(record, place(1, "172.30.0.4/24"), two)
        assert reaches(two.fd, one.fd, "172.30.0.2")


def test_a_container_leaves_and_joins_networks_while_it_runs(driver: BridgeDriver) -> None:
    web, data = network(FOUR), network(SIX, name="data", letter="b")
    make(driver, web)
    make(driver, data)
    with container() as one:
        driver.attach(web, place(1, "172.30.0.2/24"), one)
        second = place(2, "fd00:30::2/64", interface="eth1")
        driver.attach(data, second, one)
        assert reaches(None, one.fd, "fd00:30::2")
        driver.detach(data, second, one)
        driver.detach(data, second, one)
        assert {link.name for link in netlink.links(one.netlink)} == {"lo", "eth0"}
        assert "veth0000002" not in interface_names()
        assert reaches(None, one.fd, "172.30.0.2")


def test_containers_come_back_to_a_bridge_that_was_deleted(driver: BridgeDriver) -> None:
    record = network(FOUR)
    name = make(driver, record)
    with container() as one, Netlink() as nl:
        here = place(1, "172.30.0.2/24")
        driver.attach(record, here, one)
        nl.transact(netlink.delete_link(name))
        driver.create(record)
        driver.reattach(record, [here, place(9, "172.30.0.9/24")])
        bridge.await_passing(nl, name, here.host_name)
        assert reaches(None, one.fd, "172.30.0.2")


def test_a_bridge_that_is_gone_is_named(driver: BridgeDriver) -> None:
    with container() as one, pytest.raises(Failed, match="bridge br-aaaaaaaaaaaa is gone"):
        driver.attach(network(FOUR), place(1, "172.30.0.2/24"), one)


def test_an_endpoint_has_its_own_sysctls_and_interface_name(driver: BridgeDriver) -> None:
    record = network(FOUR)
    make(driver, record)
    with container() as one:
        settings = [("ipv4.conf.IFNAME.log_martians", "1"), ("ipv4.conf.IFNAME.forwarding", "1")]
        driver.attach(record, place(1, "172.30.0.2/24", interface="web.lan0", sysctls=settings), one)
        folder = Path("/proc/sys/net/ipv4/conf/web.lan0")
        found = in_netns(one.fd, lambda: [(folder / key).read_text() for key in ("log_martians", "forwarding")])
        assert found == ["1\n", "1\n"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 16])
def test_a_name_no_interface_can_have_is_refused(driver: BridgeDriver, name: str) -> None:
    with container() as one, pytest.raises(InvalidParameter, match="invalid interface name"):
        driver.attach(network(FOUR), place(1, interface=name), one)


def test_what_the_host_uses_is_known_for_both_families(driver: BridgeDriver) -> None:
    record = network(FOUR, SIX)
    name = make(driver, record)
    busy = set(map(str, bridge.busy_subnets()))
    assert {FOUR, SIX, "192.0.2.0/24"} <= busy
    assert not {FOUR, SIX} & set(map(str, bridge.busy_subnets(but=name)))


def test_a_host_that_routes_ipv6_for_containers_still_listens_to_its_router(world: World) -> None:
    conf = Path("/proc/sys/net/ipv6/conf")
    (conf / "up0/accept_ra").write_text("1")
    sysctls.forward_six()
    assert (conf / "all/forwarding").read_text() == "1\n"
    assert (conf / "up0/accept_ra").read_text() == "2\n"
    assert not sysctls.forward_six()


def test_what_containers_advertise_is_not_the_hosts_way_out(driver: BridgeDriver) -> None:
    name = make(driver, network(SIX))
    assert Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").read_text() == "0\n"


def test_the_default_bridge_is_left_to_its_own_functions(driver: BridgeDriver) -> None:
    record = network("172.17.0.0/16", name="bridge")
    driver.check(record)
    driver.create(record)
    driver.remove(record)
    assert "wherry0" not in interface_names()
    with contextlib.ExitStack() as stack:
        nl = stack.enter_context(Netlink())
        nl.transact(netlink.create_bridge("wherry0", mac="02:00:00:00:00:07", mtu=1500))
        one = stack.enter_context(container())
        driver.attach(record, place(1, "172.17.0.2/16"), one)
        link = link_of("veth0000001")
        assert link is not None
        assert link.master
