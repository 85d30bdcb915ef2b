"""A fake engine on a UNIX socket, and the CLI run against it in this process."""

import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from wherry.cli.main import main


@dataclass
class Request:
    method: str
    path: str  # without version
    query: dict[str, list[str]]
    body: Any
    headers: dict[str, str]


@dataclass
class Reply:
    status: int = 200
    body: Any = None  # bytes as they are, everything else as JSON
    headers: dict[str, str] = field(default_factory=dict)


class FakeEngine:
    """`answers["POST /containers/create"]` is a Reply, a list of them in turn, or a function of the request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Any] = {}
        self.requests: list[Request] = []
        self.typed = b""  # what came over connections taken over
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size + 2)[:-2]
                    self.rfile.readline()
                url = urlsplit(self.path)
                path = unquote(url.path)
                if path.startswith("/v"):
                    path = "/" + path.split("/", 2)[2]
                request = Request(
                    self.command,
                    path,
                    parse_qs(url.query, keep_blank_values=True),
                    json.loads(body) if body.startswith((b"{", b"[")) else body,
                    dict(self.headers),
                )
                reply = engine.reply(request)
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                if reply.body is None:
                    data = b""
                if reply.status == 101:  # taken over: the body is what the process writes before it ends
                    self.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + data)
                    while received := self.rfile.read(1):
                        engine.typed += received
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, address: Any) -> None:
                return  # a client that went away early

            def get_request(self) -> tuple[Any, Any]:
                request, _ = super().get_request()
                return request, ("local", 0)

        self.server = Server(str(path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def reply(self, request: Request) -> Reply:
        if request.path == "/_ping":
            return Reply(200, None, {"Api-Version": "1.51"})
        self.requests.append(request)
        answer = self.answers.get(f"{request.method} {request.path}")
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if answer is None:
            return Reply(404, {"message": f"no answer prepared for {request.method} {request.path}"})
        assert isinstance(answer, Reply)
        return answer

    def asked(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def fake_engine(tmp_path: Path) -> Iterator[FakeEngine]:
    made = FakeEngine(tmp_path / "engine.sock")
    yield made
    made.close()


@pytest.fixture
def wherry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`wherry("ps", "-a")`: the command line, with the fake engine as its daemon if there is one."""
    monkeypatch.setenv("WHERRY_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("TZ", "UTC")
    for name in ("DOCKER_API_VERSION", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, input: bytes = b"") -> Outcome:
        given = tmp_path / "input"
        given.write_bytes(input)
        saved, fd = os.dup(0), os.open(given, os.O_RDONLY)
        os.dup2(fd, 0)
        try:
            code = main(arguments)
        finally:
            os.dup2(saved, 0)
            os.close(saved)
            os.close(fd)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def reply() -> type[Reply]:
    return Reply
