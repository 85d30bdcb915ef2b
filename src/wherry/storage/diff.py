"""Layers as tar archives: applied to a snapshot, made from one.

`apply_layer` runs in a confined process of its own (`confined.py`); the rest reads files beneath directory fds in this
one. A layer in Docker's form describes additions and changes by entries, deletions by `.wh.` names.
Synchronous; minutes for a large layer.
"""

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wherry.digest import DiffID
from wherry.errors import Failed, Unavailable
from wherry.kernel.mount import open_detached
from wherry.storage import compression
from wherry.storage.compression import Limits
from wherry.storage.confined import Errors, Order
from wherry.storage.extract import Whiteouts, mark_opaque
from wherry.storage.snapshot import Snapshotter

APPLY_TIMEOUT = 3600.0  # seconds for one layer
_BOOT = "import sys,json;sys.path[:]=json.loads(sys.argv.pop(1));from wherry.storage.confined import main;main()"
_STDERR = 4000  # bytes shown of what a crashed child said


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    diff_id: DiffID  # of all uncompressed bytes, what stands behind the archive included
    size: int  # bytes of the files: what Docker calls the size of a layer
    tar_size: int  # bytes of the uncompressed archive
    entries: int
    warnings: tuple[str, ...] = ()  # attributes that could not be set here


class Abort:
    """A way to stop `apply_layer` from another thread. Close it (or leave its `with`) when the call has returned."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Abort":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def apply_to(
    snapshots: Snapshotter,
    key: str,
    blob: BinaryIO | int,
    *,
    media_type: str | None = None,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
    abort: Abort | None = None,
) -> Applied:
    """Extract a layer into the prepared snapshot `key`, in the form its snapshotter wants: see `apply_layer`."""
    parent = snapshots.parent_of_key(key)
    with contextlib.ExitStack() as undo:
        below = None
        if parent is not None and snapshots.whiteouts is Whiteouts.OVERLAY:
            below = open_detached(snapshots.view(parent))
            undo.callback(os.close, below)
        return apply_layer(
            blob,
            snapshot=snapshots.upper(key),
            media_type=media_type,
            limits=limits,
            whiteouts=snapshots.whiteouts if parent is not None else Whiteouts.APPLY,
            below=below,
            progress=progress,
            abort=abort,
        )


def apply_layer(
    blob: BinaryIO | int,
    *,
    snapshot: Path,
    media_type: str | None = None,
    limits: Limits | None = None,
    whiteouts: Whiteouts | None = Whiteouts.OVERLAY,
    below: int | None = None,
    progress: Callable[[int], None] | None = None,
    abort: Abort | None = None,
    timeout: float = APPLY_TIMEOUT,
) -> Applied:
    """Extract the layer `blob`, compressed or not, into the directory `snapshot`; verify nothing but its form.

    `blob` is read from where it stands (a binary file, unbuffered if it has an fd; or an fd). `progress` is told the
    compressed bytes consumed, some ten times a second. On any failure the directory holds a part of the layer and can
    be removed. Raises InvalidParameter for a bad archive (naming the entry), NotSupported for a media type that is no
    layer, Failed when the machine refuses, Unavailable when `abort` was set or `timeout` (seconds) is over.
    """
    if media_type is not None:
        compression.check_media_type(media_type)
    order = Order(
        root=os.fspath(snapshot.absolute()),
        whiteouts=whiteouts,
        below=-1 if below is None else below,
        limits=limits or Limits(),
        parent=os.getpid(),
    )
    with _readable(blob) as source, tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps([p for p in sys.path if p]), order.encode()],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=() if below is None else (below,),
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
        )
        try:
            answer = _converse(child, progress, abort, time.monotonic() + timeout)
        finally:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        if answer is None:
            complaints.seek(0)
            raise Failed(_explain(child.returncode, complaints.read()[-_STDERR:].decode(errors="replace")))
    if "error" in answer:
        raise Errors[str(answer["error"])](str(answer["message"]))
    _mark(snapshot, answer["opaque"])
    warnings = answer["warnings"]
    return Applied(
        diff_id=DiffID(str(answer["diff_id"])),
        size=_int(answer["size"]),
        tar_size=_int(answer["tar_size"]),
        entries=_int(answer["entries"]),
        warnings=tuple(str(each) for each in warnings) if isinstance(warnings, list) else (),
    )


def _converse(
    child: "subprocess.Popen[bytes]", progress: Callable[[int], None] | None, abort: Abort | None, deadline: float
) -> dict[str, object] | None:
    """Read the child's lines until its last word, which is returned; None when it died without one."""
    assert child.stdout is not None
    out = child.stdout.fileno()
    poll = select.poll()
    poll.register(out, select.POLLIN)
    if abort is not None:
        poll.register(abort.fd, select.POLLIN)
    held = b""
    while True:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(left, 0) * 1000))
        if abort is not None and abort.fd in ready:
            raise Unavailable("extraction of the layer was stopped")
        if not ready:
            raise Unavailable("extraction of the layer takes too long and was stopped")
        data = os.read(out, 65536)
        if not data:
            return None
        held += data
        *lines, held = held.split(b"\n")
        for line in lines:
            message: dict[str, object] = json.loads(line)
            if "consumed" not in message:
                return message
            if progress is not None:
                progress(_int(message["consumed"]))


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _mark(snapshot: Path, names: object) -> None:
    if not names:
        return
    assert isinstance(names, list)
    root = os.open(snapshot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mark_opaque(root, {name.encode("latin-1") for name in names})
    except OSError as exc:
        raise Failed(f"cannot mark a directory of the layer as opaque: {exc.strerror}") from exc
    finally:
        os.close(root)


def _explain(status: int, said: str) -> str:
    how = f"was killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
    return f"the process that extracted the layer {how}: {said.strip() or 'it said nothing'}"


@contextlib.contextmanager
def _readable(blob: BinaryIO | int) -> Iterator[int]:
    """An fd to read `blob` from; what has none is pumped through a pipe by a thread."""
    if isinstance(blob, int):
        yield blob
        return
    try:
        yield blob.fileno()
        return
    except (AttributeError, io.UnsupportedOperation):
        pass
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def pump() -> None:
        try:
            with contextlib.suppress(BrokenPipeError):
                while data := blob.read(1 << 18):
                    view = memoryview(data)
                    while view:
                        view = view[os.write(write_end, view) :]
        finally:
            os.close(write_end)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        thread.join()
