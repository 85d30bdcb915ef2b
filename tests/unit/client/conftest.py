"""An engine's socket with a script for each connection."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.client.endpoint import Endpoint, parse_host
from wherry.client.engine import Engine

Script = Callable[[socket.socket], None]


class ScriptedServer:
    """Runs the next script on each connection that comes; what they received is in `requests`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scripts: list[Script] = []
        self.connections = 0
        self.closed = threading.Semaphore(0)  # released once for every connection that the server has closed
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return parse_host(f"unix://{self.path}")

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            script = self.scripts.pop(0)
            with connection:
                connection.settimeout(10)
                try:
                    script(connection)
                except BaseException as exc:
                    self.failures.append(exc)
            self.closed.release()

    def close(self) -> None:
        assert not self.scripts, "fewer connections than expected"
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self.failures


def read_request(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers and the body, if it has a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, f"the client went away after {data!r}"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    if headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
    return first, headers, body


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    made = ScriptedServer(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def request_of() -> Callable[[socket.socket], tuple[str, dict[str, str], bytes]]:
    return read_request


@pytest.fixture
def engine(server: ScriptedServer) -> Iterator[Engine]:
    """A client of the scripted server."""
    made = Engine(server.endpoint, version="1.41")
    yield made
    made.close()
