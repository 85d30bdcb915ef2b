"""The process a layer is extracted in: what parses a stranger's bytes can reach nothing but the directory it fills.

Run by `diff.apply_layer` as `python -I -S`, never imported for another purpose. It has
    fd 0     the layer as stored (compressed)
    fd 1     one JSON object a line to the parent: {"consumed": n} now and then, at the end a result or an error
    argv     see `Order`

Before the first byte is parsed it enters a mount namespace whose root is the directory (no device nodes, no programs),
and a network and IPC namespace with nothing in them, becomes nobody, keeps the capabilities in `_KEPT`, gives up
gaining others, and the system calls listed in `jail.py`. CAP_SYS_ADMIN is not among what it keeps: opaque directories
are reported, and marked by the parent.
"""

import ctypes
import hashlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from wherry.errors import Failed, InvalidParameter, NotSupported, WherryError
from wherry.kernel import mount
from wherry.kernel.libc import check, libc
from wherry.storage import compression, jail
from wherry.storage.archive import TarReader
from wherry.storage.compression import Limits
from wherry.storage.extract import Extractor, Whiteouts
from wherry.storage.verify import Verifier

NOBODY = 65534
MEMORY_MAX = 1 << 30  # bytes of address space
FILES_MAX = 1024
_DEPTH = 4  # pieces waiting between two threads
_REPORT = 0.1  # seconds between two progress reports

_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_CAPABILITY_VERSION = 0x20080522
# Owners and modes of any file (CHOWN, DAC_OVERRIDE, FOWNER, FSETID), device nodes as data (MKNOD; the mount is nodev),
# file capabilities (SETFCAP).
_KEPT = sum(1 << number for number in (0, 1, 3, 4, 27, 31))
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the parent asks for."""

    root: str
    whiteouts: Whiteouts | None
    below: int  # fd of the tree under the layer; -1 for none
    limits: Limits
    parent: int  # pid
    owner: tuple[int, int] | None = None  # in place of the entries' own
    verify: bool = False  # nothing is written: the tree is compared with the layer
    contents: bool = True  # also what is in files

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Order":
        found: dict[str, Any] = json.loads(text)
        whiteouts = found.pop("whiteouts")
        limits = Limits(**found.pop("limits"))
        owner = found.pop("owner")
        return cls(
            **found,
            limits=limits,
            whiteouts=Whiteouts(whiteouts) if whiteouts else None,
            owner=(owner[0], owner[1]) if owner else None,
        )


def main() -> None:
    order = Order.decode(sys.argv[1])
    try:
        report(_run(order))
    except WherryError as exc:
        cause = exc.__cause__
        number = cause.errno if isinstance(cause, OSError) else 0
        report({"error": type(exc).__name__, "message": exc.message, "errno": number})
    except MemoryError:
        report({"error": "InvalidParameter", "message": f"layer needs more than {MEMORY_MAX} bytes of memory"})
    except OSError as exc:
        report({"error": "Failed", "message": f"cannot extract layer: {exc}", "errno": exc.errno})
    sys.stdout.flush()
    os._exit(0)  # threads that still read have nothing to say any more


def report(message: dict[str, object]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _run(order: Order) -> dict[str, object]:
    source = _Counted(0)
    head = source.head()
    kind = compression.detect(head)
    compression.prepare(kind)
    root = confine(order)
    hasher = hashlib.sha256()
    total = 0

    def hashed(pieces: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal total
        for piece in pieces:
            hasher.update(piece)
            total += len(piece)
            source.report()
            yield piece

    inflated = compression.decompress_as(kind, head, source.read, what="layer")
    bounded = compression.pieces(inflated, order.limits, lambda: source.consumed)
    reader = TarReader(ahead(hashed(ahead(bounded))), what="layer", max_headers=3 * order.limits.max_entries)
    below = order.below if order.below >= 0 else None
    answer = _verify(order, root, below, reader) if order.verify else _extract(order, root, below, reader)
    report({"consumed": source.consumed})
    return {**answer, "diff_id": f"sha256:{hasher.hexdigest()}", "tar_size": total}


def _extract(order: Order, root: int, below: int | None, reader: TarReader) -> dict[str, object]:
    extractor = Extractor(
        root, whiteouts=order.whiteouts, limits=order.limits, below=below, owner=order.owner, confined=True
    )
    extractor.extract(reader)
    return {
        "size": extractor.size,
        "entries": extractor.entries,
        "warnings": extractor.warnings,
        "opaque": _names(extractor.opaque),
    }


def _verify(order: Order, root: int, below: int | None, reader: TarReader) -> dict[str, object]:
    verifier = Verifier(root, whiteouts=order.whiteouts, below=below, contents=order.contents)
    return {"doubt": verifier.verify(reader), "opaque": _names(verifier.opaque)}


def _names(paths: Iterable[bytes]) -> list[str]:
    return [path.decode("latin-1") for path in paths]


class _Counted:
    """The blob, with the count of what was read of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.consumed = 0
        self._next_report = 0.0

    def read(self, size: int) -> bytes:
        data = os.read(self._fd, size)
        self.consumed += len(data)
        return data

    def head(self) -> bytes:
        head = b""
        while len(head) < compression.HEAD and (more := self.read(compression.INPUT)):
            head += more
        return head

    def report(self) -> None:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT
            report({"consumed": self.consumed})


def ahead(items: Iterable[bytes]) -> Iterator[bytes]:
    """`items`, made by a thread a few ahead of their use: inflating, hashing and writing overlap."""
    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)

    def work() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(None)
        except BaseException as exc:
            waiting.put(exc)

    threading.Thread(target=work, daemon=True).start()
    while (item := waiting.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def confine(order: Order) -> int:
    """Shut this process into `order.root`; a directory fd of it. Not to be undone."""
    check(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != order.parent:
        raise Failed("the daemon went away")
    os.umask(0)
    try:
        check(libc.unshare(mount.CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC), "unshare")
    except PermissionError as exc:
        raise NotSupported("layers are extracted in namespaces of their own, which needs CAP_SYS_ADMIN") from exc
    mount.make_rprivate("/")
    access = mount.MS_RDONLY if order.verify else 0
    mount.bind(order.root, order.root, flags=mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC | access)
    os.chdir(order.root)
    _enter_root()
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_MAX),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    _become_nobody()
    jail.enter()
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _enter_root() -> None:
    try:
        mount.pivot_root(".", ".")
    except OSError:  # the machine runs from its initramfs
        os.chroot(".")
    else:
        mount.umount(".")
    os.chdir("/")


def _become_nobody() -> None:
    """Another user than root for signals, root for the files made, and the capabilities in `_KEPT` only."""
    check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    permitted = _permitted()
    os.setgroups([])
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _capset(permitted)
    libc.setfsuid(0)  # new files belong to root without a chown; of this thread, and the threads it starts
    _capset(permitted & _KEPT)
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    check(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))  # a change of credentials cleared it


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _permitted() -> int:
    data = (_CapData * 2)()
    header = _CapHeader(_CAPABILITY_VERSION, 0)
    check(libc.capget(ctypes.byref(header), data), "capget")
    return int(data[0].permitted) | int(data[1].permitted) << 32


def _capset(wanted: int) -> None:
    low, high = wanted & 0xFFFFFFFF, wanted >> 32 & 0xFFFFFFFF
    data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))
    header = _CapHeader(_CAPABILITY_VERSION, 0)
    check(libc.capset(ctypes.byref(header), data), "capset")


Errors: dict[str, Callable[[str], WherryError]] = {
    kind.__name__: kind for kind in (InvalidParameter, Failed, NotSupported)
}
