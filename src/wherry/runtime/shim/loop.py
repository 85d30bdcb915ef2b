"""The shim's event loop: epoll, timers and children in one thread, without asyncio (which would triple its memory)."""

import heapq
import itertools
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec

IN, OUT, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR

Handler = Callable[[int], None]


class Timer:
    """A pending call; `cancel` is idempotent."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """One per process: it takes SIGCHLD."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._children: dict[int, Callable[[int], None]] = {}
        self._expecting = 0
        self._strays: dict[int, int] = {}
        self._woken_by, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self.watch(self._woken_by, IN, self._woken)

    def close(self) -> None:
        """Give SIGCHLD and all fds of its own back; what is watched stays open."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._epoll.close()
        os.close(self._woken_by)
        os.close(self._wakeup)

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler` with the events that are true of `fd`; replaces an earlier watch."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Idempotent; to be called before `fd` is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def call_soon(self, call: Callable[[], None]) -> Timer:
        return self.call_later(0, call)

    def expect(self) -> None:
        """A child will be made whose pid is not known yet: keep the statuses of unknown children until `adopt`."""
        self._expecting += 1

    def adopted(self) -> None:
        """Ends one `expect`."""
        self._expecting -= 1
        if not self._expecting:
            self._strays.clear()

    def on_exit(self, pid: int, call: Callable[[int], None]) -> None:
        """Call with the wait status of child `pid`, also when it has been reaped within this `expect`."""
        if (status := self._strays.pop(pid, None)) is not None:
            self.call_soon(lambda: call(status))
        else:
            self._children[pid] = call

    def run_once(self) -> None:
        """Wait for something and deal with it."""
        timeout = None
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for fd, events in self._epoll.poll(timeout):
            handler = self._handlers.get(fd)  # an earlier handler may have taken it away
            if handler is not None and not _survive(handler, events):
                self.unwatch(fd)  # it would fail for ever
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                _survive(timer.call)

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            call = self._children.pop(pid, None)
            if call is not None:
                _survive(call, status)
            elif self._expecting:
                self._strays[pid] = status

    def _woken(self, _events: int) -> None:
        try:
            os.read(self._woken_by, 4096)
        except BlockingIOError:
            return
        self.reap()


P = ParamSpec("P")


def _survive(call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
    """Call, and report what is raised: a mistake with one client must not end a container. False if it failed."""
    try:
        call(*args, **kwargs)
    except Exception:
        traceback.print_exc()
        return False
    return True


def _wake(_number: int, _frame: FrameType | None) -> None:
    """The wakeup fd does the work; without a handler SIGCHLD would not reach it."""
