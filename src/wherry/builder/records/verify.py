"""How two results of one build differ: for `build --verify`, which builds twice. Blocking.

The layers are compared in pairs, as they are on disk, so that a difference is named together with the step that made
it. The first layer that differs tells the most: what stands on it may differ because of it.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from wherry.builder.records.reasons import printable
from wherry.builder.trees import Tree, TreeLayer
from wherry.kernel.files import closing
from wherry.kernel.mount import Mount, open_detached
from wherry.spec.image import format_time
from wherry.storage.extract import is_whiteout
from wherry.storage.pack import kept_xattrs, open_directory, open_file
from wherry.storage.snapshot import Snapshotter
from wherry.storage.tree import list_directory, walk

MAX_TOLD = 100  # differences of one layer
MAX_LINE = 60  # characters shown of a line
_CHUNK = 1 << 16  # bytes compared at once
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a fifo",
}


def difference(snapshots: Snapshotter, first: Tree, second: Tree) -> list[str]:
    """Sentences, by layer; none when the results are the same."""
    found: list[str] = []
    for one, other in zip(first.layers, second.layers, strict=False):
        if one.diff_id != other.diff_id:
            step = one.created_by or other.created_by
            found += [f"{printable(step)}: {said}" if step else said for said in _layer(snapshots, one, other)]
    for which, layers in (("first", first.layers), ("second", second.layers)):
        rest = layers[min(len(first.layers), len(second.layers)) :]
        found += [
            f"only the {which} build has a layer of {printable(layer.created_by) or layer.diff_id}" for layer in rest
        ]
    return found


def _layer(snapshots: Snapshotter, one: TreeLayer, other: TreeLayer) -> Iterator[str]:
    with closing(_open(snapshots, one)) as old, closing(_open(snapshots, other)) as new:
        told = 0
        for said in _differences(old, new):
            told += 1
            if told > MAX_TOLD:
                yield f"more than {MAX_TOLD} files differ; the others are not listed"
                return
            yield said
    if not told:
        yield "the layers differ, and their files do not: in the order of hard links, or in what was deleted"


def _open(snapshots: Snapshotter, layer: TreeLayer) -> int:
    path = os.fspath(snapshots.layer(layer.chain))
    return open_detached([Mount(type="bind", source=path, options=("bind", "ro"))])


@dataclass(frozen=True, slots=True)
class _Place:
    directory: int
    name: bytes
    found: os.stat_result


def _differences(old: int, new: int) -> Iterator[str]:
    if said := _attributes(os.fstat(old), os.fstat(new)):
        yield f"/: {said}"
    for listing in walk(old):
        prefix = b"/" + listing.path + b"/" if listing.path else b"/"
        try:
            directory = open_directory(new, listing.path)
        except OSError:
            continue  # told already
        with closing(directory):
            there = dict(list_directory(directory))
            for name, found in listing.entries:
                path = printable(os.fsdecode(prefix + name))
                was = there.pop(name, None)
                if was is None:
                    yield f"{path}: {_alone(found, 'first')}"
                elif said := _compared(_Place(listing.fd, name, found), _Place(directory, name, was)):
                    yield f"{path}: {said}"
            for name, found in there.items():
                yield f"{printable(os.fsdecode(prefix + name))}: {_alone(found, 'second')}"


def _alone(found: os.stat_result, which: str) -> str:
    return f"only the {which} build deletes it" if is_whiteout(found) else f"only the {which} build has it"


def _compared(old: _Place, new: _Place) -> str:
    """What is different in two things of one name; "" for nothing."""
    if said := _attributes(old.found, new.found):
        content = _content(old, new) if stat.S_IFMT(old.found.st_mode) == stat.S_IFMT(new.found.st_mode) else ""
        return "; ".join(filter(None, (content, said)))
    return _content(old, new)


def _attributes(old: os.stat_result, new: os.stat_result) -> str:
    """By lstat: what goes into a layer."""
    if stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
        return f"{_kind(old)} in the first build, {_kind(new)} in the second"
    said = []
    if old.st_mode != new.st_mode:
        said.append(f"mode {stat.S_IMODE(old.st_mode):04o} and {stat.S_IMODE(new.st_mode):04o}")
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        said.append(f"owner {old.st_uid}:{old.st_gid} and {new.st_uid}:{new.st_gid}")
    if old.st_mtime_ns // 10**9 != new.st_mtime_ns // 10**9 and not is_whiteout(old):
        said.append(f"time of change {_time(old)} and {_time(new)}")
    if old.st_rdev != new.st_rdev:
        said.append("another device")
    return "; ".join(said)


def _kind(found: os.stat_result) -> str:
    return "a deletion" if is_whiteout(found) else _KINDS.get(stat.S_IFMT(found.st_mode), "something else")


def _time(found: os.stat_result) -> str:
    return format_time(found.st_mtime_ns // 10**9 * 10**9)


def _content(old: _Place, new: _Place) -> str:
    try:
        if stat.S_ISLNK(old.found.st_mode):
            one = os.readlink(old.name, dir_fd=old.directory)
            other = os.readlink(new.name, dir_fd=new.directory)
            return "" if one == other else f"leads to {_shown(one)} and to {_shown(other)}"
        if stat.S_ISREG(old.found.st_mode):
            with (
                closing(open_file(old.directory, old.name)) as left,
                closing(open_file(new.directory, new.name)) as right,
            ):
                return "; ".join(filter(None, (_bytes(left, right), _xattrs(left, right))))
        if stat.S_ISDIR(old.found.st_mode):
            with (
                closing(open_directory(old.directory, old.name)) as left,
                closing(open_directory(new.directory, new.name)) as right,
            ):
                return _xattrs(left, right)
    except OSError as exc:
        return f"cannot be compared: {exc.strerror}"
    return ""


def _xattrs(old: int, new: int) -> str:
    one, other = kept_xattrs(old), kept_xattrs(new)
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return f"extended attribute {', '.join(map(_shown, names))} differs" if names else ""


def _bytes(old: int, new: int) -> str:
    """Where two files begin to differ; of texts, the line."""
    offset, line = 0, 1
    while True:
        one, other = os.pread(old, _CHUNK, offset), os.pread(new, _CHUNK, offset)
        if one == other:
            if not one:
                return ""
            line += one.count(b"\n")
            offset += len(one)
            continue
        at = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), -1)
        at = min(len(one), len(other)) if at < 0 else at
        start = one.rfind(b"\n", 0, at) + 1
        left, right = (data[start:].partition(b"\n")[0] for data in (one, other))
        if not _is_text(left) or not _is_text(right):
            sizes = os.fstat(old).st_size, os.fstat(new).st_size
            lengths = f" (of {sizes[0]} and {sizes[1]} bytes)" if sizes[0] != sizes[1] else ""
            return f"content{lengths} differs from byte {offset + at} on"
        line += one[:at].count(b"\n")
        return f"line {line} is {_line(one[start:])} and {_line(other[start:])}"


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in line


def _line(data: bytes) -> str:
    """The beginning of the line that `data` begins with."""
    return _shown(data.partition(b"\n")[0]) if data else "missing"


def _shown(data: bytes | str) -> str:
    text = printable(data.decode(errors="backslashreplace") if isinstance(data, bytes) else data)
    return f"`{text[:MAX_LINE]}{'…' if len(text) > MAX_LINE else ''}`"
