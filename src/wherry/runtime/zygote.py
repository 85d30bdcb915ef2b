"""The zygote: a small Python process that forks shims, so that none of them pays for starting an interpreter.

    python -I -S -c '…; main()' <fd>     fd: SOCK_SEQPACKET to the daemon

Each message is a shim's name with its fds: the control socket, and the sandbox's network namespace if there is one.
The zygote answers nothing: a shim speaks for itself on its control socket, and one that could not be forked closes it.
It ends when the daemon's end of the socket is closed. Shims outlive it. Stdlib only.
"""

import gc
import os
import signal
import socket
import sys

from wherry.kernel import process
from wherry.runtime import shim

_MESSAGE = 4096  # bytes
_FDS = 2


def main() -> None:
    """Serve until the daemon is gone."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    process.set_name("wherry-zygote")
    process.close_fds(keep=[sock.fileno()])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon's end is the zygote's, whatever a terminal sends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    os.chdir("/")
    gc.collect()
    gc.disable()
    gc.freeze()  # what is there now is shared by all shims as long as nobody writes to it
    sock.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(sock, _MESSAGE, _FDS)
        if not message:
            return
        try:
            _fork(sock, message.decode(), fds)
        finally:
            for fd in fds:
                os.close(fd)


def _fork(sock: socket.socket, name: str, fds: list[int]) -> None:
    try:
        pid = os.fork()
    except OSError:
        return  # the control socket closes: the daemon sees that
    if pid:
        return
    try:
        sock.close()
        shim.main(name, fds)
    finally:
        os._exit(1)
