"""Clients that vanish at awkward moments leave no file descriptor open in the daemon."""

import contextlib
import json
import socket
import time
from collections.abc import Callable

import pytest

from harness.engine import Engine

TIMES = 6
ALL = "stream=1&stdin=1&stdout=1&stderr=1"
HUGE = 1 << 30  # bytes a body is said to have

pytestmark = pytest.mark.not_dockerd("counts the descriptors of another program")


def request(method: str, path: str, body: bytes = b"", *, length: int | None = None, upgrade: bool = False) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
    if method in ("POST", "PUT"):
        head += f"Content-Length: {len(body) if length is None else length}\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    return head.encode() + b"\r\n" + body


REQUESTS = {
    "follow a busy log": request("GET", "/containers/busy/logs?follow=1&stdout=1"),
    "follow a quiet log": request("GET", "/containers/quiet/logs?follow=1&stdout=1"),
    "read a log": request("GET", "/containers/busy/logs?stdout=1"),
    "attach": request("POST", f"/containers/busy/attach?{ALL}", upgrade=True),
    "attach without upgrade": request("POST", f"/containers/quiet/attach?{ALL}&logs=1"),
    "attach to nothing": request("POST", f"/containers/nothing/attach?{ALL}", upgrade=True),
    "events": request("GET", "/events"),
    "stats": request("GET", "/containers/busy/stats"),
    "wait": request("POST", "/containers/busy/wait"),
    "pull": request("POST", "/images/create?fromImage=127.0.0.1:1/x&tag=y"),
    "load": request("POST", "/images/load", bytes(4096), length=HUGE),
    "import": request("POST", "/images/create?fromSrc=-&repo=x", bytes(4096), length=HUGE),
    "copy in": request("PUT", "/containers/busy/archive?path=/tmp", bytes(512), length=HUGE),
    "copy out": request("GET", "/containers/busy/archive?path=/"),
    "export": request("GET", "/containers/busy/export"),
    "save": request("GET", "/images/get?names=busybox"),
    "half a head": b"GET /info HTTP/1.1\r\nHost:",
    "half a body": request("POST", "/containers/create", b'{"Image', length=5000),
    "no HTTP": b"\x16\x03\x01\x00\r\n\r\n",
}


@pytest.fixture
def busy(engine: Engine) -> Engine:
    loop = "while :; do echo line; sleep 0.02; done"
    engine.docker("run", "-d", "--name", "busy", "busybox", "sh", "-c", loop)
    engine.docker("run", "-di", "--name", "quiet", "busybox", "cat")
    return engine


def vanish(engine: Engine, data: bytes, *, read: bool, half_close: bool) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.1)
        client.connect(str(engine.socket))
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        if read:
            with contextlib.suppress(TimeoutError, ConnectionError):  # nothing comes: vanish all the same
                client.recv(200)


def leaves_nothing(engine: Engine, act: Callable[[], None]) -> None:
    engine.docker("version")
    before = engine.open_files()
    for _ in range(TIMES):
        act()
    until = time.monotonic() + 10
    while engine.open_files() > before:
        assert time.monotonic() < until, f"{engine.open_files() - before} descriptors of {TIMES} clients are left"
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["at once", "after an answer", "after the end of its sending"])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_client_that_vanishes_leaves_no_descriptor(busy: Engine, what: str, how: str) -> None:
    half_close = how == "after the end of its sending"
    leaves_nothing(busy, lambda: vanish(busy, REQUESTS[what], read=how != "at once", half_close=half_close))


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("name", ["busy", "quiet"])
def test_a_client_that_leaves_its_exec_leaves_no_descriptor(busy: Engine, name: str, half_close: bool) -> None:
    def act() -> None:
        config = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True}
        found = busy.api.request("POST", f"/containers/{name}/exec", config).json()["Id"]
        start = request("POST", f"/exec/{found}/start", json.dumps({"Tty": False}).encode(), upgrade=True)
        vanish(busy, start, read=True, half_close=half_close)

    leaves_nothing(busy, act)


@pytest.mark.parametrize(
    "wrong",
    [
        {"Cmd": ["/nothing"]},
        {"User": "nobody-knows"},
        {"ExposedPorts": {"80/tcp": {}}, "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "18099"}]}}},
        {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/etc/passwd", "Target": "/bin"}]}},
    ],
    ids=["command", "user", "port", "mount"],
)
def test_a_start_that_fails_leaves_no_descriptor(busy: Engine, wrong: dict[str, object]) -> None:
    busy.docker("run", "-d", "-p", "18099:80", "busybox", "sleep", "600")

    def act() -> None:
        body = {"Image": "busybox", "Cmd": ["true"], "OpenStdin": True, **wrong}
        found = busy.api.request("POST", "/containers/create", body).json()["Id"]
        vanish(busy, request("POST", f"/containers/{found}/attach?{ALL}", upgrade=True), read=True, half_close=False)
        assert busy.api.request("POST", f"/containers/{found}/start").status >= 400
        assert busy.api.request("DELETE", f"/containers/{found}").status == 204

    leaves_nothing(busy, act)


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_waits_for_a_start_and_vanishes_leaves_no_descriptor(busy: Engine, started: bool) -> None:
    def act() -> None:
        found = busy.api.request("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"]}).json()["Id"]
        vanish(busy, request("POST", f"/containers/{found}/attach?{ALL}", upgrade=True), read=True, half_close=False)
        if started:
            busy.api.request("POST", f"/containers/{found}/start")
            busy.api.request("POST", f"/containers/{found}/wait")
        assert busy.api.request("DELETE", f"/containers/{found}").status == 204

    leaves_nothing(busy, act)
