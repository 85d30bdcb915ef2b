"""What survives whom: containers their daemon, containers not their shim; and that nothing is left of either."""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from conftest import leftovers, unframe
from harness.descriptors import descriptors
from wherry.kernel import process
from wherry.kernel.process import Identity
from wherry.runtime.shim_client import ExecSpec, Exit, Shim, Shims

pytestmark = pytest.mark.kernel


@contextlib.asynccontextmanager
async def another_daemon(world):
    """The daemon goes without a word, another comes."""
    await world.shims.stop()
    world.shims = Shims(world.root)
    await world.shims.start()
    yield world.shims


async def test_a_running_container_is_adopted_with_its_streams(world, runtime):
    shim = await world.started(["cat"], runtime, open_stdin=True, stdin_once=True)
    async with another_daemon(world) as shims:
        adopted = await shims.adopt(shim.id)
        assert isinstance(adopted, Shim)
        assert (adopted.pid, adopted.pid_start, adopted.started) == (shim.pid, shim.pid_start, True)
        assert adopted.live
        assert await shims.adopt(shim.id) is adopted
        reader, writer = await adopted.attach(stdin=True, stdout=True, stderr=True)
        writer.write(b"still there\n")
        writer.write_eof()
        assert unframe(await reader.read()) == {1: b"still there\n"}
        writer.close()
        assert (await adopted.exited).code == 0


async def test_an_exit_while_no_daemon_looked_is_found(world, runtime, until):
    spec = world.spec(["sh", "-c", "read line; echo unseen; exit 9"], runtime, open_stdin=True, stdin_once=True)
    shim = await world.shims.create(spec, netns=None)
    _, writer = await shim.attach(stdin=True, stdout=False, stderr=False)
    await shim.start()
    await world.shims.stop()
    writer.write(b"go\n")
    gone = Identity(shim.shim_pid, process.start_time(shim.shim_pid) or 0)
    await until(lambda: not process.is_alive(gone))
    writer.close()
    world.shims = Shims(world.root)
    await world.shims.start()
    found = await world.shims.adopt(shim.id)
    assert isinstance(found, Exit)
    assert (found.code, found.oom_killed) == (9, False)
    assert "unseen" in world.log(shim.id).read_text()
    await world.shims.forget(shim.id)
    assert world.shims.ids() == []


async def test_a_shim_whose_directory_was_deleted_ends_with_its_container(world, crun, until):
    shim = await world.started(["sleep", "60"], crun)
    shutil.rmtree(world.shims.directory(shim.id), ignore_errors=True)  # the mount point is busy for others only
    gone = Identity(shim.shim_pid, process.start_time(shim.shim_pid) or 0)
    await shim.kill(signal.SIGKILL)
    async with asyncio.timeout(20):
        assert (await shim.exited).code == 137
    await until(lambda: not process.is_alive(gone))
    await world.shims.forget(shim.id)
    assert leftovers([shim.id]) == []


async def test_an_exit_that_cannot_be_written_down_is_written_later(world, crun, until):
    shim = await world.started(["sleep", "60"], crun)
    in_the_way = world.shims.directory(shim.id) / "exit.json.tmp"
    in_the_way.mkdir()
    gone = Identity(shim.shim_pid, process.start_time(shim.shim_pid) or 0)
    await world.shims.stop()
    os.kill(shim.pid, signal.SIGKILL)
    log = world.shims.directory(shim.id) / "shim.log"
    await until(lambda: "exit cannot be written down" in log.read_text())
    assert process.is_alive(gone)
    in_the_way.rmdir()
    await until(lambda: not process.is_alive(gone))
    world.shims = Shims(world.root)
    await world.shims.start()
    found = await world.shims.adopt(shim.id)
    assert isinstance(found, Exit)
    assert found.code == 137
    await world.shims.forget(shim.id)


async def test_a_paused_container_is_adopted_as_paused(world, crun):
    shim = await world.started(["sleep", "60"], crun)
    await shim.pause()
    async with another_daemon(world) as shims:
        adopted = await shims.adopt(shim.id)
        assert adopted.paused
        await adopted.resume()


async def test_a_container_that_was_not_started_ends_with_its_daemon(world, runtime):
    shim = await world.shims.create(world.spec(["sleep", "60"], runtime), netns=None)
    init = Identity(shim.pid, shim.pid_start)
    async with another_daemon(world) as shims:
        found = await shims.adopt(shim.id)
        assert not isinstance(found, Exit)
        if isinstance(found, Shim):
            assert not found.started
            await found.destroy()
    assert not process.is_alive(init)


async def test_an_unknown_container_is_nothing(world):
    assert await world.shims.adopt("f" * 64) is None
    await world.shims.forget("f" * 64)


async def test_a_killed_shim_takes_its_container_down(world, runtime):
    shim = await world.started(["sleep", "60"], runtime)
    os.kill(shim.shim_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        end = await shim.exited
    assert (end.code, bool(end.error)) == (137, True)
    assert not process.is_alive(Identity(shim.pid, shim.pid_start))
    await world.shims.forget(shim.id)
    assert world.shims.ids() == []
    assert leftovers([shim.id]) == []


async def test_a_shim_killed_while_no_daemon_looked_is_cleaned_up_after(world, runtime):
    shim = await world.started(["sh", "-c", "sleep 60 & sleep 60"], runtime)
    await world.shims.stop()
    os.kill(shim.shim_pid, signal.SIGKILL)
    world.shims = Shims(world.root)
    await world.shims.start()
    assert await world.shims.adopt(shim.id) is None
    assert not process.is_alive(Identity(shim.pid, shim.pid_start))
    assert leftovers([shim.id]) == []


async def test_a_shim_killed_at_any_moment_of_create_leaves_nothing(world, runtime):
    for delay in (0.001, 0.004, 0.008, 0.015):
        spec = world.spec(["sleep", "60"], runtime)
        task = asyncio.create_task(world.shims.create(spec, netns=None))
        await asyncio.sleep(delay)
        for pid in shims_of(world.root / "shims" / spec.id):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            shim = await task
            with contextlib.suppress(Exception):
                await shim.destroy()
            await shim.exited
            await world.shims.forget(spec.id)
        assert world.shims.ids() == []
        assert leftovers([spec.id]) == []


def shims_of(directory: Path) -> list[int]:
    """Shims of one container: processes of ours whose stderr is its shim.log."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/fd/2") == str(directory / "shim.log"):
                found.append(int(entry))
    return found


async def test_signals_that_end_a_daemon_do_not_end_a_shim(world, crun):
    shim = await world.started(["sleep", "60"], crun)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(shim.shim_pid, number)
    handle = await shim.exec(ExecSpec(id="1" * 64, args=["true"], env=["PATH=/bin"], detach=True))
    assert await handle.exited == 0
    assert shim.live


async def test_a_killed_zygote_is_replaced(world, crun):
    _, end = await world.run(["true"], crun)
    running = await world.started(["sleep", "60"], crun)
    os.kill(world.shims._zygote.pid, signal.SIGKILL)
    for _ in range(2):
        _, end = await world.run(["true"], crun)
        assert end.code == 0
    assert running.live


async def test_a_restart_uses_the_same_layer_and_appends_to_the_log(world, crun):
    spec = world.spec(["sh", "-c", "cat /tmp/x; echo kept > /tmp/x"], crun)
    for _ in range(2):
        shim = await world.shims.create(spec, netns=None)
        await shim.start()
        await shim.exited
        await world.shims.forget(shim.id)
    first, second = world.log(spec.id).read_text().splitlines()
    assert "No such file" in first
    assert "kept" in second


async def test_twenty_cycles_leak_nothing(world, crun):
    await world.run(["true"], crun)
    before = descriptors()
    mounts = Path("/proc/self/mountinfo").read_text()
    zygote = world.shims._zygote.pid
    zygote_fds = len(os.listdir(f"/proc/{zygote}/fd"))
    for _ in range(20):
        streams, end = await world.run(["echo", "x"], crun)
        assert (streams, end.code) == ({1: b"x\n"}, 0)
    assert not descriptors() - before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert len(os.listdir(f"/proc/{zygote}/fd")) == zygote_fds
    assert leftovers(world.made) == []
    assert children(zygote) == []


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
