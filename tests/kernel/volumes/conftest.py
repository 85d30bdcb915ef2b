"""Mounts of these tests are made in a mount namespace that goes with the test."""

import errno
import os
import time
from collections.abc import Iterator

import pytest

from wherry.kernel.files import closing
from wherry.kernel.mount import CLONE_NEWNS, make_rslave, unshare_mounts
from wherry.kernel.process import setns


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Threads that the test's event loop starts are in the namespace of the thread that starts them: this one."""
    with closing(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as home:
        where = os.getcwd()
        unshare_mounts()
        try:
            make_rslave("/")
            yield
        finally:
            go_home(home)
            os.chdir(where)


def go_home(home: int) -> None:
    """The kernel refuses as long as a thread that has ended is still on its way out."""
    until = time.monotonic() + 10
    while True:
        try:
            setns(home, CLONE_NEWNS)
            return
        except OSError as exc:
            if exc.errno != errno.EINVAL or time.monotonic() > until:
                raise
        time.sleep(0.001)
