import ipaddress

import pytest

from wherry.network.endpoint import Port
from wherry.network.firewall import BridgeRules, published_element, render

NETWORK = BridgeRules(bridge="wherry0", subnets=[ipaddress.IPv4Network("172.17.0.0/16")])


def port(host_ip: str = "0.0.0.0", protocol: str = "tcp") -> Port:
    return Port(container_port=80, protocol=protocol, host_ip=host_ip, host_port=8080)


def test_a_port_on_any_address_is_keyed_by_protocol_and_port() -> None:
    element = published_element(port(), "172.17.0.2")
    assert element.set == "published"
    assert element.key == bytes([6, 0, 0, 0, 0x1F, 0x90, 0, 0])
    assert element.value == bytes([172, 17, 0, 2, 0, 80, 0, 0])


def test_a_port_on_one_address_is_keyed_by_that_too() -> None:
    element = published_element(port("127.0.0.1", "udp"), "172.17.0.2")
    assert element.set == "published_at"
    assert element.key == bytes([17, 0, 0, 0, 127, 0, 0, 1, 0x1F, 0x90, 0, 0])


def test_the_table_is_replaced_in_one_transaction() -> None:
    text = render("wherry_x", [NETWORK], [], guarded=False)
    assert text.startswith("table ip wherry_x\ndelete table ip wherry_x\ntable ip wherry_x {\n")
    assert "set private { type ifname;  }" in text
    assert text.count("172.17.0.0/16") == 2


def test_elements_are_written_as_the_maps_take_them() -> None:
    entries = [published_element(port(), "172.17.0.2"), published_element(port("127.0.0.1", "sctp"), "172.17.0.3")]
    text = render("wherry", [NETWORK], entries, guarded=False)
    assert "elements = { 6 . 8080 : 172.17.0.2 . 80 };" in text
    assert "elements = { 132 . 127.0.0.1 . 8080 : 172.17.0.3 . 80 };" in text


@pytest.mark.parametrize("guarded", [True, False])
def test_forwarding_between_others_is_dropped_only_when_it_is_ours(guarded: bool) -> None:
    assert ('oifkind != "bridge" drop' in render("wherry", [NETWORK], [], guarded=guarded)) == guarded


def test_flags_of_a_network_decide_its_sets() -> None:
    shut = BridgeRules(bridge="wherry0", subnets=NETWORK.subnets, masquerade=False, icc=False)
    text = render("wherry", [shut], [], guarded=False)
    assert 'set private { type ifname; elements = { "wherry0" }; }' in text
    assert text.count("172.17.0.0/16") == 1
