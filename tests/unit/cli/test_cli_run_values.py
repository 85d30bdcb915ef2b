"""What one argument of run's flags means: docker's behaviours, one per line."""

import os
from pathlib import Path

import pytest

from wherry.cli import run_values as values
from wherry.cli.console import UsageFailure
from wherry.cli.ports import PortError, parse_expose, parse_publish
from wherry.cli.run_config import env_file, parse_volume, restart_policy, security_options


@pytest.mark.parametrize(
    ("text", "bindings"),
    [
        ("80", [("80/tcp", "", "")]),
        (":80", [("80/tcp", "", "")]),
        ("8080:80", [("80/tcp", "", "8080")]),
        ("8080:80/udp", [("80/udp", "", "8080")]),
        ("80/TCP", [("80/tcp", "", "")]),
        ("1.2.3.4:8080:80", [("80/tcp", "1.2.3.4", "8080")]),
        ("1.2.3.4::80", [("80/tcp", "1.2.3.4", "")]),
        ("1.2.3.4:80", None),
        ("[::1]:8080:80", [("80/tcp", "::1", "8080")]),
        ("::1:8080:80", [("80/tcp", "::1", "8080")]),
        ("8000-8001:80-81/sctp", [("80/sctp", "", "8000"), ("81/sctp", "", "8001")]),
        ("8000-8002:80", [("80/tcp", "", "8000-8002")]),
        ("80-81", [("80/tcp", "", ""), ("81/tcp", "", "")]),
        ("target=80,published=8080,protocol=udp", [("80/udp", "", "8080")]),
        ("target=80", [("80/tcp", "", "")]),
    ],
)
def test_published_ports(text: str, bindings: list[tuple[str, str, str]] | None) -> None:
    if bindings is None:
        with pytest.raises(PortError):
            parse_publish(text)
    else:
        assert parse_publish(text) == bindings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no port specified: <empty>"),
        ("80:", "no port specified: 80:<empty>"),
        ("abc", "invalid containerPort: abc"),
        ("70000", "invalid containerPort: 70000"),
        ("-1", "invalid containerPort: -1"),
        ("80-70", "invalid containerPort: 80-70"),
        ("99999:80", "invalid hostPort: 99999"),
        ("80-90:80-85", "invalid ranges specified for container and host Ports: 80-85 and 80-90"),
        ("80:80-81", "invalid ranges specified for container and host Ports: 80-81 and 80"),
        ("1.2.3:80:80", "invalid IP address: 1.2.3"),
        ("80/foo", "invalid proto: foo"),
        ("foo=80", "invalid publish opts format (should be name=value but got 'foo=80')"),
    ],
)
def test_what_cannot_be_published(text: str, message: str) -> None:
    with pytest.raises(PortError) as failure:
        parse_publish(text)
    assert str(failure.value) == message


def test_exposed_ports() -> None:
    assert parse_expose("80") == ["80/tcp"]
    assert parse_expose("80-82/udp") == ["80/udp", "81/udp", "82/udp"]
    with pytest.raises(PortError) as failure:
        parse_expose("foo")
    assert str(failure.value) == (
        'invalid range format for --expose: foo, error: strconv.ParseUint: parsing "foo": invalid syntax'
    )
    with pytest.raises(PortError, match="invalid port format for --expose: 1:2"):
        parse_expose("1:2")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/data", (None, "/data")),
        ("vol:/data", ("vol:/data", "/data")),
        ("/a:/b:ro,z", ("/a:/b:ro,z", "/b")),
        (":", (None, ":")),
    ],
)
def test_volumes(text: str, parsed: tuple[str | None, str]) -> None:
    assert parse_volume(text) == parsed


def test_a_volume_beginning_with_a_dot_is_relative_to_here() -> None:
    assert parse_volume("./x:/y") == (f"{os.getcwd()}/x:/y", "/y")
    assert parse_volume("x:/y") == ("x:/y", "/y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid empty volume spec"),
        ("/a:/b:zz:/c", "invalid spec: /a:/b:zz:/c: too many colons"),
        (":/b", "invalid spec: :/b: empty section between colons"),
        ("/a::ro", "invalid spec: /a::ro: empty section between colons"),
    ],
)
def test_what_is_no_volume(text: str, message: str) -> None:
    with pytest.raises(UsageFailure) as failure:
        parse_volume(text)
    assert failure.value.message == message


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,src=/a,dst=/b,ro", {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}),
        ("target=/b", {"Type": "volume", "Target": "/b"}),
        ("type=bind,source=/a,target=/b,readonly=false,bind-propagation=rslave",
         {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": False,
          "BindOptions": {"Propagation": "rslave"}}),
        ("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770",
         {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}}),
        ('src=v,dst=/v,volume-nocopy,volume-driver=local,"volume-opt=o=a,b",volume-label=k=v,volume-subpath=s',
         {"Type": "volume", "Source": "v", "Target": "/v",
          "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": {"o": "a,b"}},
                            "Labels": {"k": "v"}, "Subpath": "s"}}),
        ("type=bind,src=/a,dst=/b,bind-recursive=disabled",
         {"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"NonRecursive": True}}),
        ("type=bind,src=/a,dst=/b,idmap=uids=0-7-1;gids=0-8-1",
         {"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"IDMap": "uids=0-7-1;gids=0-8-1"}}),
        ("type=image,src=i,dst=/b,image-subpath=usr/lib",
         {"Type": "image", "Source": "i", "Target": "/b", "ImageOptions": {"Subpath": "usr/lib"}}),
        ("type=tmpfs,dst=/t,tmpfs-options=exec;a=b",
         {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Options": [["exec"], ["a", "b"]]}}),
        ("type=bind,src=/a,dst=/b,ro,bind-recursive=readonly,bind-propagation=rprivate,consistency=cached,bind-create-src",
         {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True, "Consistency": "cached",
          "BindOptions": {"ReadOnlyForceRecursive": True, "Propagation": "rprivate", "CreateMountpoint": True}}),
    ],
)  # fmt: skip
def test_mounts(text: str, mount: object) -> None:
    assert values.mount(text) == mount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bind", "target is required"),
        ("type=,target=/x", "type is required"),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("type=bind,foo=bar", "unexpected key 'foo' in 'foo=bar'"),
        ("type=bind,src=/a,dst=/b,ro=maybe", "invalid value for ro: maybe"),
        ("type=bind,src=/a,dst=/b,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
        ("type=tmpfs,dst=/b,tmpfs-size=x", "invalid value for tmpfs-size: x"),
        ("type=bind,src=/a,dst=/b,bind-recursive=writable",
         "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction"),
    ],
)  # fmt: skip
def test_what_is_no_mount(text: str, message: str) -> None:
    with pytest.raises(ValueError) as failure:
        values.mount(text)
    assert str(failure.value) == message


@pytest.mark.parametrize("text", ["type=bind,src=/a,dst=/b,idmap", "type=bind,src=/a,dst=/b,idmap=caller"])
def test_the_caller_is_who_called_sudo_if_anybody(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "100")
    sudo = os.getuid() == 0
    expected = "caller=1000-100" if sudo else f"caller={os.getuid()}-{os.getgid()}"
    assert values.mount(text)["BindOptions"] == {"IDMap": expected}
    assert parse_volume("/a:/b:ro,idmap") == (f"/a:/b:ro,idmap={expected}", "/b")
    monkeypatch.delenv("SUDO_UID")
    assert values.id_map("caller") == f"caller={os.getuid()}-{os.getgid()}"


CHECKS = [
    (values.attach, "STDIN", "stdin"),
    (values.attach, "foo", ValueError("valid streams are STDIN, STDOUT and STDERR")),
    (values.label, "a=b", "a=b"),
    (values.label, "", ValueError("invalid label '': empty name")),
    (values.extra_host, "h:1.2.3.4", "h:1.2.3.4"),
    (values.extra_host, "h=::1", "h:::1"),
    (values.extra_host, "h:[::1]", "h:::1"),
    (values.extra_host, "h:host-gateway", "h:host-gateway"),
    (values.extra_host, "foo", ValueError('bad format for add-host: "foo"')),
    (values.extra_host, "h:x", ValueError('invalid IP address in add-host: "x"')),
    (values.ip_address, "1.1.1.1", "1.1.1.1"),
    (values.ip_address, "foo", ValueError("IP address is not correctly formatted: foo")),
    (values.dns_search, "example.com", "example.com"),
    (values.dns_search, ".", "."),
    (values.dns_search, "a..b", ValueError("a..b is not a valid domain")),
    (values.link, "a:b", "a:b"),
    (values.link, "a:b:c", ValueError("bad format for links: a:b:c")),
    (values.sysctl, "net.core.somaxconn=1", "net.core.somaxconn=1"),
    (values.sysctl, "foo", ValueError("sysctl 'foo' is not allowed")),
    (values.sysctl, "kernel.hostname=x", ValueError("sysctl 'kernel.hostname=x' is not allowed")),
    (values.ulimit, "nofile=1:2", {"Name": "nofile", "Soft": 1, "Hard": 2}),
    (values.ulimit, "nofile=5", {"Name": "nofile", "Soft": 5, "Hard": 5}),
    (values.ulimit, "core=-1", {"Name": "core", "Soft": -1, "Hard": -1}),
    (values.ulimit, "x", ValueError("invalid ulimit argument: x")),
    (values.ulimit, "x=1", ValueError("invalid ulimit type: x")),
    (values.ulimit, "nofile=2:1",
     ValueError("ulimit soft limit must be less than or equal to hard limit: 2 > 1")),
    (values.weight_device, "/dev/sda:100", {"Path": "/dev/sda", "Weight": 100}),
    (values.weight_device, "foo", ValueError("bad format: foo")),
    (values.weight_device, "/dev/sda:5", ValueError("invalid weight for device: /dev/sda:5")),
    (values.throttle_bytes, "/dev/sda:1mb", {"Path": "/dev/sda", "Rate": 1 << 20}),
    (values.throttle_operations, "/dev/sda:10", {"Path": "/dev/sda", "Rate": 10}),
    (values.throttle_bytes, "sda:1", ValueError("bad format for device path: sda:1")),
    (values.device_rule, "c 1:3 mr", "c 1:3 mr"),
    (values.device_rule, "x", ValueError("invalid device cgroup format 'x'")),
    (values.mac_address, "92-D0-c6-0a-29-33", "92:d0:c6:0a:29:33"),
    (values.mac_address, "92d0.c60A.2933", "92:d0:c6:0a:29:33"),
    (values.mac_address, "92:d0:c6:0a:29:33:44:55", "92:d0:c6:0a:29:33:44:55"),
    (values.mac_address, "92:d0:c6-0a:29:33", ValueError("92:d0:c6-0a:29:33 is not a valid mac address")),
    (values.mac_address, "zz", ValueError("zz is not a valid mac address")),
    (values.gpus, "all", {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}),
    (values.gpus, '"device=0,1",capabilities=utility',
     {"Driver": "", "Count": 0, "DeviceIDs": ["0", "1"], "Capabilities": [["utility", "gpu"]], "Options": {}}),
    (values.gpus, "foo=1", ValueError("unexpected key 'foo' in 'foo=1'")),
    (values.network, "n1", {"Target": "n1", "Aliases": [], "DriverOpts": {}}),
    (values.network, "name=n1,alias=a,alias=b,ip=1.2.3.4,driver-opt=x=y",
     {"Target": "n1", "Aliases": ["a", "b"], "DriverOpts": {"x": "y"}, "IPv4Address": "1.2.3.4"}),
    (values.network, "alias=a", ValueError("network name/id is not specified")),
    (values.network, "name=n,foo=1", ValueError("invalid field key foo")),
    (values.network, "name=n,foo", ValueError("invalid field foo")),
    (values.network, "name=n,gw-priority=-7,ip6=fd00::2,link-local-ip=169.254.1.1,link-local-ip=fe80::1",
     {"Target": "n", "Aliases": [], "DriverOpts": {}, "IPv6Address": "fd00::2", "GwPriority": -7,
      "LinkLocalIPs": ["169.254.1.1", "fe80::1"]}),
    (values.network, "name=n,gw-priority=x", ValueError("invalid gw-priority (x): invalid syntax")),
    (values.environment_variable, "A=", "A="),
    (values.environment_variable, "=x", ValueError("invalid environment variable: =x")),
    (values.environment_variable, "SURELY_NOT_SET_HERE", "SURELY_NOT_SET_HERE"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "text", "expected"), CHECKS)
def test_other_values(check: object, text: str, expected: object) -> None:
    assert callable(check)
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError) as failure:
            check(text)
        assert str(failure.value) == str(expected)
    else:
        assert check(text) == expected


def test_a_variable_without_value_is_taken_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FROM_HERE", "a b")
    assert values.environment_variable("FROM_HERE") == "FROM_HERE=a b"
    (tmp_path / "env").write_text("\ufeff# comment\n\n  A=1 # kept\nFROM_HERE\nSURELY_NOT_SET\nB=\n")
    assert env_file(str(tmp_path / "env")) == ["A=1 # kept", "FROM_HERE=a b", "B="]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"=x\n", "invalid env file (%s): no variable name on line '=x'"),
        (b"a b=x\n", "invalid env file (%s): variable 'a b' contains whitespaces"),
    ],
)
def test_a_bad_env_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "env"
    path.write_bytes(content)
    with pytest.raises(UsageFailure) as failure:
        env_file(str(path))
    assert failure.value.message == message % path
    with pytest.raises(UsageFailure, match="open /nonexist: no such file or directory"):
        env_file("/nonexist")


def test_security_options(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{ "defaultAction": "SCMP_ACT_ERRNO" }')
    assert security_options(["no-new-privileges", "label:disable", f"seccomp={profile}", "systempaths=unconfined"]) == (
        ["no-new-privileges", "label:disable", 'seccomp={"defaultAction":"SCMP_ACT_ERRNO"}'],
        True,
    )
    assert security_options(["seccomp=unconfined"]) == (["seccomp=unconfined"], False)
    with pytest.raises(UsageFailure, match='Invalid --security-opt: "foo"'):
        security_options(["foo"])
    with pytest.raises(
        UsageFailure, match=r"opening seccomp profile \(/x\) failed: open /x: no such file or directory"
    ):
        security_options(["seccomp=/x"])


def test_restart_policies() -> None:
    assert restart_policy("on-failure:3") == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert restart_policy("always") == {"Name": "always", "MaximumRetryCount": 0}
    with pytest.raises(UsageFailure, match="maximum retry count must be an integer"):
        restart_policy("on-failure:x")


def test_quoted_fields() -> None:
    assert values.split_csv('a,"b,c","d""e",') == ["a", "b,c", 'd"e', ""]
    for text in ('a"b', '"a', '"a"b'):
        with pytest.raises(ValueError, match="parse error on line 1"):
            values.split_csv(text)
