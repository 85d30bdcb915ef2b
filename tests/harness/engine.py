"""A daemon under test in a box, and the clients that drive it.

Which daemon: WHERRY_TEST_ENGINE=wherry (the default) or dockerd, Debian's, on which the tests themselves are proved.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .api import Api
from .box import Box
from .terminal import Terminal

REPOSITORY = Path(__file__).resolve().parents[2]
WHERRY = REPOSITORY / ".venv/bin/wherry"
TOOLS = [REPOSITORY / ".tools/usr/bin", REPOSITORY / ".tools/usr/sbin"]
os.environ["PATH"] = os.pathsep.join(
    [os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin", *(str(folder) for folder in TOOLS)]
)
MIRROR = "http://127.0.0.1:5000"  # the test registry's address inside a box
START_TIMEOUT = 60  # s; dockerd starts containerd first


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def text(self) -> str:
        """Standard output without the white space around it."""
        return self.out.strip()


class Cli:
    """A command line client bound to a daemon: the stock `docker`, or `wherry`."""

    def __init__(self, program: Path | str, host: str, config: Path) -> None:
        self.program = str(program)
        self.name = Path(program).name
        self._started: list[subprocess.Popen[bytes]] = []
        self.env = {"DOCKER_HOST": host, "DOCKER_CONFIG": str(config), "WHERRY_HOST": host, "DOCKER_CLI_HINTS": "false"}

    def __call__(
        self,
        *args: str,
        check: bool = True,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        """Run to the end. With `check`, an exit code other than 0 is a failure that shows the output."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [self.program, *args],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env={**os.environ, **self.env, **(env or {})},
            timeout=timeout,
            check=False,
        )
        result = Result(
            code=done.returncode, out=done.stdout.decode(errors="replace"), err=done.stderr.decode(errors="replace")
        )
        if check:
            shown = " ".join([self.name, *args])
            assert result.code == 0, f"{shown}: exit {result.code}\n{result.out}{result.err}"
        return result

    def json(self, *args: str) -> Any:
        return json.loads(self(*args).out)

    def start(self, *args: str, **kwargs: Any) -> "subprocess.Popen[bytes]":
        """Start and leave running; the caller waits."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([self.program, *args], env={**os.environ, **self.env}, **{**given, **kwargs})
        self._started.append(process)
        return process

    def end_started(self) -> None:
        """Kill what a test that failed has left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._started.clear()

    def terminal(self, *args: str, rows: int = 24, cols: int = 80) -> Terminal:
        return Terminal([self.program, *args], env={**self.env, "TERM": "xterm"}, rows=rows, cols=cols)


class Engine:
    """One daemon: its roots below `root`, its processes in `box`."""

    def __init__(
        self, box: Box, root: Path, *, kind: str, bip: str = "172.31.0.1/24", args: Sequence[str] = ()
    ) -> None:
        self.box, self.root, self.kind, self.bip = box, root, kind, bip
        self.args = list(args)
        self.socket = root / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.data_root, self.exec_root = root / "data", root / "run"
        self.pidfile, self.log = root / "daemon.pid", root / "daemon.log"
        self.api = Api(self.socket)
        config = root / "cli"
        config.mkdir(parents=True, exist_ok=True)
        self.docker = Cli("docker", self.host, config)
        self.wherry = Cli(WHERRY, self.host, config)

    @property
    def is_dockerd(self) -> bool:
        return self.kind == "dockerd"

    def argv(self) -> list[str]:
        program = ["dockerd"] if self.is_dockerd else [str(WHERRY), "daemon"]
        roots = ["--data-root", str(self.data_root), "--exec-root", str(self.exec_root), "--pidfile", str(self.pidfile)]
        return [*program, "-H", self.host, *roots, "--bip", self.bip, *self.args]

    # -- life ----------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the daemon and do not wait."""
        self._process = self.box.spawn(self.argv(), log=self.log)

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.launch()
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until:
            if self.answers():
                self.pid = int(self.pidfile.read_text())
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        self._process.kill()
        raise AssertionError(f"{self.kind} did not start; the end of its log:\n{self.log_tail()}")

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.api.request("GET", "/_ping", timeout=10).status == 200
        return False

    def stop(self, timeout: float = 60) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        self.box.kill(self.pid, signal.SIGTERM)
        return self._process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: a crash, also of a daemon that is only starting. Returns when it is gone; containers go on."""
        for pid, words in self.box.processes().items():
            if str(self.pidfile) in words:
                self.box.kill(pid, signal.SIGKILL)
        self._process.wait(30)

    def restart(self) -> None:
        self.stop()
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def open_files(self) -> int:
        """File descriptors the daemon holds."""
        return len(list((self.box.proc(self.pid) / "fd").iterdir()))

    # -- short-hands ---------------------------------------------------------------------------------------------------

    def inspect(self, name: str) -> Any:
        return self.api.get(f"/containers/{name}/json")

    def state(self, name: str) -> Any:
        return self.inspect(name)["State"]

    def wait_for(self, name: str, status: str, timeout: float = 20) -> None:
        """Until the container has this status: for what happens by itself (an exit, a restart policy)."""
        until = time.monotonic() + timeout
        while (found := self.state(name)["Status"]) != status:
            assert time.monotonic() < until, f"{name} is {found}, not {status}, after {timeout} s"
            time.sleep(0.05)

    def load(self, archive: bytes) -> None:
        self.docker("load", input=archive, timeout=120)

    def remove_all_containers(self) -> int:
        """Force every container and its anonymous volumes away; returns how many there were."""
        found = self.api.get("/containers/json?all=1")
        for container in found:
            answer = self.api.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")
            gone = answer.status == 204 or "No such container" in answer.message or "in progress" in answer.message
            assert gone, f"cannot remove {container['Names']}: {answer.status} {answer.body!r}"
        return len(found)


def short_root(prefix: str = "wherry") -> Path:
    """A new directory with a name short enough for UNIX sockets; the caller removes it with `remove_root`."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir="/tmp"))


def remove_root(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
