"""Git repositories made by git, served over HTTP on loopback by git's own backend or as plain files."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

BACKEND = "/usr/lib/git-core/git-http-backend"
WHEN = 1_700_000_000
_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "protocol.file.allow",
    "GIT_CONFIG_VALUE_0": "always",
    "GIT_CONFIG_KEY_1": "init.defaultBranch",
    "GIT_CONFIG_VALUE_1": "main",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "a"), ("EMAIL", "a@b"))
    },
}


def run_git(*args: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """What it printed."""
    env = {**_ENVIRONMENT, **(environment or {})}
    done = subprocess.run(["git", *args], cwd=cwd, env=env, capture_output=True, timeout=30, check=False)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode().strip()


@dataclass
class Repository:
    """A work tree, of which `<root>/<name>.git` is served."""

    root: Path
    name: str
    at: int = WHEN

    def __post_init__(self) -> None:
        self.bare = self.root / f"{self.name}.git"
        self.tree = self.root / f"work-{self.name}"
        self.bare.mkdir()
        self.tree.mkdir()
        self.git("init", "-q", "--bare", cwd=self.bare)
        self.git("init", "-q")
        self.git("remote", "add", "origin", str(self.bare))

    def git(self, *args: str, cwd: Path | None = None) -> str:
        when = {"GIT_AUTHOR_DATE": f"{self.at} +0000", "GIT_COMMITTER_DATE": f"{self.at} +0000"}
        done = subprocess.run(
            ["git", *args],
            cwd=cwd or self.tree,
            env={**_ENVIRONMENT, **when},
            capture_output=True,
            check=True,
            timeout=30,
        )
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str], *, branch: str = "main", push: bool = True) -> str:
        """The new commit's id."""
        if branch != "main":
            self.git("checkout", "-q", "-B", branch)
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a change")
        self.at += 100
        if push:
            self.push()
        return self.git("rev-parse", "HEAD")

    def push(self) -> None:
        self.git("push", "-q", "-f", "--all", "origin")
        self.git("push", "-q", "-f", "--tags", "origin")
        self.git("update-server-info", cwd=self.bare)


@dataclass
class Served:
    root: Path
    port: int
    log: list[str] = field(default_factory=list)
    before: Callable[[], None] | None = None  # run before each answer
    password: str = ""  # wanted as Authorization; "" = everybody may

    def url(self, repository: Repository) -> str:
        return f"http://127.0.0.1:{self.port}/{repository.name}.git"

    @property
    def fetches(self) -> int:
        return sum(line.startswith("POST") for line in self.log)


@contextmanager
def serve(root: Path, *, dumb: bool = False) -> Iterator[Served]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            served.log.append(f"{self.command} {self.path}")
            if served.before is not None:
                served.before()
            if served.password and self.headers.get("Authorization") != served.password:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="here"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif dumb:
                super().do_GET()
            else:
                self._run()

        def _run(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            environment = {
                **_ENVIRONMENT,
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REMOTE_ADDR": "127.0.0.1",
            }
            done = subprocess.run([BACKEND], input=body, env=environment, capture_output=True, timeout=30, check=False)
            head, _, answer = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Served(root, server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
