"""Containers' sandboxes on a real bridge, with real packets. The asyncio loop's threads share the test's namespace."""

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from netkit import HOST, NEIGHBOUR, World, ask_tcp, ask_udp, eventually, greeter, interface_names, make_socket

from harness.descriptors import descriptors
from wherry.errors import Failed, InvalidParameter, NotFound, NotSupported
from wherry.events import Events
from wherry.ids import ContainerID, generate
from wherry.kernel import netlink, nftables
from wherry.kernel.netns import in_netns
from wherry.network.endpoint import EndpointRequest
from wherry.network.networks import NetworkConfig, Networks, Running, Sandbox, SandboxRequest
from wherry.network.ports import PortRequest, parse_ports
from wherry.network.wall.table import WALKS
from wherry.spec.engine import PortBinding
from wherry.state import State

pytestmark = pytest.mark.kernel

UDP = socket.SOCK_DGRAM


def publish(*words: str) -> list[PortRequest]:
    """`8080:80`, `127.0.0.1:53:53/udp`, `80` as a container's port requests."""
    bindings: dict[str, list[PortBinding] | None] = {}
    for word in words:
        address, _, rest = word.rpartition(":")
        host_ip, _, host_port = address.rpartition(":")
        key = rest if "/" in rest else f"{rest}/tcp"
        bindings.setdefault(key, []).append(PortBinding(host_ip=host_ip, host_port=host_port))  # type: ignore[union-attr]
    return parse_ports(None, bindings, False)


def new_id() -> ContainerID:
    return ContainerID(generate())


class Host:
    """The networks of one daemon, and the sandboxes of this test."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.fds: list[int] = []

    async def run(self, *ports: str, container_id: ContainerID | None = None, name: str = "web") -> Sandbox:
        request = SandboxRequest(name=name, ports=publish(*ports))
        sandbox = await self.networks.connect(container_id or new_id(), request)
        assert sandbox.netns is not None
        self.fds.append(sandbox.netns)
        return sandbox

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


@contextlib.asynccontextmanager
async def hosting(config: NetworkConfig | None = None, state: State | None = None) -> AsyncIterator[Host]:
    networks = Networks(config or NetworkConfig(), state or State(None), Events())
    await networks.start({})
    host = Host(networks)
    try:
        yield host
    finally:
        host.close()
        await networks.stop(keep=False)


@pytest.fixture
async def host(world: World) -> AsyncIterator[Host]:
    async with hosting() as made:
        yield made


async def call(func: object, *args: object, **kwargs: object) -> str:
    """A blocking question, off the loop: relays answer on it."""
    result = await asyncio.to_thread(func, *args, **kwargs)  # type: ignore[arg-type]
    assert isinstance(result, str)
    return result


def asking(network: str = "bridge", **wanted: str) -> SandboxRequest:
    return SandboxRequest(endpoints=[EndpointRequest(network=network, **wanted)])  # type: ignore[arg-type]


def here(sandbox: Sandbox) -> Running:
    return Running(netns_path=f"/proc/self/fd/{sandbox.netns}")


def address(sandbox: Sandbox) -> str:
    return sandbox.endpoints[0].ip


def published(table: str = "wherry") -> str:
    return "".join(nftables.run(f"list map inet {table} {name}") for name in ("published4", "published_at4"))


async def test_a_container_gets_an_address_a_route_and_no_ipv6(host: Host) -> None:
    sandbox = await host.run()
    endpoint = sandbox.endpoints[0]
    assert (endpoint.ip, endpoint.prefix, endpoint.gateway) == ("172.17.0.2", 16, "172.17.0.1")
    assert endpoint.mac == "02:42:ac:11:00:02"
    assert sandbox.netns is not None

    def look() -> tuple[dict[str, netlink.Link], list[str], list[str], str]:
        with netlink.Netlink() as nl:
            links = {link.name: link for link in netlink.links(nl)}
            routes = [str(network) for network, _ in netlink.routes(nl)]
            addresses = [str(a.interface) for a in netlink.addresses(nl)]
        return links, addresses, routes, Path("/proc/thread-self/net/if_inet6").read_text()

    links, addresses, routes, six = in_netns(sandbox.netns, look)
    assert links["lo"].up
    assert links["eth0"].up
    assert links["eth0"].mac == endpoint.mac
    assert links["eth0"].mtu == 1500
    assert sorted(addresses) == ["127.0.0.1/8", "172.17.0.2/16"]
    assert sorted(routes) == ["0.0.0.0/0", "172.17.0.0/16"]
    assert "eth0" not in six


async def test_the_lowest_free_address_is_given_again(host: Host) -> None:
    first, second = new_id(), new_id()
    await host.run(container_id=first)
    await host.run(container_id=second)
    await host.networks.release(first)
    assert address(await host.run()) == "172.17.0.2"
    assert address(await host.run()) == "172.17.0.4"


async def test_a_new_owner_of_an_address_is_reached_while_the_old_interface_is_still_there(host: Host) -> None:
    for _ in range(5):
        old = new_id()
        sandbox = await host.run(container_id=old)
        assert sandbox.netns is not None
        with greeter(sandbox.netns, 80):
            await call(ask_tcp, "172.17.0.2", 80)
        await host.networks.release(old)  # its namespace is open in host.fds: the old interface is up and answers
        fresh = new_id()
        sandbox = await host.run(container_id=fresh)
        assert sandbox.netns is not None
        with greeter(sandbox.netns, 80):
            assert await call(ask_tcp, "172.17.0.2", 80) == "172.17.0.1"
        await host.networks.release(fresh)


@pytest.mark.parametrize("where", ["127.0.0.1", HOST, "172.17.0.1", "::1"])
async def test_a_published_port_is_reached_from_the_host_itself(host: Host, where: str) -> None:
    sandbox = await host.run("8080:80")
    with greeter(sandbox.netns, 80):
        seen = await call(ask_tcp, where, 8080, data=bytes(300_000))
    assert seen == (HOST if where == HOST else "172.17.0.1")


@pytest.mark.parametrize("where", ["127.0.0.1", HOST, "172.17.0.1"])
async def test_a_published_udp_port_is_reached_from_the_host_itself(host: Host, where: str) -> None:
    sandbox = await host.run("5353:53/udp")
    with greeter(sandbox.netns, 53, UDP):
        assert await call(ask_udp, where, 5353) == (HOST if where == HOST else "172.17.0.1")


async def test_a_caller_from_outside_keeps_its_address(world: World, host: Host) -> None:
    sandbox = await host.run("8080:80", "5353:53/udp")
    with greeter(sandbox.netns, 80), greeter(sandbox.netns, 53, UDP):
        assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
        assert await call(ask_udp, HOST, 5353, fd=world.outside) == NEIGHBOUR


def filter_bridged(switch: str) -> None:
    """Whether frames between the ports of a bridge pass the firewall: both are found on real hosts."""
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not path.exists():
        pytest.skip("the kernel has no br_netfilter")
    path.write_text(switch)


@pytest.mark.parametrize("filtered", ["0", "1"])
@pytest.mark.parametrize("where", [HOST, "172.17.0.1"])
async def test_containers_reach_published_ports_their_own_among_them(host: Host, where: str, filtered: str) -> None:
    filter_bridged(filtered)
    server, other = await host.run("8080:80", "5353:53/udp"), await host.run()
    with greeter(server.netns, 80), greeter(server.netns, 53, UDP):
        for caller in (server, other):
            assert await call(ask_tcp, where, 8080, fd=caller.netns) == "172.17.0.1"
            assert await call(ask_udp, where, 5353, fd=caller.netns) == "172.17.0.1"


async def test_containers_reach_each_other_under_their_own_addresses(host: Host) -> None:
    server, other = await host.run(), await host.run()
    with greeter(server.netns, 80):
        assert await call(ask_tcp, address(server), 80, fd=other.netns) == address(other)


async def test_outbound_traffic_leaves_under_the_hosts_address(world: World, host: Host) -> None:
    sandbox = await host.run()
    with greeter(world.outside, 80), greeter(world.outside, 53, UDP):
        assert await call(ask_tcp, NEIGHBOUR, 80, fd=sandbox.netns) == HOST
        assert await call(ask_udp, NEIGHBOUR, 53, fd=sandbox.netns) == HOST


async def test_without_masquerade_outbound_traffic_keeps_the_containers_address(world: World) -> None:
    async with hosting(NetworkConfig(ip_masq=False)) as host:
        sandbox = await host.run()
        world.route_from_outside("172.17.0.0/16")
        with greeter(world.outside, 53, UDP):
            assert await call(ask_udp, NEIGHBOUR, 53, fd=sandbox.netns) == address(sandbox)


def collect(sandbox: Sandbox, port: int) -> socket.socket:
    """A UDP socket in the sandbox that only gathers."""
    made = make_socket(sandbox.netns, UDP)
    made.bind(("0.0.0.0", port))
    return made


async def test_unpublished_ports_cannot_be_reached_from_outside(world: World, host: Host) -> None:
    sandbox = await host.run("5353:53/udp")
    world.route_from_outside("172.17.0.0/16")
    with collect(sandbox, 53) as server, make_socket(world.outside, UDP) as neighbour:
        neighbour.sendto(b"direct", (address(sandbox), 53))
        neighbour.sendto(b"published", (HOST, 5353))
        # packets on one wire do not overtake each other: what is received first is all that came
        assert server.recv(100) == b"published"


async def test_ports_on_loopback_cannot_be_reached_by_a_neighbour(world: World, host: Host) -> None:
    sandbox = await host.run("127.0.0.1:5353:53/udp", "5454:53/udp")
    world.route_from_outside("127.0.0.0/8")
    in_netns(world.outside, lambda: Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1"))
    in_netns(world.outside, lambda: _forget_loopback())
    with collect(sandbox, 53) as server, make_socket(world.outside, UDP) as neighbour:
        neighbour.sendto(b"to loopback", ("127.0.0.1", 5353))
        neighbour.sendto(b"to the wrong address", (HOST, 5353))
        neighbour.sendto(b"open", (HOST, 5454))
        assert server.recv(100) == b"open"
        with make_socket(None, UDP) as local:
            local.sendto(b"local", ("127.0.0.1", 5353))
        assert server.recv(100) == b"local"


def _forget_loopback() -> None:
    """Without the loopback's own route packets to 127.0.0.1 go out to the wire."""
    with netlink.Netlink() as nl:
        for one in netlink.addresses(nl):
            if one.interface.ip.is_loopback:
                nl.transact(netlink.delete_address(one.index, "lo", one.interface))


@pytest.mark.parametrize("filtered", ["0", "1"])
async def test_without_icc_containers_meet_only_at_published_ports(world: World, filtered: str) -> None:
    filter_bridged(filtered)
    async with hosting(NetworkConfig(icc=False)) as host:
        server, other = await host.run("5353:53/udp"), await host.run()
        with collect(server, 53) as socket_, make_socket(other.netns, UDP) as caller:
            caller.sendto(b"direct", (address(server), 53))
            caller.sendto(b"published", (HOST, 5353))
            assert socket_.recv(100) == b"published"
        with greeter(world.outside, 80):
            assert await call(ask_tcp, NEIGHBOUR, 80, fd=other.netns) == HOST


async def test_a_port_of_another_container_is_refused_in_dockers_words(host: Host) -> None:
    await host.run("8080:80")
    with pytest.raises(Failed) as refused:
        await host.run("9090:90", "8080:80", name="second")
    message = refused.value.message
    assert message.startswith(
        "failed to set up container networking: driver failed programming external connectivity on endpoint second ("
    )
    assert message.endswith("): Bind for 0.0.0.0:8080 failed: port is already allocated")
    assert address(await host.run("9090:90")) == "172.17.0.3"


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (UDP, "udp")])
async def test_a_port_of_a_program_is_refused_in_dockers_words(
    host: Host, kind: socket.SocketKind, protocol: str
) -> None:
    with make_socket(None, kind) as program:
        program.bind(("127.0.0.1", 8080))
        if kind is socket.SOCK_STREAM:
            program.listen()
        words = f"failed to bind host port for 0.0.0.0:8080:172.17.0.2:80/{protocol}: address already in use"
        with pytest.raises(Failed, match=words):
            await host.run(f"8080:80/{protocol}")
        assert "8080" not in published()


def serve(where: str, port: int) -> None:
    """What a program does that wants to serve a port, with the option that most of them set."""
    with make_socket(None, six=":" in where) as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind((where, port))
        program.listen()


async def test_a_program_cannot_take_a_published_port(host: Host) -> None:
    await host.run("8080:80")
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(OSError, match="in use"):
            serve(address, 8080)


async def test_closed_connections_do_not_keep_a_port(host: Host) -> None:
    with make_socket(None) as server, make_socket(None) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 8080))
        server.listen()
        client.connect(("127.0.0.1", 8080))
        accepted, _ = server.accept()
        accepted.close()  # who closes first is left in TIME_WAIT
        assert client.recv(1) == b""
    with make_socket(None) as program, pytest.raises(OSError, match="in use"):
        program.bind(("127.0.0.1", 8080))
    sandbox = await host.run("8080:80")
    with greeter(sandbox.netns, 80):
        assert await call(ask_tcp, "127.0.0.1", 8080) == "172.17.0.1"
    with pytest.raises(OSError, match="in use"):
        serve("127.0.0.1", 8080)


async def test_an_address_the_host_does_not_have_is_refused(host: Host) -> None:
    with pytest.raises(Failed, match=r"198\.51\.100\.9:80:172\.17\.0\.2:80/tcp: cannot assign requested address"):
        await host.run("198.51.100.9:80:80")
    with pytest.raises(NotSupported, match="the container has not an IPv6 address"):
        await host.networks.connect(
            new_id(),
            SandboxRequest(ports=[PortRequest(container_port=53, protocol="sctp", host_ip="::1", first=53, last=53)]),
        )


@pytest.mark.parametrize("count", [1, WALKS + 1])
async def test_a_flow_that_began_before_publishing_reaches_the_container(world: World, host: Host, count: int) -> None:
    with make_socket(world.outside, UDP) as neighbour:
        neighbour.connect((HOST, 5353))
        neighbour.send(b"early")  # tracked as a flow to the host itself
        with pytest.raises(ConnectionRefusedError):
            neighbour.recv(100)
        ports = [f"{5300 + number}:{number}/udp" for number in range(53, 53 + count)]
        first, second = new_id(), new_id()
        for container in (first, second):  # and the second owner of the port gets what the first had
            sandbox = await host.run(*ports, container_id=container)
            with collect(sandbox, 53) as server:
                neighbour.send(container[:8].encode())
                assert server.recv(100) == container[:8].encode()
            keep = await host.run()  # takes the address that will not be given again
            assert keep.netns is not None
            await host.networks.release(container)


async def test_a_flow_to_an_ended_container_does_not_reach_the_next_owner_of_its_address(
    world: World, host: Host
) -> None:
    first = new_id()
    with make_socket(world.outside, UDP) as neighbour, make_socket(world.outside, UDP) as stranger:
        old = await host.run("5353:53/udp", container_id=first)
        with collect(old, 53) as server:
            neighbour.sendto(b"before", (HOST, 5353))
            assert server.recv(100) == b"before"
        await host.networks.release(first)
        new = await host.run("5454:53/udp")
        assert address(new) == address(old)
        with collect(new, 53) as server:
            neighbour.sendto(b"for the old one", (HOST, 5353))
            stranger.sendto(b"for the new one", (HOST, 5454))
            assert server.recv(100) == b"for the new one"


async def test_ranges_and_ephemeral_ports_take_the_next_free_one(host: Host) -> None:
    first, second = await host.run("8000-8001:80"), await host.run("8000-8001:80")
    assert {port.host_port for port in first.ports} == {8000}
    assert {port.host_port for port in second.ports} == {8001}
    with pytest.raises(Failed, match=r"Bind for 0\.0\.0\.0:8000-8001 failed: all ports are allocated"):
        await host.run("8000-8001:80")
    third = await host.run(":80")
    numbers = {port.host_port for port in third.ports}
    low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert len(numbers) == 1
    assert low <= numbers.pop() <= high
    assert {port.host_ip for port in third.ports} == {"0.0.0.0", "::"}


async def test_none_has_loopback_only_and_host_has_no_namespace(host: Host) -> None:
    sandbox = await host.networks.connect(new_id(), SandboxRequest(mode="none", ports=publish("8080:80")))
    assert sandbox.netns is not None
    host.fds.append(sandbox.netns)
    assert in_netns(sandbox.netns, interface_names) == {"lo"}
    assert sandbox.ports == ()
    assert sandbox.endpoints[0].network == "none"
    with greeter(sandbox.netns, 80):
        assert await call(ask_tcp, "127.0.0.1", 80, fd=sandbox.netns) == "127.0.0.1"

    shared = await host.networks.connect(new_id(), SandboxRequest(mode="host", ports=publish("8080:80")))
    assert shared.netns is None
    assert shared.ports == ()
    assert "8080" not in published()


async def test_what_the_default_bridge_cannot_do_is_refused(host: Host) -> None:
    for request, kind, words in [
        (asking(ip="172.17.0.9"), InvalidParameter, "user specified IP address is supported on user defined"),
        (asking(mac="01:00:5e:00:00:01"), InvalidParameter, "invalid MAC address"),
        (asking(mac="nonsense"), InvalidParameter, "invalid MAC address"),
        (SandboxRequest(mode="backend"), NotFound, "network backend not found"),
    ]:
        with pytest.raises(kind, match=words):
            await host.networks.connect(new_id(), request)
    assert address(await host.run()) == "172.17.0.2"


async def test_a_mac_address_can_be_asked_for(host: Host) -> None:
    sandbox = await host.networks.connect(new_id(), asking(mac="02:00:00:AA:bb:cc"))
    assert sandbox.netns is not None
    host.fds.append(sandbox.netns)
    assert sandbox.endpoints[0].mac == "02:00:00:aa:bb:cc"
    with greeter(sandbox.netns, 80):
        assert await call(ask_tcp, address(sandbox), 80) == "172.17.0.1"


def veths() -> set[str]:
    return {name for name in interface_names() if name.startswith("veth")}


async def assert_nothing_held(host: Host, state: State, fds: Counter[str]) -> None:
    assert not descriptors() - fds
    assert not state.rows("endpoints")
    assert "elements" not in published()
    assert eventually(lambda: not veths())


async def test_fifty_runs_leave_nothing(world: World) -> None:
    state = State(None)
    async with hosting(state=state) as host:
        await host.run("8080:80", "5353:53/udp", container_id=(warm := new_id()))
        await host.networks.release(warm)
        host.close()
        fds, ruleset = descriptors(), nftables.run("list ruleset")
        for _ in range(50):
            container = new_id()
            sandbox = await host.run("8080:80", "5353:53/udp", ":90", container_id=container)
            assert address(sandbox) == "172.17.0.2"
            await host.networks.release(container)
            await host.networks.release(container)
            host.close()
        await assert_nothing_held(host, state, fds)
        assert nftables.run("list ruleset") == ruleset


class BrokenState(State):
    """Refuses to write endpoints while told to."""

    broken = False

    def write(self, *changes: object) -> None:
        if self.broken:
            raise Failed("cannot write state file: disk full")
        super().write(*changes)  # type: ignore[arg-type]


@contextlib.contextmanager
def break_state(state: BrokenState) -> Iterator[None]:
    state.broken = True
    yield
    state.broken = False


@contextlib.contextmanager
def break_bridge(state: State | None) -> Iterator[None]:
    with netlink.Netlink() as nl:
        nl.transact(netlink.delete_link("wherry0"))
    yield


@contextlib.contextmanager
def break_firewall(state: BrokenState) -> Iterator[None]:
    element = "{ tcp . 8080 : 10.9.9.9 . 1 }"
    nftables.run(f"add element inet wherry published4 {element}")
    yield
    nftables.run("delete element inet wherry published4 { tcp . 8080 }")


@contextlib.contextmanager
def break_port(state: BrokenState) -> Iterator[None]:
    with make_socket(None, UDP) as program:
        program.bind(("0.0.0.0", 5353))
        yield


@pytest.mark.parametrize("broken", [break_port, break_state, break_bridge, break_firewall])
async def test_failure_at_any_step_leaves_nothing(world: World, broken: object) -> None:
    state = BrokenState(None)
    async with hosting(state=state) as host:
        await host.run("8080:80", container_id=(warm := new_id()))
        await host.networks.release(warm)
        host.close()
        fds = descriptors()
        with broken(state), pytest.raises(Failed):  # type: ignore[operator]
            await host.run("8080:80", "5353:53/udp")
        await assert_nothing_held(host, state, fds)
        await host.networks.start({})  # a daemon's restart mends what a stranger broke
        sandbox = await host.run("8080:80", "5353:53/udp")
        assert address(sandbox) == "172.17.0.2"
        with greeter(sandbox.netns, 80):
            assert await call(ask_tcp, "127.0.0.1", 8080) == "172.17.0.1"


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancelled_connect_leaves_nothing(world: World, turns: int) -> None:
    state = State(None)
    async with hosting(state=state) as host:
        await host.run("8080:80", container_id=(warm := new_id()))
        await host.networks.release(warm)
        host.close()
        fds = descriptors()
        container = new_id()
        task = asyncio.create_task(host.run("8080:80", container_id=container))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            await host.networks.release(container)  # it was faster
        host.close()
        await assert_nothing_held(host, state, fds)
        assert address(await host.run("8080:80")) == "172.17.0.2"


async def test_a_restarted_daemon_takes_over_what_runs_and_drops_the_rest(world: World, tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    kept, dropped = new_id(), new_id()
    async with hosting(state=state) as host:
        sandbox = await host.run("8080:80", "5353:53/udp", container_id=kept)
        await host.run("9090:90", container_id=dropped)
        await host.networks.stop(keep=True)
        with greeter(sandbox.netns, 80):  # nobody needs the daemon for this
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR

        again = Networks(NetworkConfig(), state, Events())
        await again.start({kept: here(sandbox)})
        try:
            assert set(state.rows("endpoints")) == {kept}
            assert "9090" not in published()
            with greeter(sandbox.netns, 80), greeter(sandbox.netns, 53, UDP):
                assert await call(ask_tcp, "::1", 8080) == "172.17.0.1"
                assert await call(ask_udp, HOST, 5353, fd=world.outside) == NEIGHBOUR
            with pytest.raises(Failed, match="port is already allocated"):
                await again.connect(new_id(), SandboxRequest(ports=publish("8080:80")))
            other = await again.connect(new_id(), SandboxRequest(ports=publish("9090:90")))
            assert address(other) == "172.17.0.3"
            assert other.netns is not None
            os.close(other.netns)
            await again.release(kept)
            assert "8080" not in published()
        finally:
            await again.stop(keep=True)
    state.close()


async def test_a_port_taken_while_the_daemon_was_away_still_reaches_the_container(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(None)
    container = new_id()
    async with hosting(state=state) as host:
        sandbox = await host.run("8080:80", container_id=container)
        await host.networks.stop(keep=True)
        with make_socket(None) as program:
            program.bind(("0.0.0.0", 8080))
            await host.networks.start({container: here(sandbox)})
            assert "address already in use" in caplog.text
            with greeter(sandbox.netns, 80):
                assert await call(ask_tcp, "127.0.0.1", 8080) == "172.17.0.1"


async def test_a_deleted_bridge_is_made_again_with_its_containers(world: World) -> None:
    state = State(None)
    container = new_id()
    async with hosting(state=state) as host:
        sandbox = await host.run("8080:80", container_id=container)
        with break_bridge(None):
            await host.networks.start({container: here(sandbox)})
        with greeter(sandbox.netns, 80), greeter(world.outside, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
            assert await call(ask_tcp, NEIGHBOUR, 80, fd=sandbox.netns) == HOST


async def test_a_changed_bip_leaves_running_containers_their_network(world: World) -> None:
    state = State(None)
    container = new_id()
    async with hosting(NetworkConfig(bip="172.31.0.1/24"), state) as host:
        old = await host.run("8080:80", container_id=container)
        await host.networks.stop(keep=True)
        again = Host(Networks(NetworkConfig(bip="172.31.9.1/24"), state, Events()))
        await again.networks.start({container: here(old)})
        new = await again.run("9090:80")
        assert address(new) == "172.31.9.2"
        with greeter(old.netns, 80), greeter(new.netns, 80), greeter(world.outside, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
            assert await call(ask_tcp, HOST, 9090, fd=world.outside) == NEIGHBOUR
            assert await call(ask_tcp, NEIGHBOUR, 80, fd=old.netns) == HOST
            assert await call(ask_tcp, HOST, 8080, fd=new.netns) == "172.31.0.1"
        await again.networks.release(container)
        again.close()
        await again.networks.stop(keep=True)


async def test_sctp_is_forwarded_though_nobody_can_hold_its_port(host: Host) -> None:
    sandbox = await host.run("3868:3868/sctp")
    assert [port.protocol for port in sandbox.ports] == ["sctp"]
    assert "sctp . 3868 : 172.17.0.2 . 3868" in published()


async def test_start_twice_changes_nothing(host: Host) -> None:
    before = nftables.run("list ruleset"), interface_names()
    fds = descriptors()
    await host.networks.start({})
    assert (nftables.run("list ruleset"), interface_names()) == before
    assert not descriptors() - fds


async def test_stop_takes_everything_back(world: World) -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwarding.write_text("0")
    async with hosting():
        assert forwarding.read_text().strip() == "1"
        assert "wherry0" in interface_names()
    assert forwarding.read_text().strip() == "0"
    assert "wherry0" not in interface_names()
    assert nftables.run("list ruleset") == ""


async def test_the_host_becomes_no_router_for_others(world: World) -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwarding.write_text("0")
    async with hosting():
        assert "oifkind" in nftables.run("list chain inet wherry forward")
    forwarding.write_text("1")
    async with hosting():  # it was one before
        assert "oifkind" not in nftables.run("list chain inet wherry forward")
    assert forwarding.read_text().strip() == "1"


async def start_daemon(instance: str) -> Host:
    host = Host(Networks(NetworkConfig(instance=instance), State(None), Events()))
    await host.networks.start({})
    return host


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_several_daemons_live_side_by_side_and_the_last_one_cleans_up(world: World, order: str) -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwarding.write_text("0")
    daemons = {instance: await start_daemon(instance) for instance in "ab"}
    one, two = await daemons["a"].run("8080:80"), await daemons["b"].run("9090:80")
    assert address(one) != address(two)
    assert {"wh-a", "wh-b"} <= interface_names()
    with greeter(one.netns, 80), greeter(two.netns, 80):
        assert await call(ask_tcp, "127.0.0.1", 8080) == one.endpoints[0].gateway
        assert await call(ask_tcp, HOST, 9090, fd=world.outside) == NEIGHBOUR
        with pytest.raises(Failed, match="address already in use"):
            await daemons["b"].run("8080:80")

    first, last = order
    daemons[first].close()
    await daemons[first].networks.stop(keep=False)
    assert forwarding.read_text().strip() == "1"
    assert f"wh-{first}" not in interface_names()
    left = await daemons[last].run("9191:80")
    with greeter(left.netns, 80):
        assert await call(ask_tcp, HOST, 9191, fd=world.outside) == NEIGHBOUR
    daemons[last].close()
    await daemons[last].networks.stop(keep=False)
    assert forwarding.read_text().strip() == "0"
    assert nftables.run("list ruleset") == ""


FOREIGN_DROP = "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_firewall_that_drops_what_nobody_claimed_lets_containers_be(world: World, when: str) -> None:
    if when == "before":
        nftables.run(FOREIGN_DROP)
    async with hosting() as host:
        await host.run()
        if when == "after":
            nftables.run(FOREIGN_DROP)
        server, other = await host.run("8080:80"), await host.run()
        with greeter(server.netns, 80), greeter(world.outside, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
            assert await call(ask_tcp, address(server), 80, fd=other.netns) == address(other)
            assert await call(ask_tcp, NEIGHBOUR, 80, fd=other.netns) == HOST
        await host.run()
        assert nftables.run("list chain ip filter FORWARD").count('comment "wherry wherry0"') == 2
    assert "wherry" not in nftables.run("list ruleset")
    assert "policy drop" in nftables.run("list ruleset")


async def test_a_flushed_firewall_is_written_again_with_the_next_container(host: Host) -> None:
    server = await host.run("8080:80")
    nftables.run("flush ruleset")
    await host.run()
    with greeter(server.netns, 80):
        assert await call(ask_tcp, "127.0.0.1", 8080) == "172.17.0.1"
    nftables.run("delete table inet wherry")
    nftables.run("table inet wherry { }")
    other = await host.run("9090:80")
    with greeter(other.netns, 80), greeter(server.netns, 80):
        assert await call(ask_tcp, "127.0.0.1", 9090) == "172.17.0.1"
        assert await call(ask_tcp, "127.0.0.1", 8080) == "172.17.0.1"


async def test_a_subnet_that_the_host_uses_is_passed_over(world: World) -> None:
    with netlink.Netlink() as nl:
        nl.transact(netlink.create_bridge("other0", mac="02:00:00:00:00:09", mtu=1500))
        link = netlink.find_link(nl, "other0")
        assert link is not None
        nl.transact(netlink.add_address(link.index, "other0", ipaddress.IPv4Interface("172.17.5.1/24")))
    async with hosting() as host:
        assert address(await host.run()) == "172.18.0.2"
    with pytest.raises(Failed, match=r"interface other0 has 172\.17\.5\.1/24"):
        async with hosting(NetworkConfig(bip="172.17.0.1/16")):
            pass
    assert eventually(lambda: interface_names() == {"lo", "up0", "other0"})


async def test_bip_numbers_the_bridge_and_a_changed_one_renumbers_it(world: World) -> None:
    state = State(None)
    first = Networks(NetworkConfig(bip="172.31.0.1/24"), state, Events())
    await first.start({})
    assert first.bridge_gateway == "172.31.0.1"
    await first.stop(keep=True)
    async with hosting(NetworkConfig(bip="172.31.9.1/24"), state) as host:
        assert address(await host.run()) == "172.31.9.2"
        with netlink.Netlink() as nl:
            found = {str(one.interface) for one in netlink.addresses(nl)}
        assert "172.31.9.1/24" in found
        assert "172.31.0.1/24" not in found


async def test_a_subnet_once_chosen_stays(world: World) -> None:
    state = State(None)
    pools = [("10.77.0.0/16", 24)]
    async with hosting(NetworkConfig(address_pools=pools), state) as host:
        assert host.networks.bridge_gateway == "10.77.0.1"
    async with hosting(NetworkConfig(), state) as host:
        assert host.networks.bridge_gateway == "10.77.0.1"


async def test_an_existing_bridge_is_used_as_it_is_and_left_behind(world: World) -> None:
    with pytest.raises(InvalidParameter, match="must be created manually"):
        async with hosting(NetworkConfig(bridge="mine0")):
            pass
    with netlink.Netlink() as nl:
        nl.transact(netlink.create_bridge("mine0", mac="02:00:00:00:00:09", mtu=1500))
    async with hosting(NetworkConfig(bridge="mine0")) as host:
        sandbox = await host.run("8080:80")
        with greeter(sandbox.netns, 80):
            assert await call(ask_tcp, HOST, 8080, fd=world.outside) == NEIGHBOUR
    assert "mine0" in interface_names()
    with pytest.raises(Failed, match="up0 exists and is not a bridge"):
        async with hosting(NetworkConfig(bridge="up0")):
            pass


async def test_without_a_default_bridge_containers_have_loopback_only(world: World) -> None:
    async with hosting(NetworkConfig(bridge="none")) as host:
        sandbox = await host.networks.connect(new_id(), SandboxRequest(mode="default"))
        assert sandbox.netns is not None
        host.fds.append(sandbox.netns)
        assert sandbox.endpoints[0].network == "none"
        with pytest.raises(NotFound, match="network bridge not found"):
            await host.networks.connect(new_id(), SandboxRequest(mode="bridge"))
        assert [document["Name"] for document in host.networks.list()] == ["host", "none"]
        assert nftables.run("list ruleset") == ""


async def test_two_thousand_ports_are_published_at_once(host: Host) -> None:
    requests = [PortRequest(container_port=n, protocol="udp", first=n, last=n) for n in range(20000, 22000)]
    container = new_id()
    sandbox = await host.networks.connect(container, SandboxRequest(ports=requests))
    assert sandbox.netns is not None
    host.fds.append(sandbox.netns)
    with greeter(sandbox.netns, 21999, UDP):
        assert await call(ask_udp, HOST, 21999) == HOST
    await host.networks.release(container)
    assert "elements" not in published()


async def test_a_network_shows_who_is_attached(host: Host) -> None:
    container = new_id()
    sandbox = await host.run(container_id=container)
    members: Mapping[str, tuple[str, Sequence[object]]] = {container: ("web", sandbox.endpoints)}
    document = host.networks.inspect("bridge", members)  # type: ignore[arg-type]
    identity = str(document["Id"])
    assert document == host.networks.inspect(identity[:12], members)  # type: ignore[arg-type]
    assert document["IPAM"] == {
        "Driver": "default",
        "Options": None,
        "Config": [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}],
    }
    assert document["Containers"] == {
        container: {
            "Name": "web",
            "EndpointID": sandbox.endpoints[0].endpoint_id,
            "MacAddress": "02:42:ac:11:00:02",
            "IPv4Address": "172.17.0.2/16",
            "IPv6Address": "",
        }
    }
    assert [found["Name"] for found in host.networks.list()] == ["bridge", "host", "none"]
    assert sandbox.endpoints[0].network_id == identity
