"""Containers from create to exit, by shim and real runtimes."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.kernel import cgroup
from wherry.kernel.netns import new_netns
from wherry.runtime.shim_client import LogSpec
from wherry.runtime.spec import SpecMount

pytestmark = pytest.mark.kernel


def limit(shim, controller, name):
    return Path(shim.cgroups[controller], name).read_text().strip()


async def test_output_is_framed_by_stream_and_logged(world, runtime):
    streams, end = await world.run(["sh", "-c", "echo out; echo err >&2"], runtime)
    assert streams == {1: b"out\n", 2: b"err\n"}
    assert (end.code, end.oom_killed, end.error) == (0, False, "")
    lines = [json.loads(line) for line in world.log(world.made[0]).read_text().splitlines()]
    assert sorted((each["stream"], each["log"]) for each in lines) == [("stderr", "err\n"), ("stdout", "out\n")]


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("sh -c 'kill -9 $$'; exit $?", 137)])
async def test_exit_codes_are_passed_on(world, runtime, script, code):
    _, end = await world.run(["sh", "-c", script], runtime)
    assert end.code == code


async def test_a_signal_that_kills_init_is_128_and_its_number(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    await shim.kill(signal.SIGKILL)
    end = await shim.exited
    assert end.code == 137
    assert end.at > 0


async def test_a_process_that_ends_at_once_is_never_missed(world, runtime):
    for _ in range(8):
        _, end = await world.run(["true"], runtime)
        assert end.code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["/no/such"], "no such file or directory"),
        (["/etc/passwd"], "permission denied"),
        (["/tmp"], "permission denied"),
    ],
)
async def test_a_program_that_cannot_be_is_refused_in_dockers_words(world, runtime, command, words):
    with pytest.raises(InvalidParameter, match="OCI runtime create failed") as caught:
        await world.run(command, runtime)
    assert words in caught.value.message
    assert world.shims.ids() == []


@pytest.mark.parametrize(
    ("content", "words", "cause"),
    [
        (b"#!/bin/nosuch\n", "no such file or directory", "its interpreter /bin/nosuch does not exist"),
        (b"#!/bin/sh\r\necho hi\r\n", "no such file or directory", "CRLF"),
        (b"echo hi\n", "exec format error", "neither an ELF program nor a script"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44), "exec format error", "built for arm64"),
    ],
)
async def test_what_the_kernel_would_refuse_is_explained_before_the_start(world, runtime, content, words, cause):
    spec = world.spec(["/x"], runtime)
    program = world.upper(spec.id) / "x"
    program.write_bytes(content)
    program.chmod(0o755)
    with pytest.raises(InvalidParameter) as caught:
        await world.shims.create(spec, netns=None)
    assert words in caught.value.message
    assert cause in caught.value.message


async def test_a_program_on_a_bind_mount_is_found_there(world, runtime, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho from the host\n")
    script.chmod(0o755)
    mount = SpecMount(destination="/opt/script", type="bind", source=str(script), options=("rbind", "ro"))
    streams, _ = await world.run(["/opt/script"], runtime, mounts=[mount])
    assert streams == {1: b"from the host\n"}


async def test_an_unknown_user_is_refused(world, crun):
    with pytest.raises(InvalidParameter, match="unable to find user nobody: no matching entries in passwd file"):
        await world.run(["true"], crun, user="nobody")


async def test_user_groups_home_and_directory_are_set(world, runtime):
    script = "id -u; id -G; echo $HOME; pwd"
    streams, _ = await world.run(
        ["sh", "-c", script], runtime, user="app", group_add=["wheel", "77"], cwd="/made/on/the/way"
    )
    uid, groups, home, cwd = streams[1].decode().splitlines()
    assert (uid, sorted(groups.split(), key=int), home) == ("1000", ["10", "77", "1000", "2000"], "/home/app")
    assert cwd == "/made/on/the/way"
    assert (world.upper(world.made[0]) / "made/on/the/way").stat().st_uid == 0


async def test_a_working_directory_that_is_a_file_is_refused(world, crun):
    with pytest.raises(InvalidParameter, match="Cannot mkdir: /etc/passwd is not a directory"):
        await world.run(["true"], crun, cwd="/etc/passwd")


async def test_a_symlink_in_the_image_never_leads_the_working_directory_out_of_it(world, crun, tmp_path):
    spec = world.spec(["true"], crun, cwd="/evil/made")
    (world.upper(spec.id) / "evil").symlink_to(tmp_path)
    with pytest.raises(InvalidParameter, match="Cannot mkdir"):
        await world.shims.create(spec, netns=None)
    assert list(tmp_path.iterdir()) == []


async def test_dockers_seccomp_and_capabilities_are_in_force(world, runtime):
    script = "grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'"
    streams, _ = await world.run(["sh", "-c", script], runtime)
    status = dict(line.split(":") for line in streams[1].decode().splitlines())
    assert status == {"CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "Seccomp": "2", "NoNewPrivs": "0"}


async def test_the_default_policy_refuses_mount_and_privileged_does_not(world, runtime):
    script = "mount -t tmpfs none /tmp && echo mounted"
    capable = {"cap_add": ["SYS_ADMIN"], "security_opt": ["seccomp=unconfined"]}
    refused, end = await world.run(["sh", "-c", script], runtime)
    assert end.code != 0
    assert 1 not in refused
    for host in ({"privileged": True}, capable):
        allowed, _ = await world.run(["sh", "-c", script], runtime, host=host)
        assert allowed[1] == b"mounted\n"


async def test_masked_paths_show_nothing_and_read_only_ones_refuse(world, runtime):
    script = "wc -c < /proc/keys; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/sysrq || echo refused"
    streams, _ = await world.run(["sh", "-c", script], runtime)
    assert streams[1].split() == [b"0", b"0", b"refused"]


async def test_a_read_only_root_refuses_writes(world, runtime):
    _, end = await world.run(["touch", "/x"], runtime, host={"readonly_rootfs": True})
    assert end.code == 1


async def test_limits_are_in_the_cgroup(world, runtime):
    shim = await world.started(
        ["sleep", "60"], runtime, host={"memory": 64 << 20, "pids_limit": 33, "nano_cpus": 500_000_000}
    )
    if "" in shim.cgroups:
        pytest.skip("cgroup v2")
    assert limit(shim, "memory", "memory.limit_in_bytes") == str(64 << 20)
    assert limit(shim, "pids", "pids.max") == "33"
    assert limit(shim, "cpu", "cpu.cfs_quota_us") == "50000"
    assert limit(shim, "cpu", "cpu.cfs_period_us") == "100000"
    assert shim.processes() == [shim.pid]


async def test_limits_can_be_changed_while_it_runs(world, runtime):
    shim = await world.started(["sleep", "60"], runtime, host={"memory": 64 << 20})
    if "" in shim.cgroups:
        pytest.skip("cgroup v2")
    await shim.update({"memory": {"limit": 96 << 20, "swap": 192 << 20}})
    assert limit(shim, "memory", "memory.limit_in_bytes") == str(96 << 20)


async def test_an_oom_kill_is_seen(world, runtime):
    _, end = await world.run(["tail", "/dev/zero"], runtime, host={"memory": 16 << 20, "memory_swap": 16 << 20})
    assert end.oom_killed
    assert end.code == 137


async def test_a_paused_container_stands_still_and_dies_when_killed(world, runtime, until):
    shim = await world.started(["sh", "-c", "while true; do echo x; sleep 0.01; done"], runtime)
    await until(lambda: world.log(shim.id).stat().st_size)
    await shim.pause()
    assert shim.paused
    assert cgroup.is_frozen(shim.cgroups)
    await shim.pause()
    await shim.resume()
    size = world.log(shim.id).stat().st_size
    await until(lambda: world.log(shim.id).stat().st_size > size)
    await shim.pause()
    await shim.destroy()
    assert (await shim.exited).code == 137


async def test_the_given_network_namespace_is_joined(world, runtime):
    fd, _ = new_netns(lambda: None)
    try:
        shim = await world.shims.create(world.spec(["sleep", "60"], runtime), netns=fd)
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    assert os.stat(shim.netns_path).st_ino == inode
    await shim.destroy()


async def test_another_containers_network_is_joined(world, runtime):
    first = await world.started(["sleep", "60"], runtime)
    second = await world.started(["sleep", "60"], runtime, netns=first.netns_path)
    assert os.stat(second.netns_path).st_ino == os.stat(first.netns_path).st_ino
    assert os.stat(second.namespace_path("pid")).st_ino != os.stat(first.namespace_path("pid")).st_ino


async def test_another_containers_ipc_is_joined_with_its_shared_memory(world, runtime, until):
    script = "echo shared > /dev/shm/x; echo ready; exec sleep 60"
    first = await world.started(["sh", "-c", script], runtime, host={"ipc_mode": "shareable"})
    await until(lambda: "ready" in world.log(first.id).read_text())
    spec = {"host": {"ipc_mode": f"container:{first.id}"}, "ipcns": first.namespace_path("ipc")}
    streams, end = await world.run(["sh", "-c", "cat /dev/shm/x; echo back > /dev/shm/y"], runtime, **spec)
    assert (streams, end.code) == ({1: b"shared\n"}, 0)
    assert Path(f"/proc/{first.pid}/root/dev/shm/y").read_text() == "back\n"


async def test_another_containers_processes_are_seen_and_outlive_this_one(world, runtime):
    first = await world.started(["sleep", "60"], runtime)
    joined = {"host": {"pid_mode": f"container:{first.id}"}, "pidns": first.namespace_path("pid")}
    streams, _ = await world.run(["sh", "-c", "sleep 50 & ps"], runtime, **joined)
    assert b"sleep 60" in streams[1]
    assert first.live
    assert first.processes() == [first.pid]


async def test_driver_none_writes_no_log(world, crun):
    streams, _ = await world.run(["echo", "hi"], crun)
    assert streams[1] == b"hi\n"
    spec = world.spec(["echo", "hi"], crun)
    shim = await world.shims.create(replace(spec, log=LogSpec(driver="none")), netns=None)
    await shim.start()
    await shim.exited
    assert not world.log(shim.id).exists()


async def test_creating_twice_is_refused(world, crun):
    spec = world.spec(["sleep", "60"], crun)
    await world.shims.create(spec, netns=None)
    with pytest.raises(Conflict):
        await world.shims.create(spec, netns=None)


async def test_a_mount_that_cannot_be_fails_the_create_and_leaves_nothing(world, runtime):
    mount = SpecMount(destination="/x", type="bind", source="/no/such/source", options=("rbind",))
    with pytest.raises((Failed, InvalidParameter)):
        await world.run(["true"], runtime, mounts=[mount])
    assert world.shims.ids() == []


async def test_a_cancelled_create_leaves_nothing(world, runtime):
    for delay in (0.0, 0.003, 0.01, 0.02):
        task = asyncio.create_task(world.shims.create(world.spec(["sleep", "60"], runtime), netns=None))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            shim = await task
        except asyncio.CancelledError:
            pass
        else:  # it was quicker
            await shim.destroy()
            await world.shims.forget(shim.id)
        assert world.shims.ids() == []


async def test_a_created_container_that_is_destroyed_leaves_nothing(world, runtime):
    shim = await world.shims.create(world.spec(["sleep", "60"], runtime), netns=None)
    await shim.destroy()
    await shim.destroy()
    await world.shims.forget(shim.id)
    assert world.shims.ids() == []
