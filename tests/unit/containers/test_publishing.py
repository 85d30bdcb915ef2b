"""Which published ports go and what the record says afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.containers.making import publishing
from wherry.containers.making.publishing import Pattern, parse_pattern
from wherry.errors import Conflict, InvalidParameter, NotFound
from wherry.network.endpoint import Port
from wherry.network.ports import parse_ports
from wherry.spec.engine import ContainerConfig, HostConfig, PortBinding

ANY = ("0.0.0.0", "::")


def port(container: int, host: int, *addresses: str, protocol: str = "tcp") -> tuple[Port, ...]:
    return tuple(
        Port(container_port=container, protocol=protocol, host_ip=address, host_port=host)
        for address in addresses or ANY
    )


def at(host_port: str = "", host_ip: str = "") -> PortBinding:
    return PortBinding(host_ip=host_ip, host_port=host_port)


def publishing_container(
    bindings: dict[str, list[PortBinding] | None] | None = None,
    ports: tuple[Port, ...] = (),
    *,
    running: bool = True,
    mode: str = "bridge",
    publish_all: bool = False,
) -> Any:
    host = HostConfig(network_mode=mode, port_bindings=bindings, publish_all_ports=publish_all)
    return SimpleNamespace(
        name="web", host_config=host, config=ContainerConfig(), ports=ports if running else (), running=running
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("80", ("", "", 80, "tcp")),
        ("80/udp", ("", "", 80, "udp")),
        ("8080:80", ("", "8080", 80, "tcp")),
        (":80", ("", "", 80, "tcp")),
        ("127.0.0.1:8080:80/sctp", ("127.0.0.1", "8080", 80, "sctp")),
        ("127.0.0.1::80", ("127.0.0.1", "", 80, "tcp")),
        ("[::1]:8080:80", ("::1", "8080", 80, "tcp")),
        ("::1:8080:80", ("::1", "8080", 80, "tcp")),
        ("[0:0::1]::80/tcp", ("::1", "", 80, "tcp")),
    ],
)
def test_patterns_are_written_as_with_p(text: str, found: tuple[str, str, int, str]) -> None:
    pattern = parse_pattern(text)
    assert (pattern.host_ip, pattern.host_port, pattern.container_port, pattern.protocol) == found
    assert pattern.text == text


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "80/", "80/icmp", "a:80", "1.2.3:8080:80", "x:8080:80", "٣"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_pattern(text)


@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        found = parse_pattern(text)
    except InvalidParameter:
        return
    assert isinstance(found, Pattern)
    assert 0 < found.container_port < 65536


def test_a_container_port_takes_all_that_it_is_published_at() -> None:
    ports = (*port(80, 8080), *port(80, 49153, "127.0.0.1"), *port(81, 8081))
    container = publishing_container({"80/tcp": [at("8080"), at("", "127.0.0.1")], "81/tcp": [at("8081")]}, ports)
    change = publishing.change(container, {}, ["80"])
    assert list(change.remove) == [*ports[:3]]
    assert change.bindings == {"81/tcp": [at("8081")]}
    assert list(change.add) == []


def test_a_host_port_takes_one_of_several() -> None:
    ports = (*port(80, 8080), *port(80, 8090))
    container = publishing_container({"80/tcp": [at("8080"), at("8090")]}, ports)
    change = publishing.change(container, {}, ["8090:80/tcp"])
    assert list(change.remove) == list(port(80, 8090))
    assert change.bindings == {"80/tcp": [at("8080")]}


def test_the_port_that_was_chosen_by_the_engine_names_its_binding() -> None:
    ports = (*port(80, 8000), *port(80, 49200))
    container = publishing_container({"80/tcp": [at(""), at("8000-8010")]}, ports)
    assert publishing.change(container, {}, ["49200:80"]).bindings == {"80/tcp": [at("8000-8010")]}
    assert publishing.change(container, {}, ["8000:80"]).bindings == {"80/tcp": [at("")]}


def test_of_a_binding_to_all_addresses_one_can_go() -> None:
    container = publishing_container({"80/tcp": [at("8080")]}, port(80, 8080))
    change = publishing.change(container, {}, ["0.0.0.0:8080:80"])
    assert list(change.remove) == list(port(80, 8080, "0.0.0.0"))
    assert change.bindings == {"80/tcp": [at("8080", "::")]}


def test_a_container_that_does_not_run_loses_what_was_asked_for() -> None:
    bindings: dict[str, list[PortBinding] | None] = {"80/tcp": [at("8080"), at("", "127.0.0.1")], "53/udp": [at("53")]}
    container = publishing_container(bindings, running=False)
    assert publishing.change(container, {}, ["8080:80"]).bindings == {
        "80/tcp": [at("", "127.0.0.1")],
        "53/udp": [at("53")],
    }
    assert publishing.change(container, {}, ["80", "53/udp"]).bindings == {}
    assert list(publishing.change(container, {}, ["80"]).remove) == []


def test_one_of_all_exposed_ports_can_go_and_the_others_stay() -> None:
    ports = (*port(80, 49153), *port(81, 49154), *port(53, 49155, "0.0.0.0", protocol="udp"))
    container = publishing_container(None, ports, publish_all=True)
    change = publishing.change(container, {}, ["81"])
    assert list(change.remove) == list(port(81, 49154))
    assert change.publish_all is False
    assert change.bindings == {"80/tcp": [at()], "53/udp": [at()]}


@pytest.mark.parametrize("text", ["81", "80/udp", "8081:80", "127.0.0.1:8080:80"])
def test_what_is_not_published_is_told_by_name(text: str) -> None:
    for running in (True, False):
        container = publishing_container({"80/tcp": [at("8080")]}, port(80, 8080), running=running)
        with pytest.raises(NotFound, match="container web does not publish") as caught:
            publishing.change(container, {}, [text])
        assert caught.value.message.endswith(text)


def test_the_same_port_cannot_go_twice() -> None:
    container = publishing_container({"80/tcp": [at("8080")]}, port(80, 8080))
    with pytest.raises(NotFound):
        publishing.change(container, {}, ["80", "8080:80"])


def test_more_come_beside_what_is_there() -> None:
    container = publishing_container({"80/tcp": [at("8080")]}, port(80, 8080))
    change = publishing.change(container, {"80/tcp": [at("8090")], "53/udp": None, "81": [at()]}, [])
    assert change.bindings == {"80/tcp": [at("8080"), at("8090")], "53/udp": [at()], "81/tcp": [at()]}
    assert [(each.container_port, each.protocol, each.first) for each in change.add] == [
        (80, "tcp", 8090),
        (53, "udp", 0),
        (81, "tcp", 0),
    ]


def test_one_can_take_the_place_of_another() -> None:
    container = publishing_container({"80/tcp": [at("8080")]}, port(80, 8080))
    change = publishing.change(container, {"81/tcp": [at("8080")]}, ["80"])
    assert list(change.remove) == list(port(80, 8080))
    assert change.bindings == {"81/tcp": [at("8080")]}


def test_nothing_asked_is_nothing_changed() -> None:
    container = publishing_container({"80/tcp": [at("8080")], "81/tcp": None}, port(80, 8080), publish_all=True)
    change = publishing.change(container, {}, [])
    assert (change.add, change.remove) == ((), ())
    assert change.bindings == {"80/tcp": [at("8080")], "81/tcp": None}
    assert change.publish_all is True


@pytest.mark.parametrize("mode", ["host", "none", "container:other"])
def test_containers_without_ports_of_their_own_are_refused(mode: str) -> None:
    with pytest.raises(Conflict, match=mode):
        publishing.change(publishing_container(mode=mode), {"80/tcp": None}, [])


@pytest.mark.parametrize(
    ("add", "remove"),
    [({"x": None}, []), ({"80/tcp": [at("99999")]}, []), ({"80/tcp": [at("1", "x")]}, []), ({}, ["x"])],
)
def test_bad_ports_are_refused_before_anything_is_done(add: Any, remove: list[str]) -> None:
    with pytest.raises(InvalidParameter):
        publishing.check(add, remove)


PORTS = st.sampled_from(["80/tcp", "81/tcp", "53/udp"])
BINDING = st.builds(at, st.sampled_from(["", "8080", "8081", "8000-8010"]), st.sampled_from(["", "127.0.0.1"]))


@given(st.dictionaries(PORTS, st.lists(BINDING, min_size=1, max_size=3)), st.data())
def test_what_goes_and_what_stays_is_all_there_was(bindings: Any, data: st.DataObject) -> None:
    """Every port belongs to one binding: after a removal those that stay are what the bindings would give again."""
    taken, ports = 9000, list[Port]()
    for request in parse_ports((), bindings, publish_all=False):
        taken += 1
        number = request.first if request.first == request.last and request.first else request.first or taken
        addresses = (request.host_ip,) if request.host_ip else ANY if request.protocol == "tcp" else ("0.0.0.0",)
        ports += [
            Port(container_port=request.container_port, protocol=request.protocol, host_ip=address, host_port=number)
            for address in addresses
        ]
    if not ports or len(set(ports)) < len(ports):
        return
    container = publishing_container(bindings, tuple(ports))
    chosen = data.draw(st.sampled_from(ports))
    text = f"[{chosen.host_ip}]:{chosen.host_port}:{chosen.container_port}/{chosen.protocol}"
    change = publishing.change(container, {}, [text])
    assert list(change.remove) == [chosen]
    left = {(each.container_port, each.protocol) for each in ports if each != chosen}
    assert {publishing.parse_port(key) for key in change.bindings or {}} == left
