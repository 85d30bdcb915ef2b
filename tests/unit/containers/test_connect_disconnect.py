"""connect and disconnect: record, network room, files and events change together or not at all."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from containerkit.life import ENDPOINT, PORT, LifeWorld
from wherry.containers.life.networking import connect, disconnect
from wherry.containers.life.remove import remove
from wherry.containers.life.rename import rename
from wherry.containers.life.start import start
from wherry.containers.record import Container, Status, encode
from wherry.containers.views.shapes import networks
from wherry.errors import Conflict, Failed, Forbidden, InvalidParameter, NotFound, Unavailable
from wherry.spec.engine import EndpointIPAMConfig, EndpointSettings, HostConfig, NetworkingConfig

PLAIN = EndpointSettings()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    found = LifeWorld(tmp_path)
    await found.load()
    found.networks.add("front")
    found.networks.add("back", ipv6=True)
    yield found
    await found.close()


def names(container: Container) -> list[str]:
    return list(container.networking.endpoints_config or {})


def file(world: LifeWorld, container: Container, name: str) -> Path:
    return world.deps.settings.directory(container) / name


def told(world: LifeWorld) -> list[tuple[str, str, str]]:
    """Network events: action, network, driver."""
    found = world.events.past(0, 1 << 63)
    return [(each.action, each.attributes["name"], each.attributes["type"]) for each in found if each.type == "network"]


async def test_a_running_container_joins_at_once(world: LifeWorld) -> None:
    container = await world.run("web", hostname="box")
    await connect(world.deps, "back", "web", EndpointSettings(aliases=["www"], gw_priority=3))
    wanted, netns = world.networks.joins[-1]
    assert (wanted.aliases, wanted.gw_priority, wanted.names[0]) == (("www",), 3, "web")
    assert netns == world.shims.last.netns_path
    assert names(container) == ["bridge", "back"]
    shown = networks(container)["back"]
    assert (shown["IPAddress"], shown["GlobalIPv6Address"], shown["Aliases"]) == ("10.11.0.2", "fd011::2", ["www"])
    assert world.stored(container) == container
    assert file(world, container, "hosts").read_text().endswith("172.17.0.2\tbox\n10.11.0.2\tbox\nfd011::2\tbox\n")
    assert "nameserver 127.0.0.11" in file(world, container, "resolv.conf").read_text().splitlines()
    assert told(world) == [("connect", "bridge", "bridge"), ("connect", "back", "bridge")]


async def test_it_leaves_again_and_what_it_wrote_into_its_files_stays(world: LifeWorld) -> None:
    container = await world.run("web", hostname="box")
    await connect(world.deps, "front", "web", PLAIN)
    hosts = file(world, container, "hosts")
    hosts.write_text(hosts.read_text() + "10.0.0.1 mine\n")
    await disconnect(world.deps, "front", "web")
    assert (names(container), container.endpoints) == (["bridge"], (ENDPOINT,))
    assert world.networks.left == [(container.id, "front", world.shims.last.netns_path)]
    assert hosts.read_text().endswith("172.17.0.2\tbox\n10.0.0.1 mine\n")
    assert world.stored(container) == container
    assert told(world)[-1] == ("disconnect", "front", "bridge")


async def test_a_resolv_conf_of_the_containers_own_is_left_alone(world: LifeWorld) -> None:
    container = await world.run("web")
    path = file(world, container, "resolv.conf")
    path.write_text("nameserver 192.0.2.9\n")
    await connect(world.deps, "front", "web", PLAIN)
    assert path.read_text() == "nameserver 192.0.2.9\n"


async def test_files_that_the_container_has_blown_up_are_left_alone(world: LifeWorld) -> None:
    container = await world.run("web")
    path = file(world, container, "hosts")
    path.write_bytes(b"\xff" * ((1 << 20) + 1))
    await connect(world.deps, "front", "web", PLAIN)
    assert path.stat().st_size == (1 << 20) + 1


STEPS = ["join", "write containers"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_join_that_fails_changes_nothing(world: LifeWorld, step: str) -> None:
    container = await world.run("web")
    before = encode(container)
    texts = [file(world, container, name).read_text() for name in ("hosts", "resolv.conf")]
    world.steps.failing = {step: Unavailable("no more")}
    with pytest.raises(Unavailable):
        await connect(world.deps, "front", "web", PLAIN)
    world.steps.failing = {}
    assert encode(container) == before
    assert world.networks.joined == []
    assert file(world, container, "hosts").read_text() == texts[0]
    assert told(world) == [("connect", "bridge", "bridge")]
    await connect(world.deps, "front", "web", PLAIN)


async def test_a_join_whose_files_are_gone_changes_nothing(world: LifeWorld) -> None:
    container = await world.run("web")
    before = encode(container)
    file(world, container, "hosts").unlink()
    with pytest.raises(Failed, match="cannot change the network files of container web"):
        await connect(world.deps, "front", "web", PLAIN)
    assert encode(container) == before
    assert world.networks.joined == []


async def test_a_leave_that_fails_changes_nothing(world: LifeWorld) -> None:
    container = await world.run("web")
    await connect(world.deps, "front", "web", PLAIN)
    before = encode(container)
    world.steps.failing = {"leave": Unavailable("no more")}
    with pytest.raises(Unavailable):
        await disconnect(world.deps, "front", "web")
    assert encode(container) == before
    world.steps.failing = {}
    await disconnect(world.deps, "front", "web")


async def test_what_does_not_run_is_changed_for_its_next_start(world: LifeWorld) -> None:
    container = await world.create("web")
    await connect(world.deps, "front", "web", EndpointSettings(aliases=["a"]))
    await connect(world.deps, "front", "web", EndpointSettings(aliases=["b"]))  # as in Docker the last word counts
    assert names(container) == ["bridge", "front"]
    assert networks(container)["front"]["Aliases"] == ["b"]
    assert world.stored(container) == container
    assert world.networks.joins == []
    await disconnect(world.deps, "bridge", "web")
    await disconnect(world.deps, "front", "web")
    assert networks(container) == {}
    assert told(world) == [("disconnect", "bridge", "bridge"), ("disconnect", "front", "bridge")]
    await start(world.deps, "web")
    assert world.networks.requests[-1].mode == "none"
    assert networks(container) == {}
    assert world.stored(container) == container


async def test_a_change_that_cannot_be_written_is_none(world: LifeWorld) -> None:
    container = await world.create("web")
    world.steps.failing = {"write containers": Unavailable("disk full")}
    with pytest.raises(Unavailable):
        await connect(world.deps, "front", "web", PLAIN)
    assert names(container) == ["bridge"]


async def test_who_is_there_already_is_told_in_dockers_words(world: LifeWorld) -> None:
    await world.run("web")
    with pytest.raises(Forbidden, match="endpoint with name web already exists in network bridge"):
        await connect(world.deps, "bridge", "web", PLAIN)


@pytest.mark.parametrize("running", [True, False])
async def test_who_is_not_there_cannot_leave(world: LifeWorld, running: bool) -> None:
    container = await world.create("web") if not running else await world.run("web")
    words = "network front" if running else "the network front"
    with pytest.raises(Failed, match=f"container {container.id} is not connected to {words}$"):
        await disconnect(world.deps, "front", "web")


@pytest.mark.parametrize(
    ("mode", "network", "words"),
    [
        ("host", "front", "container sharing network namespace with another container or host cannot be connected"),
        ("container:other", "front", "container sharing network namespace with another container or host"),
        ("bridge", "host", "container cannot be disconnected from host network or connected to host network"),
        ("bridge", "none", "multiple networks with one of the networks in private"),
        ("none", "front", "multiple networks with one of the networks in private"),
    ],
)
async def test_kinds_of_networks_that_do_not_go_together(world: LifeWorld, mode: str, network: str, words: str) -> None:
    await world.run("other")
    await world.run("web", host=HostConfig(network_mode=mode))
    with pytest.raises(InvalidParameter, match=words):
        await connect(world.deps, network, "web", PLAIN)
    assert world.networks.joins == []


async def test_the_hosts_network_cannot_be_left(world: LifeWorld) -> None:
    await world.run("web", host=HostConfig(network_mode="host"))
    with pytest.raises(InvalidParameter, match="cannot be disconnected from host network"):
        await disconnect(world.deps, "host", "web")


async def test_none_can_be_exchanged_for_a_network(world: LifeWorld) -> None:
    container = await world.run("web", host=HostConfig(network_mode="none"))
    await disconnect(world.deps, "none", "web")
    assert container.endpoints == ()
    await connect(world.deps, "front", "web", PLAIN)
    assert [each.network for each in container.endpoints] == ["front"]
    assert container.ports == (PORT,)


async def test_wrong_settings_are_told_without_the_networks_name(world: LifeWorld) -> None:
    await world.run("web")
    wish = EndpointSettings(ipam_config=EndpointIPAMConfig(ipv4_address="10.9.9.9"))
    with pytest.raises(InvalidParameter) as refused:
        await connect(world.deps, "front", "web", wish)
    assert refused.value.message == (
        "invalid endpoint settings:\n"
        "user specified IP address is supported only when connecting to networks with user configured subnets"
    )
    world.networks.add("plan", config_only=True)
    with pytest.raises(Forbidden, match="cannot create endpoint on configuration-only network"):
        await connect(world.deps, "plan", "web", PLAIN)


async def test_what_is_not_there_is_named(world: LifeWorld) -> None:
    await world.create("web")
    with pytest.raises(NotFound, match="network nosuch not found"):
        await connect(world.deps, "nosuch", "web", PLAIN)
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await connect(world.deps, "front", "nosuch", PLAIN)
    with pytest.raises(NotFound, match="endpoint nosuch not found"):
        await disconnect(world.deps, "front", "nosuch", force=True)


async def test_a_network_that_is_gone_can_still_be_taken_off(world: LifeWorld) -> None:
    options = NetworkingConfig(endpoints_config={"front": PLAIN, "bridge": PLAIN})
    container = await world.create("web", networking_config=options)
    del world.networks.known["front"]
    await disconnect(world.deps, "front", "web")
    assert names(container) == ["bridge"]
    with pytest.raises(NotFound, match="network front not found"):
        await disconnect(world.deps, "front", "web")


async def test_a_container_on_its_way_out_is_left_alone(world: LifeWorld) -> None:
    container = await world.create("web")
    container.state = replace(container.state, status=Status.DEAD)
    with pytest.raises(Conflict, match="is marked for removal and cannot be connected or disconnected"):
        await connect(world.deps, "front", "web", PLAIN)


async def test_another_name_is_answered_to_at_once(world: LifeWorld) -> None:
    container = await world.run("web", host=HostConfig(network_mode="front"))
    await rename(world.deps, "web", "site")
    assert world.networks.renamed == [(container.id, "web", "site")]
    assert networks(container)["front"]["DNSNames"] == ["site", container.id[:12]]


async def test_a_link_is_cut(world: LifeWorld) -> None:
    await world.run("data")
    container = await world.run("web", host=HostConfig(links=["data:db"]))
    hosts = file(world, container, "hosts")
    assert "\tdb " in hosts.read_text()
    await rename(world.deps, "data", "store")
    await remove(world.deps, "/web/db", link=True)
    assert container.host_config.links is None
    assert "\tdb " not in hosts.read_text()
    assert world.stored(container) == container
    assert container.running


async def test_who_is_linked_learns_of_another_address(world: LifeWorld) -> None:
    await world.run("data")
    container = await world.run("web", host=HostConfig(links=["data:db"]))
    world.shims.made[0].end(0)
    await world.idle()
    world.networks.address = "172.17.0.77"
    await start(world.deps, "data")
    assert "\n172.17.0.77\tdb " in file(world, container, "hosts").read_text()
