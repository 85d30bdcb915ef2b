"""The verbs of whole volumes against a fake engine: what is asked for, and what is shown."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Wherry = Callable[..., Any]


def test_a_clone_asks_for_a_pause_only_by_not_refusing_it(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /volumes/a b/clone"] = reply(201, {"Name": "copy"})
    assert wherry("volume", "clone", "--label", "x=y", "--label", "z", "a b", "copy").out == "copy\n"
    assert fake_engine.requests[0].query == {"name": ["copy"], "label": ["x=y", "z"]}
    assert wherry("volume", "clone", "--pause=false", "a b", "copy").code == 0
    assert fake_engine.requests[1].query == {"name": ["copy"], "pause": ["0"]}


def test_snapshots_are_made_listed_and_dropped(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    made = {"Volume": "data", "Name": "s1", "CreatedAt": "2020-01-02T03:04:05Z", "Size": 4_200_000}
    fake_engine.answers = {
        "POST /volumes/data/snapshots": reply(201, {"Name": "s1"}),
        "GET /volumes/data/snapshots": reply(200, [made]),
        "DELETE /volumes/data/snapshots/s1": reply(204),
        "DELETE /volumes/data/snapshots/s2": reply(404, {"message": "no such snapshot: data@s2"}),
        "POST /volumes/data/rollback": reply(204),
    }
    assert wherry("volume", "snapshot", "create", "data@s1").out == "data@s1\n"
    assert fake_engine.requests[0].query == {"name": ["s1"]}
    assert wherry("volume", "snapshot", "create", "data").out == "data@s1\n"
    head, row = wherry("volume", "snapshot", "ls", "data").out.splitlines()
    assert head.split() == ["SNAPSHOT", "CREATED", "SIZE"]
    assert (row.split()[0], row.split()[-1]) == ("data@s1", "4.2MB")
    assert wherry("volume", "snapshot", "ls", "-q", "data").out == "data@s1\n"
    done = wherry("volume", "snapshot", "rm", "data@s1", "data@s2")
    assert (done.code, done.out) == (1, "data@s1\n")
    assert "no such snapshot: data@s2" in done.err
    assert wherry("volume", "rollback", "data@s1").code == 0
    assert fake_engine.requests[-1].query == {"snapshot": ["s1"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["snapshot", "make", "data"], "unknown command: wherry volume snapshot make"),
        (["snapshot", "create"], "'wherry volume snapshot create' requires 1 argument"),
        (["snapshot", "ls", "a", "b"], "'wherry volume snapshot ls' requires 1 argument"),
        (["snapshot", "rm"], "'wherry volume snapshot rm' requires at least 1 argument"),
        (["snapshot"], "requires at least 1 argument"),
        (["rollback", "data"], "invalid snapshot 'data': want VOLUME@NAME"),
        (["rollback", "@s"], "invalid snapshot '@s': want VOLUME@NAME"),
        (["push", "data", "team/UPPER"], "must be lowercase"),
    ],
)
def test_a_wrong_command_line_asks_nothing(fake_engine: Any, wherry: Wherry, words: list[str], told: str) -> None:
    done = wherry("volume", *words)
    assert done.code != 0
    assert told in done.err
    assert fake_engine.requests == []


def test_archives_go_both_ways(fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Path) -> None:
    fake_engine.answers = {
        "GET /volumes/data/export": reply(200, b"tar", {"Content-Type": "application/x-tar"}),
        "POST /volumes/copy/import": reply(201, {"Name": "copy"}),
    }
    path = tmp_path / "data.tar"
    assert wherry("volume", "export", "-o", str(path), "data").code == 0
    assert path.read_bytes() == b"tar"
    assert fake_engine.requests[0].query == {}
    assert wherry("volume", "export", "--pause", "-o", str(path), "data").code == 0
    assert fake_engine.requests[1].query == {"pause": ["1"]}
    assert wherry("volume", "import", "--size", "1g", "--replace", "copy", str(path)).out == "copy\n"
    assert (fake_engine.requests[2].query, fake_engine.requests[2].body) == ({"size": ["1g"], "replace": ["1"]}, b"tar")
    assert "no such file or directory" in wherry("volume", "import", "copy", str(tmp_path / "none")).err
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


def test_registries_are_named_in_full(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    digest = "sha256:" + "a" * 64
    fake_engine.answers = {
        "POST /volumes/data/push": reply(
            200, b'{"status":"Pushed","id":"data"}\r\n{"aux":{"Digest":"%b"}}\r\n' % digest.encode()
        ),
        "POST /volumes/pull": reply(200, {"aux": {"Name": "data"}}),
    }
    done = wherry("volume", "push", "--compression", "gzip", "data", "reg.example/team/data")
    assert done.out == "data: Pushed\n"
    assert fake_engine.requests[0].query == {"reference": ["reg.example/team/data:latest"], "compression": ["gzip"]}
    assert wherry("volume", "push", "-q", "data", "reg.example/x:v1").out == f"reg.example/x:v1@{digest}\n"
    assert wherry("volume", "pull", "team/data", "mine", "--replace").out == "data\n"
    asked = {"reference": ["docker.io/team/data:latest"], "name": ["mine"], "replace": ["1"]}
    assert fake_engine.requests[-1].query == asked


def test_a_failure_on_the_way_is_an_error(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    lines = b'{"status":"Pushing","id":"data"}\r\n{"errorDetail":{"message":"denied"},"error":"denied"}\r\n'
    fake_engine.answers["POST /volumes/data/push"] = reply(200, lines)
    done = wherry("volume", "push", "data", "reg.example/x")
    assert (done.code, done.err.strip()) == (1, "denied")


def test_update_is_for_volumes_of_a_cluster(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["GET /volumes/data"] = reply(200, {"Name": "data"})
    done = wherry("volume", "update", "--availability", "drain", "data")
    assert (done.code, done.err) == (1, "can only update cluster volumes\n")


def test_rename_says_nothing(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /volumes/old/rename"] = reply(204)
    done = wherry("volume", "rename", "old", "new")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert fake_engine.requests[0].query == {"name": ["new"]}
