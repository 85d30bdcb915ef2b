from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter, NotSupported
from wherry.network.drivers import options, sysctls
from wherry.network.drivers.lan import split_vlan
from wherry.network.records import NetworkRecord, Subnet

P = "com.docker.network."


def record(*, ipv6: bool = False, internal: bool = False, **given: str) -> NetworkRecord:
    subnets = [Subnet(subnet="172.20.0.0/16", gateway="172.20.0.1"), Subnet(subnet="fd00::/64", gateway="fd00::1")]
    chosen = {P + key: value for key, value in given.items()}
    return NetworkRecord(
        id="a" * 64,
        name="n",
        driver="bridge",
        created=1,
        subnets=subnets,
        ipv6=ipv6,
        internal=internal,
        options=chosen,
    )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            record(**{"driver.mtu": "abc"}),
            'failed to parse com.docker.network.driver.mtu value: abc (strconv.Atoi: parsing "abc": invalid syntax)',
        ),
        (record(**{"driver.mtu": "9" * 5000}), "failed to parse com.docker.network.driver.mtu value: 999"),
        (record(**{"driver.mtu": "-5"}), "invalid MTU number: -5"),
        (record(**{"driver.mtu": "67"}), "invalid MTU number: 67 is not between 68 and 65535"),
        (record(**{"driver.mtu": "65536"}), "invalid MTU number: 65536"),
        (record(ipv6=True, **{"driver.mtu": "1279"}), "invalid MTU number: 1279 is not between 1280 and 65535"),
        (
            record(**{"bridge.enable_icc": "maybe"}),
            "failed to parse com.docker.network.bridge.enable_icc value: maybe "
            '(strconv.ParseBool: parsing "maybe": invalid syntax)',
        ),
        (
            record(**{"bridge.host_binding_ipv4": "zz"}),
            "failed to parse com.docker.network.bridge.host_binding_ipv4 value: zz (nil ip)",
        ),
        (record(**{"bridge.gateway_mode_ipv4": "zz"}), "(unknown gateway mode zz)"),
        (
            record(**{"bridge.gateway_mode_ipv6": "isolated"}),
            "gateway mode 'isolated' can only be used for an internal network",
        ),
    ],
)
def test_wrong_options_are_refused_in_dockers_words(network: NetworkRecord, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        options.check_bridge(network)
    assert message in refused.value.message


def test_an_option_that_nothing_would_come_of_is_refused() -> None:
    with pytest.raises(NotSupported, match="trusted_host_interfaces is not supported"):
        options.check_bridge(record(**{"bridge.trusted_host_interfaces": "eth0"}))


def test_options_that_are_right_are_read() -> None:
    network = record(**{"driver.mtu": "9000", "bridge.enable_icc": "F"})
    options.check_bridge(network)
    assert (options.mtu(network), options.icc(network)) == (9000, False)
    for unset in (record(), record(**{"driver.mtu": ""}), record(**{"driver.mtu": "0"})):
        options.check_bridge(unset)
        assert (options.mtu(unset), options.icc(unset)) == (1500, True)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (record(ipv6=True), ["172.20.0.1/16", "fd00::1/64"]),
        (record(), ["172.20.0.1/16"]),
        (record(ipv6=True, **{"bridge.inhibit_ipv4": "1"}), ["fd00::1/64"]),
        (record(internal=True, **{"bridge.gateway_mode_ipv6": "isolated"}), ["172.20.0.1/16"]),
    ],
)
def test_the_bridges_addresses_are_the_gateways(network: NetworkRecord, expected: Sequence[str]) -> None:
    assert [str(address) for address in options.bridge_addresses(network)] == expected


@pytest.mark.parametrize(
    "key", ["ipv4.conf.eth0.forwarding", "ipv4.ip_forward", "", "a.b.IFNAME.c.d", "a/../b.c.IFNAME.d"]
)
def test_sysctls_that_are_not_the_interfaces_own_are_refused(key: str) -> None:
    with pytest.raises(InvalidParameter, match=r"sysctls must be of the form net\.X\.Y\.IFNAME\.Z=V"):
        sysctls.check_endpoint([(key, "1")])


@given(st.text(max_size=40))
def test_a_sysctl_that_passes_stays_below_its_folder(key: str) -> None:
    try:
        sysctls.check_endpoint([(key, "1")])
    except InvalidParameter:
        return
    assert len(key.split(".")) == 4
    assert not set(key) & set("/\0 ")


@given(st.text(max_size=30))
def test_any_text_is_a_vlan_or_is_refused(text: str) -> None:
    try:
        name, tag = split_vlan(text)
    except InvalidParameter:
        return
    assert name
    assert 1 <= tag <= 4094


def test_a_vlan_is_its_interface_and_its_tag() -> None:
    assert split_vlan("eth0.10") == ("eth0", 10)
