"""Networks that users make, with real links and packets: made, used, joined, left, removed, found again."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from netkit import HOST, NEIGHBOUR, World, ask_tcp, eventually, greeter, interface_names, make_socket
from test_sandboxes import Host, call, here, hosting, new_id, publish

from harness.descriptors import descriptors
from wherry.errors import Conflict, Failed, Forbidden, InvalidParameter, NotFound, WherryError
from wherry.events import Events
from wherry.kernel import nftables
from wherry.network.catalog import Catalog
from wherry.network.endpoint import EndpointRequest, Port
from wherry.network.networks import NetworkConfig, Networks, Sandbox, SandboxRequest
from wherry.spec.engine import IPAM, CreateNetwork, IPAMPool
from wherry.state import State

pytestmark = pytest.mark.kernel

FORWARDING6 = Path("/proc/sys/net/ipv6/conf/all/forwarding")


@pytest.fixture
async def host(world: World) -> AsyncIterator[Host]:
    async with hosting() as made:
        yield made


def network(name: str, subnet: str = "", **fields: Any) -> CreateNetwork:
    ipam = IPAM(config=[IPAMPool(subnet=subnet)]) if subnet else None
    return CreateNetwork(name=name, ipam=ipam, **fields)


async def run_on(host: Host, *names: str, ports: tuple[str, ...] = (), container: str = "", **wanted: Any) -> Sandbox:
    endpoints = [EndpointRequest(network=name, names=("web",), **wanted) for name in names]
    request = SandboxRequest(name="web", endpoints=endpoints, ports=publish(*ports))
    sandbox = await host.networks.connect(container or new_id(), request)
    assert sandbox.netns is not None
    host.fds.append(sandbox.netns)
    return sandbox


def path(sandbox: Sandbox) -> str:
    return here(sandbox).netns_path


async def reaches(one: Sandbox, address: str) -> bool:
    """Whether a connection is made. What is dropped is given up soon: the way is a millisecond long."""

    def connect() -> bool:
        with make_socket(one.netns) as client:
            client.settimeout(0.3)
            return client.connect_ex((address, 80)) == 0

    return await asyncio.to_thread(connect)


async def test_containers_of_one_network_meet_and_others_do_not(host: Host) -> None:
    for name in ("one", "two"):
        await host.networks.create(network(name))
    server, friend, stranger = await run_on(host, "one"), await run_on(host, "one"), await run_on(host, "two")
    with greeter(server.netns, 80):
        assert await call(ask_tcp, server.endpoints[0].ip, 80, fd=friend.netns) == friend.endpoints[0].ip
        assert not await reaches(stranger, server.endpoints[0].ip)


async def test_a_network_leads_out_unless_it_is_internal(host: Host, world: World) -> None:
    await host.networks.create(network("out"))
    await host.networks.create(network("inside", internal=True))
    out, inside = await run_on(host, "out"), await run_on(host, "inside")
    assert inside.endpoints[0].gateway == ""
    with greeter(world.outside, 80):
        assert await call(ask_tcp, NEIGHBOUR, 80, fd=out.netns) == HOST
        assert not await reaches(inside, NEIGHBOUR)


async def test_both_address_families(host: Host) -> None:
    before = FORWARDING6.read_text()
    await host.networks.create(network("dual", enable_ipv6=True))
    one, two = await run_on(host, "dual"), await run_on(host, "dual")
    endpoint = one.endpoints[0]
    assert endpoint.ip6.startswith("fd")
    assert endpoint.prefix6 == 64
    with greeter(one.netns, 80):
        assert await call(ask_tcp, endpoint.ip, 80, fd=two.netns) == two.endpoints[0].ip
    await host.networks.stop(keep=False)
    assert FORWARDING6.read_text() == before


@pytest.mark.parametrize(("allowed", "expected"), [(True, "1"), (False, "0")])
async def test_the_host_routes_ipv6_only_where_it_may_and_must(world: World, allowed: bool, expected: str) -> None:
    FORWARDING6.write_text("0")
    async with hosting(NetworkConfig(ip_forward=allowed)) as host:
        await host.networks.create(network("four"))
        await host.networks.create(network("inside", enable_ipv6=True, internal=True))
        assert FORWARDING6.read_text().strip() == "0"
        await host.networks.create(network("six", enable_ipv6=True))
        assert FORWARDING6.read_text().strip() == expected


async def test_a_container_joins_and_leaves_networks_while_it_runs(host: Host) -> None:
    for name in ("one", "two"):
        await host.networks.create(network(name))
    container = new_id()
    server, other = await run_on(host, "one", container=container), await run_on(host, "two")
    assert not await reaches(other, server.endpoints[0].ip)
    endpoint, _ = await host.networks.join(container, EndpointRequest(network="two"), path(server))
    assert endpoint.interface == "eth1"
    with greeter(server.netns, 80):
        assert await call(ask_tcp, endpoint.ip, 80, fd=other.netns) == other.endpoints[0].ip
        with pytest.raises(Forbidden, match="already exists in network two"):
            await host.networks.join(container, EndpointRequest(network="two"), path(server))
        await host.networks.leave(container, "two", path(server))
        assert not await reaches(other, endpoint.ip)
    with pytest.raises(NotFound, match="is not connected to network two"):
        await host.networks.leave(container, "two", path(server))
    again, _ = await host.networks.join(container, EndpointRequest(network="two"), path(server))
    assert again.ip == endpoint.ip


async def test_a_container_with_loopback_only_joins_its_first_network_or_stays_as_it_was(world: World) -> None:
    state, container = State(None), new_id()
    async with hosting(state=state) as host:
        await host.networks.create(network("one", "10.5.0.0/24"))
        sandbox = await host.networks.connect(container, SandboxRequest(mode="none"))
        assert sandbox.netns is not None
        host.fds.append(sandbox.netns)
        with pytest.raises(Failed, match="Address already in use"):
            await host.networks.join(container, EndpointRequest(network="one", ip="10.5.0.1"), path(sandbox))
        assert (host.networks.held(container), state.rows("endpoints")) == (None, {})
        endpoint, _ = await host.networks.join(container, EndpointRequest(network="one"), path(sandbox))
        assert host.networks.held(container) == ((endpoint,), ())
        await host.networks.release(container)
        await host.networks.remove("one")


async def test_published_ports_follow_the_way_out(host: Host, world: World) -> None:
    for name in ("one", "two"):
        await host.networks.create(network(name))
    await host.networks.create(network("inside", internal=True))
    container = new_id()
    sandbox = await run_on(host, "inside", ports=("8080:80",), container=container)
    assert sandbox.ports == ()
    with greeter(sandbox.netns, 80):
        _, ports = await host.networks.join(container, EndpointRequest(network="two"), path(sandbox))
        assert {port.host_port for port in ports} == {8080}
        assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        await host.networks.join(container, EndpointRequest(network="one", gw_priority=1), path(sandbox))
        assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        await host.networks.leave(container, "one", path(sandbox))
        assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        assert await host.networks.leave(container, "two", path(sandbox)) == ()
    await run_on(host, "one", ports=("8080:80",))  # nobody holds it


async def test_a_join_whose_ports_are_taken_changes_nothing(world: World) -> None:
    state, container = State(None), new_id()
    async with hosting(state=state) as host:
        await host.networks.create(network("inside", internal=True))
        await host.networks.create(network("out", options={"wherry.egress": "none"}))
        sandbox = await run_on(host, "inside", ports=("8080:80", "9090:90"), container=container)
        await run_on(host, "bridge", ports=("9090:90",))
        links, rules, rows = interface_names(), nftables.run("list ruleset"), dict(state.rows("endpoints"))
        fds, held = descriptors(), host.networks.held(container)
        with pytest.raises(Failed, match="port is already allocated"):
            await host.networks.join(container, EndpointRequest(network="out"), path(sandbox))
        assert eventually(lambda: interface_names() == links)
        assert nftables.run("list ruleset") == rules
        assert (dict(state.rows("endpoints")), host.networks.held(container)) == (rows, held)
        assert not descriptors() - fds
        await run_on(host, "bridge", ports=("8080:80",))  # it holds no port
        await host.networks.remove("out")


async def test_ports_of_a_running_container_change_all_or_nothing(host: Host, world: World) -> None:
    container = new_id()
    sandbox = await run_on(host, "bridge", ports=("8080:80",), container=container)
    await run_on(host, "bridge", ports=("9000:90",))
    old = [port for port in sandbox.ports if port.host_ip == "0.0.0.0"]
    with greeter(sandbox.netns, 80):
        with pytest.raises(Failed, match="port is already allocated"):
            await host.networks.change_ports(container, publish("8081:80", "9000:80"), sandbox.ports)
        assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        gone = Port(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=1)
        with pytest.raises(NotFound, match="is not published"):
            await host.networks.change_ports(container, (), [gone])
        ports = await host.networks.change_ports(container, publish("8081:80"), sandbox.ports)
        assert {port.host_port for port in ports} == {8081}
        assert await call(ask_tcp, HOST, 8081, fd=world.outside) == NEIGHBOUR
        with pytest.raises(OSError, match="refused"):
            await call(ask_tcp, HOST, old[0].host_port, fd=world.outside)


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"ip": "10.5.0.1"}, Failed, "Address already in use"),
        ({"ip": "10.6.0.9"}, InvalidParameter, "no configured subnet contains IP address 10.6.0.9"),
        ({"mac": "01:00:5e:00:00:01"}, InvalidParameter, "invalid MAC address"),
        ({"network": "nowhere"}, NotFound, "network nowhere not found"),
    ],
)
async def test_what_an_endpoint_cannot_have(
    host: Host, wanted: dict[str, str], kind: type[WherryError], words: str
) -> None:
    await host.networks.create(network("one", "10.5.0.0/24"))
    endpoint = EndpointRequest(**{"network": "one", **wanted})  # type: ignore[arg-type]
    with pytest.raises(kind, match=words):
        await host.networks.connect(new_id(), SandboxRequest(endpoints=[endpoint]))
    sandbox = await run_on(host, "one", ip="10.5.0.77", mac="02:00:00:00:05:77")
    assert (sandbox.endpoints[0].ip, sandbox.endpoints[0].mac) == ("10.5.0.77", "02:00:00:00:05:77")


async def test_a_network_in_use_stays_and_one_that_is_not_leaves_nothing(host: Host) -> None:
    ruleset, links = nftables.run("list ruleset"), interface_names()
    await host.networks.create(network("one"))
    container = new_id()
    sandbox = await run_on(host, "one", container=container)
    with pytest.raises(Forbidden, match=r"network one has active endpoints \(name:\"web\""):
        await host.networks.remove("one")
    await host.networks.release(container)
    os.close(host.fds.pop())
    assert sandbox.endpoints[0].network == "one"
    await host.networks.remove("one")
    assert nftables.run("list ruleset") == ruleset
    assert eventually(lambda: interface_names() == links)
    with pytest.raises(NotFound):
        await host.networks.remove("one")
    with pytest.raises(Forbidden, match="pre-defined network"):
        await host.networks.remove("bridge")


async def test_a_network_that_cannot_be_made_leaves_nothing(host: Host) -> None:
    ruleset, links, fds = nftables.run("list ruleset"), interface_names(), descriptors()
    await host.networks.create(network("one"))
    for body, kind in (
        (network("one"), Conflict),
        (network("two", options={"com.docker.network.bridge.name": "up0"}), WherryError),
        (network("two", options={"com.docker.network.driver.mtu": "nonsense"}), InvalidParameter),
        (network("two", options={"wherry.egress": "not a name!"}), InvalidParameter),
    ):
        with pytest.raises(kind):
            await host.networks.create(body)
    await host.networks.remove("one")
    assert (nftables.run("list ruleset"), interface_names()) == (ruleset, links)
    assert not descriptors() - fds


async def test_networks_and_what_runs_on_them_survive_the_daemon(world: World) -> None:
    state, container = State(None), new_id()
    first = Host(Networks(NetworkConfig(), state, Events()))
    await first.networks.start({})
    await first.networks.create(network("one", enable_ipv6=True))
    await first.networks.create(network("idle"))
    sandbox = await run_on(first, "one", "idle", ports=("8080:80",), container=container)
    await first.networks.stop(keep=True)
    nftables.run("flush ruleset")
    again = Host(Networks(NetworkConfig(), state, Events()))
    await again.networks.start({container: here(sandbox)})
    try:
        assert [record.name for record in again.networks.records()] == ["bridge", "host", "idle", "none", "one"]
        with greeter(sandbox.netns, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        other = await run_on(again, "one")
        assert other.endpoints[0].ip != sandbox.endpoints[0].ip
        with pytest.raises(Forbidden, match="active endpoints"):
            await again.networks.remove("idle")
        await again.networks.leave(container, "idle", path(sandbox))
        await again.networks.remove("idle")
    finally:
        first.close()
        again.close()
        await again.networks.stop(keep=False)


async def test_a_network_half_made_by_a_daemon_that_died_is_taken_away(world: World) -> None:
    state = State(None)
    async with hosting(state=state) as host:
        await host.networks.create(network("one"))
        links = interface_names()
        record = host.networks.resolve("one")
        state.write(Catalog.row(replace(record, pending=True)))  # as a crash leaves it
        await host.networks.start({})
        assert [each.name for each in host.networks.records()] == ["bridge", "host", "none"]
        assert interface_names() < links
        await host.networks.create(network("one"))


async def test_a_name_that_is_allowed_is_no_way_for_an_address(host: Host, world: World) -> None:
    await host.networks.create(network("strict", options={"wherry.egress": "pypi.example"}))
    await host.networks.create(network("listed", options={"wherry.egress": f"{NEIGHBOUR}/32"}))
    strict, listed = await run_on(host, "strict"), await run_on(host, "listed")
    with greeter(world.outside, 80):
        assert not await reaches(strict, NEIGHBOUR)
        assert await call(ask_tcp, NEIGHBOUR, 80, fd=listed.netns) == HOST


async def test_with_respect_the_hosts_input_rules_judge_published_ports(world: World) -> None:
    async with hosting(NetworkConfig(respect_firewall=True)) as host:
        server = await run_on(host, "bridge", ports=("8080:80", "9090:80"))
        nftables.run("table inet theirs { chain input { type filter hook input priority 0; tcp dport 9090 reject; }; }")
        with greeter(server.netns, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
            with pytest.raises(OSError, match=r"refused|unreachable|No route"):
                await call(ask_tcp, HOST, 9090, fd=world.outside)
        nftables.run("delete table inet theirs")


async def test_without_respect_they_do_not(host: Host, world: World) -> None:
    server = await run_on(host, "bridge", ports=("9090:80",))
    nftables.run("table inet theirs { chain input { type filter hook input priority 0; tcp dport 9090 reject; }; }")
    with greeter(server.netns, 80):
        assert await call(ask_tcp, HOST, 9090, fd=world.outside) == NEIGHBOUR
    nftables.run("delete table inet theirs")
