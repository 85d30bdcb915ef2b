import ipaddress
from dataclasses import replace

import pytest

from wherry.network.endpoint import Port
from wherry.network.places import NetworkRules, Publication
from wherry.network.wall.rules import (
    EgressRules,
    Entry,
    bind,
    elements,
    network_entries,
    publication_entry,
    render,
    show,
)

FOUR, SIX = ipaddress.ip_network("172.17.0.0/16"), ipaddress.ip_network("fd00:1::/64")
NETWORK = NetworkRules(network="n" * 64, bridge="wherry0", subnets=[FOUR, SIX])


def publication(host_ip: str = "0.0.0.0", protocol: str = "tcp", address: str = "172.17.0.2") -> Publication:
    port = Port(container_port=80, protocol=protocol, host_ip=host_ip, host_port=8080)
    return Publication(port=port, address=address, bridge="wherry0")


def text_of(network: NetworkRules) -> set[str]:
    return {f"{entry.set} {show(entry)}" for entry in network_entries(network)}


def test_a_port_on_any_address_is_keyed_by_protocol_and_port() -> None:
    (element,) = elements(publication_entry(publication(), NETWORK))
    assert element.set == "published4"
    assert element.key == bytes([6, 0, 0, 0, 0x1F, 0x90, 0, 0])
    assert element.value == bytes([172, 17, 0, 2, 0, 80, 0, 0])


def test_a_port_on_one_address_is_keyed_by_that_too() -> None:
    (element,) = elements(publication_entry(publication("127.0.0.1", "udp"), NETWORK))
    assert element.set == "published_at4"
    assert element.key == bytes([17, 0, 0, 0, 127, 0, 0, 1, 0x1F, 0x90, 0, 0])


def test_a_port_of_ipv6_has_maps_of_its_own() -> None:
    entry = publication_entry(publication("::", address="fd00:1::2"), NETWORK)
    assert (entry.set, show(entry)) == ("published6", "6 . 8080 : fd00:1::2 . 80")
    (element,) = elements(publication_entry(publication("2001:db8::1", address="fd00:1::2"), NETWORK))
    assert element.set == "published_at6"
    assert len(element.key) == 4 + 16 + 4


@pytest.mark.parametrize(("mode4", "where"), [("nat", "published4"), ("routed", "routed4"), ("isolated", "published4")])
def test_on_a_routed_network_the_containers_own_port_is_opened(mode4: str, where: str) -> None:
    entry = publication_entry(publication(), replace(NETWORK, mode4=mode4))
    assert entry.set == where
    if where == "routed4":
        assert show(entry) == "172.17.0.2 . 6 . 80"


def test_a_network_is_elements_of_sets() -> None:
    assert text_of(NETWORK) == {
        'bridges "wherry0"',
        'friends "wherry0" . "wherry0"',
        "subnets4 172.17.0.0/16",
        "subnets6 fd00:1::/64",
        'masqueraded ipv4 . "wherry0"',
        'masqueraded ipv6 . "wherry0"',
    }


@pytest.mark.parametrize(
    ("changes", "without", "more"),
    [
        ({"icc": False}, {'friends "wherry0" . "wherry0"'}, set()),
        ({"masquerade": False}, {'masqueraded ipv4 . "wherry0"'}, set()),
        ({"masquerade6": False}, {'masqueraded ipv6 . "wherry0"'}, set()),
        ({"source4": "192.0.2.1"}, {'masqueraded ipv4 . "wherry0"'}, {'sources4 "wherry0" : 192.0.2.1'}),
        ({"mode6": "routed"}, {'masqueraded ipv6 . "wherry0"'}, {'routed ipv6 . "wherry0"'}),
        ({"mode4": "nat-unprotected"}, set(), {'open ipv4 . "wherry0"'}),
        ({"mode4": "isolated"}, {'masqueraded ipv4 . "wherry0"'}, {'internal ipv4 . "wherry0"'}),
        (
            {"internal": True},
            {'masqueraded ipv4 . "wherry0"', 'masqueraded ipv6 . "wherry0"'},
            {'internal ipv4 . "wherry0"', 'internal ipv6 . "wherry0"'},
        ),
    ],
)
def test_flags_of_a_network_decide_its_sets(changes: dict[str, object], without: set[str], more: set[str]) -> None:
    assert text_of(replace(NETWORK, **changes)) == text_of(NETWORK) - without | more  # type: ignore[arg-type]


def test_an_interval_ends_before_the_next_address_if_there_is_one() -> None:
    start, end = elements(Entry("subnets4", (FOUR,)))
    assert (start.key, start.ends) == (bytes([172, 17, 0, 0]), False)
    assert (end.key, end.ends) == (bytes([172, 18, 0, 0]), True)
    assert len(elements(Entry("subnets4", (ipaddress.ip_network("255.255.255.0/24"),)))) == 1


def test_the_table_is_replaced_in_one_transaction() -> None:
    text = render("wherry_x", network_entries(NETWORK), guarded=False)
    assert text.startswith("table inet wherry_x\ndelete table inet wherry_x\ntable inet wherry_x {\n")
    assert "set internal { type nf_proto . ifname; }" in text
    assert "set subnets4 { type ipv4_addr; flags interval; elements = { 172.17.0.0/16 }; }" in text


@pytest.mark.parametrize(("guarded", "guarded6"), [(True, False), (False, True), (False, False)])
def test_forwarding_between_others_is_dropped_only_when_it_is_ours(guarded: bool, guarded6: bool) -> None:
    text = render("wherry", [], guarded=guarded, guarded6=guarded6)
    assert ('meta nfproto ipv4 meta iifkind != "bridge"' in text) == guarded
    assert ('meta nfproto ipv6 meta iifkind != "bridge"' in text) == guarded6


def test_what_arrives_is_not_translated_where_the_hosts_rules_are_respected() -> None:
    assert render("wherry", [], guarded=False).count("fib daddr type local jump destination") == 2
    assert render("wherry", [], guarded=False, respect=True).count("fib daddr type local jump destination") == 1


def test_a_policy_names_itself_in_reports_and_knows_whom_it_binds() -> None:
    sources = [ipaddress.ip_network("172.17.0.2/32"), SIX]
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.1.0.0/16")]
    policy = EgressRules(key="endpoint e1", sources=sources, networks=networks, bridge="br0")
    text = bind("wherry", policy, {ipaddress.ip_address("192.0.2.7"): 60})
    assert 'prefix "endpoint e1"' in text
    assert "elements = { 192.0.2.7 timeout 60s };" in text
    assert "elements = { 10.0.0.0/8 };" in text  # sets of intervals take no overlaps
    for name, key in (("bound4", "172.17.0.2"), ("bound_subnets6", "fd00:1::/64"), ("bound_bridges", '"br0"')):
        assert f"map {name} " in text
        assert f"{key} : jump egress_" in text
