"""Changing what a running container has mounted, and its device nodes: one change by a short-lived process.

A fresh fork of the zygote, so it begins in the daemon's mount namespace: there it makes a detached mount of what is
wanted, enters the container's mount namespace, and attaches it. Every path of the container is walked with its root as
root, and used by fd from then on. Knows nothing of the container's shim: it works with those of earlier versions.
Stdlib only.
"""

import errno
import os
import signal
import socket
import stat
import traceback
from collections.abc import Mapping
from typing import cast

from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, WherryError
from wherry.kernel import process
from wherry.kernel.files import IN_ROOT, closing, openat2
from wherry.kernel.mount import attach, new_tmpfs, umount
from wherry.kernel.process import Identity
from wherry.runtime.shim import frames
from wherry.runtime.shim.bundle import Bundle, enter_namespace, make_directory
from wherry.runtime.shim.frames import Document
from wherry.runtime.shim.parts import is_bind, open_part
from wherry.runtime.shim.requests import Part, describe

_SYSTEM = ("/proc", "/sys")  # what hides parts of these is mounted by the runtime, and stays


def main(directory: str, fds: list[int]) -> None:
    """`fds`: the socket with the request. Answers and returns."""
    process.set_name("wherry-change")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored in the zygote; here a child is waited for
    process.close_fds(fds)
    with socket.socket(fileno=fds[0]) as control:
        request = frames.receive(control)
        if request is None:
            return
        try:
            perform(Bundle(directory=directory), request)
            answer: Document = {"ok": {}}
        except WherryError as exc:
            answer = {"error": describe(exc)}
        except Exception as exc:
            traceback.print_exc()
            answer = {"error": describe(Failed(f"cannot change the container: {exc}"))}
        control.sendall(frames.encode(answer))


def perform(bundle: Bundle, request: Document) -> None:
    """Do what is asked; raises a WherryError, and then has changed nothing."""
    who = Identity(cast(int, request["pid"]), cast(int, request["start"]))
    path = cast(str, request["path"])
    match request["op"]:
        case "attach":
            with closing(_make_tree(bundle, request)) as tree:
                _attach(_enter(who), path, tree)
        case "detach":
            own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            _detach(_enter(who), path, own)
        case "make-node":
            _make_node(_enter(who), path, cast(Mapping[str, int], request["node"]))
        case "remove-node":
            _remove_node(_enter(who), path, cast(Mapping[str, int], request["node"]))
        case unknown:
            raise InvalidParameter(f"unknown change {unknown!r}")


def _make_tree(bundle: Bundle, request: Document) -> int:
    options = request.get("tmpfs")
    if options is not None:
        return new_tmpfs(cast(list[str], options))
    part = Part.read(cast(Document, request["part"]))
    if not is_bind(part):  # it must be mounted to be looked into: where nobody sees it
        enter_namespace(bundle, shared=False)
    user = bundle.read_process()["user"]
    scratch = bundle.path(f"change{os.getpid()}")
    try:
        return open_part(part, scratch, (user["uid"], user["gid"]))
    finally:
        if os.path.isdir(scratch):
            umount(scratch)
            os.rmdir(scratch)


def _enter(who: Identity) -> int:
    """Enter the container's mount namespace; returns its root."""
    pidfd = process.open_pidfd(who)
    if pidfd is None:
        raise Conflict("the container has ended")
    with closing(pidfd), closing(os.open(f"/proc/{who.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace:
        root = os.open(f"/proc/{who.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if not process.is_alive(who):
            raise Conflict("the container has ended")
        process.setns(namespace, process.CLONE_NEWNS)
    os.umask(0)
    return root


def _attach(root: int, path: str, tree: int) -> None:
    directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    try:
        target = openat2(root, path, os.O_PATH)
    except FileNotFoundError:
        target = _make_target(root, path, directory=directory)
    except OSError as exc:
        raise InvalidParameter(f"cannot mount at {path}: {(exc.strerror or '').lower()}") from exc
    with closing(target):
        if stat.S_ISDIR(os.fstat(target).st_mode) != directory:
            raise InvalidParameter(
                f"cannot mount at {path}: not a directory: Are you trying to mount a directory onto a file (or "
                "vice-versa)? Check if the specified host path exists and is the expected type"
            )
        attach(tree, target)


def _make_target(root: int, path: str, *, directory: bool) -> int:
    parent, name = os.path.split(path)
    try:
        if directory:
            make_directory(root, path)
            return openat2(root, path, os.O_PATH)
        make_directory(root, parent)
        with closing(openat2(root, parent, os.O_PATH | os.O_DIRECTORY)) as where:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=where))
        return openat2(root, path, os.O_PATH)
    except OSError as exc:
        why = (exc.strerror or "").lower()
        hint = ": make it before the container starts" if exc.errno == errno.EROFS else ""
        raise InvalidParameter(f"cannot mount at {path}: it does not exist and cannot be made: {why}{hint}") from exc


def _detach(root: int, path: str, own: int) -> None:
    """`own`: /proc/self/fd, opened where there was one."""
    with closing(_open(root, path)) as target:
        os.fchdir(own)  # entering the namespace has changed the directory
        resolved = os.readlink(str(target))
        if resolved.startswith(tuple(f"{each}/" for each in _SYSTEM)) and not path.startswith(_SYSTEM):
            raise Conflict(f"cannot unmount {path}: in the container it now leads to {resolved}")
        try:
            umount(str(target), follow=True)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            raise Conflict(f"cannot unmount {path}: nothing is mounted there in the container") from exc


def _make_node(root: int, path: str, node: Mapping[str, int]) -> None:
    parent, name = os.path.split(path)
    try:
        make_directory(root, parent)
        with closing(openat2(root, parent, os.O_PATH | os.O_DIRECTORY)) as where:
            os.mknod(name, node["mode"], os.makedev(node["major"], node["minor"]), dir_fd=where)
            try:
                os.chown(name, node["uid"], node["gid"], dir_fd=where, follow_symlinks=False)
            except BaseException:
                os.unlink(name, dir_fd=where)
                raise
    except FileExistsError:
        raise Conflict(f"cannot make device {path}: it exists in the container") from None
    except OSError as exc:
        raise Failed(f"cannot make device {path}: {(exc.strerror or '').lower()}") from exc


def _remove_node(root: int, path: str, node: Mapping[str, int]) -> None:
    """Only the very device; what the container has put in its place stays."""
    parent, name = os.path.split(path)
    try:
        with closing(openat2(root, parent, os.O_PATH | os.O_DIRECTORY)) as where:
            info = os.stat(name, dir_fd=where, follow_symlinks=False)
            if info.st_rdev == os.makedev(node["major"], node["minor"]) and not stat.S_ISREG(info.st_mode):
                os.unlink(name, dir_fd=where)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failed(f"cannot remove device {path}: {(exc.strerror or '').lower()}") from exc


def _open(root: int, path: str) -> int:
    try:
        return openat2(root, path, os.O_PATH, resolve=IN_ROOT)
    except FileNotFoundError:
        raise NotFound(f"cannot unmount {path}: it is not there in the container") from None
    except OSError as exc:
        raise Failed(f"cannot unmount {path}: {(exc.strerror or '').lower()}") from exc
