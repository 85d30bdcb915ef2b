"""Times after a program ran: nothing that it wrote is younger than the epoch.

So what a step leaves depends on what it did, not on when. Python would notice: in a `.pyc` stands the time of the
source it was made from, and if that is another one now, the module is compiled again at every start. So that is
settled, too, for sources that were.
"""

import os
import stat
from pathlib import Path

from wherry.kernel.files import closing
from wherry.storage.extract import Whiteouts, is_whiteout
from wherry.storage.pack import open_directory
from wherry.storage.tree import Listing, walk

_PYCACHE = b"__pycache__"
_HEADER = 16  # bytes: magic, flags, time and size of the source (PEP 552)
_SECONDS = 0xFFFFFFFF


def settle_times(upper: Path | int, epoch_ns: int, whiteouts: Whiteouts, *, below: int | None = None) -> None:
    """Give everything in the snapshot's directory `upper` that is younger than the epoch (ns) the epoch's time.

    `whiteouts` is the snapshotter's form: overlay's marks for deletions stay untouched. Where `upper` holds the files
    of the layers below as well (Whiteouts.APPLY), `below` is the tree of those: what has the same time there was not
    written by the step. The snapshot must not be mounted.
    """
    if isinstance(upper, int):
        _settle(upper, epoch_ns, whiteouts, below)
        return
    with closing(os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        _settle(fd, epoch_ns, whiteouts, below)


def _settle(upper: int, epoch: int, whiteouts: Whiteouts, below: int | None) -> None:
    sources: dict[bytes, dict[bytes, int]] = {}  # of directories with a cache not visited yet: module -> time before
    for listing in walk(upper):
        before = _times_below(below, listing)
        if not listing.path and os.fstat(upper).st_mtime_ns > epoch and os.fstat(upper).st_mtime_ns != before.get(b"."):
            os.utime(upper, ns=(epoch, epoch))
        directory, _, base = listing.path.rpartition(b"/")
        if base == _PYCACHE and (settled := sources.pop(directory, None)):
            _settle_compiled(listing, settled, epoch)
        modules: dict[bytes, int] = {}
        cached = False
        for name, found in listing.entries:
            cached = cached or name == _PYCACHE
            if found.st_mtime_ns <= epoch or found.st_mtime_ns == before.get(name):
                continue
            if whiteouts is Whiteouts.OVERLAY and is_whiteout(found):
                continue
            if name.endswith(b".py"):
                modules[name[:-3]] = found.st_mtime_ns // 1_000_000_000
            os.utime(name, ns=(epoch, epoch), dir_fd=listing.fd, follow_symlinks=False)
        if cached and modules:
            sources[listing.path] = modules


def _times_below(below: int | None, listing: Listing) -> dict[bytes, int]:
    """mtimes of the same directory in the layers below: of its entries, and of itself as b"."."""
    if below is None:
        return {}
    try:
        fd = open_directory(below, listing.path)
    except OSError:
        return {}
    with closing(fd):
        found = {b".": os.fstat(fd).st_mtime_ns}
        with os.scandir(fd) as entries:
            for entry in entries:
                found[os.fsencode(entry.name)] = entry.stat(follow_symlinks=False).st_mtime_ns
        return found


def _settle_compiled(listing: Listing, modules: dict[bytes, int], epoch: int) -> None:
    """The time in each `.pyc` of a module that was settled, if it is the time its source had."""
    for name, found in listing.entries:
        time = modules.get(name.partition(b".")[0])
        if time is None or not name.endswith(b".pyc") or not stat.S_ISREG(found.st_mode):
            continue
        with closing(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=listing.fd)) as fd:
            header = os.pread(fd, _HEADER, 0)
            # flags of 0: compared by time; those compared by a hash of the source stay right
            if len(header) == _HEADER and header[4:8] == bytes(4) and header[8:12] == _field(time):
                os.pwrite(fd, _field(epoch // 1_000_000_000), 8)
                os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _field(seconds: int) -> bytes:
    return (seconds & _SECONDS).to_bytes(4, "little")
