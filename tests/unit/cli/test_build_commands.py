"""`builds` and `builder` against a fake engine: what is asked, and what is shown."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from wherry.cli.commands.builds import duration_text

Wherry = Callable[..., Any]

S = 1_000_000_000
BUILD = {
    "Id": "abc123",
    "Status": "completed",
    "Names": ["docker.io/library/app:1", "reg.test/app:1"],
    "Created": time.time_ns() - 65 * S,
    "Completed": time.time_ns(),
    "Duration": 65 * S,
    "TotalSteps": 7,
    "CachedSteps": 3,
    "Context": "/home/me/app/",
    "Error": None,
}
FAILED = {**BUILD, "Id": "def456", "Status": "error", "Names": [], "CachedSteps": 0, "Error": {"message": "no"}}
RUNNING = {**BUILD, "Id": "run789", "Status": "running", "Names": [], "Context": "", "Completed": 0, "Duration": 0}


def test_builds_are_listed(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /builds"] = reply(200, [BUILD, FAILED, RUNNING])
    done = wherry("builds", "ls", "--filter", "status=error", "-n", "5")
    assert fake_engine.requests[0].query == {"filter": ["status=error"], "limit": ["5"]}
    heading, *rows = done.out.splitlines()
    assert heading.split() == ["BUILD", "ID", "NAME", "STATUS", "STEPS", "CREATED", "DURATION"]
    assert rows[0].split("  ")[0] == "abc123"
    assert "app:1, reg.test/app:1" in rows[0]
    assert "7 (3 cached)" in rows[0]
    assert rows[0].endswith("1m 5s")
    assert " app " in rows[1]
    assert rows[2].rstrip().endswith("-")
    assert wherry("builds", "ls", "-q").out == "abc123\ndef456\nrun789\n"
    assert wherry("builds", "list", "--format", "{{.ID}} {{.Error}}").out == "abc123 \ndef456 no\nrun789 \n"


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0.0s"), (450_000_000, "0.5s"), (61 * S, "1m 1s"), (3 * 3600 * S + 60 * S, "3h 1m")]
)
def test_how_long_something_took(ns: int, text: str) -> None:
    assert duration_text(ns) == text


def test_the_newest_build_is_explained_unless_another_is_named(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    steps = [
        {"Name": "[1/2] FROM x", "Why": "cached: nothing changed", "Cached": True},
        {"Name": "[2/2] RUN make", "Why": "`Makefile` changed", "Started": S, "Completed": 3 * S, "Error": "exit 1"},
    ]
    fake_engine.answers = {
        "GET /builds": reply(200, [BUILD]),
        "GET /builds/abc123/explain": reply(200, steps),
        "GET /builds/other/explain": reply(404, {"message": "no record found for ref 'other'"}),
    }
    assert wherry("builds", "explain").out == (
        "[1/2] FROM x\n    cached: nothing changed\n"
        "[2/2] RUN make  (2.0s)\n    `Makefile` changed\n    failed: exit 1\n"
    )
    missing = wherry("builds", "explain", "other")
    assert (missing.code, missing.err) == (1, "Error response from daemon: no record found for ref 'other'\n")
    fake_engine.answers["GET /builds"] = reply(200, [])
    assert wherry("builds", "explain").out == "nothing was built yet\n"


def test_a_log_is_told_as_it_was(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    events = [
        {"vertex": {"key": "a", "name": "RUN x", "started": S}},
        {"log": {"vertex": "a", "stream": 1, "text": "said\n", "at": S}},
        {"vertex": {"key": "a", "name": "RUN x", "started": S, "completed": 2 * S}},
        {"warning": {"vertex": "a", "rule": "R", "short": "mind this"}},
    ]
    raw = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    fake_engine.answers["GET /builds/a/logs"] = reply(200, raw)
    assert wherry("builds", "logs", "a").out == (
        "\n#1 RUN x\n#1 0.000 said\n#1 DONE 1.0s\n\n1 warning found:\n - R: mind this\n"
    )
    again = wherry("builds", "logs", "--progress", "rawjson", "a").out
    assert [json.loads(line) for line in again.splitlines()] == events


def test_records_are_removed_and_what_runs_is_left(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers = {
        "GET /builds": reply(200, [BUILD, RUNNING, FAILED]),
        "DELETE /builds/abc123": reply(204),
        "DELETE /builds/def456": reply(204),
    }
    assert wherry("builds", "rm", "--all").out == "abc123\ndef456\n"
    assert wherry("builds", "rm", "abc123", "nope").code == 1


def test_what_is_inspected_is_shown_as_it_came(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /builds/abc123"] = reply(200, BUILD)
    assert json.loads(wherry("builds", "inspect", "abc123").out) == [BUILD]


def test_pruning_asks_first_and_says_what_went(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /build/prune"] = reply(200, {"CachesDeleted": ["a", "b"], "SpaceReclaimed": 1500})
    refused = wherry("builder", "prune", input=b"n\n")
    assert (refused.code, fake_engine.requests) == (0, [])
    assert "This will remove all dangling build cache" in refused.out
    done = wherry(
        "builder", "prune", "-af", "--filter", "until=24h", "--reserved-space", "1g", "--max-used-space", "2g"
    )
    assert fake_engine.requests[0].query == {
        "all": ["1"],
        "filters": ['{"until":{"24h":true}}'],
        "reserved-space": [str(1 << 30)],
        "max-used-space": [str(2 << 30)],
    }
    assert done.out == "Deleted build cache objects:\na\nb\n\nTotal reclaimed space: 1.5kB\n"


def test_what_builds_keep_is_a_table(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    entry = {"ID": "x", "Type": "regular", "Description": "RUN\n make", "InUse": False, "Shared": True, "Size": 1000}
    fake_engine.answers["GET /system/df"] = reply(200, {"BuildCache": [entry]})
    lines = wherry("builder", "du").out.splitlines()
    assert lines[1].split() == ["x", "regular", "1kB", "false", "true", "RUN", "make"]
    assert lines[2] == "Total: 1kB"


def test_another_engine_is_told_apart(fake_engine: Any, wherry: Wherry, tmp_path: Any) -> None:
    context = tmp_path / "context"
    context.mkdir()
    done = wherry("build", str(context))
    assert (done.code, "this engine is not Wherry's" in done.err) == (1, True), done.err
