"""The OCI runtime spec: what Docker makes of the same request."""

import json

import pytest

from wherry.errors import InvalidParameter
from wherry.runtime import devices, resources, security
from wherry.runtime.spec import INIT, SpecInput, SpecMount, bind_options, build, environment, tmpfs_options
from wherry.spec.engine import (
    ContainerConfig,
    DeviceMapping,
    HostConfig,
    Resources,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)

ALL = (1 << len(security.CAPABILITIES)) - 1
CID = "c" * 64


def spec_of(*, config=None, mounts=(), bounding=ALL, host=None, **rest):
    wanted = SpecInput(
        id=CID,
        args=rest.pop("args", ["true"]),
        config=config or ContainerConfig(hostname="box"),
        host_config=HostConfig(**(host or {})),
        mounts=mounts,
        cgroups_path=f"/wherry/{CID}",
        bounding=bounding,
        **rest,
    )
    return build(wanted).spec


def mount_at(spec, destination):
    return next((each for each in spec["mounts"] if each["destination"] == destination), None)


def namespaces(spec):
    return {each["type"]: each.get("path", "") for each in spec["linux"]["namespaces"]}


def test_the_default_container_is_dockers():
    spec = spec_of()
    assert spec["process"]["capabilities"]["bounding"] == list(security.DEFAULT_CAPABILITIES)
    assert spec["process"]["cwd"] == "/"
    assert spec["process"]["noNewPrivileges"] is False
    assert spec["process"]["oomScoreAdj"] == 0
    assert spec["hostname"] == "box"
    assert spec["root"]["readonly"] is False
    assert spec["linux"]["cgroupsPath"] == f"/wherry/{CID}"
    assert namespaces(spec) == {"mount": "", "network": "", "uts": "", "pid": "", "ipc": ""}
    assert spec["linux"]["maskedPaths"] == list(security.MASKED_PATHS)
    assert spec["linux"]["readonlyPaths"] == list(security.READONLY_PATHS)
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert spec["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    assert [each["destination"] for each in spec["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
    ]  # fmt: skip
    assert mount_at(spec, "/dev/shm")["options"] == ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]
    assert "ro" in mount_at(spec, "/sys")["options"]
    assert "ro" in mount_at(spec, "/sys/fs/cgroup")["options"]
    json.dumps(spec)


def test_the_default_devices_may_be_used_and_all_may_be_made():
    rules = spec_of()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "access": "m"} in rules
    assert {"allow": True, "type": "b", "access": "m"} in rules
    allowed = {(each.get("major"), each.get("minor")) for each in rules if each["access"] == "rwm" and each["allow"]}
    assert allowed == {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)}


def test_privileged_is_open():
    spec = spec_of(host={"privileged": True})
    assert spec["process"]["capabilities"]["effective"] == list(security.CAPABILITIES)
    assert "seccomp" not in spec["linux"]
    assert "maskedPaths" not in spec["linux"]
    assert "readonlyPaths" not in spec["linux"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "type": "a", "access": "rwm"}]
    assert "rw" in mount_at(spec, "/sys")["options"]
    assert "rw" in mount_at(spec, "/sys/fs/cgroup")["options"]


def test_privileged_with_a_profile_of_its_own_has_that():
    profile = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []})
    spec = spec_of(host={"privileged": True, "security_opt": [f"seccomp={profile}"]})
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"


@pytest.mark.parametrize(
    ("mode", "kind", "present"),
    [
        ({"pid_mode": "host"}, "pid", False),
        ({"uts_mode": "host"}, "uts", False),
        ({"ipc_mode": "host"}, "ipc", False),
        ({"ipc_mode": "shareable"}, "ipc", True),
        ({"cgroupns_mode": "private"}, "cgroup", True),
        ({"cgroupns_mode": "host"}, "cgroup", False),
    ],
)
def test_namespaces_follow_their_modes(mode, kind, present):
    assert (kind in namespaces(spec_of(host=mode))) is present


def test_the_cgroup_namespace_is_private_by_default_on_v2_only():
    assert "cgroup" in namespaces(spec_of(cgroup_v2=True))
    assert "cgroup" not in namespaces(spec_of(cgroup_v2=True, host={"cgroupns_mode": "host"}))


def test_the_namespaces_of_another_container_are_joined():
    spec = spec_of(
        host={"ipc_mode": "container:x", "pid_mode": "container:x"},
        ipcns="/proc/7/ns/ipc",
        pidns="/proc/7/ns/pid",
        netns="/proc/7/ns/net",
    )
    assert namespaces(spec)["ipc"] == "/proc/7/ns/ipc"
    assert namespaces(spec)["pid"] == "/proc/7/ns/pid"
    assert namespaces(spec)["network"] == "/proc/7/ns/net"
    assert spec["linux"]["sysctl"] == {}, "another container's network is not ours to change"


def test_the_hosts_network_is_left_alone():
    spec = spec_of(netns="")
    assert "network" not in namespaces(spec)
    assert spec["linux"]["sysctl"] == {}


def test_the_hosts_ipc_has_the_hosts_shared_memory():
    spec = spec_of(host={"ipc_mode": "host"})
    assert mount_at(spec, "/dev/shm")["source"] == "/dev/shm"
    assert mount_at(spec, "/dev/mqueue")["type"] == "bind"
    assert mount_at(spec_of(host={"ipc_mode": "none"}), "/dev/shm") is None


def test_a_domain_name_is_a_sysctl_and_given_sysctls_win():
    config = ContainerConfig(hostname="box", domainname="example.org")
    spec = spec_of(config=config, host={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "1024"}})
    assert spec["linux"]["sysctl"]["kernel.domainname"] == "example.org"
    assert spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "1024"


def test_mounts_replace_the_defaults_and_come_after_what_they_lie_on():
    mounts = [
        SpecMount(destination="/data/deep/er", type="bind", source="/c", options=bind_options(read_only=True)),
        SpecMount(destination="/dev/shm/", type="bind", source="/b", options=bind_options(read_only=False)),
        SpecMount(destination="/data", type="tmpfs", source="tmpfs", options=tmpfs_options(["size=1m"])),
    ]
    spec = spec_of(mounts=mounts)
    order = [each["destination"] for each in spec["mounts"]]
    assert order.index("/data") < order.index("/data/deep/er")
    assert [each["source"] for each in spec["mounts"] if each["destination"].rstrip("/") == "/dev/shm"] == ["/b"]
    assert mount_at(spec, "/data/deep/er")["options"] == ["rbind", "ro", "rprivate"]
    assert mount_at(spec, "/data")["options"] == ["noexec", "nosuid", "nodev", "size=1m"]


def test_a_dev_of_ones_own_is_left_alone():
    spec = spec_of(mounts=[SpecMount(destination="/dev", type="bind", source="/dev", options=("rbind",))])
    assert [each["destination"] for each in spec["mounts"] if each["destination"].startswith("/dev")] == ["/dev"]


def test_tmpfs_options_that_say_otherwise_win():
    assert tmpfs_options(["exec", "mode=1777"]) == ("nosuid", "nodev", "exec", "mode=1777")


def test_shared_mounts_make_the_root_shared():
    shared = SpecMount(destination="/x", type="bind", source="/x", options=("rbind", "rshared"))
    slave = SpecMount(destination="/x", type="bind", source="/x", options=("rbind", "rslave"))
    assert spec_of(mounts=[shared])["linux"]["rootfsPropagation"] == "shared"
    assert spec_of(mounts=[slave])["linux"]["rootfsPropagation"] == "rslave"
    assert "rootfsPropagation" not in spec_of()["linux"]


def test_init_goes_before_the_command():
    spec = spec_of(args=["/app", "x"], init_path="/usr/bin/tini")
    assert spec["process"]["args"] == [INIT, "--", "/app", "x"]
    assert mount_at(spec, INIT)["source"] == "/usr/bin/tini"


def test_a_container_without_command_is_refused():
    with pytest.raises(InvalidParameter, match="no command specified"):
        spec_of(args=[])


def test_variables_are_dockers_then_the_configs():
    config = ContainerConfig(hostname="box", tty=True, env=["A=1", "PATH=/only", "TERM"])
    assert environment(config) == ["PATH=/only", "HOSTNAME=box", "A=1"]
    assert environment(ContainerConfig(hostname="b", tty=True))[2] == "TERM=xterm"


def test_limits_are_translated():
    built = resources.update(
        Resources(
            memory=64 << 20,
            memory_reservation=32 << 20,
            memory_swappiness=10,
            cpu_shares=512,
            nano_cpus=1_500_000_000,
            cpuset_cpus="0-1",
            pids_limit=50,
        )
    )
    assert built == {
        "memory": {"limit": 64 << 20, "swap": 128 << 20, "reservation": 32 << 20, "swappiness": 10},
        "cpu": {"period": 100_000, "quota": 150_000, "shares": 512, "cpus": "0-1"},
        "pids": {"limit": 50},
    }


@pytest.mark.parametrize(
    ("limits", "memory"),
    [
        ({"memory": 100, "memory_swap": -1}, {"limit": 100, "swap": -1}),
        ({"memory": 100, "memory_swap": 150}, {"limit": 100, "swap": 150}),
        ({"memory_swappiness": -1}, None),
        ({"oom_kill_disable": True}, {"disableOOMKiller": True}),
    ],
)
def test_swap_is_as_asked_or_as_much_as_memory(limits, memory):
    assert resources.update(Resources(**limits)).get("memory") == memory


@pytest.mark.parametrize(("limit", "expected"), [(None, {}), (0, {}), (-1, {}), (9, {"pids": {"limit": 9}})])
def test_no_limit_of_processes_is_how_a_group_begins(limit, expected):
    assert resources.update(Resources(pids_limit=limit)) == expected


def test_cpus_and_a_quota_exclude_each_other():
    with pytest.raises(InvalidParameter, match="Nano CPUs and CPU Period cannot both be set"):
        resources.update(Resources(nano_cpus=10**9, cpu_period=1000))


def test_block_devices_are_named_by_number():
    limits = Resources(
        blkio_weight=300,
        blkio_weight_device=[WeightDevice(path="/dev/vda", weight=200)],
        blkio_device_write_bps=[ThrottleDevice(path="/dev/vda", rate=1000)],
    )
    assert resources.update(limits, numbers={"/dev/vda": (254, 0)})["blockIO"] == {
        "weight": 300,
        "weightDevice": [{"major": 254, "minor": 0, "weight": 200}],
        "throttleWriteBpsDevice": [{"major": 254, "minor": 0, "rate": 1000}],
    }


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("c 42:* rmw", {"allow": True, "type": "c", "access": "rmw", "major": 42}),
        ("b 8:1 r", {"allow": True, "type": "b", "access": "r", "major": 8, "minor": 1}),
        ("a *:* rwm", {"allow": True, "type": "a", "access": "rwm"}),
    ],
)
def test_device_rules_are_read(text, rule):
    assert resources.build(Resources(device_cgroup_rules=[text]))["devices"][-1] == rule


@pytest.mark.parametrize("text", ["", "c 1:3", "x 1:3 r", "c 1:3 rwx", "c 1:3 r\n", "c -1:3 r"])
def test_other_device_rules_are_refused(text):
    with pytest.raises(InvalidParameter, match="invalid device cgroup rule format"):
        resources.build(Resources(device_cgroup_rules=[text]))


def test_devices_are_added_with_their_numbers():
    mapping = DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/x", cgroup_permissions="r")
    (device,) = devices.for_container(HostConfig(devices=[mapping]))
    assert (device.path, device.kind, device.major, device.minor, device.access) == ("/dev/x", "c", 1, 3, "r")
    spec = spec_of(devices=[device])
    assert spec["linux"]["devices"][0]["path"] == "/dev/x"
    assert spec["linux"]["resources"]["devices"][-1] == {
        "allow": True, "type": "c", "access": "r", "major": 1, "minor": 3,
    }  # fmt: skip


def test_a_device_that_is_none_is_refused(tmp_path):
    for path, words in ((str(tmp_path / "no"), "no such file or directory"), (str(tmp_path), "not a device node")):
        with pytest.raises(Exception, match="error gathering device information while adding custom device") as caught:
            devices.for_container(HostConfig(devices=[DeviceMapping(path_on_host=path)]))
        assert words in str(caught.value)


def test_ulimits_and_oom_score_are_passed_on():
    spec = spec_of(host={"ulimits": [Ulimit(name="nofile", soft=10, hard=20)], "oom_score_adj": 500})
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert spec["process"]["oomScoreAdj"] == 500


def test_masked_paths_can_be_chosen_or_lifted():
    assert spec_of(host={"masked_paths": ["/x"], "readonly_paths": []})["linux"]["maskedPaths"] == ["/x"]
    assert spec_of(host={"masked_paths": ["/x"], "readonly_paths": []})["linux"]["readonlyPaths"] == []
    assert "maskedPaths" not in spec_of(host={"security_opt": ["systempaths=unconfined"]})["linux"]
