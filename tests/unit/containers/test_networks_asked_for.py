"""What create accepts of networks, in Docker's words, and what the network room is told at start."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from containerkit.life import LifeWorld
from wherry.containers.life.start import start
from wherry.containers.record import Container, Status
from wherry.containers.views.shapes import networks
from wherry.errors import Failed, InvalidParameter, NotFound
from wherry.network.endpoint import NameServers
from wherry.network.records import EGRESS, Subnet
from wherry.spec.engine import EndpointIPAMConfig, EndpointSettings, HostConfig, NetworkingConfig


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    found = LifeWorld(tmp_path)
    await found.load()
    yield found
    await found.close()


SUBNET = Subnet(subnet="10.5.0.0/16", gateway="10.5.0.1")


async def made(
    world: LifeWorld, mode: str, endpoints: dict[str, EndpointSettings] | None = None, **config: Any
) -> Container:
    host = config.pop("host", None) or HostConfig(network_mode=mode)
    return await world.create(
        "web", host=host, networking_config=NetworkingConfig(endpoints_config=endpoints), **config
    )


def names(container: Container) -> list[str]:
    return list(container.networking.endpoints_config or {})


async def test_the_mode_alone_is_one_network(world: LifeWorld) -> None:
    assert names(await made(world, "default")) == ["bridge"]


async def test_a_network_is_kept_by_its_name_however_it_was_typed(world: LifeWorld) -> None:
    record = world.networks.add("front")
    container = await made(world, record.id[:12], {record.id[:12]: EndpointSettings(aliases=["x"])})
    assert container.networking.endpoints_config == {"front": EndpointSettings(aliases=["x"])}
    assert container.host_config.network_mode == record.id[:12]


async def test_the_modes_network_comes_first(world: LifeWorld) -> None:
    world.networks.add("front")
    world.networks.add("back")
    container = await made(world, "front", {"back": EndpointSettings(), "front": EndpointSettings(gw_priority=1)})
    assert names(container) == ["front", "back"]


async def test_endpoints_without_the_mode_among_them_are_all_there_is(world: LifeWorld) -> None:
    world.networks.add("back")
    assert names(await made(world, "bridge", {"back": EndpointSettings()})) == ["back"]


async def test_a_network_that_is_not_there_is_missed_at_start(world: LifeWorld) -> None:
    container = await made(world, "nosuch")
    with pytest.raises(NotFound, match="network nosuch not found"):
        await start(world.deps, "web")
    assert container.state.status is Status.CREATED
    assert container.state.error == "network nosuch not found"


@pytest.mark.parametrize("mode", ["container:other", "front"])
async def test_who_shares_or_has_networking_off_is_on_none(world: LifeWorld, mode: str) -> None:
    world.networks.add("front")
    await world.create("other")
    off = {"network_disabled": True} if mode == "front" else {}
    container = await made(world, mode, {"front": EndpointSettings()}, **off)
    assert names(container) == []
    assert networks(container) == {}


@pytest.mark.parametrize(
    ("network", "settings", "words"),
    [
        (
            "bridge",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.9.9.9")),
            "* user specified IP address is supported on user defined networks only\n"
            "* no configured subnet or ip-range contain the IP address 10.9.9.9",
        ),
        (
            "bridge",
            EndpointSettings(aliases=["x"]),
            "network-scoped alias is supported only for containers in user defined networks",
        ),
        (
            "none",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="1.2.3.4")),
            "* user specified IP address is supported on user defined networks only\n"
            "* user specified IP address is supported only when connecting to networks with user configured subnets",
        ),
        (
            "plain",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="172.18.0.9")),
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        ),
        (
            "chosen",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.99.0.9")),
            "no configured subnet or ip-range contain the IP address 10.99.0.9",
        ),
        (
            "chosen",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="999")),
            "* invalid IPv4 address: 999\n* no configured subnet or ip-range contain the IP address 999",
        ),
        (
            "chosen",
            EndpointSettings(ipam_config=EndpointIPAMConfig(ipv6_address="1.1.1.1", link_local_ips=["x"])),
            "* invalid IPv6 address: 1.1.1.1\n* invalid link-local IP address: x\n"
            "* user specified IP address is supported only when connecting to networks with user configured subnets",
        ),
    ],
)
async def test_what_an_endpoint_cannot_have(
    world: LifeWorld, network: str, settings: EndpointSettings, words: str
) -> None:
    world.networks.add("plain", subnets=[Subnet(subnet="172.18.0.0/16", asked=False)])
    world.networks.add("chosen", subnets=[SUBNET])
    world.networks.known["bridge"] = world.networks.add("bridge", subnets=[Subnet(subnet="172.17.0.0/16", asked=False)])
    with pytest.raises(InvalidParameter) as refused:
        await made(world, network, {network: settings})
    assert refused.value.message == f"invalid config for network {network}: invalid endpoint settings:\n{words}"


async def test_addresses_within_a_chosen_subnet_are_asked_for(world: LifeWorld) -> None:
    world.networks.add("chosen", subnets=[SUBNET, Subnet(subnet="fd05::/64")])
    wish = EndpointIPAMConfig(ipv4_address="10.5.0.9", ipv6_address="fd05::9", link_local_ips=["169.254.1.1"])
    await made(world, "chosen", {"chosen": EndpointSettings(ipam_config=wish, driver_opts={"a": "b"}, gw_priority=7)})
    await start(world.deps, "web")
    (asked,) = world.networks.requests[-1].endpoints
    assert (asked.ip, asked.ip6, asked.link_local_ips) == ("10.5.0.9", "fd05::9", ("169.254.1.1",))
    assert (asked.options, asked.gw_priority) == ({"a": "b"}, 7)


async def test_the_container_wide_mac_address_is_the_main_networks(world: LifeWorld) -> None:
    world.networks.add("front")
    container = await made(world, "front", mac_address="02:00:00:00:00:01")
    assert (container.networking.endpoints_config or {})["front"].mac_address == "02:00:00:00:00:01"
    with pytest.raises(InvalidParameter, match="must match the endpoint-specific MAC address"):
        await world.create(
            host=HostConfig(network_mode="front"),
            networking_config=NetworkingConfig(
                endpoints_config={"front": EndpointSettings(mac_address="02:00:00:00:00:02")}
            ),
            mac_address="02:00:00:00:00:01",
        )
    with pytest.raises(InvalidParameter, match="invalid config for network front: invalid MAC address zz"):
        await world.create(host=HostConfig(network_mode="front"), mac_address="zz")


@pytest.mark.parametrize(("mode", "words"), [("host", "container sharing network namespace"), ("none", "private")])
async def test_the_hosts_network_and_none_go_with_no_other(world: LifeWorld, mode: str, words: str) -> None:
    world.networks.add("front")
    with pytest.raises(InvalidParameter, match=words):
        await made(world, mode, {mode: EndpointSettings(), "front": EndpointSettings()})


@pytest.mark.parametrize(
    ("host", "config", "words"),
    [
        ({}, {"hostname": "x"}, "hostname and the network mode"),
        ({"dns": ["1.1.1.1"]}, {}, "dns and the network mode"),
        ({"extra_hosts": ["a:1.1.1.1"]}, {}, "custom host-to-IP mapping and the network mode"),
        ({}, {"mac_address": "02:00:00:00:00:01"}, "mac-address and the network mode"),
        ({"publish_all_ports": True}, {}, "port publishing and the container type network mode"),
        ({}, {"exposed_ports": {"80/tcp": {}}}, "port exposing and the container type network mode"),
        ({"links": ["other"]}, {}, "container type network can't be used with links. This would result in undefined"),
        ({"network_mode": "host", "links": ["other"]}, {}, "host type networking can't be used with links. This would"),
        ({"network_mode": "host", "uts_mode": "host"}, {"hostname": "x"}, "hostname and the UTS mode"),
    ],
)
async def test_options_that_conflict_with_the_mode(
    world: LifeWorld, host: dict[str, Any], config: dict[str, Any], words: str
) -> None:
    await world.create("other")
    options = HostConfig(**{"network_mode": "container:other", **host})
    with pytest.raises(InvalidParameter, match=f"conflicting options: {words}"):
        await world.create("web", host=options, **config)


async def test_names_for_others_are_name_aliases_short_id_and_hostname(world: LifeWorld) -> None:
    record = world.networks.add("front")
    container = await made(world, "front", {"front": EndpointSettings(aliases=["www", "web"])}, hostname="box")
    assert networks(container)["front"]["DNSNames"] is None
    await start(world.deps, "web")
    (asked,) = world.networks.requests[-1].endpoints
    assert (asked.names, asked.aliases) == (("web", container.id[:12], "box"), ("www", "web"))
    shown = networks(container)["front"]
    assert shown["DNSNames"] == ["web", "www", container.id[:12], "box"]
    assert (shown["NetworkID"], shown["IPAddress"]) == (record.id, "10.0.0.2")


async def test_an_ended_container_still_knows_its_networks(world: LifeWorld) -> None:
    record = world.networks.add("front")
    container = await made(world, "front")
    await start(world.deps, "web")
    world.shims.last.end(0)
    await world.idle()
    shown = networks(container)["front"]
    assert (shown["NetworkID"], shown["EndpointID"], shown["IPAddress"]) == (record.id, "", "")
    assert shown["DNSNames"] == ["web", container.id[:12]]


async def test_who_is_on_a_network_of_a_user_asks_the_engines_resolver(world: LifeWorld) -> None:
    world.networks.add("front", ipv6=True)
    host = HostConfig(network_mode="front", dns=["192.0.2.1"], dns_search=["example.org"], dns_options=["timeout:1"])
    container = await made(world, "front", host=host, hostname="box")
    await start(world.deps, "web")
    assert world.networks.requests[-1].nameservers == NameServers(
        servers=("192.0.2.1",), search=("example.org",), options=("timeout:1",)
    )
    directory = world.deps.settings.directory(container)
    lines = (directory / "resolv.conf").read_text().splitlines()
    assert "nameserver 127.0.0.11" in lines
    assert "search example.org" in lines
    assert "options timeout:1 ndots:0" in lines
    assert (directory / "hosts").read_text().endswith("\n10.0.0.2\tbox\nfd00::2\tbox\n")


async def test_a_link_is_lines_in_hosts_and_variables(world: LifeWorld) -> None:
    data = await world.run(
        "data", hostname="store", env=["A=1", "PATH=/x"], exposed_ports={"53/udp": {}, "5432/tcp": {}}
    )
    container = await world.run("web", host=HostConfig(links=["data:my-db"]), env=["B=2"])
    hosts = (world.deps.settings.directory(container) / "hosts").read_text()
    assert "\n172.17.0.2\tmy-db store data\n" in hosts
    environment = world.shims.specs[-1].spec["process"]["env"]
    first = environment.index("MY_DB_PORT=tcp://172.17.0.2:5432")
    assert environment[first : first + 12] == [
        "MY_DB_PORT=tcp://172.17.0.2:5432",
        "MY_DB_PORT_5432_TCP=tcp://172.17.0.2:5432",
        "MY_DB_PORT_5432_TCP_ADDR=172.17.0.2",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_A=1",
        "B=2",
    ]
    assert container.host_config.links == [f"{data.id}:my-db"]


async def test_only_who_runs_on_the_default_network_can_be_linked_to(world: LifeWorld) -> None:
    world.networks.add("front")
    await world.create("data")
    await world.create("web", host=HostConfig(links=["data"]))
    with pytest.raises(Failed, match="Cannot link to a non running container: /data AS /web/data"):
        await start(world.deps, "web")
    await world.run("other", host=HostConfig(network_mode="front"))
    await world.create("third", host=HostConfig(links=["other:o"]))
    with pytest.raises(Failed, match="Cannot link to /other, as it does not belong to the default network"):
        await start(world.deps, "third")
    for bad in (":x", "a:b:c"):
        with pytest.raises(InvalidParameter, match=f"bad format for links: {bad}"):
            await world.create(host=HostConfig(links=[bad]))


async def test_links_on_a_network_of_a_user_are_aliases_there(world: LifeWorld) -> None:
    world.networks.add("front")
    data = await world.create("data")
    await made(world, "front", {"front": EndpointSettings(links=["data:db", "nosuch:x"])})
    await start(world.deps, "web")
    assert world.networks.requests[-1].endpoints[0].links == {"db": data.id}


async def test_a_containers_egress_label_is_a_policy_of_all_its_endpoints(world: LifeWorld) -> None:
    for name in ("front", "back"):
        world.networks.add(name)
    own = EndpointSettings(driver_opts={EGRESS: "10.0.0.0/8"})
    await made(world, "front", {"front": EndpointSettings(), "back": own}, labels={EGRESS: "pypi.example"})
    await start(world.deps, "web")
    options = [endpoint.options for endpoint in world.networks.requests[-1].endpoints]
    assert options == [{EGRESS: "pypi.example"}, {EGRESS: "10.0.0.0/8"}]


async def test_an_egress_label_that_cannot_be_enforced_is_refused_at_create(world: LifeWorld) -> None:
    for mode in ("bridge", "host"):
        with pytest.raises(InvalidParameter, match=EGRESS):
            await made(world, mode, labels={EGRESS: "pypi.example"})
    await made(world, "none", labels={EGRESS: "pypi.example"})
