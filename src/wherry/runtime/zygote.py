"""The zygote: a small Python process that forks shims, so that none of them pays for starting an interpreter.

    python -I -S -c '…; main()' <fd> <pid>     fd: SOCK_SEQPACKET to the daemon; pid: the daemon's

Each message is a byte and a shim's directory, with its fds: the control socket, and the sandbox's network namespace if
there is one. The byte is `s` when mounts of the container are to reach the host, `-` when not; `c` asks for no shim but
for a change to the container that runs there (`shim.changes`), with the socket the request comes from.
The zygote answers nothing: a shim speaks for itself on its control socket, and one that could not be forked closes it.
It ends when the daemon's end of the socket is closed, or the daemon is gone. Shims outlive it. Stdlib only.
"""

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback

from wherry.kernel import cgroup, process
from wherry.logs.json_file import Encoder
from wherry.runtime.shim import changes, frames, monitor
from wherry.runtime.shim.loop import Loop
from wherry.runtime.shim.streams import Session

START = 30  # s it may take to come up, which is how long the daemon waits for it
_MESSAGE = 4096  # bytes
_FDS = 2

_SOFT_FILES = 1024  # what programs that close or select all descriptors are made for


def _lower_file_limit() -> None:
    """Containers begin with the usual soft limit, not with what the daemon raised its own to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = _SOFT_FILES if hard == resource.RLIM_INFINITY else min(_SOFT_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    """Serve until the daemon is gone."""
    signal.alarm(START)
    sock = socket.socket(fileno=int(sys.argv[1]))
    process.set_name("wherry-zygote")
    process.close_fds(keep=[sock.fileno()])
    daemon = os.pidfd_open(int(sys.argv[2]))
    if os.getppid() != int(sys.argv[2]):
        return  # it was killed before we began, and its number may be another's
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon's end is the zygote's, whatever a terminal sends
    os.chdir("/")
    _lower_file_limit()
    _rehearse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.collect()
    gc.disable()
    gc.freeze()  # what is there now is shared by all shims as long as nobody writes to it
    sock.send(b"ready")
    signal.alarm(0)
    events = select.poll()
    events.register(sock, select.POLLIN)
    events.register(daemon, select.POLLIN)
    while True:
        if any(fd == daemon for fd, _ in events.poll()):
            return  # it was killed; something it had begun may still hold its end of the socket
        message, fds, _, _ = socket.recv_fds(sock, _MESSAGE, _FDS)
        if not message:
            return
        try:
            _fork((sock.fileno(), daemon), os.fsdecode(message), fds)
        finally:
            for fd in fds:
                os.close(fd)


def _rehearse() -> None:
    """Run once what every shim runs: bytecode specializes, caches fill and ctypes sets itself up before the forks.

    All of that writes to memory, and what is written before a fork is shared.
    """
    for _ in range(16):  # CPython specializes a function after 8 calls
        frames.Decoder().feed(frames.encode({"seq": 1, "op": "start", "names": ["x"], "ok": {}}))
        with contextlib.suppress(OSError):
            process.start_time(os.getpid())
            cgroup.groups_of(os.getpid())
            cgroup.layout()
        encoder = Encoder("stdout", {})
        encoder.feed(b'a line\nand\t"more"\n', 1)
    loop = Loop()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair()
    session = Session(loop, tty=False)
    session.use(stdin=None, outputs={reader: 1})
    session.attach(theirs, streams=frozenset({1}), stdin=False)
    session.begin()
    for _ in range(16):
        os.write(writer, b"x")
        loop.run_once()
    os.close(writer)
    loop.run_once()
    session.finish()
    ours.close()
    loop.close()


def _fork(own: tuple[int, ...], order: str, fds: list[int]) -> None:
    try:
        pid = os.fork()
    except OSError:
        return  # the control socket closes: the daemon sees that
    if pid:
        return
    try:
        for fd in own:
            os.close(fd)
        if order[0] == "c":
            changes.main(order[1:], fds)
            sys.stderr.flush()
            os._exit(0)
        monitor.main(order[1:], fds, shared=order[0] == "s")
    except BaseException:
        traceback.print_exc()  # to shim.log
    finally:
        sys.stderr.flush()
        os._exit(1)
