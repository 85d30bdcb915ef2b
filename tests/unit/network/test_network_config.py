import pytest

from wherry.errors import InvalidParameter
from wherry.events import Events
from wherry.network.documents import network, rfc3339
from wherry.network.networks import NetworkConfig, Networks
from wherry.network.records import NetworkRecord
from wherry.state import State


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (NetworkConfig(instance="Not good"), "invalid instance tag"),
        (NetworkConfig(instance="a" * 13), "invalid instance tag"),
        (NetworkConfig(bridge="a" * 16), "invalid bridge name"),
        (NetworkConfig(bridge="br0", bip="172.31.0.1/24"), "mutually exclusive"),
        (NetworkConfig(bip="172.31.0.0/24"), "--bip"),
        (NetworkConfig(mtu=20), "invalid MTU 20"),
        (NetworkConfig(default_bind="nowhere"), "--ip"),
        (NetworkConfig(address_pools=[("10.0.0.0/8", 4)]), "invalid default address pool"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_touched(config: NetworkConfig, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        Networks(config, State(None), Events())


def test_times_are_written_as_go_writes_them() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_500_000_000_120_000_000) == "2017-07-14T02:40:00.12Z"


def test_a_network_without_a_subnet_has_no_address_configuration() -> None:
    record = NetworkRecord(id="a" * 64, name="host", driver="host", created=0)
    document = network(record, {})
    assert document["IPAM"] == {"Driver": "default", "Options": None, "Config": None}
    assert document["Containers"] == {}
    assert document["Scope"] == "local"
