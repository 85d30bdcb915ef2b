"""Egress policies: read, asked, told to the firewall; refusals told to people."""

import ipaddress
import logging
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Failed, InvalidParameter
from wherry.events import Event, Events
from wherry.network.egress.gates import Gates
from wherry.network.egress.log import BURST, RefusalLog
from wherry.network.egress.policy import Policy
from wherry.network.endpoint import Endpoint
from wherry.network.plan import Attachment
from wherry.network.records import EGRESS, NetworkRecord, Subnet
from wherry.network.wall.rules import EgressRules


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("pypi.example", True),
        ("files.pypi.example", False),
        ("pypi.example.evil", False),
        ("evilpypi.example", False),
        ("a.cdn.example", True),
        ("a.b.cdn.example", True),
        ("cdn.example", False),
        ("acdn.example", False),
        ("xn--bcher-kva.example", True),
        ("", False),
        ("example", False),
    ],
)
def test_a_name_allows_itself_and_a_star_what_is_beneath(name: str, allowed: bool) -> None:
    policy = Policy.parse("PyPI.example., *.cdn.example,10.0.0.0/8,bücher.example")
    assert policy.allows(name) is allowed


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("10.1.2.3", True),
        ("192.168.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("::ffff:192.168.0.1", False),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::c0a8:1", False),
        ("64:ff9b::808:808", True),
        ("2002:c0a8:1::1", False),
    ],
)
def test_names_lead_to_public_addresses_and_to_those_that_are_listed(address: str, admitted: bool) -> None:
    assert Policy.parse("a.example,10.0.0.0/8").admits(ipaddress.ip_address(address)) is admitted


def test_none_allows_nothing() -> None:
    policy = Policy.parse("none")
    assert not policy.allows("none")
    assert policy == Policy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is listed"),
        (" , ", "nothing is listed"),
        ("none,a.example", "'none' stands alone"),
        ("a.example,10.0.0.1/8", "'10.0.0.1/8': the subnet is 10.0.0.0/8"),
        ("10.0.0.0/33", "'10.0.0.0/33': neither an address nor a subnet"),
        ("a.example:443", "ports cannot be told apart"),
        ("https://a.example", "'https://a.example': a name is needed"),
        ("*", r"'\*'"),
        ("a.*.example", r"'a.\*.example'"),
        ("*.*.example", r"'\*.\*.example'"),
        ("a..example", "'a..example': not a domain name"),
        ("-a.example", "'-a.example'"),
        ("a.example/x", "'a.example/x'"),
        ("a" * 64, "a" * 64),
        (",".join(["a.example"] * 1001), "1001 entries"),
    ],
)
def test_a_bad_entry_is_named(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        Policy.parse(text)


@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_is_a_policy_or_refused(text: str, name: str) -> None:
    try:
        policy = Policy.parse(text)
    except InvalidParameter:
        return
    policy.allows(name)
    assert not policy.allows("")


class FakeWall:
    """What the firewall holds."""

    def __init__(self) -> None:
        self.rules: dict[str, EgressRules] = {}
        self.open: list[tuple[str, tuple[str, ...], int]] = []
        self.broken = False

    def set_egress(self, rules: EgressRules) -> None:
        self.rules[rules.key] = rules

    def clear_egress(self, key: str) -> None:
        del self.rules[key]

    def allow_egress(self, key: str, addresses: Iterable[str], seconds: int) -> None:
        if self.broken:
            raise Failed("no table")
        assert key in self.rules
        self.open.append((key, tuple(addresses), seconds))


CLOSED = NetworkRecord(
    id="c" * 64,
    name="closed",
    driver="bridge",
    created=1,
    subnets=(Subnet(subnet="172.20.0.0/16"), Subnet(subnet="fd00::/64")),
    ipv6=True,
    options={EGRESS: "a.example,*.b.example,9.9.9.0/24"},
)
FREE = NetworkRecord(id="f" * 64, name="free", driver="bridge", created=2, subnets=(Subnet(subnet="172.21.0.0/16"),))
NETWORKS = {record.id: record for record in (CLOSED, FREE)}


def attachment(record: NetworkRecord, ip: str, options: str = "", gateway: str = "172.20.0.1") -> Attachment:
    endpoint = Endpoint(
        network=record.name,
        network_id=record.id,
        endpoint_id=f"e{ip}",
        mac="",
        ip=ip,
        prefix=16,
        gateway=gateway,
        ip6="fd00::9" if record is CLOSED else "",
        options={EGRESS: options} if options else {},
    )
    return Attachment(endpoint=endpoint, host_name="veth0")


class Scene:
    def __init__(self) -> None:
        self.wall = FakeWall()
        self.events = Events()
        self.gates = Gates(self.wall, NETWORKS.get, self.events)

    def told(self) -> list[Event]:
        return self.events.past(0, 1 << 63)


NETWORK_KEY = f"network {CLOSED.id}"


def test_a_network_is_closed_off_while_a_container_is_on_it() -> None:
    scene = Scene()
    scene.gates.close_off("one", [attachment(CLOSED, "172.20.0.2")])
    scene.gates.close_off("two", [attachment(CLOSED, "172.20.0.3")])
    rules = scene.wall.rules[NETWORK_KEY]
    assert [str(source) for source in rules.sources] == ["172.20.0.0/16", "fd00::/64"]
    assert rules.bridge == f"br-{CLOSED.id[:12]}"
    assert [str(network) for network in rules.networks] == ["9.9.9.0/24"]
    scene.gates.open_up("one")
    assert NETWORK_KEY in scene.wall.rules
    scene.gates.open_up("two")
    scene.gates.open_up("two")
    assert scene.wall.rules == {}


async def test_an_allowed_name_opens_the_way_before_it_is_told() -> None:
    scene = Scene()
    scene.gates.close_off("one", [attachment(CLOSED, "172.20.0.2")])
    gate = scene.gates.gate("one")
    assert gate.bound
    assert gate.allows("a.example")
    assert await gate.admit("a.example", [("8.8.8.8", 5), ("2606:4700::1", 300)])
    assert scene.wall.open == [(NETWORK_KEY, ("8.8.8.8", "2606:4700::1"), 60)]
    assert await gate.admit("a.example", [("8.8.4.4", 300)])
    assert scene.wall.open[1:] == [(NETWORK_KEY, ("8.8.4.4",), 330)]
    assert scene.told() == []


async def test_an_answer_that_leads_inside_is_refused_and_told() -> None:
    scene = Scene()
    scene.gates.close_off("one", [attachment(CLOSED, "172.20.0.2")], "web")
    gate = scene.gates.gate("one")
    assert not await gate.admit("a.example", [("8.8.8.8", 5), ("192.168.1.1", 5)])
    assert scene.wall.open == []
    [event] = scene.told()
    assert event.attributes["destination"] == "a.example at 8.8.8.8, 192.168.1.1"


async def test_a_firewall_that_fails_lets_nothing_through() -> None:
    scene = Scene()
    scene.gates.close_off("one", [attachment(CLOSED, "172.20.0.2")])
    scene.wall.broken = True
    assert not await scene.gates.gate("one").admit("a.example", [("8.8.8.8", 5)])


async def test_a_containers_own_policy_and_its_networks_must_both_allow() -> None:
    scene = Scene()
    scene.gates.close_off("one", [attachment(CLOSED, "172.20.0.2", options="a.example,c.example")])
    gate = scene.gates.gate("one")
    assert [gate.allows(name) for name in ("a.example", "x.b.example", "c.example")] == [True, False, False]
    own = scene.wall.rules["endpoint e172.20.0.2"]
    assert [str(source) for source in own.sources] == ["172.20.0.2/32", "fd00::9/128"]
    assert await gate.admit("a.example", [("8.8.8.8", 100)])
    assert {key for key, _, _ in scene.wall.open} == {NETWORK_KEY, own.key}


async def test_who_is_also_on_a_free_network_is_free_until_it_leaves_that() -> None:
    scene = Scene()
    both = [attachment(CLOSED, "172.20.0.2"), attachment(FREE, "172.21.0.2")]
    scene.gates.close_off("one", both)
    gate = scene.gates.gate("one")
    assert not gate.bound
    scene.gates.close_off("one", both[:1])
    assert gate.bound
    assert not gate.allows("c.example")
    inside = attachment(FREE, "172.21.0.2", gateway="")
    scene.gates.close_off("one", [both[0], inside])
    assert gate.bound, "a network that does not lead out makes nobody free"


def test_refusals_are_told_once_with_network_container_and_destination(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.gates.close_off("one" * 20, [attachment(CLOSED, "172.20.0.2")], "web")
    gate = scene.gates.gate("one" * 20)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not gate.allows("evil.example")
        scene.gates.refused_packet("172.20.0.2", "tcp", "1.2.3.4", 443)
        scene.gates.refused_packet("fd00::9", "udp", "2001:db8::1", 53)
        scene.gates.refused_packet("172.20.0.77", "tcp", "1.2.3.4", 443)
    assert [event.attributes["destination"] for event in scene.told()] == [
        "evil.example",
        "1.2.3.4:443/tcp",
        "[2001:db8::1]:53/udp",
    ]
    first = scene.told()[0]
    assert (first.type, first.action, first.actor) == ("network", "egress_refused", CLOSED.id)
    assert first.attributes["container"] == "one" * 20
    assert first.attributes["name"] == "closed"
    assert len(caplog.records) == 3
    assert "container web" in caplog.text
    assert scene.gates.refusals == 5


def test_a_flood_of_refusals_is_counted_not_told() -> None:
    now = 1000.0
    events = Events()
    refusals = RefusalLog(events, clock=lambda: now)
    for number in range(BURST + 40):
        refusals.refused("id", "web", ("n", "net"), f"{number}.example", "name")
    assert len(events.past(0, 1 << 63)) == BURST
    now += 61
    refusals.refused("id", "web", ("n", "net"), "x" * 300 + "\n", "name")
    last = events.past(0, 1 << 63)[-1]
    assert last.attributes["destination"] == "x" * 100 + "..."
    assert refusals.count == BURST + 41


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            NetworkRecord(id="m", name="lan", driver="macvlan", created=1, options={EGRESS: "none"}),
            "needs a network",
        ),
        (NetworkRecord(id="b", name="n", driver="bridge", created=1, options={EGRESS: "x y:"}), "'y:'"),
    ],
)
def test_a_policy_that_cannot_be_enforced_is_refused(record: NetworkRecord, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        Gates.check(record)
    Gates.check(FREE)


def test_domains_need_a_network_whose_resolver_is_ours() -> None:
    default = NetworkRecord(id="d", name="bridge", driver="bridge", created=1)
    Gates.check_attachment(default, {EGRESS: "10.0.0.0/8"})
    with pytest.raises(InvalidParameter, match="ask name servers themselves"):
        Gates.check_attachment(default, {EGRESS: "a.example"})
    Gates.check_attachment(FREE, {EGRESS: "a.example"})


def test_the_whole_table_has_the_rules_of_all_that_run() -> None:
    gates = Scene().gates
    rules = gates.rules(
        {
            "one": ("a", [attachment(CLOSED, "172.20.0.2", options="none")]),
            "two": ("b", [attachment(CLOSED, "172.20.0.3")]),
        }
    )
    assert sorted(each.key for each in rules) == ["endpoint e172.20.0.2", NETWORK_KEY]
