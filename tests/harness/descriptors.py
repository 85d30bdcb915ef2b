"""Open descriptors of this process, for tests that must leave none behind."""

import contextlib
import gc
import os
import re
from collections import Counter


def descriptors() -> Counter[str]:
    """How many of each kind ("socket", "anon_inode:[eventfd]", a path) are open.

    `descriptors() - before` are the new ones. Only those are a leak: what earlier tests left to the
    garbage collector may go away at any time, so it is collected first and fewer is never an error.
    """
    gc.collect()
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return found
