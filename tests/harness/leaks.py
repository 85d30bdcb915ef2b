"""What a daemon left behind: looked for after every run, and a failure when found."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .box import Box
from .engine import Engine

KEPT = {".lock", ".bpf"}  # of the exec root: the daemon's lock, and compiled seccomp filters, which are a cache
SETTLE = 10  # s: kernel and shims finish their clean-up after the answer


def settle(look: Callable[[], list[str]]) -> list[str]:
    """What `look` still finds after the time that clean-up may take."""
    until = time.monotonic() + SETTLE
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


class Witness:
    """Reads the engine's events and remembers the id of every container that ever was."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopped = threading.Event()
        self.containers: set[str] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        since = int(time.time())
        while not self._stopped.is_set():
            with (
                contextlib.suppress(OSError, ValueError, AttributeError),
                self._engine.api.stream("GET", f"/events?since={since}", timeout=3600) as answer,
            ):
                for line in answer:
                    event = json.loads(line)
                    if event.get("Type") == "container":
                        self.containers.add(event["Actor"]["ID"])
            self._stopped.wait(0.2)

    def stop(self) -> None:
        self._stopped.set()


def cgroups_of(containers: Iterable[str]) -> list[str]:
    """Cgroup directories that carry one of these ids in their name, in every hierarchy."""
    wanted = set(containers)
    root = Path("/sys/fs/cgroup")
    hierarchies = [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]
    found = set()
    for hierarchy in hierarchies:
        for parent in ("docker", "wherry", ""):
            with contextlib.suppress(OSError):
                found |= {str(path) for path in (hierarchy / parent).iterdir() if path.name in wanted}
    return sorted(found)


class Before:
    """The state of a box and of the machine before the daemon started."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._mounts, self._links, self._rules = box.mounts(), box.links(), box.rules()
        self._commands = set(map(_unnumbered, box.processes().values()))  # of another daemon in the same box
        self._outside = host_state()

    def leaks(self, engine: Engine, containers: Iterable[str]) -> list[str]:
        """Everything that was not there before. The daemon must have been stopped, all containers removed."""
        return settle(lambda: self._look(engine, containers))

    def _look(self, engine: Engine, containers: Iterable[str]) -> list[str]:
        found = [
            f"process {pid}: {name}"
            for pid, name in self._box.processes().items()
            if _unnumbered(name) not in self._commands
        ]
        found += [f"cgroup {path}" for path in cgroups_of(containers)]
        found += [f"mount outside the box: {mount}" for mount in host_state() if mount not in self._outside]
        if engine.is_dockerd:  # it keeps its bridge, its rules and its network namespace directory, by design
            return found
        found += [f"mount {mount}" for mount in self._box.mounts() if mount not in self._mounts]
        found += [f"interface {link}" for link in sorted(self._box.links() - self._links)]
        found += [f"nft {table}" for table in self._box.rules() if table not in self._rules]
        if engine.exec_root.exists():
            files = (path for path in engine.exec_root.rglob("*") if not path.is_dir())
            found += [f"file {path}" for path in files if path.suffix not in KEPT]
        found += [f"file {path}" for path in (engine.socket, engine.pidfile) if path.exists()]
        for folder in ("ingest", "rw", "containers"):
            paths = (engine.data_root / folder).glob("*")
            found += [f"file {path}" for path in paths if not path.name.startswith("partial-")]  # kept for a day
        return found


def _unnumbered(command: str) -> str:
    """A daemon that was restarted has a zygote with the same words and other numbers (a descriptor, a process)."""
    return command.rstrip(" 0123456789")


def host_state() -> list[str]:
    """Mounts of the machine that look like ours: other daemons may come and go while a test runs."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split()[4] for line in lines if "/tmp/wherry-" in line.split()[4])
