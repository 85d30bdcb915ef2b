"""Terminals: how the runtime hands over a pseudo-terminal's master, and its window size. Stdlib only."""

import fcntl
import os
import socket
import struct
import termios


class Console:
    """A socket on which the runtime sends the master of the terminal it made.

    The socket is in `directory`, but both sides name it through a directory fd in /proc: socket paths end at 108 bytes.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._path = os.path.join(directory, name)
        self._dir = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = name
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(f"/proc/self/fd/{self._dir}/{name}")
        self._sock.listen(1)
        self._sock.setblocking(False)

    @property
    def path(self) -> str:
        """For the runtime's command line."""
        return f"/proc/{os.getpid()}/fd/{self._dir}/{self._name}"

    def accept(self) -> int:
        """The master; called after the runtime has succeeded. Raises OSError when it sent none."""
        peer, _ = self._sock.accept()
        with peer:
            peer.settimeout(5)
            _, fds, _, _ = socket.recv_fds(peer, 4096, 1)  # the text differs from runtime to runtime
        if not fds:
            raise OSError("the runtime sent no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Idempotent."""
        if self._dir >= 0:
            self._sock.close()
            os.unlink(self._path)
            os.close(self._dir)
            self._dir = -1

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def set_size(master: int, height: int, width: int) -> None:
    """Set the window size; processes in the foreground get SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))
