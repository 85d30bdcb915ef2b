"""What is known of a container only while this daemon runs: its shim, who waits for it, who is attached, its execs.

Lost with the daemon and made anew by `recover`; nothing here is ever written down.
"""

import asyncio
from dataclasses import dataclass, field

from wherry.containers.record import Container
from wherry.ids import ContainerID, ExecID
from wherry.runtime.shim_client import ExecHandle, Shim
from wherry.spec.engine import ExecConfig

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PendingAttach:
    """An attach session opened before its container was started.

    `start` connects it after the process exists and before it runs, so that no byte of output is missed. `streams` then
    holds the connection to the shim, or None when there will be none: the start failed or the container was removed.
    """

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.streams: asyncio.Future[Streams | None] = asyncio.get_running_loop().create_future()

    def give_up(self) -> None:
        """No start will come: end the session. Idempotent."""
        if not self.streams.done():
            self.streams.set_result(None)


@dataclass(slots=True, kw_only=True)
class Exec:
    """One `docker exec`. Kept until some time after its end, or until its container is removed."""

    id: ExecID
    container: ContainerID
    config: ExecConfig
    started: bool = False
    running: bool = False
    exit_code: int | None = None
    pid: int = 0
    handle: ExecHandle | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # set once it has started, or has failed to
    finished: float = 0.0  # monotonic s; 0 while it has not ended


@dataclass(frozen=True, slots=True)
class WaitResult:
    code: int
    error: str | None = None


class Live:
    """One per container, made on demand by `Deps.live_of`."""

    def __init__(self) -> None:
        self.shim: Shim | None = None
        self.pending: list[PendingAttach] = []
        self.execs: dict[ExecID, Exec] = {}
        self.exit_waiters: set[asyncio.Future[WaitResult]] = set()
        self.removal_waiters: set[asyncio.Future[WaitResult]] = set()
        self.ended = asyncio.Event()  # set while there is no process: log followers stop at the end of the log
        self.ended.set()
        self.restart: asyncio.Task[None] | None = None  # the restart policy's timer
        self.health: asyncio.Task[None] | None = None  # the monitor that runs its health check
        self.backoff = 0.0  # s, before the next automatic restart
        self.keep_after_exit = False  # `restart` of an auto-remove container: this one exit does not remove it

    def finish_exit(self, result: WaitResult) -> None:
        """Tell everybody who waits for the exit."""
        for waiter in self.exit_waiters:
            if not waiter.done():
                waiter.set_result(result)
        self.exit_waiters.clear()

    def finish_removal(self, result: WaitResult) -> None:
        """The container is gone: tell all who wait for anything."""
        self.finish_exit(result)
        for waiter in self.removal_waiters:
            if not waiter.done():
                waiter.set_result(result)
        self.removal_waiters.clear()
        self.give_up_pending()

    def give_up_pending(self) -> None:
        for session in self.pending:
            session.give_up()
        self.pending.clear()


@dataclass(slots=True)
class LiveTable:
    """The Live of every container."""

    _by_id: dict[ContainerID, Live] = field(default_factory=dict)

    def of(self, container: Container) -> Live:
        return self._by_id.setdefault(container.id, Live())

    def forget(self, container: Container) -> None:
        self._by_id.pop(container.id, None)

    def find_exec(self, exec_id: str) -> Exec | None:
        for live in self._by_id.values():
            if (found := live.execs.get(ExecID(exec_id))) is not None:
                return found
        return None
