"""`docker update`; what is expected here was seen with dockerd 26.1, but for what is ours."""

import contextlib
import time
from typing import Any

import pytest

from harness.engine import Cli, Engine
from harness.engines import EngineMaker
from harness.needs import ENGINE
from harness.same import both

MIB = 1 << 20
SLEEP = ("busybox", "sleep", "600")
SERVE = "mkdir /w; echo served > /w/index.html; httpd -h /w -p 80; httpd -h /w -p 81; exec sleep 600"
ours = pytest.mark.skipif(ENGINE == "dockerd", reason="missing: dockerd has no such thing")


def post(engine: Engine, name: str, body: object, version: str = "v1.45") -> tuple[int, Any]:
    answer = engine.api.request("POST", f"/{version}/containers/{name}/update", body)
    return answer.status, answer.json() if answer.status == 200 else answer.message


def now(engine: Engine) -> str:
    return str(engine.api.get("/info")["SystemTime"])


def group_file(cli: Cli, name: str, controller: str, file: str) -> str:
    """As the container sees it."""
    return cli("exec", name, "cat", f"/sys/fs/cgroup/{controller}/{file}").text


def fetch(engine: Engine, port: int, *, wait: float = 10) -> str:
    """What is served at a port of the box's loopback, as soon as anything is."""
    code = f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:{port}/', timeout=5).read().decode())"
    until = time.monotonic() + wait
    while not (answer := engine.box.run("python3", "-c", code, net_only=True, check=False).strip()):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return answer


def test_limits_of_a_running_container_change_at_once_and_for_good(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "box", "-m", "64m", *SLEEP)
    flags = ("-m", "32m", "--cpu-shares", "512", "--cpus", "0.5", "--cpuset-cpus", "0", "--pids-limit", "50")
    assert cli("update", *flags, "--memory-reservation", "16m", "box").lines == ["box"]
    for again in (False, True):
        if again:
            cli("restart", "-t", "0", "box")
        assert group_file(cli, "box", "memory", "memory.limit_in_bytes") == str(32 * MIB)
        assert group_file(cli, "box", "memory", "memory.memsw.limit_in_bytes") == str(128 * MIB)
        assert group_file(cli, "box", "memory", "memory.soft_limit_in_bytes") == str(16 * MIB)
        assert group_file(cli, "box", "cpu", "cpu.shares") == "512"
        assert group_file(cli, "box", "cpu", "cpu.cfs_quota_us") == "50000"
        assert group_file(cli, "box", "cpuset", "cpuset.cpus") == "0"
        assert group_file(cli, "box", "pids", "pids.max") == "50"
    host = engine.inspect("box")["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (32 * MIB, 128 * MIB, 500_000_000)
    assert (host["CpuShares"], host["CpusetCpus"], host["PidsLimit"]) == (512, "0", 50)


def test_limits_rise_and_are_lifted(cli: Cli) -> None:
    cli("run", "-d", "--name", "box", "-m", "64m", "--pids-limit", "20", "--cpu-quota", "20000", *SLEEP)
    cli("update", "-m", "256m", "--memory-swap", "512m", "box")
    assert group_file(cli, "box", "memory", "memory.limit_in_bytes") == str(256 * MIB)
    cli("update", "--memory-swap", "-1", "--pids-limit", "-1", "--cpu-quota", "-1", "box")
    if ENGINE != "dockerd":  # which takes it and does nothing
        assert int(group_file(cli, "box", "memory", "memory.memsw.limit_in_bytes")) > 1 << 60
    assert group_file(cli, "box", "pids", "pids.max") == "max"
    assert group_file(cli, "box", "cpu", "cpu.cfs_quota_us") == "-1"


def test_a_container_that_does_not_run_starts_with_its_new_limits(cli: Cli) -> None:
    cli("create", "--name", "box", *SLEEP)
    cli("update", "--cpu-shares", "256", "--pids-limit", "30", "box")
    cli("start", "box")
    assert group_file(cli, "box", "cpu", "cpu.shares") == "256"
    assert group_file(cli, "box", "pids", "pids.max") == "30"


def test_a_paused_container_can_be_updated(cli: Cli) -> None:
    cli("run", "-d", "--name", "box", *SLEEP)
    cli("pause", "box")
    cli("update", "--cpu-shares", "128", "box")
    cli("unpause", "box")
    assert group_file(cli, "box", "cpu", "cpu.shares") == "128"


def test_the_restart_policy_changes_and_an_event_is_told(cli: Cli, engine: Engine) -> None:
    since = now(engine)
    cli("run", "-d", "--name", "box", "busybox", "sh", "-c", "until [ -e /stop ]; do sleep 0.05; done; exit 1")
    cli("update", "--restart", "always", "box")
    cli("update", "--restart", "on-failure:1", "box")
    assert engine.inspect("box")["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 1}
    past = ("events", "--since", since, "--until", now(engine), "--format", "{{.Action}}")
    told = cli(*past, "--filter", "event=update").lines
    assert told == ["update", "update"]
    cli("exec", "box", "touch", "/stop")
    engine.wait_for("box", "exited")
    assert engine.inspect("box")["RestartCount"] == 1


REFUSED = [
    ("box", {"Memory": 1000}, 400, "Minimum memory limit allowed is 6MB"),
    ("box", {"Memory": -5}, 400, "Minimum memory limit allowed is 6MB"),
    (
        "box", {"CpuPeriod": 5}, 400,
        "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
    ),
    ("box", {"CpusetMems": "99"}, 400, "Requested memory nodes are not available - requested 99, available: 0"),
    ("box", {"CpusetCpus": "x"}, 400, "Invalid value x for cpuset cpus: invalid format: x"),
    (
        "box", {"RestartPolicy": {"Name": "foo"}}, 400,
        "invalid restart policy: unknown policy 'foo'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
    ),
    (
        "box", {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}}, 400,
        "invalid restart policy: maximum retry count can only be used with 'on-failure'",
    ),
    (
        "box", {"CpuPeriod": 50000}, 409,
        "Cannot update container ID: Conflicting options: CPU Period cannot be updated as NanoCPUs has already been "
        "set",
    ),
    (
        "box", {"CpuQuota": 50000}, 409,
        "Cannot update container ID: Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been "
        "set",
    ),
    (
        "box", {"Memory": 512 * MIB}, 409,
        "Cannot update container ID: Memory limit should be smaller than already set memoryswap limit, update the "
        "memoryswap at the same time",
    ),
    (
        "removed", {"RestartPolicy": {"Name": "always"}}, 409,
        "Cannot update container ID: Restart policy cannot be updated because AutoRemove is enabled for the container",
    ),
    ("nope", {}, 404, "No such container: nope"),
]  # fmt: skip


def test_refusals_have_docker_s_words_and_codes(docker: Cli, engine: Engine) -> None:
    docker("run", "-d", "--name", "box", "--cpus", "0.5", "-m", "64m", *SLEEP)
    docker("run", "-d", "--rm", "--name", "removed", *SLEEP)
    before = engine.inspect("box")["HostConfig"]
    for name, body, code, message in REFUSED:
        answer = engine.api.request("POST", f"/v1.45/containers/{name}/update", body)
        identifier = engine.inspect(name)["Id"] if name != "nope" else ""
        assert (answer.status, answer.message.replace(identifier or "-", "ID")) == (code, message), body
    assert engine.inspect("box")["HostConfig"] == before


@pytest.mark.parametrize("body", [None, {}, {"RestartPolicy": {"MaximumRetryCount": 3}}, {"KernelMemory": 50_000_000}])
def test_bodies_that_change_nothing_are_fine(docker: Cli, engine: Engine, body: object) -> None:
    docker("create", "--name", "box", *SLEEP)
    before = engine.inspect("box")["HostConfig"]
    assert post(engine, "box", body) == (200, {"Warnings": None})
    assert engine.inspect("box")["HostConfig"] == before


def test_limits_the_kernel_lacks_are_discarded_with_a_warning(docker: Cli, engine: Engine) -> None:
    docker("run", "-d", "--name", "box", *SLEEP)
    code, answer = post(engine, "box", {"BlkioWeight": 300})
    assert code == 200
    if answer["Warnings"]:
        assert answer["Warnings"] == [
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        ]
        assert engine.inspect("box")["HostConfig"]["BlkioWeight"] == 0
        shown = docker("run", "--rm", "--blkio-weight", "300", "busybox", "true")
        assert shown.err.strip() == f"WARNING: {answer['Warnings'][0]}"


@ours
def test_a_limit_where_there_was_none_needs_no_word_of_swap(cli: Cli) -> None:
    cli("run", "-d", "--name", "box", *SLEEP)
    cli("update", "-m", "64m", "box")
    assert group_file(cli, "box", "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert group_file(cli, "box", "memory", "memory.memsw.limit_in_bytes") == str(128 * MIB)


def test_both_clients_say_the_same(engine: Engine) -> None:
    engine.docker("run", "-d", "--name", "box", "--cpus", "0.5", *SLEEP)
    for line in ("--cpu-shares 128 box", "--cpu-shares 128 box nope", "--cpu-period 50000 box", "--memory 1k box",
                 "--restart foo box", "--blkio-weight 300 box", "box", "--memory x box"):  # fmt: skip
        both(engine, "update", *line.split())


# Ours


@ours
def test_ports_come_and_go_while_it_runs(engine: Engine) -> None:
    wherry = engine.wherry
    wherry("run", "-d", "--name", "web", "-p", "18080:80", "busybox", "sh", "-c", SERVE)
    pid = engine.state("web")["Pid"]

    def published() -> set[tuple[str, str, str]]:
        ports = engine.inspect("web")["NetworkSettings"]["Ports"]
        return {(key, each["HostIp"], each["HostPort"]) for key, all_ in ports.items() for each in all_ or ()}

    assert fetch(engine, 18080) == "served"
    wherry("update", "--publish-add", "127.0.0.1:18081:81", "--publish-rm", "80", "web")
    assert published() == {("81/tcp", "127.0.0.1", "18081")}
    assert fetch(engine, 18081) == "served"
    assert fetch(engine, 18080, wait=0) == ""
    assert wherry("port", "web").lines == ["81/tcp -> 127.0.0.1:18081"]
    assert "127.0.0.1:18081->81/tcp" in engine.docker("ps", "--format", "{{.Ports}}").out
    wherry("update", "--publish-rm", "81", "--publish-add", "127.0.0.1:18081:80", "web")  # the same port, moved
    assert published() == {("80/tcp", "127.0.0.1", "18081")}
    assert fetch(engine, 18081) == "served"
    assert engine.state("web")["Pid"] == pid
    wherry("restart", "-t", "0", "web")
    assert published() == {("80/tcp", "127.0.0.1", "18081")}


@ours
def test_ports_change_all_or_not_at_all(engine: Engine) -> None:
    wherry = engine.wherry
    wherry("run", "-d", "--name", "other", "-p", "127.0.0.1:18090:80", *SLEEP)
    wherry("run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", *SLEEP)
    before = engine.inspect("web")
    for flags in (
        ("--publish-rm", "80", "--publish-add", "18085:85", "--publish-add", "127.0.0.1:18090:81"),
        ("--publish-rm", "80", "--publish-rm", "99"),
        ("--publish-add", "18085:85", "--mount-rm", "/nothing"),
        ("--publish-rm", "80", "--publish-add", "18085:85", "--mount-add", "type=bind,src=/no/such,dst=/x"),
        ("--publish-rm", "80", "--publish-add", "127.0.0.1:18080:81", "--mount-rm", "/nothing"),
    ):
        failed = wherry("update", *flags, "web", check=False)
        assert failed.code == 1, flags
        found = engine.inspect("web")
        assert found["HostConfig"] == before["HostConfig"], flags
        assert found["NetworkSettings"]["Ports"] == before["NetworkSettings"]["Ports"], flags
    wherry("update", "--publish-add", "127.0.0.1:18085:85", "web")  # nothing holds it


@ours
def test_a_container_that_does_not_run_gets_ports_for_its_next_start(engine: Engine) -> None:
    engine.wherry("create", "--name", "web", "-p", "127.0.0.1:18080:80", *SLEEP)
    engine.wherry("update", "--publish-rm", "18080:80", "--publish-add", "127.0.0.1:18082:82", "web")
    assert engine.inspect("web")["HostConfig"]["PortBindings"] == {
        "82/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18082"}]
    }
    engine.wherry("start", "web")
    assert engine.wherry("port", "web").lines == ["82/tcp -> 127.0.0.1:18082"]


@ours
def test_mounts_and_devices_come_and_go_while_it_runs(engine: Engine) -> None:
    wherry = engine.wherry
    wherry("run", "-d", "--name", "box", *SLEEP)
    try:
        flags = ("--mount-add", "type=tmpfs,dst=/t", "--mount-add", "type=volume,src=updated,dst=/v")
        wherry("update", *flags, "--device-add", "/dev/null:/dev/nothing", "box")
        assert wherry("exec", "box", "sh", "-c", "echo x > /v/f; grep -c ' /t \\| /v ' /proc/mounts").text == "2"
        assert wherry("exec", "box", "sh", "-c", "echo x > /dev/nothing; cat /dev/nothing").text == ""
        wherry("update", "--mount-rm", "/t", "--device-rm", "/dev/nothing", "box")
        wherry("restart", "-t", "0", "box")
        assert wherry("exec", "box", "cat", "/v/f").text == "x"
        assert wherry("exec", "box", "test", "-e", "/dev/nothing", check=False).code == 1
    finally:
        engine.remove_all_containers()
        with contextlib.suppress(AssertionError):
            wherry("volume", "rm", "updated")


@ours
def test_changed_ports_outlive_the_daemon(own_engine: EngineMaker) -> None:
    engine = own_engine()
    engine.wherry("run", "-d", "--name", "web", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", SERVE)
    engine.wherry("update", "--publish-rm", "80", "--publish-add", "127.0.0.1:18081:81", "web")
    engine.kill()
    engine.start()
    assert engine.wherry("port", "web").lines == ["81/tcp -> 127.0.0.1:18081"]
    assert fetch(engine, 18081) == "served"
