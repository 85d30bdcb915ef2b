"""Who answers to what, for whom."""

import struct

import pytest

from wherry.errors import InvalidParameter
from wherry.network.dns import answers, message
from wherry.network.dns.conf import internal_resolv_conf
from wherry.network.dns.host import HostDesk, parse_address
from wherry.network.dns.message import Code, Type
from wherry.network.dns.names import Link, Names, View
from wherry.network.dns.station import Flood, Pace
from wherry.network.dns.upstream import Options


def table() -> Names:
    names = Names()
    names.add("1", "e1", ["web", "Db", "0123456789ab"], ["172.20.0.2", "fd00::2"])
    names.add("1", "e2", ["api", "db"], ["172.20.0.3"])
    names.add("2", "e3", ["web"], ["172.21.0.2"])
    return names


ONE, BOTH = View(networks=[("1", "front.net")]), View(networks=[("2", "back"), ("1", "front.net")])


@pytest.mark.parametrize(
    ("view", "name", "family", "found"),
    [
        (ONE, "web", 4, ["172.20.0.2"]),
        (ONE, "WEB", 4, ["172.20.0.2"]),
        (ONE, "web", 6, ["fd00::2"]),
        (ONE, "api", 6, []),
        (ONE, "0123456789ab", 4, ["172.20.0.2"]),
        (ONE, "web.front.net", 4, ["172.20.0.2"]),
        (ONE, "web.back", 4, None),
        (BOTH, "web", 4, ["172.21.0.2"]),
        (BOTH, "web", 6, ["fd00::2"]),
        (BOTH, "web.Front.Net", 4, ["172.20.0.2"]),
        (BOTH, "nobody", 4, None),
        (View(), "web", 4, None),
    ],
)
def test_names_count_on_the_networks_one_is_on(view: View, name: str, family: int, found: list[str] | None) -> None:
    assert table().lookup(view, name, family) == found


def test_all_that_share_a_name_take_turns_for_each_family() -> None:
    names = table()
    names.add("1", "e4", ["db"], ["fd00::4"])
    firsts = []
    for _ in range(4):
        found = names.lookup(ONE, "db", 4)
        names.lookup(ONE, "db", 6)  # as a client does that asks for both families at a time
        assert found is not None
        assert sorted(found) == ["172.20.0.2", "172.20.0.3"]
        firsts.append(found[0])
    assert firsts == ["172.20.0.2", "172.20.0.3"] * 2


def test_a_link_is_a_name_for_one_only_and_goes_first() -> None:
    links = [Link(network="1", alias="Cache", target="api"), Link(network="1", alias="web", target="api")]
    linked = View(networks=[("1", "front.net")], links=links)
    assert table().lookup(linked, "cache", 4) == ["172.20.0.3"]
    assert table().lookup(linked, "web", 4) == ["172.20.0.3"]
    assert table().lookup(linked, "cache.front.net", 4) == ["172.20.0.3"]
    assert table().lookup(ONE, "cache", 4) is None


def test_another_name_takes_the_place_of_the_old_and_nothing_is_left_of_who_leaves() -> None:
    names = table()
    names.add("1", "e2", ["backend", "db"], ["172.20.0.3"])
    assert names.lookup(ONE, "api", 4) is None
    assert names.lookup(ONE, "backend", 4) == ["172.20.0.3"]
    names.remove("1", "e1")
    names.remove("1", "e1")
    assert names.lookup(ONE, "db", 4) == ["172.20.0.3"]
    assert names.reverse(ONE, "172.20.0.2") is None
    names.remove("1", "e2")
    assert names.lookup(ONE, "db", 4) is None


def test_an_address_has_its_containers_name_and_network() -> None:
    assert table().reverse(ONE, "172.20.0.2") == "web.front.net"
    assert table().reverse(ONE, "fd00::2") == "web.front.net"
    assert table().reverse(ONE, "172.21.0.2") is None
    assert table().reverse(BOTH, "172.21.0.2") == "web.back"


def ask(name: bytes, kind: int, *, flags: int = 0x0100, category: int = 1) -> message.Query:
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"
    return message.parse_query(struct.pack(">6H", 7, flags, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, category))


@pytest.mark.parametrize(
    ("name", "kind", "code", "data"),
    [
        (b"web", Type.A, 0, [bytes([172, 20, 0, 2])]),
        (b"api", Type.AAAA, 0, []),
        (b"api", Type.MX, 0, []),
        (b"2.0.20.172.in-addr.arpa", Type.PTR, 0, [b"\3web\5front\3net\0"]),
    ],
)
def test_what_is_known_is_answered(name: bytes, kind: int, code: int, data: list[bytes]) -> None:
    answer = answers.answer(table(), ONE, ask(name, kind))
    assert answer is not None
    assert answer[3] & 0xF == code
    assert [record.data for record in message.answers(answer)[1]] == data


@pytest.mark.parametrize(
    ("name", "kind"),
    [(b"nobody", Type.A), (b"web", 16), (b"9.9.9.9.in-addr.arpa", Type.PTR), (b"nobody", Type.MX)],
)
def test_what_is_not_known_is_for_others(name: bytes, kind: int) -> None:
    assert answers.answer(table(), ONE, ask(name, kind)) is None


def test_other_operations_and_classes_are_not_implemented() -> None:
    for query in (ask(b"web", Type.A, flags=0x2800), ask(b"web", Type.A, category=3)):
        answer = answers.answer(table(), ONE, query)
        assert answer is not None
        assert answer[3] & 0xF == Code.NOT_IMPLEMENTED


@pytest.mark.parametrize(
    ("name", "kind", "code", "data"),
    [
        (b"web.front.net.wherry", Type.A, Code.NO_ERROR, [bytes([172, 20, 0, 2])]),
        (b"Web.Back.Wherry", Type.A, Code.NO_ERROR, [bytes([172, 21, 0, 2])]),
        (b"web.back.wherry", Type.AAAA, Code.NO_ERROR, []),
        (b"web.back.wherry", 16, Code.NO_ERROR, []),
        (b"back.wherry", Type.A, Code.NO_ERROR, []),
        (b"wherry", 6, Code.NO_ERROR, []),
        (b"web.wherry", Type.A, Code.NAME_ERROR, []),
        (b"nobody.back.wherry", Type.A, Code.NAME_ERROR, []),
        (b"2.0.21.172.in-addr.arpa", Type.PTR, Code.NO_ERROR, [b"\3web\4back\6wherry\0"]),
        (b"9.9.9.9.in-addr.arpa", Type.PTR, Code.REFUSED, []),
        (b"example.com", Type.A, Code.REFUSED, []),
        (b"notwherry", Type.A, Code.REFUSED, []),
    ],
)
def test_the_host_asks_beneath_wherry_only(name: bytes, kind: int, code: int, data: list[bytes]) -> None:
    desk = HostDesk(table(), lambda: BOTH.networks)
    answer = desk.answer(ask(name, kind))
    assert answer[3] & 0xF == code
    records = message.answers(answer)[1]
    assert [record.data for record in records] == data
    assert all(record.ttl == 0 for record in records), "the host must not remember who is gone"


@pytest.mark.parametrize("text", ["127.0.0.153", "127.0.0.153:0", "127.0.0.153:65536", "192.0.2.1:53", "x:53", ":53"])
def test_only_the_loopback_is_for_the_hosts_questions(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid host-dns"):
        parse_address(text)


def test_the_hosts_address_may_be_of_either_family() -> None:
    assert parse_address("127.0.0.153:53") == ("127.0.0.153", 53)
    assert parse_address("[::1]:5353") == ("::1", 5353)


HOST = """\
# mine
nameserver 10.9.9.9
nameserver 127.0.0.1
search corp.example lan
options edns0 ndots:2
sortlist 1.2.3.4
"""


def test_resolv_conf_is_as_docker_26_writes_it() -> None:
    assert internal_resolv_conf(HOST) == (
        "# Generated by Docker Engine.\n"
        "# This file can be edited; Docker Engine will not make further changes once it\n"
        "# has been modified.\n"
        "\n"
        "nameserver 127.0.0.11\n"
        "search corp.example lan\n"
        "options edns0 ndots:2\n"
        "sortlist 1.2.3.4\n"
        "\n"
        "# Based on host file: '/etc/resolv.conf' (internal resolver)\n"
        "# ExtServers: [10.9.9.9 host(127.0.0.1)]\n"
        "# Overrides: []\n"
        "# Option ndots from: host\n"
    )


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (
            {"dns": ["1.2.3.4", "127.0.0.1"], "search": ["a.b"], "options": ["ndots:3", "timeout:4"]},
            [
                "search a.b",
                "options ndots:3 timeout:4",
                "# ExtServers: [1.2.3.4 127.0.0.1]",
                "# Overrides: [nameservers search options]",
                "# Option ndots from: override",
            ],
        ),
        (
            {"options": ["use-vc"]},
            ["search corp.example lan", "options use-vc ndots:0", "# Option ndots from: internal"],
        ),
        ({"search": ["."]}, ["options edns0 ndots:2", "# Overrides: [search]", "# Option ndots from: host"]),
    ],
)
def test_what_is_given_replaces_the_hosts(given: dict[str, list[str]], lines: list[str]) -> None:
    written = internal_resolv_conf(HOST, **given).splitlines()
    assert [line for line in written if line in lines] == lines
    assert any(line.startswith("search") for line in written) == (given.get("search") != ["."])


def test_options_are_read_as_libc_does() -> None:
    words = "timeout:7 attempts:9 rotate use-vc ndots:1 edns0 nonsense timeout:x attempts:".split()
    assert Options.parse(words) == Options(timeout=7.0, attempts=5, rotate=True, tcp=True, ndots=1)
    assert Options.parse(["timeout:0", "timeout:99999999999"]) == Options()
    assert Options.parse(["timeout:3600"]).timeout == 30.0


def test_who_never_stops_asking_gets_half_of_the_time_and_several_share_it() -> None:
    flood = Flood()
    for others in (0, 1, 3):
        flood.paused = others
        pace, now, worked = Pace(flood), 100.0, 0.0
        while now < 110:
            pause = pace.spend(now, now + 0.001)
            worked += 0.001
            now += 0.001 + pause
        assert worked / 10 == pytest.approx(0.5 / (others + 1), rel=0.1)


def test_who_asks_now_and_then_never_waits() -> None:
    pace = Pace(Flood())
    assert [pace.spend(100 + n, 100 + n + 0.04) for n in range(5)] == [0.0] * 5
