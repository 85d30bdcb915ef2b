"""OCI runtimes as programs: their command lines, and their errors in Docker's words. Stdlib only: the shim uses it."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.kernel import process

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # of the runtimes

# Runtimes that keep nothing outside their state directory and the container's cgroups: we tidy up after these
# ourselves, and save the execution of `delete`.
_TIDY = ("crun", "runc")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """One runtime as the daemon knows it."""

    path: str  # absolute
    args: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`crun`, `runc`, or another program's name."""
        return os.path.basename(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The command lines for one container. All state is in `root`, errors go to the file `log`."""

    spec: RuntimeSpec
    container_id: str
    root: str
    log: str

    @property
    def leaves_traces(self) -> bool:
        """`delete` has to be called; otherwise removing `root` and the cgroups is enough."""
        return self.spec.kind not in _TIDY

    @property
    def log_format(self) -> str:
        """crun uses it for what its init writes to the container's stderr, too: that should be readable."""
        return "text" if self.spec.kind == "crun" else "json"

    def create(self, *, bundle: str, pid_file: str, console: str | None) -> list[str]:
        return self._command("create", "--bundle", bundle, "--pid-file", pid_file, *_console(console))

    def start(self) -> list[str]:
        return self._command("start")

    def exec(self, *, process: str, pid_file: str, console: str | None) -> list[str]:
        """Run the OCI process document in file `process`; the program ends when that process runs."""
        return self._command("exec", "--detach", "--process", process, "--pid-file", pid_file, *_console(console))

    def update(self, *, resources: str) -> list[str]:
        return self._command("update", "--resources", resources)

    def pause(self) -> list[str]:
        return self._command("pause")

    def resume(self) -> list[str]:
        return self._command("resume")

    def delete(self) -> list[str]:
        return self._command("delete", "--force")

    def run(self, args: list[str], *, stdio: Sequence[int] = ()) -> int:
        """Execute to the end, without stdio if none is given; returns the wait status."""
        with open("/dev/null", "r+b") as null:
            pid = process.spawn(args, stdio=stdio or [null.fileno()] * 3, env=ENVIRONMENT)
        return os.waitpid(pid, 0)[1]

    def _command(self, verb: str, *options: str) -> list[str]:
        general = ["--root", self.root, "--log", self.log, "--log-format", self.log_format]
        return [self.spec.path, *self.spec.args, *general, verb, *options, self.container_id]


def _console(path: str | None) -> Sequence[str]:
    return () if path is None else ("--console-socket", path)


def last_error(log: str, since: int = 0) -> str:
    """The message of the last error in a runtime's log file, JSON or text, after offset `since`; `""` without one."""
    try:
        with open(log, "rb") as file:
            file.seek(since)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            return _TEXT_TIME.sub("", line.decode("utf-8", "replace").strip(), count=1)
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", "")).strip()
    return ""


_TEXT_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z?: ")  # before each line of crun's text log
_REPEATED = re.compile(r"\A(?:(?:runc create|exec) failed: )?(?:unable to start container process: )?")

# crun's wording -> runc's, which Docker's clients look for
_REWORDED = (
    (re.compile(r"executable file `(.*?)` not found in \$PATH(: No such file or directory)?"),
     r'exec: "\1": executable file not found in $PATH'),
    (re.compile(r"open executable: (.*)"), r"exec: \1"),
    (re.compile(r"exec container process `(.*?)`:"), r"exec \1:"),
    (re.compile(r"^mount `(.*)` to `/?(.*)`: Not a directory"),
     r'error during container init: error mounting "\1" to rootfs at "/\2": mount \1:/\2: not a directory'),
    (re.compile(r"Not a directory"), "not a directory"),
    (re.compile(r"No such file or directory"), "no such file or directory"),
    (re.compile(r"Permission denied"), "permission denied"),
    (re.compile(r"Exec format error"), "exec format error"),
    (re.compile(r"Operation not permitted"), "operation not permitted"),
    (re.compile(r"Invalid argument"), "invalid argument"),
)  # fmt: skip


def reworded(message: str) -> str:
    """A runtime's message with the words that Docker's clients match on, without those that we put before it."""
    message = _REPEATED.sub("", message, count=1)
    for pattern, replacement in _REWORDED:
        message = pattern.sub(replacement, message)
    return message


_EXEC_FAILURE = re.compile(
    "^exec: |executable file not found|no such file or directory|permission denied|exec format error"
)


def is_exec_failure(message: str) -> bool:
    """The program is what is wrong: Docker answers 400, and its CLI ends with 126 or 127."""
    return _EXEC_FAILURE.search(message) is not None


def create_failed(kind: str, cause: str) -> str:
    return (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        f"{kind} create failed: unable to start container process: {cause}: unknown{_hint(cause)}"
    )


def _hint(cause: str) -> str:
    """Docker's guess at why a mount failed."""
    if "error mounting" not in cause or not cause.endswith("not a directory"):
        return ""
    return (
        ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists "
        "and is the expected type"
    )


def start_failed(kind: str, cause: str) -> str:
    return f"failed to start container process: OCI runtime start failed: {kind}: {cause}: unknown"


def exec_failed(cause: str) -> str:
    return f"OCI runtime exec failed: exec failed: unable to start container process: {cause}: unknown"
