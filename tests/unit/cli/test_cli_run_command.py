"""`run` and `create` against a fake engine: which calls, with which body, and which exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Wherry = Callable[..., Any]
ID = "c" * 64
NO_IMAGE = {"message": "No such image: busybox:latest"}


@pytest.fixture
def engine(fake_engine: Any, reply: Any) -> Any:
    fake_engine.answers = {
        "POST /containers/create": reply(201, {"Id": ID, "Warnings": []}),
        f"POST /containers/{ID}/start": reply(204),
        "POST /images/create": reply(200, b'{"status":"Pulling from library/busybox","id":"latest"}\n'),
    }
    return fake_engine


def test_detached_prints_the_id(engine: Any, wherry: Wherry) -> None:
    done = wherry("run", "-d", "--name", "web", "busybox", "sh", "-c", "x")
    assert (done.code, done.out, done.err) == (0, f"{ID}\n", "")
    assert engine.asked() == ["POST /containers/create", f"POST /containers/{ID}/start"]
    assert engine.requests[0].query == {"name": ["web"]}
    body = engine.requests[0].body
    assert body["Image"] == "busybox"
    assert body["Cmd"] == ["sh", "-c", "x"]
    assert (body["AttachStdin"], body["AttachStdout"], body["AttachStderr"], body["OpenStdin"]) == (False,) * 4


def test_a_missing_image_is_pulled_once_with_progress_on_standard_error(
    engine: Any, wherry: Wherry, reply: Any
) -> None:
    engine.answers["POST /containers/create"] = [reply(404, NO_IMAGE), reply(201, {"Id": ID})]
    done = wherry("run", "-d", "busybox")
    assert (done.code, done.out) == (0, f"{ID}\n")
    assert done.err == "Unable to find image 'busybox:latest' locally\nlatest: Pulling from library/busybox\n"
    assert engine.asked()[:3] == ["POST /containers/create", "POST /images/create", "POST /containers/create"]
    assert engine.requests[1].query == {"fromImage": ["docker.io/library/busybox"], "tag": ["latest"]}
    assert engine.requests[1].headers["X-Registry-Auth"] == "e30="


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        (["--pull", "never"], ["POST /containers/create"]),
        (["--pull", "always"], ["POST /images/create", "POST /containers/create"]),
    ],
)
def test_the_pull_policy(engine: Any, wherry: Wherry, reply: Any, arguments: list[str], calls: list[str]) -> None:
    engine.answers["POST /containers/create"] = reply(404, NO_IMAGE)
    if "never" not in arguments:
        engine.answers["POST /containers/create"] = reply(201, {"Id": ID})
    done = wherry("create", *arguments, "busybox")
    assert engine.asked() == calls
    assert done.code == (1 if "never" in arguments else 0)


def test_a_pull_that_fails_in_the_stream_ends_the_run(engine: Any, wherry: Wherry, reply: Any) -> None:
    engine.answers["POST /containers/create"] = reply(404, NO_IMAGE)
    engine.answers["POST /images/create"] = reply(200, b'{"errorDetail":{"message":"denied"},"error":"denied"}\n')
    done = wherry("run", "-q", "-d", "busybox")
    assert done.code == 125
    assert done.err == "wherry: denied\n\nRun 'wherry run --help' for more information\n"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "nope": executable file not found in $PATH: unknown', 127),
        ('exec: "/x": stat /x: no such file or directory', 127),
        ('exec: "/etc": permission denied: unknown', 126),
        ('exec: "/etc": is a directory', 126),
        ("driver failed programming external connectivity", 125),
    ],
)
def test_the_exit_code_of_a_failed_start(engine: Any, wherry: Wherry, reply: Any, message: str, code: int) -> None:
    engine.answers[f"POST /containers/{ID}/start"] = reply(400, {"message": message})
    done = wherry("run", "-d", "busybox")
    assert done.code == code
    assert done.err == (
        f"wherry: Error response from daemon: {message}\n\nRun 'wherry run --help' for more information\n"
    )


def test_a_terminal_cannot_be_given_without_having_one(engine: Any, wherry: Wherry) -> None:
    done = wherry("run", "-it", "busybox")
    assert (done.code, done.err) == (1, "the input device is not a TTY\n")
    assert engine.asked() == []


def test_attach_and_detach_exclude_each_other(engine: Any, wherry: Wherry) -> None:
    done = wherry("run", "-d", "-a", "stdout", "busybox")
    assert (done.code, done.err) == (1, "conflicting options: cannot specify both --attach and --detach\n")


def test_warnings_are_shown(engine: Any, wherry: Wherry, reply: Any) -> None:
    engine.answers["POST /containers/create"] = reply(201, {"Id": ID, "Warnings": ["no swap"]})
    done = wherry("create", "busybox")
    assert (done.out, done.err) == (f"{ID}\n", "WARNING: no swap\n")


def test_the_id_file(engine: Any, wherry: Wherry, reply: Any, tmp_path: Path) -> None:
    path = tmp_path / "cid"
    assert wherry("create", "--cidfile", str(path), "busybox").code == 0
    assert path.read_text() == ID
    again = wherry("run", "--cidfile", str(path), "busybox")
    assert again.code == 125
    assert "container ID file found, make sure the other container isn't running or delete" in again.err
    engine.answers["POST /containers/create"] = reply(409, {"message": "Conflict"})
    assert wherry("create", "--cidfile", str(tmp_path / "other"), "busybox").code == 1
    assert not (tmp_path / "other").exists()


def test_the_body_says_what_the_flags_say(engine: Any, wherry: Wherry) -> None:
    done = wherry(
        "create", "-it", "-e", "A=1", "-w", "/w", "-u", "1:2", "--entrypoint", "sh", "-h", "web", "-l", "x=y",
        "-v", "vol:/data:ro", "-v", "/anon", "--mount", "type=tmpfs,dst=/t", "--tmpfs", "/tmp:size=1m",
        "-p", "127.0.0.1:8080:80", "--expose", "90", "-P", "--network", "n1", "--network-alias", "a",
        "--ip", "10.0.0.9", "--read-only", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--privileged", "-m", "64m",
        "--memory-swap", "-1",
        "--cpus", "1.5", "--pids-limit", "9", "--init", "--restart", "on-failure:2", "--add-host", "h:1.2.3.4",
        "--dns", "1.1.1.1", "--device", "/dev/null:/dev/x:r", "--ulimit", "nofile=1:2", "--shm-size", "1g",
        "--sysctl", "net.a=1", "--security-opt", "no-new-privileges", "--stop-signal", "INT", "--stop-timeout", "3",
        "--health-cmd", "true", "--health-interval", "5s", "--log-driver", "none", "--group-add", "g", "--pid", "host",
        "--runtime", "crun", "--rm=false", "busybox",
    )  # fmt: skip
    assert done.code == 0, done.err
    body = engine.requests[0].body
    host = body["HostConfig"]
    assert all(body[name] for name in ("Tty", "OpenStdin", "AttachStdin", "StdinOnce"))
    assert (body["Env"], body["WorkingDir"], body["User"], body["Entrypoint"], body["Hostname"]) == (
        ["A=1"], "/w", "1:2", ["sh"], "web",
    )  # fmt: skip
    assert body["Labels"] == {"x": "y"}
    assert body["Volumes"] == {"/anon": {}}
    assert body["ExposedPorts"] == {"80/tcp": {}, "90/tcp": {}}
    assert body["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000}
    assert (body["StopSignal"], body["StopTimeout"], body["Cmd"]) == ("INT", 3, None)
    assert host["Binds"] == ["vol:/data:ro"]
    assert host["Mounts"] == [{"Type": "tmpfs", "Target": "/t"}]
    assert host["Tmpfs"] == {"/tmp": "size=1m"}
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}
    assert host["NetworkMode"] == "n1"
    assert body["NetworkingConfig"] == {
        "EndpointsConfig": {"n1": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Aliases": ["a"]}}
    }
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"], host["ShmSize"]) == (
        64 << 20, -1, 1_500_000_000, 9, 1 << 30,
    )  # fmt: skip
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
    assert host["Devices"] == [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}]
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 1, "Hard": 2}]
    assert (host["CapAdd"], host["CapDrop"], host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (
        ["NET_ADMIN"], ["ALL"], True, True, True,
    )  # fmt: skip
    assert (host["Sysctls"], host["SecurityOpt"], host["Dns"], host["ExtraHosts"], host["GroupAdd"]) == (
        {"net.a": "1"}, ["no-new-privileges"], ["1.1.1.1"], ["h:1.2.3.4"], ["g"],
    )  # fmt: skip
    assert (host["LogConfig"], host["PidMode"], host["Runtime"], host["AutoRemove"], host["PublishAllPorts"]) == (
        {"Type": "none", "Config": {}}, "host", "crun", False, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rm", "--restart", "always"], "conflicting options: cannot specify both --restart and --rm"),
        (["--health-cmd", "x", "--no-healthcheck"], "--no-healthcheck conflicts with --health-* options"),
        (["--memory-swappiness", "200"], "invalid value: 200. Valid memory swappiness range is 0-100"),
        (["--net", "none", "--network-alias", "x"],
         "network-scoped aliases are only supported for user-defined networks"),
        (["--pid", "foo"], "--pid: invalid PID mode"),
        (["--uts", "foo"], "--uts: invalid UTS mode"),
        (["--userns", "foo"], "--userns: invalid USER mode"),
        (["--cgroupns", "foo"], "--cgroupns: invalid CGROUP mode"),
        (["--log-driver", "none", "--log-opt", "a=b"], "invalid logging opts for driver none"),
        (["--device", "/a:/b:zz"], "bad mode specified: zz"),
        (["--mac-address", "zz"], "zz is not a valid mac address"),
        (["--pull", "bogus"], "invalid pull option: 'bogus': must be one of \"always\", \"missing\" or \"never\""),
        (["--network", "a", "--network", "a"], 'network "a" is specified multiple times'),
        (["--network", "name=n,mac-address=zz"], "zz is not a valid mac address"),
        (["--network", "name=n,ip=1.2.3.4", "--ip", "1.2.3.5"],
         "conflicting options: cannot specify both --ip and per-network IPv4 address"),
        (["--network", "name=n,ip6=fd00::1", "--ip6", "fd00::2"],
         "conflicting options: cannot specify both --ip6 and per-network IPv6 address"),
        (["--network", "name=n,mac-address=92:d0:c6:0a:29:33", "--mac-address", "92:d0:c6:0a:29:34"],
         "conflicting options: cannot specify both --mac-address and per-network MAC address"),
        (["--network", "name=n,link-local-ip=169.254.1.1", "--link-local-ip", "169.254.1.2"],
         "conflicting options: cannot specify both --link-local-ip and per-network link-local IP addresses"),
        (["--network", "name=n,alias=a", "--network-alias", "b"],
         "conflicting options: cannot specify both --network-alias and per-network alias"),
        (["-p", "0x50:80"], "invalid hostPort: 0x50"),
        (["-p", "published=80"], "no port specified: 80:/tcp<empty>"),
        (["-p", "[::1:18080:80"], "invalid IP address [::1: address [::1:: missing ']' in address"),
    ],
)  # fmt: skip
def test_contradictions(engine: Any, wherry: Wherry, arguments: list[str], message: str) -> None:
    done = wherry("run", *arguments, "busybox")
    assert done.code == 125
    assert done.err == f"wherry: {message}\n\nRun 'wherry run --help' for more information\n"
    assert engine.asked() == []


def test_a_flag_the_engine_is_too_old_for(engine: Any, wherry: Wherry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_API_VERSION", "1.41")
    done = wherry("create", "--annotation", "a=b", "busybox")
    assert done.code == 1
    assert done.err == '"--annotation" requires API version 1.43, but the Wherry daemon API version is 1.41\n'


def test_proxies_of_the_config_file_reach_the_container(engine: Any, wherry: Wherry, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text('{"proxies": {"default": {"httpProxy": "p", "noProxy": "n"}}}')
    assert wherry("create", "-e", "HTTP_PROXY=mine", "busybox").code == 0
    assert engine.requests[0].body["Env"] == ["HTTP_PROXY=mine", "http_proxy=p", "NO_PROXY=n", "no_proxy=n"]


def test_the_default_platform_of_the_environment(engine: Any, wherry: Wherry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/ARM64")
    assert wherry("create", "busybox").code == 0
    assert engine.requests[0].query["platform"] == ["linux/arm64"]
    assert wherry("create", "--platform", "linux/amd64", "busybox").code == 0
    assert engine.requests[1].query["platform"] == ["linux/amd64"]


OUTPUT = b"\1\0\0\0\0\0\0\4out\n\2\0\0\0\0\0\0\4err\n"


@pytest.mark.parametrize(("flags", "condition"), [([], "next-exit"), (["--rm"], "removed")])
def test_attached_it_attaches_and_waits_before_it_starts(
    engine: Any, wherry: Wherry, reply: Any, flags: list[str], condition: str
) -> None:
    engine.answers[f"POST /containers/{ID}/attach"] = reply(101, OUTPUT)
    engine.answers[f"POST /containers/{ID}/wait"] = reply(200, {"StatusCode": 7})
    done = wherry("run", "-i", *flags, "busybox", "cat", input=b"typed")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert engine.asked() == [
        "POST /containers/create",
        f"POST /containers/{ID}/attach",
        f"POST /containers/{ID}/wait",
        f"POST /containers/{ID}/start",
    ]
    assert engine.requests[1].query == {"stream": ["1"], "stdin": ["1"], "stdout": ["1"], "stderr": ["1"]}
    assert engine.requests[2].query == {"condition": [condition]}
    assert engine.typed == b"typed"


def test_a_removed_container_that_did_not_start_is_waited_for(engine: Any, wherry: Wherry, reply: Any) -> None:
    engine.answers[f"POST /containers/{ID}/attach"] = reply(101)
    engine.answers[f"POST /containers/{ID}/wait"] = reply(200, {"StatusCode": 127})
    engine.answers[f"POST /containers/{ID}/start"] = reply(400, {"message": "executable file not found in $PATH"})
    done = wherry("run", "--rm", "busybox", "nope")
    assert done.code == 127
    assert "executable file not found" in done.err


def test_waiting_that_fails_is_told(engine: Any, wherry: Wherry, reply: Any) -> None:
    engine.answers[f"POST /containers/{ID}/attach"] = reply(101, OUTPUT)
    engine.answers[f"POST /containers/{ID}/wait"] = reply(200, {"StatusCode": 0, "Error": {"Message": "lost it"}})
    done = wherry("run", "busybox")
    assert done.code == 125
    assert "Error waiting for container: lost it\n" in done.err


def test_start_attached_and_exec_carry_the_exit_code(engine: Any, wherry: Wherry, reply: Any) -> None:
    engine.answers |= {
        f"POST /containers/{ID}/attach": reply(101, OUTPUT),
        f"POST /containers/{ID}/wait": reply(200, {"StatusCode": 3}),
        "GET /containers/web/json": reply(
            200, {"Id": ID, "Config": {"Tty": False, "OpenStdin": True}, "HostConfig": {"AutoRemove": False}}
        ),
        "POST /containers/web/exec": reply(201, {"Id": "e1"}),
        "POST /exec/e1/start": reply(101, OUTPUT),
        "GET /exec/e1/json": reply(200, {"ExitCode": 4, "Running": False}),
    }
    started = wherry("start", "-ai", "web", input=b"x")
    assert (started.code, started.out, started.err) == (3, "out\n", "err\n")
    executed = wherry("exec", "web", "sh")
    assert (executed.code, executed.out, executed.err) == (4, "out\n", "err\n")


def test_every_network_says_what_is_asked_of_it(engine: Any, wherry: Wherry) -> None:
    done = wherry(
        "create", "--net", "name=n1,alias=a,driver-opt=x=y,gw-priority=5", "--network", "name=n2,ip=10.2.0.9", "--ip6",
        "fd00::9", "--link-local-ip", "169.254.1.1", "--mac-address", "92-d0-c6-0a-29-33", "--link", "db:sql",
        "--dns-opt", "ndots:3", "--dns-option", "rotate", "--dns-opt", "attempts:1", "--dns", "127.0.0.53", "busybox",
    )  # fmt: skip
    assert done.code == 0
    assert done.err == "WARNING: Localhost DNS (127.0.0.53) may fail in containers.\n"
    body = engine.requests[0].body
    assert body["HostConfig"]["NetworkMode"] == "n1"
    assert body["HostConfig"]["DnsOptions"] == ["ndots:3", "rotate", "attempts:1"]
    assert body["NetworkingConfig"]["EndpointsConfig"] == {
        "n1": {
            "IPAMConfig": {"IPv6Address": "fd00::9", "LinkLocalIPs": ["169.254.1.1"]},
            "Aliases": ["a"],
            "Links": ["db:sql"],
            "MacAddress": "92-d0-c6-0a-29-33",
            "DriverOpts": {"x": "y"},
            "GwPriority": 5,
        },
        "n2": {"IPAMConfig": {"IPv4Address": "10.2.0.9"}},
    }
    assert "MacAddress" not in body


def test_an_older_engine_is_told_the_address_where_it_looks(
    engine: Any, wherry: Wherry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_API_VERSION", "1.43")
    assert wherry("create", "--mac-address", "92:d0:c6:0a:29:33", "busybox").code == 0
    assert engine.requests[0].body["MacAddress"] == "92:d0:c6:0a:29:33"
