"""What is left of a container whose shim was killed, and how it is taken away. Blocking."""

import contextlib
import json
import logging
import os
import signal
import time
from pathlib import Path

from wherry.kernel import cgroup, process
from wherry.kernel.process import Identity

log = logging.getLogger(__name__)

_TRIES = 200
_PAUSE = 0.01  # s


def clean_up(directory: Path) -> None:
    """Kill the container of a run without shim, and remove its cgroups. Idempotent; the directory itself stays."""
    for each in _processes(directory):
        process.send_signal(each, signal.SIGKILL)
    groups = _groups(directory)
    cgroup.kill(groups)
    for each in _processes(directory):
        _await_end(each)
    for left in cgroup.remove(groups):
        log.warning("cgroup %s is busy and stays", left)


def _processes(directory: Path) -> list[Identity]:
    """The init process, and runtimes that were at work on this bundle when their shim was killed."""
    found = []
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        init = json.loads((directory / "init.json").read_bytes())
        found.append(Identity(int(init["pid"]), int(init["start"])))
    wanted = os.fsencode(directory / "state")  # the runtime's --root
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if wanted in command.split(b"\0") and (start := process.start_time(int(name))) is not None:
            found.append(Identity(int(name), start))
    return [each for each in found if process.is_alive(each)]


def _groups(directory: Path) -> dict[str, str]:
    """As planned in the spec: the runtime may have been killed before `init.json` was written."""
    try:
        spec = json.loads((directory / "config.json").read_bytes())
        path = spec["linux"]["cgroupsPath"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return cgroup.planned_groups(path) if isinstance(path, str) and path.strip("/") else {}


def _await_end(who: Identity) -> None:
    for _ in range(_TRIES):
        if not process.is_alive(who):
            return
        time.sleep(_PAUSE)
    log.warning("process %d does not end", who.pid)
