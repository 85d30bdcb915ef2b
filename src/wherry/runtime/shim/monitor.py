"""The shim: the one process of ours that stands by a container from its creation to its end.

    <exec root>/shims/<id>/          made by the daemon; the OCI bundle
        config.json, process.json    runtime spec, and its process for execs, made complete here
        rootfs/                      mounted in the shim's own mount namespace only
        state/                       the OCI runtime's --root
        shim.sock                    where a later daemon finds the shim
        init.json                    the init process, for whoever must clean up after a killed shim
        exit.json                    written and renamed into place once init has ended
        runtime.log, shim.log        errors of the runtime, of the shim

A short-lived child, `creation`, mounts the root file system and has the runtime create the container. The shim itself
owns its stdio, writes its log, starts and reaps execs, and hands output to attached clients. All of it lives in the
shim's own mount namespace and fds: when shim and container have ended nothing is left in the host but the directory
above. Until the container is started the shim ends with the daemon that asked for it; afterwards daemons come and go.
SIGTERM, SIGINT and SIGHUP are ignored: who wants a container to stop says so to its init. Stdlib, `kernel` and `logs`
only; blocking, single-threaded.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from wherry.errors import Failed, InvalidParameter, WherryError
from wherry.kernel import cgroup, process
from wherry.kernel.mount import umount
from wherry.runtime import oci
from wherry.runtime.shim import creation, frames
from wherry.runtime.shim.bundle import Bundle, enter_namespace
from wherry.runtime.shim.console import set_size
from wherry.runtime.shim.execs import Exec
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.loop import IN, Loop
from wherry.runtime.shim.peers import Control, Greeting
from wherry.runtime.shim.requests import Created, describe
from wherry.runtime.shim.streams import STDERR, STDOUT, Session

_BACKLOG = 64  # connections waiting to be accepted


class Shim:
    """One container from `create` to its end."""

    drain_limit = 2.0  # s; how long output may be held open by others after its process has ended
    retry_delay = 1.0  # s, between attempts to write down how it ended

    def __init__(self, bundle: Bundle, created: Created, fds: list[int]) -> None:
        """`fds`: our ends of its stdio, in the order of `created.stdio`."""
        self.bundle = bundle
        self.loop = Loop()
        self.controls: list[Control] = []
        self.execs: dict[str, Exec] = {}
        self._finishing: list[Session] = []  # of ended execs, whose clients have not got everything yet
        self.runtime = created.runtime
        self.identity = created.identity
        self.groups = created.groups
        self.started = False
        self.left = False  # everything is done but for what clients have not taken yet
        self._starting = False
        self._shared_pids = created.shared_pids
        self._status: int | None = None  # wait status of init
        self._ended_at = 0  # ns since the epoch
        self._pidfd = os.pidfd_open(created.identity.pid)
        self._master = os.dup(fds[0]) if created.tty else -1  # of the container's terminal; the session has its own
        self._log_mark = 0  # where errors of the container's own exec begin in the runtime's log
        self.session = Session(
            self.loop,
            tty=created.tty,
            log=created.log.open(),
            close_stdin=created.stdin_once,
            on_log_error=lambda exc: note(f"log of the container: {exc}"),
        )
        self.session.use(
            stdin=next((fd for fd, number in zip(fds, created.stdio, strict=True) if number == 0), None),
            outputs={fd: number for fd, number in zip(fds, created.stdio, strict=True) if number != 0},
        )
        self.loop.on_exit(created.identity.pid, self._init_exited)

    def open_root(self) -> int:
        """The container's root as its processes see it."""
        return creation.open_root(self.identity)

    # Service

    def serve(self, control: socket.socket) -> None:
        """Answer and pump until the container has ended and everybody has what is theirs."""
        directory = os.open(self.bundle.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"/proc/self/fd/{directory}/shim.sock")  # a socket's path ends at 108 bytes
        os.close(directory)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), IN, lambda _: self._accept(listener))
        self.welcome(control)
        self.session.begin()
        while not (self.left and self._everybody_has_left()):
            self.loop.run_once()

    def welcome(self, sock: socket.socket, early: bytes = b"") -> None:
        """A daemon's control connection: it gets to know where things stand, then answers and events."""
        control = Control(self, sock)
        self.controls.append(control)
        control.tell(
            {
                "event": "hello",
                "shim": os.getpid(),
                "pid": self.identity.pid,
                "start": self.identity.start,
                "started": self.started,
                "paused": cgroup.is_frozen(self.groups),
                "groups": self.groups,
                "tty": self.session.tty,
            }
        )
        if early:
            control.on_data(early)

    def lost(self, control: Control) -> None:
        """A daemon is gone. A container that was not started yet goes with it."""
        self.controls.remove(control)
        if not self.controls and not self.started and not self._starting:
            self.destroy()

    def tell(self, event: Document) -> None:
        for control in tuple(self.controls):
            control.tell(event)

    def start(self, done: Callable[[WherryError | None], None]) -> None:
        """Let init go."""

        def finished(status: int) -> None:
            self._starting = False
            if status:
                words = oci.reworded(oci.last_error(self.runtime.log)) or f"exit status {process.exit_code(status)}"
                done(Failed(oci.start_failed(self.runtime.spec.kind, words)))
            else:
                self.started = True
                done(None)
            if self._status is not None:
                self._wind_up()

        if self.started or self._starting:
            done(InvalidParameter("container is already started"))
            return
        self._starting = True
        self._log_mark = self.log_size()
        self.run(self.runtime.start(), finished)

    def run(self, args: list[str], done: Callable[[int], None]) -> None:
        """Execute the runtime and call back with its wait status."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.loop.on_exit(process.spawn(args, stdio=(null, null, null), env=oci.ENVIRONMENT), done)
        finally:
            os.close(null)

    def update(self, resources: Document, done: Callable[[WherryError | None], None]) -> None:
        def finished(status: int) -> None:
            words = oci.reworded(oci.last_error(self.runtime.log, mark)) or "the runtime refused"
            done(Failed(f"cannot update the container's resources: {words}") if status else None)

        mark = self.log_size()
        self.run(self.runtime.update(resources=self.bundle.write("resources.json", resources)), finished)

    def freeze(self, *, frozen: bool) -> None:
        cgroup.freeze(self.groups, frozen=frozen)

    def kill(self, number: int) -> None:
        """Signal init; raises ProcessLookupError when it has ended."""
        if self._pidfd < 0 or self._status is not None:
            raise ProcessLookupError("the container's init process has ended")
        signal.pidfd_send_signal(self._pidfd, number)

    def kill_all(self, number: int) -> None:
        """Signal every process of the container."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def processes(self) -> list[int]:
        """Pids of all the container's processes."""
        return cgroup.processes(self.groups)

    def resize(self, height: int, width: int) -> None:
        if self._master >= 0:
            set_size(self._master, height, width)

    def find_exec(self, exec_id: object) -> Exec:
        """A running exec; raises ProcessLookupError."""
        found = self.execs.get(str(exec_id))
        if found is None:
            raise ProcessLookupError("the exec's process has ended")
        return found

    def keep_until_flushed(self, session: Session) -> None:
        """An exec has ended: the shim stays until its clients have got everything."""
        self._finishing = [each for each in (*self._finishing, session) if each.clients]

    def destroy(self) -> None:
        """Kill everything, frozen or not; the rest follows from init's end."""
        with contextlib.suppress(ProcessLookupError):
            self.kill(signal.SIGKILL)
        cgroup.kill(self.groups)
        if cgroup.is_frozen(self.groups):
            self.freeze(frozen=False)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # the peer was quicker to leave
            return
        Greeting(self, sock)

    # The end

    def _init_exited(self, status: int) -> None:
        self._status, self._ended_at = status, time.time_ns()
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._starting:  # else its answer comes first
            self._wind_up()

    def _wind_up(self) -> None:
        if self._shared_pids:
            cgroup.kill(self.groups)  # nobody else does when init was not the first process of a namespace
        self.session.drain(self._record, self.drain_limit)

    def _record(self) -> None:
        """All output is there: write down how it ended, and say so."""
        status = self._status or 0
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        error = oci.reworded(oci.last_error(self.runtime.log, self._log_mark)) if status else ""
        if error and self.started:  # the exec of the container's own program failed: Docker shows that on stderr
            self.session.emit(STDOUT if self.session.tty else STDERR, error.encode("utf-8", "replace") + b"\n")
        self.session.end_output()
        end: Document = {
            "code": process.exit_code(status),
            "at": self._ended_at,
            "oom": cgroup.oom_kills(self.groups) > 0,
            "error": error,
        }
        self._announce(end)

    def _announce(self, end: Document) -> None:
        """Write the end down and tell it. While it cannot be written and no daemon listens, try again and again: a
        daemon that comes later shall learn of it."""
        if self.started and not self._written(end):
            self.loop.call_later(self.retry_delay, lambda: self._announce(end))
            return
        for each in tuple(self.execs.values()):
            each.end_now()
        self.tell({"event": "exit", **end})
        self.session.finish()
        self.loop.call_soon(self._leave)

    def _written(self, end: Document) -> bool:
        """True as well when nobody will look for it there: somebody listens, or the directory was deleted."""
        try:
            self.bundle.write("exit.json", end, durable=True)
        except FileNotFoundError as exc:
            note(f"the container's exit is not written down, its directory is gone: {exc}")
        except OSError as exc:
            note(f"the container's exit cannot be written down: {exc}")
            return bool(self.controls)
        return True

    def _leave(self) -> None:
        """Tidy up behind the announcement."""
        with contextlib.suppress(OSError):
            umount(self.bundle.rootfs)
        for directory in cgroup.remove(self.groups):
            note(f"cgroup {directory} is busy and stays")
        if self.runtime.leaves_traces:
            with contextlib.suppress(ChildProcessError):
                self.runtime.run(self.runtime.delete())
        for control in tuple(self.controls):
            control.finish()
        self.left = True

    def _everybody_has_left(self) -> bool:
        waiting = any(each.clients for each in (self.session, *self._finishing))
        return not (waiting or self.execs or self.controls)

    def log_size(self) -> int:
        try:
            return os.stat(self.runtime.log).st_size
        except FileNotFoundError:
            return 0


def note(text: str) -> None:
    """A line in shim.log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)


def main(directory: str, fds: list[int], *, shared: bool) -> None:
    """The life of a shim, in a fresh fork of the zygote. `fds`: control socket, and perhaps a network namespace."""
    process.set_name("wherry-shim")
    os.setsid()
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process.close_fds(fds)
    for fd in fds:
        os.set_inheritable(fd, False)  # they came over a socket: Python had no say
    _redirect_stdio(directory)
    gc.enable()
    with contextlib.suppress(OSError):
        process.set_oom_score(-999)  # a shim dies last; needs CAP_SYS_RESOURCE
    control = socket.socket(fileno=fds[0])
    control.sendall(frames.encode({"event": "forked", "shim": os.getpid()}))
    bundle = Bundle(directory=directory)
    try:
        process.become_subreaper()
        enter_namespace(bundle, shared=shared)
        created, ends = creation.in_child(bundle, control, fds[1] if len(fds) > 1 else None)
        for fd in fds[1:]:
            os.close(fd)  # the container is in it
        shim = Shim(bundle, created, ends)
    except WherryError as exc:
        control.sendall(frames.encode({"error": describe(exc)}))
        return
    shim.serve(control)
    os._exit(0)


def _redirect_stdio(directory: str) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(os.path.join(directory, "shim.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
