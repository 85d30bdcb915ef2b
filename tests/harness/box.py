"""A box: network, mount and PID namespaces of its own, in which a daemon under test and everything it makes lives.

The box is held by its first process (`holder.py`), whose standard input is a pipe from here: when the test run ends,
however it ends, the pipe closes, the holder exits and the kernel takes down every process, mount and interface of the
box.
Processes are named here by their PID *inside* the box; `proc(pid)` is where the outside sees their /proc entry.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HOLDER = Path(__file__).with_name("holder.py")


def _start_time(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[19]


class Box:
    """Made by entering the context; gone, with all that is in it, on leaving."""

    def __enter__(self) -> Self:
        self._unshare = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("--propagation", "slave", sys.executable, "-I", "-S", str(HOLDER)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != b"ready\n":
            raise RuntimeError("cannot make namespaces: see the message above")
        outer = self._unshare.pid
        self.holder = int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._unshare.stdin is not None
        assert self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.stdout.close()
        self._unshare.wait()

    # -- running things inside -----------------------------------------------------------------------------------------

    def command(self, argv: Sequence[str], *, net_only: bool = False) -> list[str]:
        """The command line that runs `argv` in the box; with `net_only` only its network is the box's."""
        spaces = ["-n"] if net_only else ["-n", "-m", "-p"]
        return ["nsenter", "-t", str(self.holder), *spaces, "--", *argv]

    def run(
        self, *argv: str, net_only: bool = False, check: bool = True, input: str | None = None, timeout: float = 60
    ) -> str:
        """Standard output of a command in the box; standard error is in the exception when it fails."""
        done = subprocess.run(
            self.command(argv, net_only=net_only),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def spawn(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, net_only: bool = False
    ) -> "subprocess.Popen[bytes]":
        """Start a long-running program in the box, its output appended to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(argv, net_only=net_only),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    # -- looking inside ------------------------------------------------------------------------------------------------

    def path(self, path: str | Path) -> Path:
        """A path of the box's mount namespace, as the outside reaches it."""
        return Path(f"/proc/{self.holder}/root") / str(path).lstrip("/")

    def proc(self, pid: int) -> Path:
        return self.path(f"/proc/{pid}")

    def processes(self) -> dict[int, str]:
        """PID and command line of every process in the box but the holder; zombies are counted."""
        found = {}
        for entry in self.path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == "1":
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                name = (entry / "comm").read_text().strip()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = b" ".join(words).decode(errors="replace").strip() or f"[{name}] {state}"
        return found

    def alive(self, pid: int) -> bool:
        try:
            return (self.proc(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
        except (FileNotFoundError, ProcessLookupError):
            return False

    def host_pid(self, pid: int) -> int | None:
        """The same process's PID outside, whichever PID namespace below the box it is in; None when it is gone."""
        try:
            started = _start_time(self.proc(pid))
        except (FileNotFoundError, ProcessLookupError):
            return None
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                status = (entry / "status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if str(pid) in numbers[2:3] and _start_time(entry) == started:
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                continue
        return None

    def kill(self, pid: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a process of the box; no error when it is gone."""
        outside = self.host_pid(pid)
        if outside is not None:
            os.kill(outside, signum)

    def mounts(self) -> list[str]:
        """Mount points of the box, with their type."""
        lines = Path(f"/proc/{self.holder}/mountinfo").read_text().splitlines()
        return sorted(f"{line.split()[4]} {line.partition(' - ')[2].split()[0]}" for line in lines)

    def links(self) -> set[str]:
        """Names of the network interfaces in the box."""
        lines = Path(f"/proc/{self.holder}/net/dev").read_text().splitlines()[2:]
        return {line.partition(":")[0].strip() for line in lines}

    def rules(self) -> list[str]:
        """nft tables in the box."""
        return sorted(self.run("nft", "list", "tables", net_only=True).splitlines())
