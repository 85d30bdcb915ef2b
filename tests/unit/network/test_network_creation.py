"""From a request to a network: what is refused, and which subnets it gets."""

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Conflict, Failed, Forbidden, InvalidParameter, NotFound, WherryError
from wherry.network import creation, ipam
from wherry.network.records import NetworkRecord
from wherry.spec.engine import CreateNetwork, decode


def asked(name: str = "net1", **fields: Any) -> NetworkRecord:
    return creation.draft(decode(CreateNetwork, json.dumps({"Name": name, **fields}).encode()), {})


def with_subnet(**fields: Any) -> NetworkRecord:
    return asked(IPAM={"Config": [fields]})


def filled(record: NetworkRecord, *, own: list[str] | None = None, busy: list[str] | None = None) -> NetworkRecord:
    pools = [*ipam.parse_pools(ipam.DEFAULT_POOLS), ipam.unique_local(b"seed")]
    return creation.fill(
        record, pools=pools, own=map(ipaddress.ip_network, own or []), busy=map(ipaddress.ip_network, busy or [])
    )


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"name": ""}, InvalidParameter, "name is empty"),
        ({"name": "../etc"}, InvalidParameter, "invalid network name"),
        ({"name": "bridge"}, Forbidden, "operation is not permitted on predefined bridge network"),
        ({"Driver": "nonsense"}, NotFound, 'plugin "nonsense" not found'),
        ({"Driver": "host"}, Forbidden, 'only one instance of "host" network is allowed'),
        ({"EnableIPv4": False}, InvalidParameter, "IPv4 or IPv6 must be enabled"),
        ({"Ingress": True}, Forbidden, "not part of a swarm"),
    ],
)
def test_what_cannot_be_a_network_is_refused(fields: dict[str, Any], kind: type[WherryError], words: str) -> None:
    with pytest.raises(kind, match=words):
        asked(**{"name": "net1", **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Subnet": "10.0.0.0/33"}, "invalid subnet 10.0.0.0/33: invalid CIDR block notation"),
        ({"Subnet": "10.0.0.1/24"}, "invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24"),
        ({"Subnet": "10.0.0.0"}, "invalid CIDR block notation"),
        ({"Subnet": "10.0.0.0/31"}, "no room for a gateway and a container"),
        ({"Subnet": "127.0.0.0/8"}, "containers cannot have such addresses"),
        ({"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"}, "parent subnet 10.0.0.0/24 doesn't contain this address"),
        ({"Subnet": "10.0.0.0/24", "Gateway": "x"}, "invalid gateway x"),
        ({"Subnet": "10.0.0.0/24", "IPRange": "10.0.1.0/28"}, "parent subnet 10.0.0.0/24 doesn't contain ip-range"),
        (
            {"Subnet": "10.0.0.0/24", "AuxiliaryAddresses": {"a": "10.9.0.1"}},
            "invalid auxiliary address a: parent subnet",
        ),
        ({"Gateway": "10.0.0.1"}, "needs a subnet"),
    ],
)
def test_a_bad_subnet_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        with_subnet(**fields)
    assert caught.value.message.startswith("invalid network config:\n")
    assert words in caught.value.message


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidParameter) as caught:
        asked(IPAM={"Config": [{"Subnet": "10.0.0.1/24"}, {"Subnet": "10.1.0.0/16"}, {"Subnet": "10.1.2.0/24"}]})
    assert "it should be 10.0.0.0/24" in caught.value.message
    assert "subnet 10.1.2.0/24 overlaps another subnet of the same network" in caught.value.message


def test_a_network_gets_a_free_subnet_and_a_gateway() -> None:
    (subnet,) = filled(asked(), own=["172.17.0.0/16"], busy=["172.18.5.0/24"]).subnets
    assert (subnet.subnet, subnet.gateway, subnet.asked) == ("172.19.0.0/16", "172.19.0.1", False)


def test_a_range_keeps_gateway_and_containers_inside() -> None:
    record = filled(with_subnet(Subnet="10.5.0.0/16", IPRange="10.5.7.0/24"))
    assert record.subnets[0].gateway == "10.5.7.0"
    pool = creation.pool_of(record.subnets[0])
    assert [str(pool.allocate()) for _ in range(2)] == ["10.5.7.1", "10.5.7.2"]
    pool.reserve(ipaddress.ip_address("10.5.200.9"))  # asked for by name: from all of the subnet
    with pytest.raises(Conflict):
        pool.reserve(ipaddress.ip_address("10.5.200.9"))


def test_auxiliary_addresses_and_the_gateway_are_never_given_out() -> None:
    record = filled(with_subnet(Subnet="10.5.0.0/29", AuxiliaryAddresses={"a": "10.5.0.1", "b": "10.5.0.3"}))
    assert record.subnets[0].gateway == "10.5.0.2"
    pool = creation.pool_of(record.subnets[0])
    assert [str(pool.allocate()) for _ in range(3)] == ["10.5.0.4", "10.5.0.5", "10.5.0.6"]
    with pytest.raises(Failed, match="no available IPv4 addresses"):
        pool.allocate()
    pool.release(ipaddress.ip_address("10.5.0.1"))
    with pytest.raises(Failed):
        pool.allocate()


def test_ipv6_is_unique_local_unless_told_otherwise() -> None:
    record = filled(asked(EnableIPv6=True))
    four, six = record.subnets
    assert four.version == 4
    network = ipaddress.ip_network(six.subnet)
    assert network.prefixlen == 64
    assert network.is_private
    assert six.gateway == str(network.network_address + 1)
    again = filled(asked(EnableIPv6=True), own=[six.subnet])
    assert again.subnets[1].subnet != six.subnet


def test_a_network_may_have_ipv6_only() -> None:
    record = filled(asked(EnableIPv4=False, EnableIPv6=True))
    assert [subnet.version for subnet in record.subnets] == [6]


def test_a_subnet_of_a_family_that_is_off_is_kept_and_does_not_count() -> None:
    record = filled(with_subnet(Subnet="fd00:9::/64"))
    assert [subnet.version for subnet in record.subnets] == [6, 4]
    assert [subnet.version for subnet in record.spoken] == [4]


def test_subnets_of_two_networks_do_not_overlap() -> None:
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        filled(with_subnet(Subnet="172.17.4.0/24"), own=["172.17.0.0/16"])
    assert filled(with_subnet(Subnet="172.30.0.0/16"), busy=["172.30.1.0/24"]).subnets[0].asked


def test_exhausted_pools_are_told_with_a_remedy() -> None:
    with pytest.raises(Failed, match="--default-address-pool"):
        filled(asked(), busy=["172.16.0.0/12", "192.168.0.0/16"])


def test_a_network_from_another_has_its_configuration() -> None:
    origin = asked(ConfigOnly=True, Internal=True, Options={"x": "1"}, IPAM={"Config": [{"Subnet": "10.9.0.0/24"}]})
    record = creation.inherit(asked(ConfigFrom={"Network": "net0"}, Labels={"a": "b"}), origin)
    assert record.internal
    assert record.options == {"x": "1"}
    assert record.subnets[0].subnet == "10.9.0.0/24"
    with pytest.raises(Forbidden, match="depends on a configuration network"):
        creation.inherit(asked(Internal=True), origin)


@given(
    base=st.sampled_from(["10.0.0.0/8", "172.16.0.0/12", "fd00:1::/32"]),
    extra=st.integers(0, 12),
    busy=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 30)), max_size=12),
)
def test_a_chosen_subnet_overlaps_nothing(base: str, extra: int, busy: list[tuple[int, int]]) -> None:
    pool = ipaddress.ip_network(base)
    size = pool.prefixlen + extra
    taken = [ipaddress.IPv4Network((number, prefix), strict=False) for number, prefix in busy]
    slots = (
        [each for each in pool.subnets(new_prefix=size) if not any(each.overlaps(other) for other in taken)]
        if (pool.version == 4)
        else [next(pool.subnets(new_prefix=size))]
    )
    if not slots:
        with pytest.raises(Failed):
            ipam.choose_subnet([(pool, size)], taken)
    else:
        assert ipam.choose_subnet([(pool, size)], taken) == slots[0]
