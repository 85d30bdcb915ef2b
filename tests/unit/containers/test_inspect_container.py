from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from test_listing import BRIDGE

from containerkit.world import NOW, World
from wherry.containers.record import MountPoint, Status
from wherry.containers.streams import execs
from wherry.containers.views.inspect import inspect
from wherry.containers.views.shapes import rfc3339_nano
from wherry.errors import NotFound
from wherry.network.endpoint import Port
from wherry.spec.engine import (
    ContainerConfig,
    ExecConfig,
    HostConfig,
    LogConfig,
    Mount,
    PortBinding,
    TmpfsOptions,
    Ulimit,
)

# What Docker 28 answers with (API 1.51), recorded key by key.
TOP = (
    "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount Driver Platform "
    "MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver Mounts Config NetworkSettings"
)
STATE = "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt"
HOST_CONFIG = (
    "Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom "
    "ConsoleSize CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links "
    "OomScoreAdj PidMode Privileged PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize Runtime "
    "Isolation CpuShares Memory NanoCpus CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps "
    "BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod "
    "CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules DeviceRequests MemoryReservation MemorySwap "
    "MemorySwappiness OomKillDisable PidsLimit Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth "
    "MaskedPaths ReadonlyPaths"
)
CONFIG = (
    "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd Image Volumes "
    "WorkingDir Entrypoint OnBuild Labels"
)
NETWORK_SETTINGS = (
    "Bridge SandboxID SandboxKey Ports HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen SecondaryIPAddresses "
    "SecondaryIPv6Addresses EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway "
    "MacAddress Networks"
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def part(world: World, name: str, key: str) -> Mapping[str, object]:
    found = (await inspect(world.deps, name))[key]
    assert isinstance(found, dict)
    return found


async def test_the_document_has_docker_s_keys(world: World) -> None:
    await world.add("web")
    document = await inspect(world.deps, "web")
    assert set(document) == set(TOP.split())
    for key, expected in (
        ("State", STATE),
        ("HostConfig", HOST_CONFIG),
        ("Config", CONFIG),
        ("NetworkSettings", NETWORK_SETTINGS),
    ):
        found = document[key]
        assert isinstance(found, dict)
        assert set(found) == set(expected.split()), key


async def test_a_running_container(world: World, tmp_path: Path) -> None:
    container = await world.add(
        "web",
        endpoints=[BRIDGE],
        ports=[
            Port(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080),
            Port(container_port=80, protocol="tcp", host_ip="::", host_port=8080),
        ],
        config=ContainerConfig(image="busybox", exposed_ports={"80/tcp": {}, "90-91/udp": {}}),
    )
    document = await inspect(world.deps, container.id[:10])
    assert document["Id"] == container.id
    assert document["Name"] == "/web"
    assert (document["Path"], document["Args"]) == ("sleep", ["100"])
    assert document["Created"] == "2023-11-14T22:13:20.123456789Z"
    assert document["HostsPath"] == str(tmp_path / "containers" / container.id / "hosts")
    state = await part(world, "web", "State")
    assert (state["Status"], state["Running"], state["Paused"], state["Pid"]) == ("running", True, False, 4242)
    assert (state["StartedAt"], state["FinishedAt"]) == (document["Created"], "0001-01-01T00:00:00Z")
    network = await part(world, "web", "NetworkSettings")
    assert network["Ports"] == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "90/udp": None,
        "91/udp": None,
    }
    assert (network["IPAddress"], network["Gateway"], network["MacAddress"], network["IPPrefixLen"]) == (
        "172.17.0.2",
        "172.17.0.1",
        "02:42:ac:11:00:02",
        16,
    )
    assert network["SandboxKey"] == "/proc/4242/ns/net"
    graph = await part(world, "web", "GraphDriver")
    assert graph["Name"] == "overlay2"
    assert graph["Data"] == {
        "ID": container.id,
        "LowerDir": "/l2:/l1",
        "UpperDir": str(tmp_path / "rw" / container.id / "diff"),
        "WorkDir": str(tmp_path / "rw" / container.id / "work"),
    }


async def test_a_container_that_never_ran(world: World) -> None:
    await world.add("new", status=Status.CREATED, host=HostConfig(network_mode="default"))
    document = await inspect(world.deps, "new")
    assert document["HostsPath"] == ""
    state = await part(world, "new", "State")
    assert (state["Status"], state["Running"], state["Pid"], state["StartedAt"]) == (
        "created",
        False,
        0,
        "0001-01-01T00:00:00Z",
    )
    network = await part(world, "new", "NetworkSettings")
    assert network["Ports"] == {}
    assert (network["SandboxID"], network["SandboxKey"], network["IPAddress"]) == ("", "", "")
    assert list(network["Networks"]) == ["bridge"]  # type: ignore[call-overload]
    assert (await part(world, "new", "HostConfig"))["NetworkMode"] == "bridge"


@pytest.mark.parametrize(
    ("status", "flags"),
    [
        (Status.PAUSED, {"Running": True, "Paused": True, "Restarting": False, "Dead": False}),
        (Status.RESTARTING, {"Running": True, "Paused": False, "Restarting": True, "Dead": False}),
        (Status.EXITED, {"Running": False, "Paused": False, "Restarting": False, "Dead": False}),
        (Status.DEAD, {"Running": False, "Paused": False, "Restarting": False, "Dead": True}),
    ],
)
async def test_the_flags_of_each_state(world: World, status: Status, flags: dict[str, bool]) -> None:
    await world.add("web", status=status, exit_code=1)
    state = await part(world, "web", "State")
    assert {key: state[key] for key in flags} == flags
    assert state["Status"] == status


async def test_what_went_wrong_is_shown(world: World) -> None:
    await world.add(
        "web",
        status=Status.EXITED,
        exit_code=137,
        oom_killed=True,
        error="boom",
        finished_at=NOW + 877,
        restart_count=2,
    )
    state = await part(world, "web", "State")
    assert (state["ExitCode"], state["OOMKilled"], state["Error"]) == (137, True, "boom")
    assert state["FinishedAt"] == "2023-11-14T22:13:20.123457666Z"
    assert (await inspect(world.deps, "web"))["RestartCount"] == 2


async def test_defaults_of_the_host_config_are_spelt_out(world: World) -> None:
    await world.add("web", host=HostConfig())
    host = await part(world, "web", "HostConfig")
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert host["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert (host["PortBindings"], host["ConsoleSize"], host["Dns"], host["Devices"]) == ({}, [0, 0], [], [])
    assert (host["IpcMode"], host["ShmSize"], host["Runtime"]) == ("private", 64 << 20, "crun")
    assert (host["Binds"], host["CapAdd"], host["PidsLimit"], host["MemorySwappiness"]) == (None, None, None, None)
    assert "/proc/kcore" in host["MaskedPaths"]  # type: ignore[operator]
    assert "/proc/sys" in host["ReadonlyPaths"]  # type: ignore[operator]


async def test_what_was_asked_for_is_shown(world: World) -> None:
    await world.add(
        "web",
        host=HostConfig(
            binds=["/tmp:/host:ro"],
            privileged=True,
            tmpfs={"/tt": "size=1m"},
            init=True,
            sysctls={"net.core.somaxconn": "9"},
            port_bindings={"80/tcp": [PortBinding(host_port="8080")]},
            ulimits=[Ulimit(name="nofile", soft=1, hard=2)],
            mounts=[Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1 << 20))],
            log_config=LogConfig(type="none"),
            annotations={"k": "v"},
        ),
    )
    host = await part(world, "web", "HostConfig")
    assert host["Binds"] == ["/tmp:/host:ro"]
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 1, "Hard": 2}]
    assert host["Mounts"] == [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20}}]
    assert (host["Tmpfs"], host["Init"], host["Sysctls"]) == ({"/tt": "size=1m"}, True, {"net.core.somaxconn": "9"})
    assert host["LogConfig"] == {"Type": "none", "Config": {}}
    assert host["Annotations"] == {"k": "v"}
    assert (host["MaskedPaths"], host["ReadonlyPaths"]) == (None, None)


async def test_the_config_is_shown_as_docker_shows_it(world: World) -> None:
    await world.add(
        "web",
        config=ContainerConfig(
            image="busybox",
            cmd="ls",
            entrypoint=["sh"],
            exposed_ports={"80/tcp": {}},
            stop_signal="SIGINT",
            stop_timeout=3,
        ),
    )
    config = await part(world, "web", "Config")
    assert (config["Cmd"], config["Entrypoint"], config["Labels"]) == (["ls"], ["sh"], {})
    assert (config["ExposedPorts"], config["StopSignal"], config["StopTimeout"]) == ({"80/tcp": {}}, "SIGINT", 3)


async def test_mounts_are_shown_but_for_those_of_tmpfs_flags(world: World) -> None:
    await world.add(
        "web",
        host=HostConfig(tmpfs={"/tt": ""}),
        mounts=[
            MountPoint(type="volume", source="/v/_data", name="data", driver="local", destination="/d", mode="z"),
            MountPoint(type="tmpfs", source="", destination="/tt"),
            MountPoint(type="tmpfs", source="", destination="/t"),
        ],
    )
    assert (await inspect(world.deps, "web"))["Mounts"] == [
        {
            "Type": "volume",
            "Name": "data",
            "Source": "/v/_data",
            "Destination": "/d",
            "Driver": "local",
            "Mode": "z",
            "RW": True,
            "Propagation": "",
        },
        {"Type": "tmpfs", "Source": "", "Destination": "/t", "Mode": "", "RW": True, "Propagation": ""},
    ]


async def test_networks_of_special_modes(world: World) -> None:
    await world.add("host", host=HostConfig(network_mode="host"))
    await world.add("joined", host=HostConfig(network_mode="container:" + "c" * 64))
    host = await part(world, "host", "NetworkSettings")
    assert list(host["Networks"]) == ["host"]  # type: ignore[call-overload]
    assert host["Ports"] == {}
    assert (await part(world, "joined", "NetworkSettings"))["Networks"] == {}


async def test_unfinished_execs_are_named(world: World) -> None:
    container = await world.add("web")
    exec_id = await execs.create(world.deps, "web", ExecConfig(cmd=["true"]))
    assert (await inspect(world.deps, "web"))["ExecIDs"] == [exec_id]
    world.live(container).execs[exec_id].exit_code = 0
    assert (await inspect(world.deps, "web"))["ExecIDs"] is None


async def test_sizes_come_on_request(world: World) -> None:
    container = await world.add("web")
    world.snapshots.bytes[container.id] = 5
    document = await inspect(world.deps, "web", size=True)
    assert (document["SizeRw"], document["SizeRootFs"]) == (5, 1005)


async def test_a_missing_container_is_not_found(world: World) -> None:
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await inspect(world.deps, "nosuch")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (NOW, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000 * 10**9, "2023-11-14T22:13:20Z"),
        (1_700_000_000 * 10**9 + 500_000_000, "2023-11-14T22:13:20.5Z"),
    ],
)
def test_times_have_no_trailing_zeros(ns: int, text: str) -> None:
    assert rfc3339_nano(ns) == text
