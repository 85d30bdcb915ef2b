"""stats: what a running container uses, from its cgroups and its network namespace, as Docker's document (API 1.51).

cgroup v1 and v2 fill the same document with different keys, as in Docker: clients look at which are there.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from wherry.aio import settle
from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.containers.views.shapes import Document, rfc3339_nano
from wherry.errors import NotFound
from wherry.kernel import cgroup

INTERVAL = 1.0  # s between samples

_BLKIO = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)
_USER_HZ = os.sysconf("SC_CLK_TCK")


async def open_stats(deps: Deps, name: str, *, stream: bool, one_shot: bool = False) -> AsyncIterator[Document]:
    """Documents, one a second while `stream`, else one: after a second, so that it says how busy the CPU was, or with
    `one_shot` at once. They are empty of numbers while the container does not run. Raises NotFound.
    """
    return _follow(deps, deps.store.resolve(name), stream=stream, one_shot=one_shot)


async def _follow(deps: Deps, container: Container, *, stream: bool, one_shot: bool) -> AsyncIterator[Document]:
    before = _empty()
    if not stream and not one_shot and container.running:
        before = await settle(sample, container.state.pid)
        await asyncio.sleep(INTERVAL)
    while deps.store.get(container.id) is not None:
        now = await settle(sample, container.state.pid) if container.running else _empty()
        yield document(container, now, before)
        if not stream:
            return
        before = now
        await asyncio.sleep(INTERVAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at: int  # ns since the epoch; 0 when the container did not run
    cpu: Document
    memory: Document
    pids: Document
    blkio: Document
    networks: Document


def _empty() -> Sample:
    cpu: Document = {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }
    return Sample(at=0, cpu=cpu, memory={}, pids={}, blkio=dict.fromkeys(_BLKIO), networks={})


def document(container: Container, now: Sample, before: Sample) -> Document:
    found: Document = {
        "name": "/" + container.name,
        "id": container.id,
        "read": rfc3339_nano(now.at),
        "preread": rfc3339_nano(before.at),
        "pids_stats": now.pids,
        "blkio_stats": now.blkio,
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": now.cpu,
        "precpu_stats": before.cpu,
        "memory_stats": now.memory,
    }
    if now.networks:
        found["networks"] = now.networks
    return found


def sample(pid: int) -> Sample:
    """Blocking; what has vanished meanwhile counts as not running."""
    try:
        groups = cgroup.groups_of(pid)
        return Sample(at=time.time_ns(), networks=_networks(pid), **_measure(groups))
    except (OSError, NotFound):
        return _empty()


def _measure(groups: Mapping[str, str]) -> dict[str, Document]:
    if "" in groups:
        return measure_v2(groups[""])
    return measure_v1(groups)


def measure_v2(group: str) -> dict[str, Document]:
    """From one directory of the unified hierarchy."""
    usage = _pairs(f"{group}/cpu.stat")
    cpu: Document = {
        "cpu_usage": {
            "total_usage": usage.get("usage_usec", 0) * 1000,
            "usage_in_kernelmode": usage.get("system_usec", 0) * 1000,
            "usage_in_usermode": usage.get("user_usec", 0) * 1000,
        },
        **_system_cpu(),
        "throttling_data": {
            "periods": usage.get("nr_periods", 0),
            "throttled_periods": usage.get("nr_throttled", 0),
            "throttled_time": usage.get("throttled_usec", 0) * 1000,
        },
    }
    memory: Document = {
        "usage": _number(f"{group}/memory.current") or 0,
        "stats": _pairs(f"{group}/memory.stat"),
        "limit": _memory_limit(_number(f"{group}/memory.max")),
    }
    if failures := _pairs(f"{group}/memory.events").get("max"):
        memory["failcnt"] = failures
    blkio: Document = dict.fromkeys(_BLKIO)
    blkio["io_service_bytes_recursive"] = _io_stat(f"{group}/io.stat", {"rbytes": "read", "wbytes": "write"})
    blkio["io_serviced_recursive"] = _io_stat(f"{group}/io.stat", {"rios": "read", "wios": "write"})
    return {"cpu": cpu, "memory": memory, "pids": _pids(group), "blkio": blkio}


def measure_v1(groups: Mapping[str, str]) -> dict[str, Document]:
    """From one directory per controller; a controller that is missing leaves its part empty."""
    accounting, memory_group = groups.get("cpuacct", ""), groups.get("memory", "")
    split = _pairs(f"{accounting}/cpuacct.stat")
    throttling = _pairs(f"{groups.get('cpu', '')}/cpu.stat")
    cpu: Document = {
        "cpu_usage": {
            "total_usage": _number(f"{accounting}/cpuacct.usage") or 0,
            "percpu_usage": [int(word) for word in _text(f"{accounting}/cpuacct.usage_percpu").split()],
            "usage_in_kernelmode": split.get("system", 0) * 10**9 // _USER_HZ,
            "usage_in_usermode": split.get("user", 0) * 10**9 // _USER_HZ,
        },
        **_system_cpu(),
        "throttling_data": {
            "periods": throttling.get("nr_periods", 0),
            "throttled_periods": throttling.get("nr_throttled", 0),
            "throttled_time": throttling.get("throttled_time", 0),
        },
    }
    memory: Document = {}
    if memory_group:
        memory = {
            "usage": _number(f"{memory_group}/memory.usage_in_bytes") or 0,
            "max_usage": _number(f"{memory_group}/memory.max_usage_in_bytes") or 0,
            "stats": _pairs(f"{memory_group}/memory.stat"),
            "limit": _memory_limit(_number(f"{memory_group}/memory.limit_in_bytes")),
        }
        if failures := _number(f"{memory_group}/memory.failcnt"):
            memory["failcnt"] = failures
    blkio: Document = dict.fromkeys(_BLKIO)
    if group := groups.get("blkio"):
        blkio.update({key: [] for key in _BLKIO})
        blkio["io_service_bytes_recursive"] = _blkio(f"{group}/blkio.throttle.io_service_bytes_recursive")
        blkio["io_serviced_recursive"] = _blkio(f"{group}/blkio.throttle.io_serviced_recursive")
    return {"cpu": cpu, "memory": memory, "pids": _pids(groups.get("pids", "")), "blkio": blkio}


def _system_cpu() -> Document:
    """Time of all CPUs together, which clients divide by."""
    fields = _text("/proc/stat").partition("\n")[0].split()[1:8]
    return {
        "system_cpu_usage": sum(map(int, fields)) * 10**9 // _USER_HZ,
        "online_cpus": len(os.sched_getaffinity(0)) or os.cpu_count() or 1,
    }


def _memory_limit(limit: int | None) -> int:
    """The container's limit, or the machine's memory where there is none that matters."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(limit, total) if limit is not None else total


def _pids(group: str) -> Document:
    found: Document = {}
    for key, file in (("current", "pids.current"), ("limit", "pids.max")):
        if group and (value := _number(f"{group}/{file}")) is not None:
            found[key] = value
    return found


def _io_stat(path: str, names: Mapping[str, str]) -> list[Document]:
    """`8:0 rbytes=1 wbytes=2 ...` of v2."""
    found: list[Document] = []
    for line in _text(path).splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in names:
                found.append({"major": int(major), "minor": int(minor), "op": names[key], "value": int(value)})
    return found


def _blkio(path: str) -> list[Document]:
    """`8:0 Read 123` of v1; the line `Total 123` at the end is left out."""
    found: list[Document] = []
    for line in _text(path).splitlines():
        fields = line.split()
        if len(fields) == 3:
            major, _, minor = fields[0].partition(":")
            found.append({"major": int(major), "minor": int(minor), "op": fields[1].lower(), "value": int(fields[2])})
    return found


def _networks(pid: int) -> Document:
    """Counters by interface, without loopback."""
    found: Document = {}
    for line in _text(f"/proc/{pid}/net/dev").splitlines()[2:]:
        name, _, rest = line.strip().partition(":")
        fields = [int(word) for word in rest.split()]
        if name != "lo" and len(fields) >= 12:
            found[name] = {
                "rx_bytes": fields[0],
                "rx_packets": fields[1],
                "rx_errors": fields[2],
                "rx_dropped": fields[3],
                "tx_bytes": fields[8],
                "tx_packets": fields[9],
                "tx_errors": fields[10],
                "tx_dropped": fields[11],
            }
    return found


def _text(path: str) -> str:
    """ "" for what this kernel does not have."""
    with suppress(OSError), open(path) as file:
        return file.read()
    return ""


def _number(path: str) -> int | None:
    """None for `max` and for a file that is not there."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _pairs(path: str) -> dict[str, int]:
    """`key value` lines."""
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal():
            found[key] = int(value)
    return found
