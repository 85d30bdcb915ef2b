"""Layers as tar archives: applied to a snapshot, made from one.

`apply_layer` runs in a confined process of its own (`confined.py`); the rest reads files beneath directory fds in this
one. A layer in Docker's form describes additions and changes by entries, deletions by `.wh.` names.
Synchronous; minutes for a large layer.
"""

import contextlib
import enum
import io
import json
import os
import select
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wherry.digest import ChainID, DiffID
from wherry.errors import Failed, InvalidParameter, Unavailable, WherryError
from wherry.kernel.files import closing
from wherry.kernel.mount import Mount, open_detached
from wherry.storage import compression
from wherry.storage.archive import show
from wherry.storage.archive_writer import Out, TarWriter
from wherry.storage.compare import same_bytes
from wherry.storage.compression import Limits
from wherry.storage.confined import Errors, Order
from wherry.storage.extract import OPAQUE, WHITEOUT, Whiteouts, is_whiteout, mark_opaque
from wherry.storage.pack import Packer, kept_xattrs, open_directory, open_file
from wherry.storage.refusal import advised, refused
from wherry.storage.snapshot import Snapshotter
from wherry.storage.tree import list_directory, walk

APPLY_TIMEOUT = 6 * 3600.0  # seconds for one layer
STALL_TIMEOUT = 300.0  # seconds without any progress
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
    owner: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
    abort: Abort | None = None,
    timeout: float = APPLY_TIMEOUT,
    stall: float = STALL_TIMEOUT,
) -> Applied:
    """Extract the layer `blob`, compressed or not, into the directory `snapshot`; verify nothing but its form.

    `blob` is read from where it stands (a binary file, unbuffered if it has an fd; or an fd). `progress` is told the
    compressed bytes consumed, some ten times a second; `owner` (uid, gid) replaces that of every entry. On any failure
    the directory holds a part of the layer and can be removed. Raises InvalidParameter for a bad archive (naming the
    entry), NotSupported for a media type that is no layer, Failed when the machine refuses, Unavailable when `abort`
    was set, `timeout` (seconds) is over, or nothing moved for `stall` seconds.
    """
    if media_type is not None:
        compression.check_media_type(media_type)
    order = Order(
        root=os.fspath(snapshot.absolute()),
        whiteouts=whiteouts,
        below=-1 if below is None else below,
        limits=limits or Limits(),
        parent=os.getpid(),
        owner=owner,
    )
    answer = _ask(order, blob, progress, abort, timeout=timeout, stall=stall)
    _mark(snapshot, answer["opaque"])
    warnings = answer["warnings"]
    return Applied(
        diff_id=DiffID(str(answer["diff_id"])),
        size=_int(answer["size"]),
        tar_size=_int(answer["tar_size"]),
        entries=_int(answer["entries"]),
        warnings=tuple(str(each) for each in warnings) if isinstance(warnings, list) else (),
    )


@dataclass(frozen=True, slots=True)
class Verified:
    diff_id: DiffID
    doubt: str  # "" when the layer is certainly what its blob makes of it


def verify_layer(
    snapshots: Snapshotter,
    chain: ChainID,
    blob: BinaryIO | int,
    *,
    contents: bool = True,
    limits: Limits | None = None,
    abort: Abort | None = None,
) -> Verified:
    """Compare the committed layer `chain` with its blob, entry by entry; nothing is written. Raises as `apply_layer`.

    Only where a layer's directory holds that layer alone: on overlay, or at the base. See `verify.py` for doubts.
    """
    parent, tree = snapshots.parent(chain), snapshots.layer(chain)
    with contextlib.ExitStack() as undo:
        below = -1
        if parent is not None:
            below = open_detached(snapshots.view(parent))
            undo.callback(os.close, below)
        order = Order(
            root=os.fspath(tree.absolute()),
            whiteouts=snapshots.whiteouts if parent is not None else Whiteouts.APPLY,
            below=below,
            limits=limits or Limits(),
            parent=os.getpid(),
            verify=True,
            contents=contents,
        )
        answer = _ask(order, blob, None, abort, timeout=APPLY_TIMEOUT, stall=STALL_TIMEOUT)
    doubt, names = str(answer["doubt"]), answer["opaque"]
    assert isinstance(names, list)
    if not doubt and _opaque_directories(tree) != {name.encode("latin-1") for name in names}:
        doubt = "other directories hide what is below them"
    return Verified(DiffID(str(answer["diff_id"])), doubt)


def _opaque_directories(tree: Path) -> set[bytes]:
    with _directory(tree) as fd:
        return {listing.path for listing in walk(fd) if _is_opaque(listing.fd)}


def _ask(
    order: Order,
    blob: BinaryIO | int,
    progress: Callable[[int], None] | None,
    abort: Abort | None,
    *,
    timeout: float,
    stall: float,
) -> dict[str, object]:
    """Let a confined process carry out `order`; its answer."""
    with _readable(blob) as source, tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps([p for p in sys.path if p]), order.encode()],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=() if order.below < 0 else (order.below,),
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
        )
        try:
            answer = _converse(child, progress, abort, timeout=timeout, stall=stall)
        finally:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        if answer is None:
            complaints.seek(0)
            raise Failed(_explain(child.returncode, complaints.read()[-_STDERR:].decode(errors="replace")))
    if "error" in answer:
        raise _error(answer, Path(order.root))
    return answer


def _error(answer: dict[str, object], snapshot: Path) -> WherryError:
    """What the child says went wrong, with the advice that only somebody outside can give."""
    kind, text, number = str(answer["error"]), str(answer["message"]), answer.get("errno")
    if kind == "Failed" and isinstance(number, int) and number:
        return advised(text, number, snapshot.parents[1])  # the directory of all snapshots
    return Errors[kind](text)


def _converse(
    child: "subprocess.Popen[bytes]",
    progress: Callable[[int], None] | None,
    abort: Abort | None,
    *,
    timeout: float,
    stall: float,
) -> dict[str, object] | None:
    """Read the child's lines until its last word, which is returned; None when it died without one."""
    assert child.stdout is not None
    out = child.stdout.fileno()
    poll = select.poll()
    poll.register(out, select.POLLIN)
    if abort is not None:
        poll.register(abort.fd, select.POLLIN)
    held = b""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(min(left, stall), 0) * 1000))
        if abort is not None and abort.fd in ready:
            raise Unavailable("extraction of the layer was stopped")
        if not ready and stall < left:
            raise Unavailable(f"extraction of the layer made no progress for {stall:g} seconds and was stopped")
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
        raise refused("cannot mark a directory of the layer as opaque", exc, snapshot) from exc
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

    failure: list[Exception] = []

    def pump() -> None:
        try:
            while data := blob.read(1 << 18):
                view = memoryview(data)
                while view:
                    view = view[os.write(write_end, view) :]
        except BrokenPipeError:
            pass  # the child has seen enough
        except Exception as exc:
            failure.append(exc)
        finally:
            os.close(write_end)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        thread.join()
        if failure:  # what the child says of the torn layer is only a consequence
            raise failure[0] if isinstance(failure[0], WherryError) else Failed(f"cannot read the layer: {failure[0]}")


# Making a layer


class Change(enum.IntEnum):
    """With the API's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Written:
    diff_id: DiffID
    size: int  # bytes of the uncompressed archive
    entries: int


def write_tree(root: int | Path, out: Out, *, include_root: bool = False) -> Written:
    """Everything below the directory `root` as one archive, in a fixed order; with the root itself as `./` if asked."""
    with _directory(root) as fd:
        writer = TarWriter(out)
        packer = Packer(writer)
        if include_root:
            packer.add(fd, b".", b"./", os.fstat(fd))
        for listing in walk(fd):
            prefix = listing.path + b"/" if listing.path else b""
            for base, found in listing.entries:
                packer.add(listing.fd, base, prefix + base, found)
        writer.finish()
    return Written(writer.diff_id, writer.size, packer.entries)


def write_diff(snapshots: Snapshotter, key: str, out: Out) -> Written:
    """What the snapshot `key` changed on its parent, as a layer: uncompressed, in a fixed order, times in seconds.

    InvalidParameter when a file's name begins with `.wh.`: in a layer it would delete another one.
    """
    with _both(snapshots, key) as (upper, below):
        return _write_changes(snapshots.whiteouts, upper, below, out, placeholders=snapshots.placeholders(key))


def write_layer(snapshots: Snapshotter, chain: ChainID, out: Out) -> Written:
    """The committed layer `chain` as `write_diff` would have written it: of a layer made here, the very same bytes."""
    own = Mount(type="bind", source=os.fspath(snapshots.layer(chain)), options=("bind", "ro"))
    base = snapshots.view(snapshots.parent(chain))
    with closing(open_detached([own])) as upper, closing(open_detached(base)) as below:
        return _write_changes(snapshots.whiteouts, upper, below, out)


def write_difference(new: Sequence[Mount], old: Sequence[Mount], out: Out) -> Written:
    """What the tree `new` has over the tree `old`, as one layer on it."""
    with closing(open_detached(new)) as upper, closing(open_detached(old)) as below:
        return _write_changes(Whiteouts.APPLY, upper, below, out)


def _write_changes(
    whiteouts: Whiteouts, upper: int, below: int, out: Out, *, placeholders: frozenset[bytes] = frozenset()
) -> Written:
    writer = TarWriter(out)
    packer = Packer(writer)
    if _differs(os.fstat(upper), os.fstat(below)):
        packer.add(upper, b".", b"./", os.fstat(upper))
    if whiteouts is Whiteouts.OVERLAY:
        _pack_upper(packer, upper)
    else:
        _pack_compared(packer, upper, _without(_compare(upper, below, contents=True), upper, placeholders))
    writer.finish()
    return Written(writer.diff_id, writer.size, packer.entries)


def changes(snapshots: Snapshotter, key: str) -> list[tuple[Change, str]]:
    """What `docker diff` shows: absolute paths in order, with the directories that hold a change as modified."""
    with _both(snapshots, key) as (upper, below):
        if snapshots.whiteouts is Whiteouts.OVERLAY:
            found = _changes_overlay(upper, below)
        else:
            found = _without(_compare(upper, below), upper, snapshots.placeholders(key))
        known = {path: change for change, path in found}
    for path in list(known):
        while path := path.rpartition(b"/")[0]:
            known.setdefault(path, Change.MODIFIED)
    return [(known[path], "/" + os.fsdecode(path)) for path in sorted(known)]


@contextlib.contextmanager
def _directory(root: int | Path) -> Iterator[int]:
    if isinstance(root, int):
        yield root
        return
    with closing(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield fd


@contextlib.contextmanager
def _both(snapshots: Snapshotter, key: str) -> Iterator[tuple[int, int]]:
    """fds of what `key` holds, and of the tree below it.

    Both are mounts of their own without device nodes: the container may be running, and put one in the place of a file
    that is about to be read.
    """
    own = Mount(type="bind", source=os.fspath(snapshots.upper(key)), options=("bind", "ro"))
    with closing(open_detached([own])) as upper, closing(open_detached(snapshots.base(key))) as below:
        yield upper, below


def _pack_upper(packer: Packer, upper: int) -> None:
    """Overlay keeps the changes by themselves, with its own marks for deletions."""
    for listing in walk(upper):
        prefix = listing.path + b"/" if listing.path else b""
        if listing.path and _is_opaque(listing.fd):
            packer.add_whiteout(prefix + OPAQUE)
        for base, found in listing.entries:
            if is_whiteout(found):
                packer.add_whiteout(prefix + WHITEOUT + base)
            else:
                _refuse_whiteout_name(prefix, base)
                packer.add(listing.fd, base, prefix + base, found)


def _pack_compared(packer: Packer, new: int, changed: Iterable[tuple[Change, bytes]]) -> None:
    """A directory without a change of its own is written when something in it changed."""
    written: set[bytes] = {b""}
    for change, path in changed:
        directory, _, base = path.rpartition(b"/")
        _write_parents(packer, new, directory, written)
        prefix = directory + b"/" if directory else b""
        if change is Change.DELETED:
            packer.add_whiteout(prefix + WHITEOUT + base)
            continue
        _refuse_whiteout_name(prefix, base)
        with contextlib.suppress(FileNotFoundError):
            fd = open_directory(new, directory)
            try:
                packer.add(fd, base, path, os.stat(base, dir_fd=fd, follow_symlinks=False))
            finally:
                os.close(fd)
        written.add(path)


def _write_parents(packer: Packer, root: int, directory: bytes, written: set[bytes]) -> None:
    missing = []
    while directory not in written:
        missing.append(directory)
        written.add(directory)
        directory = directory.rpartition(b"/")[0]
    for path in reversed(missing):
        with contextlib.suppress(FileNotFoundError):
            fd = open_directory(root, path)
            try:
                packer.add(fd, b".", path, os.fstat(fd))
            finally:
                os.close(fd)


def _refuse_whiteout_name(prefix: bytes, base: bytes) -> None:
    if base.startswith(WHITEOUT):
        raise InvalidParameter(f"{show(prefix + base)} cannot be put into a layer: there such a name means a deletion")


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _without(
    changed: Iterable[tuple[Change, bytes]], root: int, placeholders: frozenset[bytes]
) -> Iterator[tuple[Change, bytes]]:
    """`changed` less the placeholders that nobody wrote to."""
    for change, path in changed:
        if path in placeholders and change is Change.ADDED:
            found = os.stat(path, dir_fd=root, follow_symlinks=False)
            if not (stat.S_ISREG(found.st_mode) and found.st_size):
                continue
        yield change, path


def _compare(new: int, old: int, *, contents: bool = False) -> Iterator[tuple[Change, bytes]]:
    """Differences between two trees; a directory comes before what is in it. `contents` are read only if asked."""
    for listing in walk(new):
        prefix = listing.path + b"/" if listing.path else b""
        try:
            old_fd = open_directory(old, listing.path)
        except OSError:
            yield from ((Change.ADDED, prefix + base) for base, _ in listing.entries)
            continue
        try:
            before = dict(list_directory(old_fd))
            for base, found in listing.entries:
                was = before.pop(base, None)
                if was is None:
                    yield Change.ADDED, prefix + base
                elif _differs(found, was) or _content_differs(
                    listing.fd, old_fd, base, found, was if contents else None
                ):
                    yield Change.MODIFIED, prefix + base
            yield from ((Change.DELETED, prefix + base) for base in before)
        finally:
            os.close(old_fd)


def _changes_overlay(upper: int, below: int) -> Iterator[tuple[Change, bytes]]:
    for listing in walk(upper):
        prefix = listing.path + b"/" if listing.path else b""
        try:
            old_fd = open_directory(below, listing.path)
        except OSError:
            before = {}
        else:
            try:
                before = dict(list_directory(old_fd))
            finally:
                os.close(old_fd)
        for base, found in listing.entries:
            was = before.pop(base, None)
            if is_whiteout(found):
                if was is not None:
                    yield Change.DELETED, prefix + base
            elif was is None:
                yield Change.ADDED, prefix + base
            elif not stat.S_ISDIR(found.st_mode) or _differs(found, was):
                yield Change.MODIFIED, prefix + base
        if listing.path and _is_opaque(listing.fd):
            yield from ((Change.DELETED, prefix + base) for base in before)


def _differs(new: os.stat_result, old: os.stat_result) -> bool:
    """Two lstat results of one path; a directory's times and size say nothing about the directory itself."""
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return True
    if stat.S_ISDIR(new.st_mode):
        return False
    return (new.st_mtime_ns, new.st_size, new.st_rdev) != (old.st_mtime_ns, old.st_size, old.st_rdev)


def _content_differs(new_fd: int, old_fd: int, base: bytes, found: os.stat_result, was: os.stat_result | None) -> bool:
    """What lstat does not show: the target of a symbolic link, extended attributes; and bytes, when `was` is given.

    Times are set as people like (a build gives all files the same), but for ctime: with it one inode is one content.
    """
    try:
        if stat.S_ISLNK(found.st_mode):
            return os.readlink(base, dir_fd=new_fd) != os.readlink(base, dir_fd=old_fd)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return False
        new, old = open_file(new_fd, base), open_file(old_fd, base)
    except OSError:
        return True
    try:
        if kept_xattrs(new) != kept_xattrs(old):
            return True
        if was is None or not stat.S_ISREG(found.st_mode):
            return False
        same_inode = (found.st_ino, found.st_ctime_ns) == (was.st_ino, was.st_ctime_ns)
        return not same_inode and not same_bytes(old, new)
    finally:
        os.close(new)
        os.close(old)
