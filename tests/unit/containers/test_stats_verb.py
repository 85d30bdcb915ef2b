from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import World
from wherry.containers.record import Status
from wherry.containers.views.stats import measure_v1, measure_v2, open_stats
from wherry.errors import NotFound


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def test_numbers_of_cgroup_v2(tmp_path: Path) -> None:
    group = tree(
        tmp_path,
        {
            "cpu.stat": "usage_usec 100\nuser_usec 70\nsystem_usec 30\n"
            "nr_periods 5\nnr_throttled 2\nthrottled_usec 9\n",
            "memory.current": "4096\n",
            "memory.max": "8388608\n",
            "memory.stat": "anon 1024\ninactive_file 512\n",
            "memory.events": "low 0\nmax 3\n",
            "pids.current": "2\n",
            "pids.max": "max\n",
            "io.stat": "8:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        },
    )
    found = measure_v2(group)
    cpu = found["cpu"]
    assert cpu["cpu_usage"] == {"total_usage": 100_000, "usage_in_kernelmode": 30_000, "usage_in_usermode": 70_000}
    assert cpu["throttling_data"] == {"periods": 5, "throttled_periods": 2, "throttled_time": 9000}
    assert isinstance(cpu["system_cpu_usage"], int)
    assert cpu["system_cpu_usage"] > 0
    assert found["memory"] == {
        "usage": 4096,
        "stats": {"anon": 1024, "inactive_file": 512},
        "limit": 8388608,
        "failcnt": 3,
    }
    assert found["pids"] == {"current": 2}
    assert found["blkio"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 16, "op": "read", "value": 10},
        {"major": 8, "minor": 16, "op": "write", "value": 20},
    ]
    assert found["blkio"]["sectors_recursive"] is None


def test_numbers_of_cgroup_v1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "cpuacct/cpuacct.usage": "1000\n",
            "cpuacct/cpuacct.usage_percpu": "600 400 \n",
            "cpuacct/cpuacct.stat": "user 100\nsystem 50\n",
            "cpu/cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 9\n",
            "memory/memory.usage_in_bytes": "4096\n",
            "memory/memory.max_usage_in_bytes": "8192\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.failcnt": "0\n",
            "memory/memory.stat": "cache 1\nrss 2\n",
            "pids/pids.current": "2\n",
            "pids/pids.max": "100\n",
            "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
        },
    )
    found = measure_v1({name: str(tmp_path / name) for name in ("cpuacct", "cpu", "memory", "pids", "blkio")})
    usage = found["cpu"]["cpu_usage"]
    assert isinstance(usage, dict)
    assert (usage["total_usage"], usage["percpu_usage"]) == (1000, [600, 400])
    assert usage["usage_in_usermode"] == 2 * usage["usage_in_kernelmode"]
    memory = found["memory"]
    assert (memory["usage"], memory["max_usage"], memory["stats"]) == (4096, 8192, {"cache": 1, "rss": 2})
    assert isinstance(memory["limit"], int)
    assert memory["limit"] < 1 << 60, "no limit is shown as the machine's memory"
    assert "failcnt" not in memory
    assert found["pids"] == {"current": 2, "limit": 100}
    assert found["blkio"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "read", "value": 5},
        {"major": 8, "minor": 0, "op": "write", "value": 6},
    ]


def test_what_this_kernel_lacks_is_left_out() -> None:
    found = measure_v1({})
    assert found["memory"] == {}
    assert found["pids"] == {}


async def test_a_container_that_does_not_run_has_a_document_without_numbers(world: World) -> None:
    container = await world.add("web", status=Status.EXITED)
    stream = await open_stats(world.deps, "web", stream=False)
    (document,) = [each async for each in stream]
    assert (document["name"], document["id"]) == ("/web", container.id)
    assert (document["read"], document["memory_stats"], document["pids_stats"]) == ("0001-01-01T00:00:00Z", {}, {})
    assert "networks" not in document


async def test_a_missing_container_is_not_found(world: World) -> None:
    with pytest.raises(NotFound, match="No such container: nosuch"):
        await open_stats(world.deps, "nosuch", stream=True)
