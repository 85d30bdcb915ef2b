"""The daemon's side of the zygote: brought up with the daemon, and again when it was killed."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import wherry
from wherry.aio import settle
from wherry.errors import Failed

log = logging.getLogger(__name__)

_START = 30.0  # s it may take to come up
_TRIES = 3  # when it is killed meanwhile
_MAIN = "import sys; sys.path.append({path!r}); from wherry.runtime.zygote import main; main()"


class Zygote:
    """One zygote process. Not to be used by two tasks before `start` has returned."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    async def start(self) -> None:
        """Bring it up. Raises Failed when it does not come."""
        async with self._lock:
            await settle(self._spawn)

    async def stop(self) -> None:
        """It ends by itself when our end of the socket is closed. Idempotent."""
        async with self._lock:
            await settle(self._end)

    async def fork(self, directory: str, fds: Sequence[int], *, shared: bool) -> None:
        """Have it fork a shim for `directory` with `fds`; a zygote found dead is replaced. Raises Failed.

        `shared`: what is mounted in the container may reach the host.
        """
        await self._ask("s" if shared else "-", directory, fds)

    async def change(self, directory: str, fd: int) -> None:
        """Have it fork what changes the container that runs in `directory`, by a request that comes from the socket
        `fd`. Raises Failed."""
        await self._ask("c", directory, [fd])

    async def _ask(self, kind: str, directory: str, fds: Sequence[int]) -> None:
        order = os.fsencode(kind + directory)
        async with self._lock:
            for attempt in (1, 2):
                if self._sock is None:
                    await settle(self._spawn)
                assert self._sock is not None
                try:
                    socket.send_fds(self._sock, [order], fds)
                    return
                except OSError as exc:
                    if attempt == 2:
                        raise Failed(f"the zygote cannot be reached: {exc}") from exc
                    log.warning("the zygote is gone (%s): starting another", exc)
                    await settle(self._end)

    async def renew(self) -> None:
        """Replace it: it died without our noticing."""
        async with self._lock:
            await settle(self._end)
            await settle(self._spawn)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _spawn(self) -> None:
        if self._sock is not None:
            return
        for _ in range(_TRIES):
            self._sock = self._execute()
            self._sock.settimeout(_START)
            try:
                if self._sock.recv(16) == b"ready":
                    return
            except OSError as exc:
                self._end()
                raise Failed(f"the zygote did not start: {exc}") from exc
            if self._end() >= 0:
                break  # not killed: it would fail again
        raise Failed("the zygote did not start: see the daemon's stderr")

    def _execute(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            path = str(Path(wherry.__file__).parent.parent)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _MAIN.format(path=path), str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as exc:
                ours.close()
                raise Failed(f"the zygote cannot be executed: {exc}") from exc
        return ours

    def _end(self) -> int:
        """Its exit code, negative when a signal killed it."""
        code = 0
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            code = self._process.returncode
            self._process = None
        return code
