"""The Engine API without a client library: plain requests, raw connections, frames."""

import contextlib
import http.client
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["message"])


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Api:
    def __init__(self, path: Path) -> None:
        self.path = path

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Response:
        """One request on a connection of its own. `body` is JSON unless it is bytes."""
        sent: dict[str, str] = dict(headers or {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(UnixConnection(self.path, timeout)) as connection:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Response(status=answer.status, headers=names, body=answer.read())

    def get(self, path: str) -> Any:
        answer = self.request("GET", path)
        assert answer.status == 200, f"GET {path}: {answer.status}: {answer.body!r}"
        return answer.json()

    def post(self, path: str, body: object = None, *, status: int = 204) -> Response:
        answer = self.request("POST", path, body)
        assert answer.status == status, f"POST {path}: {answer.status}: {answer.body!r}"
        return answer

    @contextlib.contextmanager
    def stream(self, method: str, path: str, *, timeout: float = 30) -> Iterator[http.client.HTTPResponse]:
        """A response whose body is read as it comes."""
        with contextlib.closing(UnixConnection(self.path, timeout)) as connection:
            connection.request(method, path)
            yield connection.getresponse()

    @contextlib.contextmanager
    def hijack(
        self, path: str, body: object = None, *, upgrade: bool = True, timeout: float = 30
    ) -> Iterator["RawConnection"]:
        """POST and take the connection over: attach and exec."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: docker", "Content-Type: application/json"]
        lines.append(f"Content-Length: {len(data)}")
        if upgrade:
            lines += ["Connection: Upgrade", "Upgrade: tcp"]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(self.path))
            sock.sendall("\r\n".join([*lines, "", ""]).encode() + data)
            yield RawConnection(sock)


class RawConnection:
    """After the 101: `status` and `headers` of the answer, then bytes both ways."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        head = b""
        while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is the stream
            byte = sock.recv(1)
            assert byte, f"closed in the head: {head!r}"
            head += byte
        first, *rest = head.decode().rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in rest}

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        parts = []
        while data := self.sock.recv(65536):
            parts.append(data)
        return b"".join(parts)

    def until(self, wanted: bytes) -> bytes:
        """Read until `wanted` was seen; fails at the end of the stream."""
        got = b""
        while wanted not in got:
            data = self.sock.recv(65536)
            assert data, f"{wanted!r} not in {got!r}"
            got += data
        return got


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split a stream of 8-byte-headed frames; fails on a torn one."""
    found = []
    while data:
        stream, length = struct.unpack(">BxxxI", data[:8])
        assert len(data) >= 8 + length, "a torn frame"
        found.append((stream, data[8 : 8 + length]))
        data = data[8 + length :]
    return found


def streams(data: bytes) -> dict[int, bytes]:
    """What each stream of a framed answer carried."""
    joined: dict[int, bytes] = {}
    for stream, payload in frames(data):
        joined[stream] = joined.get(stream, b"") + payload
    return joined
