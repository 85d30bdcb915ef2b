"""Network namespaces: made, entered and left by threads that exist for nothing else.

A thread that changed its namespace and could not change back would be poison in a pool. Here the thread ends instead:
nothing is ever restored, so nothing can fail to be. Costs 0.1 ms a thread.
A namespace lives as long as a process, an fd or a socket in it; the last `close` removes it with all its interfaces.
"""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from wherry.kernel.libc import check, libc

CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class _Thread(threading.Thread, Generic[T]):
    def __init__(self, func: Callable[[], T]) -> None:
        super().__init__(name="netns", daemon=True)
        self._func = func
        self._value: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value.append(self._func())
        except BaseException as exc:
            self._error = exc

    def result(self) -> T:
        self.start()
        self.join()
        if self._error is not None:
            raise self._error
        return self._value[0]


def current() -> int:
    """An fd of the calling thread's network namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_netns(inside: Callable[[], T]) -> tuple[int, T]:
    """Make a namespace and run `inside` in it: its fd, which the caller closes, and what `inside` returned.

    Raises OSError. When `inside` raises, the namespace is gone.
    """

    def make() -> tuple[int, T]:
        check(libc.unshare(CLONE_NEWNET), "new network namespace")
        fd = current()
        try:
            return fd, inside()
        except BaseException:
            os.close(fd)
            raise

    return _Thread(make).result()


def in_netns(fd: int, func: Callable[[], T]) -> T:
    """Run `func` in the namespace of `fd`, in a thread of its own, and return or raise what it does."""

    def enter() -> T:
        check(libc.setns(fd, CLONE_NEWNET), "network namespace")
        return func()

    return _Thread(enter).result()
