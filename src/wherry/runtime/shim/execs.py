"""Execs: processes that a shim starts beside the container's init. Stdlib only."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from wherry.errors import Failed, InvalidParameter, WherryError
from wherry.kernel import process
from wherry.kernel.process import Identity
from wherry.runtime import oci
from wherry.runtime.shim.bundle import exec_process
from wherry.runtime.shim.console import set_size
from wherry.runtime.shim.creation import read_pid
from wherry.runtime.shim.executable import examine
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.requests import ExecRequest
from wherry.runtime.shim.stdio import Stdio
from wherry.runtime.shim.streams import Session

if TYPE_CHECKING:
    from wherry.runtime.shim.monitor import Shim


class Exec:
    """One exec from its start to its end."""

    def __init__(self, shim: "Shim", request: ExecRequest, *, output: bool) -> None:
        """`output` False: nobody will ever look at it."""
        self.id = request.id
        self.session = Session(
            shim.loop,
            tty=request.tty,
            close_stdin=True,
            grace=None,
            on_abandoned=self.kill_all if request.tied else None,
        )
        self._shim = shim
        self._request = request
        self._output = output
        self._identity: Identity | None = None
        self._status: int | None = None
        self._master = -1
        self._announced = False

    def start(self, done: Callable[[Document | WherryError], None]) -> None:
        """Run it; `done` gets its pid, or why not. Nothing of its output is read before `done` has returned."""
        shim, request = self._shim, self._request
        if request.id in shim.execs:
            raise InvalidParameter(f"exec {request.id} exists")
        self._write_process()
        shim.execs[self.id] = self
        stdio = Stdio(
            shim.bundle, f"exec-{self.id[:12]}.sock", tty=request.tty, stdin=request.stdin, output=self._output
        )
        mark = shim.log_size()

        def finished(status: int) -> None:
            try:
                with stdio:
                    if status:
                        raise self._error(oci.last_error(shim.runtime.log, mark), status)
                    self._take(stdio)
            except (WherryError, OSError, ValueError) as exc:
                if self._identity is not None:
                    process.send_signal(self._identity, signal.SIGKILL)
                shim.execs.pop(self.id, None)
                self.session.finish()
                done(exc if isinstance(exc, WherryError) else Failed(oci.exec_failed(str(exc))))
            else:
                assert self._identity is not None
                done({"pid": self._identity.pid, "start": self._identity.start})
                self.session.begin()
            finally:
                self._remove_files()
                shim.loop.adopted()

        args = shim.runtime.exec(process=self._path("json"), pid_file=self._path("pid"), console=stdio.console_path)
        shim.loop.expect()
        try:
            shim.loop.on_exit(process.spawn(args, stdio=stdio.theirs, env=oci.ENVIRONMENT), finished)
        except OSError:
            stdio.close()
            shim.loop.adopted()
            shim.execs.pop(self.id)
            raise

    def kill(self, number: int) -> None:
        if self._identity is None or self._status is not None or not process.send_signal(self._identity, number):
            raise ProcessLookupError("the exec's process has ended")

    def kill_all(self) -> None:
        """Kill its process and all that has come of it; nothing happens once the process has ended."""
        if self._identity is None or self._status is not None:
            return
        leader, killed = self._identity.pid, set[int]()
        while members := [pid for pid in process.family(leader, self._shim.processes()) if pid not in killed]:
            for pid in members:  # the leader last: until then descent from it shows who belongs to it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(members)

    def resize(self, height: int, width: int) -> None:
        if self._master >= 0:
            set_size(self._master, height, width)

    def end_now(self) -> None:
        """The container has ended, and so has this: no waiting for output."""
        if not self._announced:
            self._announce()

    def _take(self, stdio: Stdio) -> None:
        pid = read_pid(self._path("pid"))
        self._identity = Identity(pid, process.start_time(pid) or 0)
        stdio.accept(self._request.console_size)
        stdin, outputs = stdio.take()
        if self._request.tty:
            self._master = os.dup(next(iter(outputs)))  # the session has its own
        self.session.use(stdin=stdin, outputs=outputs)
        self._shim.loop.on_exit(pid, self._exited)

    def _exited(self, status: int) -> None:
        self._status = status
        self.session.drain(self._announce, self._shim.drain_limit)

    def _announce(self) -> None:
        if self._announced:
            return
        self._announced = True
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        self.session.end_output()
        status = self._status if self._status is not None else signal.SIGKILL
        self._shim.tell({"event": "exec-exit", "id": self.id, "code": process.exit_code(status)})
        self.session.finish()
        self._shim.execs.pop(self.id, None)
        self._shim.keep_until_flushed(self.session)

    def _write_process(self) -> None:
        shim, request = self._shim, self._request
        base = shim.bundle.read_process()
        root = shim.open_root()
        try:
            target = exec_process(
                base,
                root,
                user=request.user,
                group_add=request.group_add,
                capabilities=None if request.capabilities is None else list(request.capabilities),
                args=list(request.args),
                env=list(request.env),
                cwd=request.cwd or base.get("cwd") or "/",
                terminal=request.tty,
            )
            if request.tty and request.console_size is not None:  # set by the runtime: after it, it would be too late
                height, width = request.console_size
                target["consoleSize"] = {"height": height, "width": width}
            problem = examine(root, target)
        finally:
            os.close(root)
        if problem is not None:
            raise InvalidParameter(oci.exec_failed(str(problem)))
        shim.bundle.write(f"exec-{self.id[:12]}.json", cast(Document, target))

    def _error(self, message: str, status: int) -> WherryError:
        words = oci.reworded(message) or f"exit status {process.exit_code(status)}"
        return (InvalidParameter if oci.is_exec_failure(words) else Failed)(oci.exec_failed(words))

    def _path(self, suffix: str) -> str:
        return self._shim.bundle.path(f"exec-{self.id[:12]}.{suffix}")

    def _remove_files(self) -> None:
        for suffix in ("json", "pid"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(suffix))
