"""Debian's docker-registry on the loopback of a box, filled by skopeo."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .box import Box

# user "alice", password "wonderland"; bcrypt, the only hash the registry takes
HTPASSWD = "alice:$2b$05$abcdefghijklmnopqrstuuA0vov2GDneHB3.8.cv9UF9g.RdvScIW\n"
USER, PASSWORD = "alice", "wonderland"

CONFIG = """\
version: 0.1
log: {{level: {level}, accesslog: {{disabled: {quiet}}}}}
storage:
  filesystem: {{rootdirectory: {root}/blobs}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
{auth}"""


class Registry:
    """A running registry: `address` is valid inside the box only."""

    def __init__(self, box: Box, root: Path, port: int, *, private: bool, auth: str = "", log: str = "warn") -> None:
        """`auth`: that section of its configuration when it is not the password file; `log`: info tells of requests."""
        self.box, self.root, self.port, self.private = box, root, port, private
        self._auth, self._level = auth, log
        self.address = f"127.0.0.1:{port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Registry"]:
        self.root.mkdir(parents=True, exist_ok=True)
        auth = self._auth
        if self.private and not auth:
            (self.root / "htpasswd").write_text(HTPASSWD)
            auth = f"auth: {{htpasswd: {{realm: test, path: {self.root}/htpasswd}}}}\n"
        config = self.root / "config.yml"
        quiet = str(self._level != "info").lower()
        config.write_text(CONFIG.format(root=self.root, port=self.port, auth=auth, level=self._level, quiet=quiet))
        process = self.box.spawn(
            ["docker-registry", "serve", str(config)],
            log=self.root / "log",
            net_only=True,
            env={"OTEL_TRACES_EXPORTER": "none"},
        )
        try:
            self._wait(process)
            yield self
        finally:
            process.terminate()
            process.wait(30)

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and process.poll() is None:
            if f":{self.port:04X} " in self._listening():
                return
            time.sleep(0.05)
        raise AssertionError(f"docker-registry did not start: {(self.root / 'log').read_text()}")

    def _listening(self) -> str:
        tables = [Path(f"/proc/{self.box.holder}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        return "".join(line for table in tables for line in table.splitlines(keepends=True) if " 0A " in line)

    def push(self, source: str, name: str, *options: str) -> str:
        """`skopeo copy SOURCE` to `name` (repository:tag) here; returns the full reference."""
        credentials = ["--dest-creds", f"{USER}:{PASSWORD}"] if self.private else []
        self.box.run(
            *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *credentials, *options),
            *(source, f"docker://{self.address}/{name}"),
            net_only=True,
            timeout=300,
        )
        return f"{self.address}/{name}"

    def digest(self, name: str) -> str:
        """Digest of the manifest or index behind `name`, by the registry's word."""
        credentials = ["--creds", f"{USER}:{PASSWORD}"] if self.private else []
        raw = self.box.run(
            *("skopeo", "inspect", "--raw", "--tls-verify=false", *credentials, f"docker://{self.address}/{name}"),
            net_only=True,
        )
        from .images import digest

        return digest(os.fsencode(raw))
