"""From a record to the run that the runtime room is asked for."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from containerkit.life import LifeWorld
from wherry.containers.attached import joined
from wherry.containers.making.sandbox import request
from wherry.containers.making.spec import check_security, shim_spec
from wherry.containers.record import Container, MountPoint
from wherry.errors import Conflict, InvalidParameter
from wherry.runtime.shim_client import LogSpec
from wherry.spec.engine import EndpointSettings, HostConfig, LogConfig, NetworkingConfig, PortBinding


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


def mounts(world: LifeWorld, container: Container) -> dict[str, dict[str, Any]]:
    return {each["destination"]: each for each in shim_spec(world.deps, container).spec["mounts"]}


async def test_a_run_has_what_its_record_says(world: LifeWorld) -> None:
    container = await world.create(
        "web", cmd=["sleep", "9"], user="web", tty=True, open_stdin=True, stdin_once=True, working_dir="/srv"
    )
    spec = shim_spec(world.deps, container)
    assert spec.id == container.id
    assert spec.spec["process"]["args"] == ["sleep", "9"]
    assert spec.spec["process"]["cwd"] == "/srv"
    assert spec.spec["linux"]["cgroupsPath"] == f"/wherry/{container.id}"
    assert (spec.user, spec.tty, spec.open_stdin, spec.stdin_once) == ("web", True, True, True)
    assert spec.runtime.path == "/usr/bin/crun"
    assert list(spec.rootfs) == world.snapshots.mounts(container.id)
    assert spec.console_size is None


async def test_the_size_of_a_terminal_counts_only_when_it_is_one(world: LifeWorld) -> None:
    for given, found in (([24, 80], (24, 80)), ([0, 0], None), ([24], None), (None, None)):
        container = await world.create(tty=True, host=HostConfig(console_size=given))
        assert shim_spec(world.deps, container).console_size == found


async def test_a_cgroup_parent_of_its_own(world: LifeWorld) -> None:
    container = await world.create(host=HostConfig(cgroup_parent="/mine/"))
    assert shim_spec(world.deps, container).spec["linux"]["cgroupsPath"] == f"/mine/{container.id}"


async def test_the_engine_s_files_are_bound_unless_the_user_has_others(world: LifeWorld) -> None:
    container = await world.create("web", host=HostConfig(binds=["/etc/hosts:/etc/hosts:ro"]))
    found = mounts(world, container)
    directory = world.deps.settings.directory(container)
    assert found["/etc/resolv.conf"]["source"] == str(directory / "resolv.conf")
    assert found["/etc/hostname"]["source"] == str(directory / "hostname")
    assert found["/etc/hosts"]["source"] == "/etc/hosts"
    assert not {"ro", "rro"}.isdisjoint(found["/etc/hosts"]["options"])


async def test_mount_points_become_mounts(world: LifeWorld) -> None:
    container = await world.create("web")
    container.mounts = (
        MountPoint(type="volume", source="/v/_data", destination="/v", name="v", rw=False),
        MountPoint(type="bind", source="/src", destination="/b", propagation="private"),
        MountPoint(type="bind", source="/src", destination="/shallow", rw=False, flat_read_only=True),
        MountPoint(type="bind", source="/src", destination="/flat", recursive=False, propagation="rprivate"),
        MountPoint(type="tmpfs", source="", destination="/t", options=("size=1m",), rw=False),
    )
    found = mounts(world, container)
    assert (found["/v"]["source"], "rw" in found["/v"]["options"]) == ("/v/_data", False)
    assert {"rbind", "private"} <= set(found["/b"]["options"])
    assert "ro" in found["/shallow"]["options"]
    assert found["/flat"]["source"] == f"/run/{container.id}/part0"
    (part,) = shim_spec(world.deps, container).parts
    assert (part.recursive, part.mounts[0].source) == (False, "/src")
    assert (found["/t"]["type"], {"size=1m", "ro"} <= set(found["/t"]["options"])) == ("tmpfs", True)


async def test_logs_go_where_the_record_says(world: LifeWorld) -> None:
    options = {"max-size": "1k", "max-file": "3", "labels": "team,absent", "env": "STAGE"}
    host = HostConfig(log_config=LogConfig(type="json-file", config=options))
    container = await world.create("web", host=host, labels={"team": "a", "other": "b"}, env=["STAGE=x=y", "HOME=/"])
    log = shim_spec(world.deps, container).log
    assert log.path == str(world.deps.settings.directory(container) / f"{container.id}-json.log")
    assert (log.max_size, log.max_file) == (1024, 3)
    assert dict(log.attrs) == {"team": "a", "STAGE": "x=y"}
    silent = await world.create("silent", host=HostConfig(log_config=LogConfig(type="none")))
    assert shim_spec(world.deps, silent).log == LogSpec(driver="none")
    assert silent.log_path == ""


@pytest.mark.parametrize(("field", "kind"), [("ipc_mode", "ipc"), ("pid_mode", "pid"), ("network_mode", "network")])
async def test_namespaces_of_others_are_joined_while_these_run(world: LifeWorld, field: str, kind: str) -> None:
    other = await world.create("other")
    container = await world.create("web", host=HostConfig(**{field: "container:other"}))
    words = kind if kind == "network" else f"{kind} namespace"
    with pytest.raises(Conflict, match=f"cannot join {words} of a non running container: {other.id}"):
        shim_spec(world.deps, container)
    shim = world.shims.add(other.id, started=True)
    world.live(other).shim = shim
    namespaces = {
        each["type"]: each.get("path") for each in shim_spec(world.deps, container).spec["linux"]["namespaces"]
    }
    assert namespaces[kind] == f"/proc/{shim.pid}/ns/{'net' if kind == 'network' else kind}"


async def test_an_init_is_used_when_asked_for_or_by_default(world: LifeWorld) -> None:
    def first(deps: Any, container: Container) -> str:
        return str(shim_spec(deps, container).spec["process"]["args"][0])

    settings = replace(world.deps.settings, init_path="/usr/bin/tini")
    deps = replace(world.deps, settings=settings)
    always = replace(world.deps, settings=replace(settings, init_always=True))
    plain = await world.create("plain", cmd=["sleep", "1"])
    refuses = await world.create("refuses", cmd=["sleep", "1"], host=HostConfig(init=False))
    asks = replace(plain, host_config=HostConfig(runtime="crun", network_mode="default", init=True))
    assert first(deps, plain) == "sleep"
    assert first(deps, asks) != "sleep"
    assert first(always, plain) != "sleep"
    assert first(always, refuses) == "sleep"
    with pytest.raises(InvalidParameter, match="no init program found for --init"):
        check_security(world.deps, asks)


async def test_which_list_of_capabilities_is_wrong_is_said(world: LifeWorld) -> None:
    for host, words in ((HostConfig(cap_add=["ODD"]), "invalid CapAdd"), (HostConfig(cap_drop=["ODD"]), "CapDrop")):
        container = await world.create()
        container.host_config = host
        with pytest.raises(InvalidParameter, match=words):
            check_security(world.deps, container)


async def test_the_network_as_it_is_asked_for(world: LifeWorld) -> None:
    ports = {"80/tcp": [PortBinding(host_port="8080")]}
    container = await world.create("web", host=HostConfig(port_bindings=ports), mac_address="02:00:00:00:00:01")
    asked = request(world.deps, container)
    assert (asked.name, asked.mode) == ("web", "bridge")
    assert [(each.network, each.mac) for each in asked.endpoints] == [("bridge", "02:00:00:00:00:01")]
    assert [port.container_port for port in asked.ports] == [80]
    container.networking = NetworkingConfig(
        endpoints_config={"bridge": EndpointSettings(mac_address="02:00:00:00:00:02")}
    )
    assert request(world.deps, container).endpoints[0].mac == "02:00:00:00:00:02"
    container.networking = NetworkingConfig()  # a record of before there were others
    assert [each.network for each in request(world.deps, container).endpoints] == ["bridge"]
    off = await world.create("off", network_disabled=True)
    assert (request(world.deps, off).mode, request(world.deps, off).endpoints) == ("none", [])
    assert joined(off) is None
    other = await world.create("other", host=HostConfig(network_mode="container:web"))
    assert joined(other) == "web"
