"""Namespaces of containers: entered again, and their ways out."""

import ipaddress
import os

import pytest
from driverkit import container, default_routes
from netkit import World

from harness.descriptors import descriptors
from wherry.errors import Failed
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink
from wherry.network.drivers import namespaces
from wherry.network.places import Namespace

pytestmark = pytest.mark.kernel


def give(inside: Namespace, name: str, *addresses: str) -> None:
    """An interface of a pair whose other half is in the host's namespace."""
    with Netlink() as nl:
        nl.transact(
            netlink.create_veth(
                f"v{name}", bridge=0, peer=name, peer_mac="02:00:00:00:00:09", netns=inside.fd, mtu=1500
            )
        )
    link = netlink.find_link(inside.netlink, name)
    assert link is not None
    namespaces.in_netns(inside.fd, lambda: namespaces.sysctls.use_six(name))
    inside.netlink.transact(
        netlink.set_up(link.index, name),
        *(netlink.add_address(link.index, name, ipaddress.ip_interface(address)) for address in addresses),
    )


def test_default_routes_are_set_moved_and_taken_away(world: World) -> None:
    with container() as one:
        give(one, "eth0", "10.1.0.2/24", "fd00:1::2/64")
        give(one, "eth1", "10.2.0.2/24", "fd00:2::2/64")
        steps = [
            [("eth0", "10.1.0.1")],
            [("eth0", "10.1.0.1"), ("eth0", "fd00:1::1")],
            [("eth1", "10.2.0.1"), ("eth0", "fd00:1::1")],
            [("eth1", "10.2.0.1"), ("eth1", "fd00:2::1")],
            [("eth1", "10.2.0.9"), ("eth1", "fd00:2::9")],
            [("eth1", "fd00:2::9")],
            [],
        ]
        for via in steps:
            namespaces.set_default_routes(one, via)
            namespaces.set_default_routes(one, via)
            found = default_routes(one.netlink, 4) + default_routes(one.netlink, 6)
            assert found == via


def test_without_a_gateway_everybody_is_on_the_link_of_the_families_it_has(world: World) -> None:
    with container() as one:
        give(one, "eth0", "10.1.0.2/24")
        give(one, "eth1", "10.2.0.2/24", "fd00:2::2/64")
        namespaces.set_default_routes(one, [("eth0", "")])
        assert (default_routes(one.netlink, 4), default_routes(one.netlink, 6)) == ([("eth0", "")], [])
        namespaces.set_default_routes(one, [("eth1", "")])
        assert (default_routes(one.netlink, 4), default_routes(one.netlink, 6)) == ([("eth1", "")], [("eth1", "")])


def test_a_route_with_a_metric_is_somebody_elses(world: World) -> None:
    with container() as one:
        give(one, "eth0", "10.1.0.2/24")
        route = netlink.add_default_route(2, "eth0", ipaddress.ip_address("10.1.0.7"))
        metric = netlink.attribute(netlink.RTA_PRIORITY, b"\x32\0\0\0")
        link = netlink.find_link(one.netlink, "eth0")
        assert link is not None
        assert link.index == 2
        one.netlink.transact(netlink.Message(route.type, route.flags, route.body + metric, "add a route"))
        namespaces.set_default_routes(one, [("eth0", "10.1.0.1")])
        namespaces.set_default_routes(one, [])
        assert default_routes(one.netlink, 4) == [("eth0", "10.1.0.7")]


def test_an_interface_that_is_gone_is_named(world: World) -> None:
    with container() as one, pytest.raises(Failed, match="no interface eth7 in the container"):
        namespaces.set_default_routes(one, [("eth7", "10.1.0.1")])


async def test_a_namespace_is_entered_by_path_and_by_fd_and_left_without_a_trace(world: World) -> None:
    with container() as one:
        give(one, "eth0", "10.1.0.2/24")
        before = descriptors()
        for where in (f"/proc/self/fd/{one.fd}", one.fd):
            async with namespaces.inside(where) as entered:
                assert netlink.find_link(entered.netlink, "eth0") is not None
                assert os.fstat(entered.fd).st_ino == os.fstat(one.fd).st_ino
            namespaces.close(entered)
        assert not descriptors() - before


def test_a_path_that_is_no_namespace_is_refused_and_nothing_stays_open(world: World) -> None:
    before = descriptors()
    for path in ("/proc/self/ns/none", "/dev/null"):
        with pytest.raises(OSError):
            namespaces.enter(path)
    assert not descriptors() - before
