"""What a container may not do, and how much it may use: seen from inside it and in the kernel's own files."""

import time
from pathlib import Path

import pytest

from harness.engine import Cli, Engine

SLEEP = ("busybox", "sleep", "600")
DEFAULT_CAPS = 0x00000000A80425FB  # Docker's fourteen
V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


def caps(cli: Cli, *flags: str) -> int:
    return int(cli("run", "--rm", *flags, "busybox", "grep", "CapEff", "/proc/self/status").text.split()[1], 16)


def cgroup(engine: Engine, name: str, v1: str, v2: str) -> str:
    """Value of a cgroup file of the container: `v1` is `controller/file`."""
    pid = engine.state(name)["Pid"]
    lines = [line.split(":") for line in (engine.box.proc(pid) / "cgroup").read_text().splitlines()]
    if V2:
        path = next(path for _, controllers, path in lines if not controllers)
        return (Path("/sys/fs/cgroup") / path.lstrip("/") / v2).read_text().strip()
    controller, file = v1.split("/")
    path = next(path for _, controllers, path in lines if controller in controllers.split(","))
    return (Path("/sys/fs/cgroup") / controller / path.lstrip("/") / file).read_text().strip()


# -- capabilities, seccomp, masks --------------------------------------------------------------------------------------


def test_the_default_capabilities_are_dockers(cli: Cli) -> None:
    assert caps(cli) == DEFAULT_CAPS


def test_capabilities_are_added_and_dropped(cli: Cli) -> None:
    assert caps(cli, "--cap-add", "NET_ADMIN") == DEFAULT_CAPS | 1 << 12
    assert caps(cli, "--cap-drop", "CAP_CHOWN") == DEFAULT_CAPS & ~1
    assert caps(cli, "--cap-drop", "ALL") == 0
    assert caps(cli, "--cap-drop", "all", "--cap-add", "chown") == 1


def test_another_user_has_no_capabilities_in_effect(cli: Cli) -> None:
    assert caps(cli, "-u", "alice") == 0


def test_an_unknown_capability_is_refused(cli: Cli) -> None:
    done = cli("run", "--rm", "--cap-add", "FLY", "busybox", "true", check=False)
    assert done.code == 125
    assert "CAP_FLY" in done.err.upper()
    assert cli("ps", "-aq").text == ""


def test_seccomp_is_in_force(cli: Cli) -> None:
    assert cli("run", "--rm", "busybox", "grep", "Seccomp:", "/proc/self/status").text.split()[1] == "2"
    done = cli("run", "--rm", "busybox", "unshare", "-U", "true", check=False)
    assert done.code != 0
    assert "Operation not permitted" in done.err
    done = cli("run", "--rm", "--cap-add", "SYS_ADMIN", "busybox", "unshare", "-U", "true")  # the profile looks at caps
    assert done.code == 0


def test_mounting_is_refused(cli: Cli) -> None:
    done = cli("run", "--rm", "busybox", "mount", "-t", "tmpfs", "x", "/tmp", check=False)
    assert done.code != 0
    assert "permi" in done.err.lower()


def test_seccomp_can_be_switched_off(cli: Cli) -> None:
    flags = ["--security-opt", "seccomp=unconfined"]
    assert cli("run", "--rm", *flags, "busybox", "grep", "Seccomp:", "/proc/self/status").text.split()[1] == "0"
    cli("run", "--rm", *flags, "busybox", "unshare", "-U", "true")


def test_a_profile_of_ones_own_is_used(cli: Cli, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    flags = ["--security-opt", f"seccomp={profile}"]
    done = cli("run", "--rm", *flags, "busybox", "mkdir", "/x", check=False)
    assert done.code == 1
    assert "Operation not permitted" in done.err


def test_no_new_privileges(cli: Cli) -> None:
    flags = ["--security-opt", "no-new-privileges"]
    assert cli("run", "--rm", *flags, "busybox", "grep", "NoNewPrivs", "/proc/self/status").text.split()[1] == "1"
    assert cli("run", "--rm", "busybox", "grep", "NoNewPrivs", "/proc/self/status").text.split()[1] == "0"


def test_an_unknown_security_option_is_refused(docker: Cli) -> None:
    done = docker("run", "--rm", "--security-opt", "nonsense=1", "busybox", "true", check=False)
    assert done.code == 125
    assert "nonsense" in done.err


def test_kernel_files_are_masked_or_read_only(cli: Cli) -> None:
    script = (
        "wc -c < /proc/kcore; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; ls /proc/acpi 2>/dev/null | wc -l;"
        "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper; do"
        " echo x 2>/dev/null > $f && echo WROTE $f; done; true"
    )
    lines = cli("run", "--rm", "busybox", "sh", "-c", script).lines
    assert lines[0] == "0"
    assert set(lines[2:]) <= {"0"}
    assert not [line for line in lines if "WROTE" in line]


def test_devices_of_the_host_are_out_of_reach(cli: Cli) -> None:
    names = set(cli("run", "--rm", "busybox", "ls", "/dev").lines)
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin"} <= names
    assert not {"sda", "vda", "mem", "kmsg", "loop0"} & names
    script = "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk"
    assert "not permitted" in cli("run", "--rm", "busybox", "sh", "-c", script, check=False).err
    cli("run", "--rm", "busybox", "sh", "-c", "mknod /tmp/null c 1 3 && echo x > /tmp/null")


def test_a_device_can_be_given(cli: Cli) -> None:
    assert (
        cli("run", "--rm", "--device", "/dev/null:/dev/hole:r", "busybox", "stat", "-c", "%t %T", "/dev/hole").text
        == "1 3"
    )


def test_the_hosts_processes_mounts_and_hostname_are_not_seen(cli: Cli) -> None:
    out = cli("run", "--rm", "busybox", "sh", "-c", "ps -o pid,args | wc -l; cat /proc/mounts").lines
    assert int(out[0]) <= 5
    assert not [line for line in out[1:] if "/tmp/wherry" in line.split()[1]]


def test_namespaces_can_be_shared_with_the_host_or_a_container(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "peer", *SLEEP)
    own = cli("exec", "peer", "readlink", "/proc/self/ns/pid").text
    assert cli("run", "--rm", "--pid", "container:peer", "busybox", "readlink", "/proc/self/ns/pid").text == own
    host = engine.box.run("readlink", "/proc/1/ns/pid").strip()
    assert cli("run", "--rm", "--pid", "host", "busybox", "readlink", "/proc/self/ns/pid").text == host
    host = engine.box.run("readlink", "/proc/1/ns/uts").strip()
    assert cli("run", "--rm", "--uts", "host", "busybox", "readlink", "/proc/self/ns/uts").text == host
    cli("run", "-d", "--name", "ipc", "--ipc", "shareable", *SLEEP)
    own = cli("exec", "ipc", "readlink", "/proc/self/ns/ipc").text
    assert cli("run", "--rm", "--ipc", "container:ipc", "busybox", "readlink", "/proc/self/ns/ipc").text == own


@pytest.mark.not_dockerd("its runc fails where the machine itself lacks a capability")
def test_privileged_has_what_the_machine_has(cli: Cli) -> None:
    bounding = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert caps(cli, "--privileged") == int(bounding.split()[1], 16)
    assert caps(cli, "--cap-add", "ALL") == int(bounding.split()[1], 16)
    script = "mkdir /tmp/m && mount -t tmpfs x /tmp/m && ls -d /dev/kmsg /dev/loop-control 2>/dev/null; echo ok"
    assert cli("run", "--rm", "--privileged", "busybox", "sh", "-c", script).lines[-1] == "ok"
    assert cli("run", "--rm", "--privileged", "busybox", "grep", "Seccomp:", "/proc/self/status").text.split()[1] == "0"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_memory_limits_are_in_the_cgroup(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "small", "-m", "64m", "--memory-reservation", "32m", *SLEEP)
    assert cgroup(engine, "small", "memory/memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert cgroup(engine, "small", "memory/memory.soft_limit_in_bytes", "memory.low") == str(32 << 20)
    found = engine.inspect("small")["HostConfig"]
    assert (found["Memory"], found["MemoryReservation"]) == (64 << 20, 32 << 20)


def test_going_over_the_memory_limit_is_an_oom_kill(cli: Cli, engine: Engine) -> None:
    done = cli(
        "run", "--name", "greedy", "-m", "16m", "busybox", "sh", "-c", "head -c 60m /dev/zero | tail", check=False
    )
    state = engine.state("greedy")
    assert done.code != 0
    assert state["ExitCode"] == done.code
    if done.code == 137:
        assert state["OOMKilled"]


def test_cpu_limits_are_in_the_cgroup(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "slow", "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", *SLEEP)
    if V2:
        assert cgroup(engine, "slow", "", "cpu.max") == "50000 100000"
    else:
        quota = int(cgroup(engine, "slow", "cpu/cpu.cfs_quota_us", ""))
        assert quota / int(cgroup(engine, "slow", "cpu/cpu.cfs_period_us", "")) == 0.5
        assert cgroup(engine, "slow", "cpu/cpu.shares", "") == "512"
    assert cgroup(engine, "slow", "cpuset/cpuset.cpus", "cpuset.cpus") == "0"
    assert engine.inspect("slow")["HostConfig"]["NanoCpus"] == 500_000_000


def test_the_pids_limit_holds(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "few", "--pids-limit", "7", *SLEEP)
    assert cgroup(engine, "few", "pids/pids.max", "pids.max") == "7"
    done = cli("exec", "few", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done", check=False)
    assert "can't fork" in done.err


def test_limits_that_make_no_sense_are_refused(cli: Cli) -> None:
    for flags, words in [
        (["-m", "1m"], "inimum memory limit allowed is 6MB"),
        (["-m", "64m", "--memory-swap", "32m"], "inimum memoryswap limit should be larger than memory limit"),
        (["--cpus", "9999"], "ange of CPUs is from 0.01 to"),
        (["--cpu-quota", "1"], "CPU cfs quota can not be less than 1ms"),
        (["--cpuset-cpus", "999"], "equested CPUs are not available"),
    ]:
        done = cli("run", "--rm", *flags, "busybox", "true", check=False)
        assert done.code == 125, flags
        assert words in done.err, flags


def test_the_cgroup_is_gone_with_the_container(cli: Cli, engine: Engine) -> None:
    cli("run", "-d", "--name", "brief", *SLEEP)
    pid = engine.state("brief")["Pid"]
    lines = [line.split(":") for line in (engine.box.proc(pid) / "cgroup").read_text().splitlines()]
    hierarchies = [root for root in Path("/sys/fs/cgroup").iterdir() if root.is_dir()] + [Path("/sys/fs/cgroup")]
    identifier = engine.inspect("brief")["Id"]
    found = {
        path for *_, cgroup_path in lines for root in hierarchies if (path := root / cgroup_path.lstrip("/")).is_dir()
    }
    found = {path for path in found if identifier in path.name}
    assert found
    cli("rm", "-f", "brief")
    for _ in range(100):
        if not any(path.exists() for path in found):
            break
        time.sleep(0.02)
    assert not [path for path in found if path.exists()]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_both_runtimes_run(engine: Engine, runtime: str, require) -> None:
    require(runtime)
    if engine.is_dockerd and runtime == "crun":
        pytest.skip("dockerd knows only runc unless told")
    done = engine.docker(
        "run", "--rm", "--runtime", runtime, "busybox", "sh", "-c", "echo by runtime; exit 4", check=False
    )
    assert (done.code, done.out) == (4, "by runtime\n")


def test_an_unknown_runtime_is_named(docker: Cli) -> None:
    done = docker("run", "--rm", "--runtime", "nosuch", "busybox", "true", check=False)
    assert done.code == 125
    assert "nosuch" in done.err
    assert docker("ps", "-aq").text == ""
