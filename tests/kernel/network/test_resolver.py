"""The resolver in a container's namespace: names, other servers, floods, restarts."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dnskit import PATIENCE, NameServer, Told, ask, command, exchange, question, serving
from driverkit import container
from netkit import make_socket

from harness.descriptors import descriptors
from wherry.kernel import nftables
from wherry.kernel.netns import in_netns
from wherry.network.dns import message
from wherry.network.dns.message import Code, Type
from wherry.network.dns.names import Link, Names, View
from wherry.network.dns.server import Resolver
from wherry.network.endpoint import NameServers
from wherry.network.places import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

NOBODY = NameServers()
VIEW = View(networks=[("n", "front")])
INSIDE, HOST = "127.0.0.2", "127.0.0.1"  # name servers in the container's namespace and in the host's
UNREACHABLE = "203.0.113.1"


class Scene:
    def __init__(self, namespace: Namespace) -> None:
        self.names = Names()
        self.names.add("n", "e1", ["web", "db"], ["172.20.0.2", "fd00::2"])
        self.names.add("n", "e2", ["api", "db"], ["172.20.0.3"])
        self.resolver = Resolver(self.names, lambda: [("n", "front")])
        self.namespace = namespace
        self.fd = namespace.fd

    async def open(self, upstream: NameServers = NOBODY, view: View = VIEW) -> None:
        await self.resolver.open("c", self.namespace, view, upstream)

    async def ask(self, name: str, kind: int = Type.A, *, tcp: bool = False, edns: int = 0) -> Told:
        return await asyncio.to_thread(ask, self.fd, name, kind, tcp=tcp, edns=edns)

    async def exchange(self, data: bytes, *, tcp: bool = False) -> bytes:
        return await asyncio.to_thread(exchange, self.fd, data, tcp=tcp)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    with container() as namespace:
        made = Scene(namespace)
        try:
            yield made
        finally:
            await made.resolver.close_all()


@pytest.mark.parametrize("tcp", [False, True])
async def test_names_are_answered_by_udp_and_tcp(scene: Scene, tcp: bool) -> None:
    await scene.open()
    assert await scene.ask("WEB", tcp=tcp) == Told(Code.NO_ERROR, ["172.20.0.2"], False)
    assert await scene.ask("web.front", Type.AAAA, tcp=tcp) == Told(Code.NO_ERROR, ["fd00::2"], False)
    assert await scene.ask("api", Type.AAAA, tcp=tcp) == Told(Code.NO_ERROR, [], False)
    assert await scene.ask("nobody", tcp=tcp) == Told(Code.NAME_ERROR, [], False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("getent hosts api", "172.20.0.3      api"),
        ("getent hosts web", "fd00::2         web"),
        ("getent hosts 172.20.0.3", "172.20.0.3      api.front"),
        ("getent hosts fd00::2", "fd00::2         web.front"),
        ("busybox nslookup -type=a api", "Address: 172.20.0.3"),
        ("dig +short +tcp web.front", "172.20.0.2"),
        ("dig +short -x 172.20.0.2", "web.front."),
        ("dig +short +bufsize=1232 api", "172.20.0.3"),
        ("drill api", "172.20.0.3"),
    ],
)
async def test_programs_that_resolve_names_find_containers(scene: Scene, tmp_path: Path, words: str, told: str) -> None:
    await scene.open()
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.11\noptions ndots:0\n")
    said = await asyncio.to_thread(command, scene.fd, conf, *words.split())
    assert told in said


async def test_what_changes_is_seen_by_the_next_question(scene: Scene) -> None:
    await scene.open()
    scene.names.add("m", "e3", ["late"], ["172.21.0.9"])
    assert (await scene.ask("late")).code == Code.NAME_ERROR
    links = [Link(network="n", alias="cache", target="api")]
    await scene.resolver.update(
        "c", view=View(networks=[("n", "front"), ("m", "back")], links=links), upstream=NameServers()
    )
    assert (await scene.ask("late.back")).addresses == ["172.21.0.9"]
    assert (await scene.ask("cache")).addresses == ["172.20.0.3"]
    scene.names.remove("m", "e3")
    assert (await scene.ask("late")).code == Code.NAME_ERROR


async def test_a_container_may_use_port_53_itself(scene: Scene) -> None:
    await scene.open()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with make_socket(scene.fd, kind) as own:
            own.bind(("0.0.0.0", 53))
            assert (await scene.ask("web", tcp=kind is socket.SOCK_STREAM)).addresses == ["172.20.0.2"]


async def test_a_daemon_that_comes_back_finds_its_rules_and_one_that_cannot_replaces_them(scene: Scene) -> None:
    def rules() -> str:
        return in_netns(scene.fd, lambda: nftables.run("list ruleset"))

    await scene.open()
    before = rules()
    assert before.count("dport set") == 2
    await scene.resolver.close("c")
    await scene.open()
    assert rules() == before
    assert (await scene.ask("web")).addresses == ["172.20.0.2"]
    await scene.resolver.close("c")
    port = int(before.split("udp dport set ")[1].split()[0])
    with make_socket(scene.fd, socket.SOCK_DGRAM) as thief:
        thief.bind(("127.0.0.11", port))
        await scene.open()
    after = rules()
    assert str(port) not in after
    assert after.count("dport set") == 2
    assert (await scene.ask("web")).addresses == ["172.20.0.2"]
    assert (await scene.ask("web", tcp=True)).addresses == ["172.20.0.2"]


async def test_two_descriptors_a_container_and_none_is_left(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(container()) for _ in range(6)]
        await scene.open()
        await scene.ask("nobody")
        before = descriptors().total()
        for number, space in enumerate(spaces):
            await scene.resolver.open(f"c{number}", space, VIEW, NameServers(servers=(UNREACHABLE,)))
            await asyncio.to_thread(ask, space.fd, "nobody")
        assert descriptors().total() == before + 2 * len(spaces)
        for number in range(len(spaces)):
            await scene.resolver.close(f"c{number}")
        assert descriptors().total() == before


# -- other servers


async def test_what_is_not_known_is_asked_from_the_containers_namespace_and_from_the_hosts(scene: Scene) -> None:
    inside = NameServer({"inside.example": ["198.51.100.1", "2001:db8::1"]}, code=Code.NO_ERROR)
    host = NameServer({"host.example": ["198.51.100.2"]})
    with serving(inside, scene.fd, INSIDE), serving(host, None, HOST):
        await scene.open(NameServers(servers=(INSIDE,)))
        assert await scene.ask("inside.example") == Told(0, ["198.51.100.1"], False)
        assert await scene.ask("inside.example", Type.AAAA, edns=1232) == Told(0, ["2001:db8::1"], False)
        assert (await scene.ask("host.example")).code == Code.NAME_ERROR
        assert await scene.ask("inside.example", tcp=True) == Told(0, ["198.51.100.1"], False)
        assert ("tcp", "inside.example", Type.A) in inside.asked
        assert host.asked == []
        await scene.resolver.update("c", view=VIEW, upstream=NameServers(from_host=(HOST,)))
        assert await scene.ask("host.example") == Told(0, ["198.51.100.2"], False)
        assert ("udp", "web", Type.A) not in inside.asked + host.asked


async def test_the_next_server_is_asked_when_one_fails_and_a_silent_one_comes_last_from_then_on(scene: Scene) -> None:
    zone = {"x.example": ["198.51.100.1"]}
    broken, silent = NameServer(code=Code.SERVER_FAILURE), NameServer(silent=True)
    good = NameServer(zone)
    with (
        serving(broken, scene.fd, "127.0.0.2"),
        serving(silent, scene.fd, "127.0.0.3"),
        serving(good, scene.fd, "127.0.0.4"),
    ):
        servers = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        await scene.open(NameServers(servers=servers, options=("timeout:1",)))
        assert (await scene.ask("x.example")).addresses == ["198.51.100.1"]
        assert len(silent.asked) == 1
        assert (await scene.ask("x.example")).addresses == ["198.51.100.1"]
        assert len(silent.asked) == 1


async def test_servers_take_turns_with_rotate_and_tcp_is_used_with_use_vc(scene: Scene) -> None:
    one, two = NameServer({"x.example": ["198.51.100.1"]}), NameServer({"x.example": ["198.51.100.2"]})
    with serving(one, scene.fd, "127.0.0.2"), serving(two, scene.fd, "127.0.0.3"):
        await scene.open(NameServers(servers=("127.0.0.2", "127.0.0.3"), options=("rotate", "use-vc")))
        found = [(await scene.ask("x.example")).addresses[0] for _ in range(4)]
        assert found == ["198.51.100.1", "198.51.100.2"] * 2
        assert {how for how, _, _ in one.asked + two.asked} == {"tcp"}


async def test_an_answer_cut_short_is_asked_for_by_tcp_and_cut_again_for_who_takes_less(scene: Scene) -> None:
    many = [f"198.51.100.{number}" for number in range(100)]
    server = NameServer({"many.example": many, "few.example": many[:3]}, cut=True)
    with serving(server, scene.fd, INSIDE):
        await scene.open(NameServers(servers=(INSIDE,)))
        assert await scene.ask("few.example") == Told(0, many[:3], False)
        assert await scene.ask("many.example") == Told(0, [], True)
        assert await scene.ask("many.example", edns=4096) == Told(0, many, False)
        assert await scene.ask("many.example", tcp=True) == Told(0, many, False)


async def test_failures_of_all_servers_are_told_as_such(scene: Scene) -> None:
    await scene.open(NameServers(servers=(UNREACHABLE,)))
    assert (await scene.ask("x.example")).code == Code.SERVER_FAILURE
    with serving(NameServer(code=Code.REFUSED), scene.fd, INSIDE):
        await scene.resolver.update("c", view=VIEW, upstream=NameServers(servers=(INSIDE,)))
        assert (await scene.ask("x.example")).code == Code.REFUSED


async def test_a_network_that_does_not_lead_out_asks_nobody_through_the_host(scene: Scene) -> None:
    host = NameServer({"x.example": ["198.51.100.2"]})
    with serving(host, None, HOST):
        view = View(networks=VIEW.networks, outside=False)
        await scene.open(NameServers(servers=(UNREACHABLE,), from_host=(HOST,)), view)
        assert (await scene.ask("x.example")).code == Code.NAME_ERROR
        assert (await scene.ask("web")).addresses == ["172.20.0.2"]
        assert host.asked == []


async def test_a_bare_word_is_left_to_the_search_list_when_the_user_set_ndots(scene: Scene) -> None:
    server = NameServer({"word": ["198.51.100.1"]})
    with serving(server, scene.fd, INSIDE):
        await scene.open(NameServers(servers=(INSIDE,), options=("ndots:1",)))
        assert await scene.ask("word") == Told(Code.NO_ERROR, [], False)
        assert server.asked == []
        await scene.resolver.update("c", view=VIEW, upstream=NameServers(servers=(INSIDE,), options=("ndots:0",)))
        assert (await scene.ask("word")).addresses == ["198.51.100.1"]


async def test_answers_of_strangers_do_not_count(scene: Scene) -> None:
    """A server that first answers under another number, then to another question, then rightly."""
    with make_socket(scene.fd, socket.SOCK_DGRAM) as server:
        server.bind((INSIDE, 53))
        await scene.open(NameServers(servers=(INSIDE,)))
        asking = asyncio.create_task(scene.ask("x.example"))
        data, peer = await asyncio.to_thread(server.recvfrom, 4096)
        query = message.parse_query(data)
        assert query.id != 7 or query.question == question("x.example")[12:]
        evil = [(Type.A, bytes([6, 6, 6, 6]))]
        wrong_number = message.build(query, 0, evil)
        server.sendto(bytes([wrong_number[0] ^ 1]) + wrong_number[1:], peer)
        other = message.parse_query(data[:2] + question("y.example")[2:])
        server.sendto(message.build(other, 0, evil), peer)
        server.sendto(data, peer)
        server.sendto(message.build(query, 0, [(Type.A, bytes([9, 9, 9, 9]))]), peer)
        assert (await asking).addresses == ["9.9.9.9"]


# -- hostile


async def test_what_is_malformed_is_refused_or_dropped_and_the_next_is_served(scene: Scene) -> None:
    await scene.open()
    for data in (b"\0" * 12, question("web")[:-1], b"\x12\x34" + b"\0\0\0\2" + b"\0" * 6):
        assert (await scene.exchange(data))[3] & 0xF == Code.FORMAT_ERROR
    with make_socket(scene.fd, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.11", 53))
        for data in (b"", b"x", question("web")[:2] + b"\x81\x80" + question("web")[4:]):
            client.send(data)
        client.send(question("web", number=99))
        assert (await asyncio.to_thread(client.recv, 512))[:2] == b"\0\x63"
    assert (await scene.exchange(question("web", 1)[:2] + b"\x28" + question("web")[3:]))[3] & 0xF == 4


async def test_a_broken_connection_harms_nobody_and_many_questions_may_use_one(scene: Scene) -> None:
    await scene.open()
    with make_socket(scene.fd) as client, make_socket(scene.fd) as broken:
        broken.connect(("127.0.0.11", 53))
        broken.sendall(struct.pack(">H", 500) + b"x")
        broken.close()
        client.connect(("127.0.0.11", 53))
        for number in range(3):
            data = question("web", number=number)
            client.sendall(struct.pack(">H", len(data)) + data)
        for number in range(3):
            (size,) = struct.unpack(">H", await asyncio.to_thread(client.recv, 2, socket.MSG_WAITALL))
            reply = await asyncio.to_thread(client.recv, size, socket.MSG_WAITALL)
            assert reply[:2] == struct.pack(">H", number)


async def test_more_connections_than_there_may_be_are_closed(scene: Scene) -> None:
    await scene.open()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(make_socket(scene.fd)) for _ in range(40)]
        for client in clients:
            client.connect(("127.0.0.11", 53))
        data = question("web")

        def served(client: socket.socket) -> bool:
            try:
                client.sendall(struct.pack(">H", len(data)) + data)
                return bool(client.recv(2, socket.MSG_WAITALL))
            except ConnectionError:
                return False

        answered = [await asyncio.to_thread(served, client) for client in clients]
        assert sum(answered) == 32


async def test_a_flood_of_one_container_leaves_the_others_and_the_daemon_their_time(scene: Scene) -> None:
    await scene.open()
    with container() as calm, make_socket(scene.fd, socket.SOCK_DGRAM) as client:
        await scene.resolver.open("calm", calm, VIEW, NameServers())
        client.connect(("127.0.0.11", 53))
        stop = False

        def flood() -> None:
            data = question("web")
            while not stop:
                with contextlib.suppress(OSError):
                    client.send(data, socket.MSG_DONTWAIT)

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        try:
            for _ in range(20):
                told = await asyncio.to_thread(ask, calm.fd, "web")
                assert told.addresses == ["172.20.0.2"]
        finally:
            stop = True
            await flooding
    assert (await scene.ask("api", tcp=True)).addresses == ["172.20.0.3"]


async def test_a_resolver_is_closed_while_others_are_asked(scene: Scene) -> None:
    with serving(NameServer(silent=True), scene.fd, INSIDE) as server:
        await scene.open(NameServers(servers=(INSIDE,)))
        with make_socket(scene.fd, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.11", 53))
            for number in range(50):
                client.send(question(f"x{number}.example"))
            assert await asyncio.to_thread(server.heard.wait, PATIENCE)
            await scene.resolver.close("c")
            await scene.resolver.close("c")
            assert not scene.resolver.serves("c")


# -- the host's own questions


async def test_the_host_asks_for_containers_by_name_and_network(scene: Scene) -> None:
    await scene.resolver.serve_host("127.0.0.153:53")

    async def short(*words: str) -> list[str]:
        run = await asyncio.create_subprocess_exec(
            "dig", "+short", "+tries=1", "@127.0.0.153", *words, stdout=asyncio.subprocess.PIPE
        )
        return (await run.communicate())[0].decode().split()

    assert await short("web.front.wherry") == ["172.20.0.2"]
    assert await short("+tcp", "web.front.wherry", "AAAA") == ["fd00::2"]
    assert await short("-x", "172.20.0.3") == ["api.front.wherry."]
    assert await short("example.com") == []
    await scene.resolver.serve_host("")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(exchange, None, question("web.front.wherry"), at="127.0.0.153")
