"""Execs that end with their client: probes of health checks must leave nothing behind."""

import asyncio

import pytest

from wherry.runtime.shim_client import ExecSpec

pytestmark = pytest.mark.kernel

# A child in the exec's session, one in a session of its own, and a grandchild: all outlive an ordinary kill.
SCRIPT = "sleep 1000 & setsid sleep 1000 & (sleep 1000; true) & echo ready; wait"


def exec_spec(script: str, *, tied: bool) -> ExecSpec:
    return ExecSpec(id="e" * 64, args=["sh", "-c", script], env=("PATH=/bin",), tied=tied)


async def test_a_tied_exec_dies_wholly_when_its_client_leaves(world, runtime, until):
    shim = await world.started(["sleep", "60"], runtime)
    handle = await shim.exec(exec_spec(SCRIPT, tied=True))
    reader, writer = handle.streams
    async with asyncio.timeout(20):
        assert b"ready" in await reader.read(100)
        await until(lambda: len(shim.processes()) >= 6)
        writer.transport.abort()
        assert await handle.exited == 137
        await until(lambda: shim.processes() == [shim.pid])
    await shim.destroy()


async def test_an_exec_that_is_not_tied_goes_on_without_its_client(world, crun):
    shim = await world.started(["sleep", "60"], crun)
    handle = await shim.exec(exec_spec("echo ready; while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 7", tied=False))
    reader, writer = handle.streams
    async with asyncio.timeout(20):
        assert b"ready" in await reader.read(100)
        writer.transport.abort()
        other = await shim.exec(ExecSpec(id="f" * 64, args=["touch", "/tmp/go"], env=("PATH=/bin",), detach=True))
        assert await other.exited == 0
        assert await handle.exited == 7
    await shim.destroy()
