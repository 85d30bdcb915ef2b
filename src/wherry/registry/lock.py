"""One registry, or one tool that changes it, per folder.

The lock is the kernel's (`flock`), so it ends with the process however it ends; the pid in it is for people.
"""

import fcntl
import os
from pathlib import Path

from wherry.errors import Conflict, Failed


class FolderLock:
    """Held from construction to `release`. Makes the folder; Conflict names who holds it, Failed why it cannot be."""

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Failed(f"cannot use {root} as the registry's folder: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise Conflict(
                f"{root} is in use by another registry (pid {holder}): stop it, or give this one a folder of its own "
                "with --root"
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"%d\n" % os.getpid())

    def release(self) -> None:
        os.close(self._fd)
