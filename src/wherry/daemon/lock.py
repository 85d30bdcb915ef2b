"""One daemon per data root and per exec root, for as long as it lives.

The lock is the kernel's (`flock`), so it ends with the process however it ends; the PID file is for people.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from wherry.errors import Conflict, Failed


class RootLock:
    """Held from construction to `release`; raises Conflict naming the other daemon's pid."""

    def __init__(self, root: Path) -> None:
        self._path = root / "daemon.lock"
        try:
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._fd = self._lock(root)
        except OSError as exc:
            raise Failed(f"cannot use {root}: {exc.strerror}") from exc
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"%d\n" % os.getpid())

    def _lock(self, root: Path) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.read(fd, 32).decode(errors="replace").strip()
                os.close(fd)
                raise Conflict(
                    f"{root} is in use by another daemon (pid {other}): stop it, or give this one roots of its own "
                    "with --data-root and --exec-root"
                ) from None
            if self._is_ours(fd):
                return fd
            os.close(fd)  # its last holder removed the file between our open and our lock

    def _is_ours(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file while the lock is still held, then let go."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._fd)


class PidFile:
    """Written when the roots are locked; a stale one is replaced, a live daemon's refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(OSError, ValueError):
            other = int(path.read_text())
            if other != os.getpid() and b"wherry" in Path(f"/proc/{other}/cmdline").read_bytes():
                raise Conflict(
                    f"PID file {path} belongs to a running daemon (pid {other}): stop it or use another file"
                )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{os.getpid()}\n")
        except OSError as exc:
            raise Failed(f"cannot write PID file {path}: {exc.strerror}") from exc

    def remove(self) -> None:
        with suppress(OSError):
            self._path.unlink()
