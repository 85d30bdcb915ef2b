"""Registries as processes of their own on a free port of the loopback: ours, and Debian's docker-registry."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from harness.needs import require_programs

from .client import Client

START = 30.0  # seconds a registry may take until it listens

DOCKER_REGISTRY = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}/data}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:0", relativeurls: true}}
"""

OURS = "import sys; from wherry.registry.main import main; sys.exit(main(sys.argv[1:]))"


class Server:
    """A running registry. `kill` and `start` work on the same folder and port."""

    def __init__(self, root: Path, words: Sequence[str], listens: str, *, keep: Sequence[int] = ()) -> None:
        self.root = root
        self.port = 0
        self.words = words  # of the command line; {port} in them is replaced
        self.listens = listens  # a pattern of what it says when it does, with the port as its group
        self._keep = keep  # descriptors the process has, too
        self._log = root / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def argv(self) -> list[str]:
        return [word.format(port=self.port) for word in self.words]

    def client(self) -> Client:
        return Client("127.0.0.1", self.port)

    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """Start and wait until it listens."""
        seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=self._keep,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )
        until = time.monotonic() + START
        while time.monotonic() < until and self._process.poll() is None:
            if match := re.search(self.listens, self.log()[seen:]):
                self.port = int(match[1])
                return
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"the registry did not start:\n{self.log()[-2000:]}")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as an administrator would; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None


def ours(root: Path, *options: str) -> Server:
    """`wherry registry serve`."""
    argv = [sys.executable, "-c", OURS, "serve", "--root", str(root / "data"), "--listen", "127.0.0.1:{port}"]
    return Server(root, [*argv, *options], r"listens on http://127\.0\.0\.1:(\d+)")


def docker_registry(root: Path) -> Server:
    require_programs("docker-registry")
    config = root / "config.yml"
    config.write_text(DOCKER_REGISTRY.format(root=root))
    return Server(root, ["docker-registry", "serve", str(config)], r"listening on 127\.0\.0\.1:(\d+)")


class Startable(Protocol):
    def start(self) -> None: ...

    def stop(self) -> object: ...


S = TypeVar("S", bound=Startable)


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
