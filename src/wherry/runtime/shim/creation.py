"""Creating a container: the work of a short-lived child of the shim, which hands over what is worth keeping.

In a process of its own because of memory: executing Python writes to the pages of whatever it touches, and what a shim
has written to it holds as long as its container runs. The child mounts within the shim's mount namespace; what it
orphans (the container's init) becomes the shim's, which is a subreaper. Stdlib only.
"""

import os
import signal
import socket
import sys
import traceback
from typing import cast

from wherry.errors import Failed, InvalidParameter, WherryError
from wherry.kernel import cgroup, process
from wherry.kernel.process import Identity
from wherry.runtime import oci
from wherry.runtime.oci import Runtime
from wherry.runtime.shim import frames, parts
from wherry.runtime.shim.bundle import Bundle, Process, below, complete, mount_rootfs, take_shm
from wherry.runtime.shim.executable import examine
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.requests import Created, CreateRequest, describe, error_of
from wherry.runtime.shim.stdio import Stdio

_FDS = 3


def in_child(bundle: Bundle, control: socket.socket, netns: int | None) -> tuple[Created, list[int]]:
    """Read the request from `control` and create the container, up to a process that waits to be let go.

    Returns what there is and our ends of its stdio. Raises; then nothing of the container is left.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            _answer(bundle, control, netns, theirs)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    theirs.close()
    with ours:
        document, fds = _receive(ours)
    for fd in fds:
        os.set_inheritable(fd, False)
    if document is not None and "error" not in document:
        return Created.read(document), fds  # the child ends by itself and is reaped with all others
    os.waitpid(pid, 0)
    if document is None:
        raise Failed("failed to create task for container: its creation was killed")
    raise error_of(cast(Document, document["error"]))


def _receive(sock: socket.socket) -> tuple[Document | None, list[int]]:
    decoder = frames.Decoder()
    data, fds, _, _ = socket.recv_fds(sock, 64 << 10, _FDS)
    while data:
        decoder.feed(data)
        if (document := decoder.take()) is not None:
            return document, fds
        data = sock.recv(64 << 10)
    return None, fds


def _answer(bundle: Bundle, control: socket.socket, netns: int | None, parent: socket.socket) -> None:
    request = frames.receive(control)
    if request is None:  # the daemon has changed its mind
        return
    creation: Creation | None = None
    try:
        creation = Creation(bundle, CreateRequest.read(request))
        with creation.stdio as stdio:
            created = creation.create(netns)
            fds, numbers = stdio.ours()
            answer = frames.encode({**created.document(), "stdio": numbers})
            sent = socket.send_fds(parent, [answer], fds)
            if sent < len(answer):  # else the shim has all, and may have closed its end
                parent.sendall(answer[sent:])
    except Exception as exc:
        if creation is not None:
            creation.discard()
        if not isinstance(exc, WherryError):
            traceback.print_exc()
            exc = Failed(f"failed to create task for container: {exc}")
        parent.sendall(frames.encode({"error": describe(exc)}))


class Creation:
    """One attempt."""

    def __init__(self, bundle: Bundle, request: CreateRequest) -> None:
        self.stdio = Stdio(bundle, "console.sock", tty=request.tty, stdin=request.open_stdin)
        self._bundle = bundle
        self._request = request
        self._identity = Identity(0, 0)
        self._runtime = Runtime(
            spec=request.runtime,
            container_id=request.id,
            root=bundle.path("state"),
            log=bundle.path("runtime.log"),
        )

    def create(self, netns: int | None) -> Created:
        """Raises; `discard` is the undo."""
        request, bundle = self._request, self._bundle
        spec = request.spec
        mount_rootfs(bundle, request.rootfs)
        complete(spec, bundle, user=request.user, group_add=request.group_add, netns=netns)
        for number, part in enumerate(request.parts):
            parts.bring(bundle, number, part, (spec.process["user"]["uid"], spec.process["user"]["gid"]))
        if request.shm_of:
            take_shm(bundle, request.shm_of)
        bundle.write_text("config.json", spec.text())
        bundle.write("process.json", cast(Document, spec.process))
        self._run(spec.process)
        self._refuse_what_cannot_run(spec.process)
        groups = below(cgroup.groups_of(self._identity.pid), spec.cgroups_path)
        bundle.write("init.json", {"pid": self._identity.pid, "start": self._identity.start, "groups": groups})
        self.stdio.accept(request.console_size)
        return Created(
            runtime=self._runtime,
            identity=self._identity,
            groups=groups,
            shared_pids=not any(each.get("type") == "pid" and not each.get("path") for each in spec.namespaces),
            tty=request.tty,
            stdin_once=request.stdin_once,
            log=request.log,
        )

    def discard(self) -> None:
        """Undo `create` wherever it stopped: no process, no cgroup."""
        if self._identity.pid:
            process.send_signal(self._identity, signal.SIGKILL)
        if path := self._request.spec.cgroups_path:
            cgroup.remove(cgroup.planned_groups(path))
        if self._runtime.leaves_traces:
            self._runtime.run(self._runtime.delete())

    def _run(self, target: Process) -> None:
        pid_file = self._bundle.path("init.pid")
        args = self._runtime.create(bundle=self._bundle.directory, pid_file=pid_file, console=self.stdio.console_path)
        status = self._runtime.run(args, stdio=self.stdio.theirs)
        if status:
            raise self._error(target, status)
        pid = read_pid(pid_file)
        self._identity = Identity(pid, process.start_time(pid) or 0)

    def _error(self, target: Process, status: int) -> WherryError:
        message = oci.reworded(oci.last_error(self._runtime.log)) or f"exit status {process.exit_code(status)}"
        kind = self._runtime.spec.kind
        if not oci.is_exec_failure(message):
            return Failed(oci.create_failed(kind, message))
        root = os.open(self._bundle.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            problem = examine(root, target)
        finally:
            os.close(root)
        return InvalidParameter(oci.create_failed(kind, str(problem) if problem else message))

    def _refuse_what_cannot_run(self, target: Process) -> None:
        """What the kernel would refuse after the start, with a word that explains nothing, is refused here."""
        root = open_root(self._identity)
        try:
            problem = examine(root, target)
        finally:
            os.close(root)
        if problem is not None:
            raise InvalidParameter(oci.create_failed(self._runtime.spec.kind, str(problem)))


def open_root(who: Identity) -> int:
    """The root directory as the process sees it."""
    return os.open(f"/proc/{who.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def read_pid(path: str) -> int:
    with open(path) as file:
        return int(file.read())
