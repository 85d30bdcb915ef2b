"""What create refuses, and how a request lies over its image's config."""

import pytest

from wherry.containers.making import config as checks
from wherry.errors import InvalidParameter, NotSupported
from wherry.spec.engine import ContainerConfig, HostConfig, LogConfig, RestartPolicy


def test_the_request_wins_over_the_image():
    image = ContainerConfig(
        cmd=["serve"], entrypoint=["/init"], env=["PATH=/bin", "A=1"], working_dir="/srv", user="www", labels={"a": "1"}
    )
    merged = checks.merge(ContainerConfig(env=["A=2", "B"], labels={"b": "2"}, cmd=["x"]), image)
    assert merged.env == ["A=2", "B", "PATH=/bin"]
    assert (merged.entrypoint, merged.cmd) == (["/init"], ["x"])
    assert (merged.working_dir, merged.user, merged.labels) == ("/srv", "www", {"a": "1", "b": "2"})


def test_an_entrypoint_drops_the_images_command_and_an_empty_one_the_images_entrypoint():
    image = ContainerConfig(cmd=["serve"], entrypoint=["/init"])
    assert checks.merge(ContainerConfig(entrypoint="sh"), image).cmd is None
    cleared = checks.merge(ContainerConfig(entrypoint=[""], cmd=["ls"]), image)
    assert (cleared.entrypoint, cleared.cmd) == (None, ["ls"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ContainerConfig(), "no command specified"),
        (ContainerConfig(cmd=["x"], hostname="a b"), "invalid hostname format: a b"),
        (ContainerConfig(cmd=["x"], working_dir="srv"), "needs to be an absolute path"),
        (ContainerConfig(cmd=["x"], env=["=1"]), "invalid environment variable"),
        (ContainerConfig(cmd=["a\0b"]), "NUL"),
    ],
)
def test_a_bad_config_is_refused_in_words(config, words):
    with pytest.raises(InvalidParameter, match=words):
        checks.check_config(config)


@pytest.mark.parametrize(
    ("host", "kind", "words"),
    [
        (HostConfig(memory=1 << 20), InvalidParameter, "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory=-5), InvalidParameter, "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory_swap=8 << 20), InvalidParameter, "always set the Memory limit"),
        (HostConfig(memory=9 << 20, memory_swap=8 << 20), InvalidParameter, "larger than memory limit"),
        (HostConfig(nano_cpus=10**13), InvalidParameter, "range of CPUs is from 0.01"),
        (HostConfig(cpu_period=5), InvalidParameter, "CPU cfs period"),
        (HostConfig(cpuset_cpus="9999"), InvalidParameter, "Requested CPUs are not available - requested 9999"),
        (HostConfig(cpuset_cpus="a-b"), InvalidParameter, "Invalid value a-b for cpuset cpus"),
        (HostConfig(restart_policy=RestartPolicy(name="sometimes")), InvalidParameter, "unknown policy 'sometimes'"),
        (
            HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=3)),
            InvalidParameter,
            "maximum retry count can only be used with 'on-failure'",
        ),
        (
            HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")),
            InvalidParameter,
            "can't create 'AutoRemove' container with restart policy",
        ),
        (HostConfig(runtime="kata"), InvalidParameter, "unknown or invalid runtime name: kata"),
        (HostConfig(log_config=LogConfig(type="gelf")), InvalidParameter, "no log driver named 'gelf' is registered"),
        (HostConfig(log_config=LogConfig(config={"max-sise": "1k"})), InvalidParameter, "unknown log opt 'max-sise'"),
        (HostConfig(log_config=LogConfig(config={"max-file": "0"})), InvalidParameter, "max-file"),
        (HostConfig(oom_score_adj=2000), InvalidParameter, "range for oom score adj"),
        (HostConfig(storage_opt={"size": "1G"}), NotSupported, "storage-opt"),
    ],
)
def test_a_bad_host_config_is_refused_in_words(host, kind, words):
    with pytest.raises(kind, match=words):
        checks.check_host(host, {"crun": ""})


def test_log_limits_are_read_with_their_units():
    assert checks.log_limits(LogConfig(config={"max-size": "10m", "max-file": "3"})) == (10 << 20, 3)
    assert checks.log_limits(LogConfig()) == (0, 1)


def test_defaults_are_what_inspect_shows():
    host = checks.with_defaults(
        HostConfig(memory=64 << 20), runtime="crun", log=LogConfig(type="json-file"), cgroup_v2=True, shm_size=64 << 20
    )
    assert host.cgroupns_mode == "private"
    assert (host.runtime, host.network_mode, host.ipc_mode) == ("crun", "default", "private")
    assert (host.memory_swap, host.shm_size, host.restart_policy.name) == (128 << 20, 64 << 20, "no")
    assert host.log_config == LogConfig(type="json-file", config={})
