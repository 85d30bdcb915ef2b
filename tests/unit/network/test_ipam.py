import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.network import ipam
from wherry.network.ipam import Pool


def pool(text: str = "10.0.0.1/29") -> Pool:
    return Pool(ipaddress.IPv4Interface(text))


def test_addresses_come_in_order_and_without_the_gateway() -> None:
    addresses = pool("10.0.0.3/29")
    assert [str(addresses.allocate()) for _ in range(5)] == ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]


def test_a_full_subnet_is_refused_and_usable_again_after_a_release() -> None:
    addresses = pool("10.0.0.1/30")
    only = addresses.allocate()
    with pytest.raises(Failed, match="no available IPv4 addresses"):
        addresses.allocate()
    addresses.release(only)
    addresses.release(only)
    assert addresses.allocate() == only
    with pytest.raises(Failed):
        addresses.allocate()


def test_a_reserved_address_is_not_given() -> None:
    addresses = pool()
    addresses.reserve(ipaddress.IPv4Address("10.0.0.2"))
    with pytest.raises(Conflict):
        addresses.reserve(ipaddress.IPv4Address("10.0.0.2"))
    for outside in ("10.0.0.0", "10.0.0.7", "10.0.1.2"):
        with pytest.raises(InvalidParameter, match="is not in subnet"):
            addresses.reserve(ipaddress.IPv4Address(outside))
    assert str(addresses.allocate()) == "10.0.0.3"
    addresses.release(ipaddress.IPv4Address("10.0.0.2"))
    assert str(addresses.allocate()) == "10.0.0.2"


def test_the_gateway_cannot_be_released() -> None:
    addresses = pool()
    addresses.release(ipaddress.IPv4Address("10.0.0.1"))
    assert str(addresses.allocate()) == "10.0.0.2"


@given(st.lists(st.one_of(st.none(), st.integers(2, 6)), max_size=40))
def test_the_lowest_free_address_is_given_whatever_happened_before(steps: list[int | None]) -> None:
    """None allocates, a number releases that host."""
    addresses, taken = pool(), {1}
    for step in steps:
        if step is not None:
            addresses.release(ipaddress.IPv4Address(f"10.0.0.{step}"))
            taken.discard(step)
            continue
        free = [number for number in range(1, 7) if number not in taken]
        if free:
            assert str(addresses.allocate()) == f"10.0.0.{free[0]}"
            taken.add(free[0])
        else:
            with pytest.raises(Failed):
                addresses.allocate()


def test_the_first_subnet_that_overlaps_nothing_is_chosen() -> None:
    pools = ipam.parse_pools(ipam.DEFAULT_POOLS)
    assert str(ipam.choose_subnet(pools, [])) == "172.17.0.0/16"
    busy = [ipaddress.IPv4Network(text) for text in ("172.17.3.0/24", "172.16.0.0/14")]
    assert str(ipam.choose_subnet(pools, busy)) == "172.20.0.0/16"
    with pytest.raises(Failed, match="non-overlapping IPv4 address pool"):
        ipam.choose_subnet(pools, [ipaddress.IPv4Network("0.0.0.0/0")])


@pytest.mark.parametrize("pools", [[("10.0.0.0/16", 8)], [("10.0.0.0/16", 31)], [("x", 24)], [("fd00::/8", 127)]])
def test_a_wrong_pool_is_named(pools: list[tuple[str, int]]) -> None:
    with pytest.raises(InvalidParameter, match=f"invalid default address pool {pools[0][0]}"):
        ipam.parse_pools(pools)


@pytest.mark.parametrize(
    "text", ["", "172.31.0.1", "172.31.0.0/24", "172.31.0.255/24", "172.31.0.1/31", "x/24", "::1/64"]
)
def test_a_wrong_bip_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter, match="--bip"):
        ipam.parse_bip(text)


def test_a_mac_comes_from_the_address() -> None:
    assert ipam.mac_of(ipaddress.IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"
    assert ipam.parse_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"


@pytest.mark.parametrize("text", ["", "02:42", "02:42:ac:11:00:0g", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "1" * 17])
def test_a_wrong_mac_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid MAC address"):
        ipam.parse_mac(text)
