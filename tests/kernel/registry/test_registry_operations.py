"""Running a registry: tidying it at rest and while it serves, changing its mind by SIGHUP, and being told about it."""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from imagekit.making import Made, digest, make
from registrykit.servers import OURS, Server, running

ONE, TWO = make([{"a": b"1"}]), make([{"b": b"2"}])


def configure(root: Path, **keys: Any) -> Path:
    root.mkdir(exist_ok=True)
    path = root / "registry.json"
    path.write_text(json.dumps({"root": str(root / "data"), "listen": ["127.0.0.1:0"], **keys}))
    return path


def serving(root: Path, **keys: Any) -> Server:
    config = configure(root, **keys)
    argv = [sys.executable, "-c", OURS, "serve", "--config", str(config)]
    return Server(root, argv, r"listens on http://127\.0\.0\.1:(\d+)")


def tool(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", OURS, words[0], "--config", str(root / "registry.json"), *words[1:]]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def push(server: Server, repository: str, tag: str, made: Made) -> None:
    with server.client() as client:
        for blob in made.blobs.values():
            assert client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={digest(blob)}", blob).status == 201
        answer = client.request(
            "PUT", f"/v2/{repository}/manifests/{tag}", made.manifest, {"Content-Type": made.media_type}
        )
        assert answer.status == 201, answer.body


def files(root: Path) -> set[str]:
    return {path.name for path in (root / "data/blobs/sha256").iterdir()}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


def names(made: Made) -> set[str]:
    return {digest(data)[7:] for data in (*made.blobs.values(), made.manifest)}


def test_collecting_is_the_same_at_rest_and_while_the_registry_serves(tmp_path: Path) -> None:
    with running(serving(tmp_path)) as server:
        push(server, "x", "t", ONE)
        push(server, "x", "t", TWO)
        told = tool(tmp_path, "gc", "--dry-run", "--delete-untagged", "--grace", "0")
        assert told.returncode == 0, told.stderr
        assert "1 untagged manifests and" in told.stdout
        assert "would be deleted" in told.stdout
        assert files(tmp_path) == names(ONE) | names(TWO)
    assert tool(tmp_path, "gc", "--dry-run", "--delete-untagged", "--grace", "0").stdout == told.stdout
    with running(server):
        found = tool(tmp_path, "gc", "--delete-untagged", "--grace", "0")
        assert found.stdout == told.stdout.replace("would be", "were")
        assert files(tmp_path) == names(TWO)
        with server.client() as client:
            assert client.get("/v2/x/manifests/t").body == TWO.manifest
        push(server, "x", "other", ONE)
        with server.client() as client:
            assert client.request("DELETE", "/v2/x/manifests/other").status == 202
    found = tool(tmp_path, "gc", "--delete-untagged", "--grace", "0", "--json")
    assert json.loads(found.stdout)["manifests"] == 1
    assert files(tmp_path) == names(TWO)


def test_what_is_young_or_untagged_stays_unless_one_says_otherwise(tmp_path: Path) -> None:
    with running(serving(tmp_path)) as server:
        push(server, "x", "t", ONE)
        push(server, "x", "t", TWO)
        assert tool(tmp_path, "gc", "--grace", "0").returncode == 0
        assert tool(tmp_path, "gc", "--delete-untagged").returncode == 0
        assert files(tmp_path) == names(ONE) | names(TWO)


def test_the_administrators_socket_is_nobody_elses(tmp_path: Path) -> None:
    with running(serving(tmp_path)):
        assert stat.S_IMODE((tmp_path / "data/admin.sock").stat().st_mode) == 0o600


def test_a_registry_that_was_killed_leaves_no_socket_in_the_way(tmp_path: Path) -> None:
    server = serving(tmp_path)
    server.start()
    server.kill()
    assert tool(tmp_path, "gc").returncode == 0, "at rest"
    with running(server):
        assert tool(tmp_path, "gc").returncode == 0, "through the server"


def test_retention_tells_what_would_go_and_why_and_then_does_it(tmp_path: Path) -> None:
    rules = [{"repositories": ["x"], "keep-last": 1, "protect": ["keep*"]}]
    with running(serving(tmp_path, retention=rules)) as server:
        for tag in ("v1", "keep-me", "v2"):
            push(server, "x", tag, ONE)
        push(server, "y", "v1", ONE)
        told = tool(tmp_path, "retention", "--dry-run")
        assert told.stdout == "x:v1\tnumber 2 of the newest, 1 are kept\n"
        assert told.stderr == "1 tags would be removed\n"
        with server.client() as client:
            assert client.get("/v2/x/tags/list").json()["tags"] == ["keep-me", "v1", "v2"]
        assert tool(tmp_path, "retention").stdout == told.stdout
        with server.client() as client:
            assert client.get("/v2/x/tags/list").json()["tags"] == ["keep-me", "v2"]
            assert client.get("/v2/y/tags/list").json()["tags"] == ["v1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gc", "--grace", "-1"), "--grace cannot be negative"),
        (("retention",), "the configuration has no retention rules"),
        (("gc",), "there is no registry at"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    configure(tmp_path)
    found = tool(tmp_path, *words)
    assert found.returncode == 1
    assert said in found.stderr


def test_read_only_mode_is_switched_while_it_serves(tmp_path: Path) -> None:
    with running(serving(tmp_path)) as server, server.client() as client:
        push(server, "x", "t", ONE)
        configure(tmp_path, **{"read-only": True})
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: client.request("POST", "/v2/x/blobs/uploads/").status == 405)
        refused = client.request("DELETE", "/v2/x/manifests/t")
        assert (refused.status, refused.codes) == (405, ["UNSUPPORTED"])
        assert "read-only" in refused.body.decode()
        assert client.get("/v2/x/manifests/t").status == 200
        (tmp_path / "registry.json").write_text("{")  # a mistake changes nothing and ends nothing
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: "the configuration is not followed" in server.log())
        assert client.request("POST", "/v2/x/blobs/uploads/").status == 405
        configure(tmp_path)
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: client.request("DELETE", "/v2/x/manifests/t").status == 202)


def test_uploads_at_the_same_time_do_not_outwit_the_quota(tmp_path: Path) -> None:
    half = 600
    with running(serving(tmp_path, quota={"per-repository": "1k"})) as server, server.client() as client:
        blobs = [bytes([number]) * half for number in range(2)]
        places = []
        for _ in blobs:
            answer = client.request("POST", "/v2/x/blobs/uploads/")
            places.append(answer.headers["location"])
        for place, blob in zip(places, blobs, strict=True):  # both fit while neither is there
            assert client.request("PATCH", place, blob).status == 202
        results = [
            client.request("PUT", f"{place}?digest={digest(blob)}").status
            for place, blob in zip(places, blobs, strict=True)
        ]
        assert results == [201, 403]
        refused = client.request("POST", f"/v2/x/blobs/uploads/?digest={digest(blobs[1])}", blobs[1])
        assert refused.codes == ["DENIED"]
        assert "repository x holds 600 of 1000 bytes, 600 more do not fit" in refused.body.decode()


def test_mounting_does_not_outwit_the_quota_either(tmp_path: Path) -> None:
    big = make([{"a": os.urandom(3000)}])
    with running(serving(tmp_path, quota={"repositories": {"x": "1k"}})) as server, server.client() as client:
        push(server, "y", "t", big)
        for name in big.blobs:
            assert client.request("POST", f"/v2/x/blobs/uploads/?mount={name}&from=y").status == 201
        refused = client.request("PUT", "/v2/x/manifests/t", big.manifest, {"Content-Type": big.media_type})
        assert (refused.status, refused.codes) == (403, ["DENIED"])
        assert f"repository x holds {sum(map(len, big.blobs.values()))} of 1000 bytes" in refused.body.decode()
        for name in big.blobs:
            assert client.request("DELETE", f"/v2/x/blobs/{name}").status == 202, "what is full can be emptied"
        push(server, "x", "t", ONE)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where it listens, and the events it got."""
    events: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["events"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", events
        server.shutdown()
        thread.join()


def test_pushes_and_deletions_are_told_to_a_webhook(tmp_path: Path, receiver: tuple[str, list[dict[str, Any]]]) -> None:
    url, events = receiver
    rules = [{"keep-last": 1}]
    with running(serving(tmp_path, webhooks=[{"url": url}], retention=rules)) as server:
        push(server, "x", "t", ONE)
        with server.client() as client:
            assert client.request("DELETE", "/v2/x/manifests/t").status == 202
            assert client.get(f"/v2/x/manifests/{ONE.digest}").status == 200  # pulls were not asked for
        push(server, "x", "v1", ONE)
        push(server, "x", "v2", ONE)
        assert tool(tmp_path, "retention").returncode == 0
        until(lambda: any(event["actor"].get("name") == "retention" for event in events))
    told = [(event["action"], event["target"].get("tag")) for event in events if event["target"].get("tag")]
    assert told == [("push", "t"), ("delete", "t"), ("push", "v1"), ("push", "v2"), ("delete", "v1")]
    pushed = next(event for event in events if event["target"].get("tag") == "t")
    assert pushed["target"]["digest"] == ONE.digest
    assert pushed["target"]["size"] == len(ONE.manifest)


LINE = re.compile(r'[a-z_]+(?:\{[a-z]+="[^"\\\n]*"(?:,[a-z]+="[^"\\\n]*")*\})? -?[0-9.e+-]+\Z')


def test_what_it_does_can_be_measured(tmp_path: Path) -> None:
    with running(serving(tmp_path)) as server, server.client() as client:
        push(server, "x", "t", ONE)
        for _ in range(3):
            client.get("/v2/x/manifests/t")
        client.get("/v2/x/manifests/none")
        client.get('/nonsense"\\{}')
        client.request("OPTIONS", "/v2/")
        client.request("POST", "/v2/x/blobs/uploads/")
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.body.decode().splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(LINE.match(line) for line in samples), [line for line in samples if not LINE.match(line)]
    values = dict(line.rsplit(" ", 1) for line in samples)
    name = "wherry_registry_"
    assert values[name + 'requests_total{method="GET",endpoint="manifest",status="200"}'] == "3"
    assert values[name + 'requests_total{method="GET",endpoint="manifest",status="404"}'] == "1"
    assert values[name + 'requests_total{method="GET",endpoint="other",status="404"}'] == "1"
    assert values[name + 'requests_total{method="other",endpoint="base",status="405"}'] == "1"
    assert values[name + 'request_duration_seconds_count{method="GET",endpoint="manifest"}'] == "4"
    assert values[name + 'request_duration_seconds_bucket{method="GET",endpoint="manifest",le="+Inf"}'] == "4"
    assert values[name + 'happenings_total{action="pull"}'] == "3"
    stored = sum(map(len, ONE.blobs.values()))
    assert values[name + "storage_bytes"] == str(stored)
    assert values[name + "uploads_open"] == "1"
    assert int(values[name + "received_bytes_total"]) == stored + len(ONE.manifest)
    assert int(values[name + "sent_bytes_total"]) > 3 * len(ONE.manifest)
    assert len({hashlib.sha256(line.encode()).digest() for line in samples}) == len(samples), "no sample comes twice"
