"""Rows of the listing commands, and what they ask the engine for."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wherry.cli.commands.images import rows_of
from wherry.cli.commands.ps import ContainerRow, displayed_ports, go_quote
from wherry.cli.commands.stats import StatsRow, cpu_percent, memory_used

Wherry = Callable[..., Any]


def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, Any]:
    return {"PrivatePort": private, "Type": kind} | ({"PublicPort": public, "IP": ip} if ip else {})


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([], ""),
        ([port(80)], "80/tcp"),
        ([port(80), port(81), port(83)], "80-81/tcp, 83/tcp"),
        ([port(80, 8080, "0.0.0.0"), port(80, 8080, "::")], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
        ([port(9001, 9001, "0.0.0.0"), port(9000, 9000, "0.0.0.0")], "0.0.0.0:9000-9001->9000-9001/tcp"),
        ([port(53, 53, "0.0.0.0", "udp"), port(53, 53, "::", "udp"), port(80, 8080, "0.0.0.0")],
         "0.0.0.0:53->53/udp, [::]:53->53/udp, 0.0.0.0:8080->80/tcp"),
        ([port(80, 80, "1.1.1.1"), port(80), port(81)], "80-81/tcp, 1.1.1.1:80->80/tcp"),
    ],
)  # fmt: skip
def test_ports(ports: list[dict[str, Any]], text: str) -> None:
    assert displayed_ports(ports) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("sh", '"sh"'), ('a "b" \\', '"a \\"b\\" \\\\"'), ("a\nb\x01é\u200b", '"a\\nb\\x01é\\u200b"')],
)
def test_commands_are_quoted_as_go_quotes(text: str, quoted: str) -> None:
    assert go_quote(text) == quoted


CONTAINER = {
    "Id": "c" * 64,
    "Names": ["/web", "/other/alias"],
    "Image": "busybox",
    "ImageID": "sha256:" + "a" * 64,
    "Command": "sh -c 'a very long command'",
    "Created": 1000,
    "State": "running",
    "Status": "Up 3 minutes (Paused)",
    "Ports": [],
    "Labels": {"b": "2", "a": "1"},
    "SizeRw": 12_345_678,
    "SizeRootFs": 20_000_000,
    "Mounts": [{"Name": "v" * 20, "Driver": "local"}, {"Source": "/host", "Driver": ""}],
    "NetworkSettings": {"Networks": {"bridge": {}, "n1": {}}},
}


def test_a_container_s_row() -> None:
    row = ContainerRow(CONTAINER, truncate=True, now=1000 + 150)
    assert {name: row.FIELDS[name](row) for name in row.FIELDS} == {
        "ID": "c" * 12,
        "Names": "web",
        "Image": "busybox",
        "Command": '"sh -c \'a very long …"',
        "CreatedAt": row.created_at(),
        "RunningFor": "2 minutes ago",
        "Ports": "",
        "State": "running",
        "Status": "Up 3 minutes (Paused)",
        "Size": "12.3MB (virtual 20MB)",
        "Labels": "a=1,b=2",
        "Mounts": "vvvvvvvvvvvvvv…,/host",
        "LocalVolumes": "1",
        "Networks": "bridge,n1",
        "Platform": None,
    }
    assert row.label("a") == "1"
    assert row.label("z") == ""
    whole = ContainerRow(CONTAINER, truncate=False, now=0)
    assert whole.identifier() == "c" * 64
    assert whole.names() == "web,other/alias"


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("sha256:" + "a" * 64, "a" * 12),
        ("busybox:1@sha256:" + "b" * 64, "busybox:1"),
        ("busybox@sha256:" + "b" * 64, "busybox@sha256:" + "b" * 64),
        ("", "<no image>"),
    ],
)
def test_the_image_of_a_container(image: str, shown: str) -> None:
    assert ContainerRow({**CONTAINER, "Image": image}, truncate=True, now=0).image() == shown


@pytest.mark.parametrize(
    ("tags", "digests", "plain", "with_digests"),
    [
        (["a:1", "a:2", "r:5000/b:x"], [], [("a", "1", "<none>"), ("a", "2", "<none>"), ("r:5000/b", "x", "<none>")],
         [("a", "1", "<none>"), ("a", "2", "<none>"), ("r:5000/b", "x", "<none>")]),
        (["a:1"], ["a@sha256:d", "b@sha256:e"], [("a", "1", "<none>")],
         [("a", "1", "sha256:d"), ("b", "<none>", "sha256:e")]),
        ([], ["a@sha256:d"], [("a", "<none>", "<none>")], [("a", "<none>", "sha256:d")]),
        (None, None, [("<none>", "<none>", "<none>")], [("<none>", "<none>", "<none>")]),
        (["<none>:<none>"], ["<none>@<none>"], [("<none>", "<none>", "<none>")], [("<none>", "<none>", "<none>")]),
    ],
)  # fmt: skip
def test_rows_of_an_image(tags: Any, digests: Any, plain: Any, with_digests: Any) -> None:
    image = {"Id": "sha256:" + "a" * 64, "RepoTags": tags, "RepoDigests": digests, "Created": 1, "Size": 1}
    for asked, expected in ((False, plain), (True, with_digests)):
        rows = rows_of(image, digests=asked, truncate=True, now=0)
        assert [(row.repository, row.tag, row.digest) for row in rows] == expected


def test_ps_asks_for_what_the_flags_say(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /containers/json"] = reply(200, [{**CONTAINER, "Created": int(time.time()) - 5}])
    shown = wherry("ps", "-an", "3", "-f", "status=exited", "-f", "status=dead", "--filter", "name=x")
    query = fake_engine.requests[0].query
    assert {name: query[name] for name in ("all", "limit")} == {"all": ["1"], "limit": ["3"]}
    assert json.loads(query["filters"][0]) == {"name": {"x": True}, "status": {"exited": True, "dead": True}}
    assert "size" not in query
    lines = shown.out.splitlines()
    assert lines[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert lines[1].startswith("cccccccccccc   busybox   ")
    assert wherry("ps", "-q").out == "c" * 12 + "\n"
    assert wherry("ps", "-q", "--no-trunc").out == "c" * 64 + "\n"
    assert wherry("ps", "-l").code == 0
    assert fake_engine.requests[-1].query["limit"] == ["1"]
    for arguments in (["-s"], ["--format", "{{.Size}}"], ["--format", "{{json .}}"]):
        wherry("ps", *arguments)
        assert fake_engine.requests[-1].query["size"] == ["1"]


def test_the_config_file_may_set_the_format(fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"psFormat": "{{.Names}}!", "HttpHeaders": {"X-Mine": "1"}}')
    fake_engine.answers["GET /containers/json"] = reply(200, [CONTAINER])
    assert wherry("ps").out == "web!\n"
    assert wherry("ps", "--format", "{{.ID}}").out == "cccccccccccc\n"
    assert wherry("ps", "-q").out == "cccccccccccc\n"
    assert fake_engine.requests[0].headers["X-Mine"] == "1"
    (tmp_path / "config" / "config.json").write_text("{")
    broken = wherry("ps", "-q")
    assert broken.out == "cccccccccccc\n"
    assert broken.err.startswith("WARNING: Error loading config file: ")


STATS = {
    "id": "c" * 64,
    "name": "/web",
    "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
    "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
    "memory_stats": {"usage": 3 << 20, "limit": 12 << 20, "stats": {"inactive_file": 1 << 20}},
    "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 5}, "eth1": {"rx_bytes": 500, "tx_bytes": 0}},
    "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "write", "value": 8000}]},
    "pids_stats": {"current": 4},
}


def test_a_row_of_stats() -> None:
    row = StatsRow("web", STATS, truncate=True)
    assert row.as_json() == {
        "BlockIO": "7B / 8kB",
        "CPUPerc": "40.00%",
        "Container": "web",
        "ID": "c" * 12,
        "MemPerc": "16.67%",
        "MemUsage": "2MiB / 12MiB",
        "Name": "web",
        "NetIO": "1.5kB / 5B",
        "PIDs": "4",
    }
    assert set(StatsRow("web", None, truncate=True).as_json().values()) == {"web", "--", "-- / --"}


def test_cache_is_not_counted_as_memory_and_no_time_is_no_percentage() -> None:
    assert memory_used({"usage": 10, "stats": {"total_inactive_file": 4, "inactive_file": 1}}) == 6
    assert memory_used({"usage": 10, "stats": {"inactive_file": 20}}) == 10
    assert cpu_percent({"cpu_stats": {}, "precpu_stats": {}}) == 0.0
