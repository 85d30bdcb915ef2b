"""`ps`, `inspect`, `events`, `info`, `version`: what clients read."""

import json
import re
import threading
from typing import Any
from urllib.parse import quote

import pytest

from harness.engine import Cli, Engine

SLEEP = ("busybox", "sleep", "600")


# -- ps ----------------------------------------------------------------------------------------------------------------


def names(cli: Cli, *flags: str) -> list[str]:
    return sorted(cli("ps", "--format", "{{.Names}}", *flags).lines)


def test_ps_lists_running_containers_and_a_all(cli: Cli) -> None:
    cli("run", "-d", "--name", "up", *SLEEP)
    cli("run", "--name", "over", "busybox", "sh", "-c", "exit 3", check=False)
    cli("create", "--name", "made", "busybox")
    assert names(cli) == ["up"]
    assert names(cli, "-a") == ["made", "over", "up"]
    shown = {
        line.split("|")[0]: line.split("|")[1] for line in cli("ps", "-a", "--format", "{{.Names}}|{{.Status}}").lines
    }
    assert re.fullmatch(r"Up .*", shown["up"])
    assert re.fullmatch(r"Exited \(3\) .* ago", shown["over"])
    assert shown["made"] == "Created"


def test_ps_columns(cli: Cli) -> None:
    identifier = cli("run", "-d", "--name", "up", "-p", "18080:80", *SLEEP).text
    head, row = cli("ps").lines
    assert head.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert row.startswith(identifier[:12])
    assert '"sleep 600"' in row
    assert "0.0.0.0:18080->80/tcp" in row
    assert row.endswith("up")


def test_the_newest_is_first_and_l_and_n_cut(cli: Cli) -> None:
    for name in ("one", "two", "three"):
        cli("create", "--name", name, "busybox")
    assert cli("ps", "-a", "--format", "{{.Names}}").lines == ["three", "two", "one"]
    assert cli("ps", "-l", "--format", "{{.Names}}").lines == ["three"]
    assert cli("ps", "-n", "2", "--format", "{{.Names}}").lines == ["three", "two"]


def test_filters(cli: Cli) -> None:
    first = cli(
        "run", "-d", "--name", "web-1", "-l", "role=web", "-l", "x", "-p", "18084:80", "-v", "data:/data", *SLEEP
    ).text
    cli("run", "--name", "web-2", "-l", "role=db", "busybox", "sh", "-c", "exit 4", check=False)
    cli("create", "--name", "other", "layered")
    cli("run", "-d", "--name", "ice", "--network", "none", *SLEEP)
    cli("pause", "ice")
    expected = [
        ("name=web", ["web-1", "web-2"]),
        ("name=^web-1$", ["web-1"]),
        (f"id={first[:10]}", ["web-1"]),
        ("label=role", ["web-1", "web-2"]),
        ("label=role=db", ["web-2"]),
        ("status=running", ["web-1"]),
        ("status=paused", ["ice"]),
        ("status=exited", ["web-2"]),
        ("status=created", ["other"]),
        ("exited=4", ["web-2"]),
        ("exited=0", []),
        ("ancestor=layered", ["other"]),
        ("before=web-2", ["web-1"]),
        ("since=web-2", ["ice", "other"]),
        ("volume=data", ["web-1"]),
        ("volume=/data", ["web-1"]),
        ("network=none", ["ice"]),
        ("expose=80", ["web-1"]),
        ("publish=18084", ["web-1"]),
    ]
    found = [(rule, names(cli, "-a", "-f", rule)) for rule, _ in expected]
    assert found == expected
    assert names(cli, "-a", "-f", "name=web", "-f", "status=running") == ["web-1"]
    assert names(cli, "-a", "-f", "status=running", "-f", "status=paused") == ["ice", "web-1"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("nonsense=1", "nvalid filter 'nonsense'"),
        ("status=flying", "flying"),
        ("exited=x", "x"),
        ("before=ghost", "ghost"),
    ],
)
def test_a_wrong_filter_is_named(cli: Cli, rule: str, words: str) -> None:
    done = cli("ps", "-f", rule, check=False)
    assert done.code == 1
    assert words in done.err


def test_both_shapes_of_filters_are_understood(engine: Engine) -> None:
    engine.docker("create", "--name", "here", "-l", "a=b", "busybox")
    for shape in ({"label": ["a=b"]}, {"label": {"a=b": True}}):
        found = engine.api.get(f"/containers/json?all=1&filters={quote(json.dumps(shape))}")
        assert [container["Names"] for container in found] == [["/here"]]


def test_size_counts_what_was_written(engine: Engine) -> None:
    engine.docker("run", "--name", "fat", "busybox", "sh", "-c", "head -c 500000 /dev/zero > /file")
    (found,) = engine.api.get("/containers/json?all=1&size=1")
    assert 500_000 <= found["SizeRw"] < 700_000
    assert found["SizeRootFs"] > found["SizeRw"] + 1_000_000
    assert "SizeRw" not in engine.api.get("/containers/json?all=1")[0]
    assert engine.api.get("/containers/fat/json?size=1")["SizeRw"] == found["SizeRw"]
    assert "SizeRw" not in engine.inspect("fat")


def test_summary_document(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "web", "-p", "127.0.0.1:18081:80", "-v", "vol:/v", "-l", "k=v", *SLEEP)
    (found,) = engine.api.get("/containers/json")
    assert found["Names"] == ["/web"]
    assert found["Image"] == "busybox"
    assert found["ImageID"].startswith("sha256:")
    assert found["Command"] == "sleep 600"
    assert (found["State"], found["Labels"]) == ("running", {"k": "v"})
    assert found["Ports"] == [{"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 18081, "Type": "tcp"}]
    assert found["HostConfig"]["NetworkMode"] in ("default", "bridge")
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].startswith("172.31.0.")
    (mount,) = found["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Destination"], mount["RW"]) == ("volume", "vol", "/v", True)


# -- inspect -----------------------------------------------------------------------------------------------------------

# Keys of the answer in API 1.41 that are there in every later version too.
TOP = {
    "Id",
    "Created",
    "Path",
    "Args",
    "State",
    "Image",
    "ResolvConfPath",
    "HostnamePath",
    "HostsPath",
    "LogPath",
    "Name",
    "RestartCount",
    "Driver",
    "Platform",
    "MountLabel",
    "ProcessLabel",
    "AppArmorProfile",
    "ExecIDs",
    "HostConfig",
    "GraphDriver",
    "Mounts",
    "Config",
    "NetworkSettings",
}
STATE = "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt".split()
CONFIG = (
    "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd Image Volumes "
    "WorkingDir Entrypoint OnBuild Labels"
).split()
HOST_CONFIG = (
    "Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom "
    "CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj "
    "PidMode Privileged PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize Runtime CpuShares "
    "Memory NanoCpus CgroupParent BlkioWeight CpuPeriod CpuQuota CpusetCpus CpusetMems Devices DeviceCgroupRules "
    "DeviceRequests MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits MaskedPaths "
    "ReadonlyPaths"
).split()
NETWORK = "SandboxID SandboxKey Ports Networks".split()
ENDPOINT = (
    "IPAMConfig Links Aliases NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway GlobalIPv6Address "
    "GlobalIPv6PrefixLen MacAddress DriverOpts"
).split()


def test_inspect_has_every_key(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "whole", *SLEEP)
    found = engine.inspect("whole")

    def lacking(document: dict[str, Any], keys: Any) -> set[str]:
        return set(keys) - set(document)

    assert not lacking(found, TOP)
    assert not lacking(found["State"], STATE)
    assert not lacking(found["Config"], CONFIG)
    assert not lacking(found["HostConfig"], HOST_CONFIG)
    assert not lacking(found["NetworkSettings"], NETWORK)
    assert not lacking(found["NetworkSettings"]["Networks"]["bridge"], ENDPOINT)


def test_inspect_values_of_a_running_container(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "deep", "-e", "A=b", "-w", "/tmp", "-p", "18082:80/udp", *SLEEP)
    found = engine.inspect("deep")
    assert (found["Name"], found["Path"], found["Args"]) == ("/deep", "sleep", ["600"])
    assert engine.box.alive(found["State"]["Pid"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z", found["Created"])
    assert found["Config"]["Cmd"] == ["sleep", "600"]
    assert "A=b" in found["Config"]["Env"]
    assert found["NetworkSettings"]["Ports"]["80/udp"][0] == {"HostIp": "0.0.0.0", "HostPort": "18082"}
    assert found["HostConfig"]["PortBindings"] == {"80/udp": [{"HostIp": "", "HostPort": "18082"}]}
    bridge = found["NetworkSettings"]["Networks"]["bridge"]
    assert (bridge["Gateway"], bridge["IPPrefixLen"]) == ("172.31.0.1", 24)
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", bridge["MacAddress"])
    assert found["HostConfig"]["ShmSize"] == 67108864
    assert found["HostConfig"]["LogConfig"]["Type"] == "json-file"
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}


def test_inspect_of_a_stopped_container_has_no_address(engine: Engine) -> None:
    engine.docker("run", "--name", "over", "-p", "18083:80", "busybox", "true")
    found = engine.inspect("over")
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    assert found["NetworkSettings"]["Ports"] == {}
    assert found["State"]["Pid"] == 0


def test_inspect_by_the_clients(cli: Cli) -> None:
    identifier = cli("create", "--name", "seen", "busybox").text
    assert cli("inspect", "-f", "{{.Id}} {{.State.Status}} {{len .Args}}", "seen").text == f"{identifier} created 0"
    assert cli.json("inspect", "seen")[0]["Id"] == identifier
    assert cli("inspect", "-f", "{{json .Config.Cmd}} {{index .Config.Cmd 0}}", "seen").text == '["sh"] sh'
    done = cli("inspect", "ghost", check=False)
    assert done.code == 1
    assert done.text == "[]"
    assert "No such object: ghost" in done.err


# -- events ------------------------------------------------------------------------------------------------------------


def test_the_events_of_a_life_in_order(engine: Engine) -> None:
    since = engine.api.request("GET", "/info").json()["SystemTime"]
    engine.docker("run", "--rm", "--name", "short", "busybox", "sh", "-c", "exit 3", check=False)
    until = engine.api.request("GET", "/info").json()["SystemTime"]
    lines = engine.docker(
        "events", "--since", since, "--until", until, "--filter", "container=short", "--format", "{{json .}}"
    ).lines
    events = [json.loads(line) for line in lines]
    actions = [event["Action"] for event in events if event["Type"] == "container"]
    assert actions == ["create", "attach", "start", "die", "destroy"]
    die = next(event for event in events if event["Action"] == "die")
    assert die["Actor"]["Attributes"]["exitCode"] == "3"
    assert (die["Actor"]["Attributes"]["name"], die["Actor"]["Attributes"]["image"]) == ("short", "busybox")
    assert die["time"] == die["timeNano"] // 10**9


def test_events_come_as_they_happen_with_headers_first(engine: Engine) -> None:
    with engine.api.stream("GET", "/events") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        engine.docker("create", "--name", "born", "busybox")
        event = json.loads(answer.readline())
    assert (event["Type"], event["Action"], event["Actor"]["Attributes"]["name"]) == ("container", "create", "born")


def test_the_verbs_say_what_they_did(engine: Engine) -> None:
    seen: list[str] = []
    done = threading.Event()

    def listen() -> None:
        with engine.api.stream("GET", "/events?filters=%7B%22container%22%3A%5B%22said%22%5D%7D") as answer:
            done.set()
            for line in answer:
                seen.append(json.loads(line)["Action"])
                if seen[-1] == "destroy":
                    return

    engine.docker("create", "--name", "said", *SLEEP)
    listener = threading.Thread(target=listen)
    listener.start()
    assert done.wait(20)
    for verb in (["start"], ["pause"], ["unpause"], ["restart", "-t", "0"], ["kill"]):
        engine.docker(*verb, "said")
    engine.wait_for("said", "exited")
    engine.docker("rename", "said", "said2")
    engine.docker("rename", "said2", "said")
    engine.docker("rm", "said")
    listener.join(20)
    for action in ("start", "pause", "unpause", "kill", "die", "restart", "rename", "destroy"):
        assert action in seen
    assert seen.index("pause") < seen.index("unpause") < seen.index("restart") < seen.index("destroy")


def test_exec_events_name_the_command(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "host", *SLEEP)
    with engine.api.stream("GET", "/events") as answer:
        engine.docker("exec", "host", "echo", "hello", check=False)
        actions = [json.loads(answer.readline())["Action"] for _ in range(3)]
    assert actions == ["exec_create: echo hello", "exec_start: echo hello", "exec_die"]


# -- the daemon itself -------------------------------------------------------------------------------------------------


def test_ping_carries_the_versions(engine: Engine) -> None:
    for method in ("GET", "HEAD"):
        answer = engine.api.request(method, "/_ping")
        assert answer.status == 200
        assert answer.headers["ostype"] == "linux"
        assert re.fullmatch(r"1\.\d\d", answer.headers["api-version"])
        assert answer.headers["cache-control"] == "no-cache, no-store, must-revalidate"
        assert answer.body == (b"OK" if method == "GET" else b"")


def test_version_and_info(cli: Cli, engine: Engine) -> None:
    version = engine.api.get("/version")
    assert version["MinAPIVersion"] in ("1.12", "1.24")
    assert version["Os"] == "linux"
    assert cli("version", "--format", "{{.Server.APIVersion}}").text == version["ApiVersion"]
    info = engine.api.get("/info")
    assert info["DockerRootDir"] == str(engine.data_root)
    assert info["Driver"] == "overlay2"
    assert info["CgroupVersion"] in ("1", "2")
    assert "name=seccomp,profile=" in info["SecurityOptions"][0] or "seccomp" in str(info["SecurityOptions"])
    assert "Containers: 0" in cli("info").out


def test_versions_too_old_and_too_new_are_refused(engine: Engine) -> None:
    answer = engine.api.request("GET", "/v1.99/containers/json")
    assert answer.status == 400
    assert "client version 1.99 is too new. Maximum supported API version is" in answer.message
    answer = engine.api.request("GET", "/v1.10/containers/json")
    assert answer.status == 400
    assert "client version 1.10 is too old. Minimum supported API version is" in answer.body.decode()
    assert engine.api.request("GET", "/v1.41/containers/json").status == 200
