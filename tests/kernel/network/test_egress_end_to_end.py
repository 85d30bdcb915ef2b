"""Egress policies from end to end: a container, the firewall, the resolver, name servers and hosts outside."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from dnskit import NameServer, ask, exchange, question, serving
from driverkit import QUICK, network
from netkit import HOST, NEIGHBOUR, World, make_socket

from wherry.events import Events
from wherry.kernel import netlink, nftables
from wherry.kernel.netlink import Netlink
from wherry.kernel.netns import in_netns
from wherry.network.dns.message import Code, Type
from wherry.network.dns.names import Names, View
from wherry.network.dns.server import Resolver
from wherry.network.drivers import bridge, namespaces
from wherry.network.drivers.bridge import BridgeDriver
from wherry.network.egress.gates import Gates
from wherry.network.endpoint import Endpoint, NameServers
from wherry.network.places import Namespace, NetworkRules
from wherry.network.plan import Attachment, bridge_name
from wherry.network.records import EGRESS
from wherry.network.wall.table import Firewall

pytestmark = pytest.mark.kernel

GOOD, OTHER, LISTED = "8.8.8.8", "8.8.4.4", "9.9.9.9"  # addresses outside, of the public kind
GOOD6, OTHER6 = "2606:4700::1", "2606:4700::2"
POLICY = "good.example,*.cdn.example,9.9.9.0/24"
SUBNETS = "172.20.0.0/24", "fd00:20::/64"


def network_outside(world: World) -> None:
    """The neighbour has all addresses of the world, and is the host's way there."""

    def there() -> None:
        with Netlink() as nl:
            link = netlink.find_link(nl, "eth0")
            assert link is not None
            nl.transact(
                netlink.set_up(1, "lo"),
                *(
                    netlink.add_address(link.index, "eth0", ipaddress.ip_interface(text))
                    for text in (*(f"{one}/32" for one in (GOOD, OTHER, LISTED)), f"{GOOD6}/128", f"{OTHER6}/128")
                ),
                netlink.add_address(link.index, "eth0", ipaddress.ip_interface("2001:db8::2/64")),
            )

    in_netns(world.outside, there)
    with Netlink() as nl:
        link = netlink.find_link(nl, "up0")
        assert link is not None
        nl.transact(
            netlink.set_up(1, "lo"),
            netlink.add_address(link.index, "up0", ipaddress.ip_interface("2001:db8::1/64")),
            netlink.add_default_route(link.index, "up0", ipaddress.ip_address(NEIGHBOUR)),
            netlink.add_default_route(link.index, "up0", ipaddress.ip_address("2001:db8::2"), version=6),
        )
    bridge.set_forwarding(enable=True)
    for name in ("all", "default"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/net/ipv6/conf/{name}/forwarding", "w") as knob:
            knob.write("1")


class Scene:
    """One network with a policy, and a container on it."""

    def __init__(self, world: World, namespace: Namespace) -> None:
        self.world, self.namespace, self.fd = world, namespace, namespace.fd
        self.record = replace(network(*SUBNETS), options={EGRESS: POLICY})
        self.events = Events()
        self.wall = Firewall("wherry_t")
        self.names = Names()
        self.gates = Gates(self.wall, lambda _: self.record, self.events)
        self.resolver = Resolver(self.names, lambda: [(self.record.id, self.record.name)])
        self.outside = NameServer({"good.example": [GOOD, GOOD6], "bad.example": [OTHER]})
        self.driver = BridgeDriver(lambda record: bridge_name(record, ""))
        endpoint = Endpoint(
            network=self.record.name,
            network_id=self.record.id,
            endpoint_id="e1",
            mac="02:42:00:00:00:02",
            ip="172.20.0.2",
            prefix=24,
            gateway="172.20.0.1",
            ip6="fd00:20::2",
            prefix6=64,
            gateway6="fd00:20::1",
        )
        self.attachment = Attachment(endpoint=endpoint, host_name="veth0000002")

    def rules(self) -> NetworkRules:
        record = self.record
        return NetworkRules(
            network=record.id,
            bridge=bridge_name(record, ""),
            subnets=[ipaddress.ip_network(one.subnet) for one in record.subnets],
            gateways=[one.gateway for one in record.subnets],
        )

    async def start(self) -> None:
        self.driver.create(self.record)
        self.driver.attach(self.record, self.attachment.place(), self.namespace)
        namespaces.set_default_routes(self.namespace, [("eth0", "172.20.0.1"), ("eth0", "fd00:20::1")])
        self.wall.load([self.rules()], [], [], guarded=False)
        self.gates.close_off("c", [self.attachment], "web")
        await self.resolver.open(
            "c",
            self.namespace,
            View(networks=[(self.record.id, self.record.name)]),
            NameServers(servers=(NEIGHBOUR,)),
            self.gates.gate("c"),
        )

    async def resolve(self, name: str, kind: int = Type.A) -> tuple[int, list[str]]:
        told = await asyncio.to_thread(ask, self.fd, name, kind)
        return told.code, told.addresses

    async def reach(self, address: str) -> bool:
        """False only when we are refused at once; a packet that is dropped fails the test."""
        return await asyncio.to_thread(reach, self.fd, address)

    def told(self) -> list[str]:
        return [event.attributes["destination"] for event in self.events.past(0, 1 << 63)]


def reach(fd: int | None, address: str) -> bool:
    with make_socket(fd, six=":" in address) as client:
        client.settimeout(QUICK * 10)
        try:
            client.connect((address, 443))
        except ConnectionRefusedError:
            return False
        return True


@contextlib.contextmanager
def listening(fd: int) -> Iterator[None]:
    """At port 443 of all addresses of the neighbour."""
    with make_socket(fd, six=True) as server:
        server.bind(("::", 443))
        server.listen(50)
        yield


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    network_outside(world)
    namespace = namespaces.empty()
    made = Scene(world, namespace)
    try:
        await made.start()
        with listening(world.outside), serving(made.outside, world.outside, NEIGHBOUR):
            yield made
    finally:
        await made.resolver.close_all()
        made.wall.close()
        namespaces.close(namespace)


async def test_only_what_an_allowed_name_leads_to_is_reached(scene: Scene) -> None:
    assert not await scene.reach(GOOD), "not before its name was asked for"
    assert not await scene.reach(GOOD6)
    assert await scene.resolve("good.example") == (Code.NO_ERROR, [GOOD])
    assert await scene.reach(GOOD)
    assert not await scene.reach(GOOD6)
    assert await scene.resolve("good.example", Type.AAAA) == (Code.NO_ERROR, [GOOD6])
    assert await scene.reach(GOOD6)
    assert not await scene.reach(OTHER)
    assert not await scene.reach(OTHER6)
    assert await scene.reach(LISTED), "its subnet is on the list"


async def test_other_names_are_refused_at_once_and_never_leave_the_host(scene: Scene) -> None:
    secret = "73656372" * 6 + ".tunnel.example"
    for name, kind in (("bad.example", Type.A), (secret, Type.A), (secret, 16), ("sub.good.example", Type.A)):
        assert await scene.resolve(name, kind) == (Code.REFUSED, [])
    assert scene.outside.asked == []
    assert not await scene.reach(OTHER)
    assert scene.told() == ["bad.example", secret, "sub.good.example"]


async def test_other_name_servers_are_not_reached(scene: Scene) -> None:
    with make_socket(scene.fd, socket.SOCK_DGRAM) as client:
        client.connect((NEIGHBOUR, 53))
        client.send(question("tunnel.example"))
        with pytest.raises(OSError, match="No route to host"):
            await asyncio.to_thread(client.recv, 512)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(exchange, scene.fd, question("x.example"), at=NEIGHBOUR, tcp=True)
    assert scene.outside.asked == []


async def test_the_host_itself_is_not_reached(scene: Scene) -> None:
    with make_socket(None) as server:
        server.bind(("0.0.0.0", 443))
        server.listen()
        assert not await scene.reach(HOST)
        assert not await scene.reach("172.20.0.1")


async def test_a_name_that_moves_is_reached_at_its_new_address_and_connections_live_on(scene: Scene) -> None:
    await scene.resolve("good.example")
    with make_socket(scene.fd) as old:
        await asyncio.to_thread(old.connect, (GOOD, 443))
        scene.outside.zone["good.example"] = [OTHER]
        assert await scene.resolve("good.example") == (Code.NO_ERROR, [OTHER])
        assert await scene.reach(OTHER)
        scene.wall.clear_egress(f"network {scene.record.id}")
        scene.wall.set_egress(scene.gates.rules({"c": ("web", [scene.attachment])})[0])
        assert not await scene.reach(GOOD)
        old.sendall(b"still here")
        old.shutdown(socket.SHUT_WR)


async def test_an_alias_is_followed_to_a_name_that_is_not_listed(scene: Scene) -> None:
    scene.outside.aliases["x.cdn.example"] = "edge.example"
    scene.outside.zone["edge.example"] = [OTHER]
    assert await scene.resolve("x.cdn.example") == (Code.NO_ERROR, [OTHER])
    assert await scene.reach(OTHER)
    assert await scene.resolve("edge.example") == (Code.REFUSED, [])


@pytest.mark.parametrize("address", [HOST, "127.0.0.1", "172.20.0.1", "169.254.169.254"])
async def test_a_name_that_leads_inside_is_refused(scene: Scene, address: str) -> None:
    scene.outside.zone["good.example"] = [GOOD, address]
    assert await scene.resolve("good.example") == (Code.REFUSED, [])
    assert not await scene.reach(GOOD)
    assert scene.told()[0] == f"good.example at {GOOD}, {address}"


async def test_containers_are_found_by_name_whatever_the_policy(scene: Scene) -> None:
    scene.names.add(scene.record.id, "e2", ["db"], ["172.20.0.3"])
    assert await scene.resolve("db") == (Code.NO_ERROR, ["172.20.0.3"])


async def test_when_the_last_container_has_ended_the_network_is_open_for_nobody_and_nothing_is_left(
    scene: Scene,
) -> None:
    scene.gates.open_up("c")
    assert await scene.reach(OTHER), "no policy is in force any more"
    scene.gates.close_off("c", [scene.attachment], "web")
    assert not await scene.reach(OTHER)


async def test_a_containers_own_policy_narrows_its_networks(scene: Scene) -> None:
    own = replace(scene.attachment, endpoint=replace(scene.attachment.endpoint, options={EGRESS: "good.example"}))
    scene.gates.close_off("c", [own], "web")
    assert not await scene.reach(LISTED)
    assert await scene.resolve("x.cdn.example") == (Code.REFUSED, [])
    assert await scene.resolve("good.example") == (Code.NO_ERROR, [GOOD])
    assert await scene.reach(GOOD)


def send(fd: int, source: str, destination: str) -> None:
    with make_socket(fd, socket.SOCK_DGRAM, six=":" in source) as client:
        client.bind((source, 0))
        client.sendto(f"{source} to {destination}".encode(), (destination, 4444))


async def test_a_container_with_a_policy_of_its_own_sends_from_its_own_addresses_only(scene: Scene) -> None:
    scene.gates.open_up("c")
    scene.record = replace(scene.record, options={})
    own = replace(scene.attachment, endpoint=replace(scene.attachment.endpoint, options={EGRESS: f"{LISTED},{GOOD6}"}))
    link = netlink.find_link(scene.namespace.netlink, "eth0")
    assert link is not None
    forged = ("172.20.0.77", "198.51.100.7", "fd00:20::77")
    scene.namespace.netlink.transact(
        *(netlink.add_address(link.index, "eth0", ipaddress.ip_interface(address)) for address in forged)
    )

    def arrives(source: str, destination: str) -> bool:
        with make_socket(scene.world.outside, socket.SOCK_DGRAM, six=True) as there:
            there.bind(("::", 4444))
            there.settimeout(0.5)
            send(scene.fd, source, destination)
            try:
                return there.recv(100).decode() == f"{source} to {destination}"
            except TimeoutError:
                return False

    mine = {4: "172.20.0.2", 6: "fd00:20::2"}
    there = {4: (LISTED, OTHER), 6: (GOOD6, OTHER6)}
    for source in (*mine.values(), *forged):
        assert arrives(source, there[6 if ":" in source else 4][1]), "nobody is held yet"
    scene.gates.close_off("c", [own], "web")
    for source in forged:
        assert not any(arrives(source, destination) for destination in there[6 if ":" in source else 4])
    for version, source in mine.items():
        assert arrives(source, there[version][0])
        assert not arrives(source, there[version][1])
    scene.gates.open_up("c")
    assert arrives(forged[0], OTHER)
    assert nftables.run("list chains bridge").count("pin_") == 0
    scene.gates.close_off("c", [own], "web")
    scene.wall.load([scene.rules()], [], scene.gates.rules({"c": ("web", [own])}), guarded=False)
    assert not arrives(forged[0], OTHER), "a daemon that starts again holds it as well"
    scene.wall.remove()
    assert "bridge" not in nftables.run("list tables")
