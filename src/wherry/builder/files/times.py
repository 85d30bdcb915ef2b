"""Times after a program ran: nothing that it wrote is younger than the epoch.

So what a step leaves depends on what it did, not on when. Python would notice: in a `.pyc` stands the time of the
source it was made from, and if that is another one now, the module is compiled again at every start. So that is
settled, too, for sources that were.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wherry.kernel.files import closing
from wherry.storage.extract import Whiteouts, is_whiteout
from wherry.storage.pack import open_directory
from wherry.storage.tree import Listing, walk

_PYCACHE = b"__pycache__"
_HEADER = 16  # bytes: magic, flags, time and size of the source (PEP 552)
_SECONDS = 0xFFFFFFFF
_SECOND = 1_000_000_000  # ns

Found = tuple[bytes, os.stat_result]


def settle_times(upper: Path | int, epoch_ns: int, whiteouts: Whiteouts, *, below: int | None = None) -> None:
    """Give everything that was written to the snapshot's directory `upper` and is younger than the epoch (ns) its time.

    `whiteouts` is the snapshotter's form: overlay's marks for deletions stay untouched. `below` is the tree the
    snapshot was made on: what has the same time there was not written, whether it is here because a snapshot holds all
    files (Whiteouts.APPLY) or because something about it or in it was changed. The snapshot must not be mounted.
    """
    if isinstance(upper, int):
        _settle(upper, epoch_ns, whiteouts, below)
        return
    with closing(os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        _settle(fd, epoch_ns, whiteouts, below)


def _settle(upper: int, epoch: int, whiteouts: Whiteouts, below: int | None) -> None:
    sources: dict[bytes, dict[bytes, int]] = {}  # of directories with a cache not visited yet: module -> time before
    for listing in walk(upper):
        directory, _, base = listing.path.rpartition(b"/")
        if base == _PYCACHE and (settled := sources.pop(directory, None)):
            _settle_compiled(listing, settled, epoch)
        entries = listing.entries if listing.path else [(b".", os.fstat(upper)), *listing.entries]
        modules: dict[bytes, int] = {}
        for name, found, inherited in _to_look_at(entries, epoch, below, listing.path):
            if whiteouts is Whiteouts.OVERLAY and is_whiteout(found):
                continue
            if inherited and whiteouts is Whiteouts.APPLY:
                continue  # a file of a layer below, not of this one
            time = found.st_mtime_ns if inherited else min(found.st_mtime_ns, epoch)
            if name.endswith(b".py") and time < found.st_mtime_ns // _SECOND * _SECOND:
                modules[name[:-3]] = found.st_mtime_ns // _SECOND
            time -= time % _SECOND
            os.utime(name, ns=(time, time), dir_fd=listing.fd, follow_symlinks=False)
        if modules and any(name == _PYCACHE for name, _ in listing.entries):
            sources[listing.path] = modules


def _to_look_at(
    entries: list[Found], epoch: int, below: int | None, path: bytes
) -> Iterator[tuple[bytes, os.stat_result, bool]]:
    """Entries younger than the epoch, or with parts of a second, which archives lose; whether the tree below has that
    time, too.
    """
    odd = [(name, found) for name, found in entries if found.st_mtime_ns > epoch or found.st_mtime_ns % _SECOND]
    if not odd:
        return
    with contextlib.ExitStack() as opened:
        directory = None
        if below is not None:
            with contextlib.suppress(OSError):
                directory = opened.enter_context(closing(open_directory(below, path)))
        for name, found in odd:
            yield name, found, directory is not None and _time(directory, name) == found.st_mtime_ns


def _time(directory: int, name: bytes) -> int | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return None


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
                os.pwrite(fd, _field(epoch // _SECOND), 8)
                os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _field(seconds: int) -> bytes:
    return (seconds & _SECONDS).to_bytes(4, "little")
