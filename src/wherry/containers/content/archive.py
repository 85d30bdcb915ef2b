"""cp: files out of a container and into it, as tar archives; and export, its whole tree.

Works on running and stopped containers: see `rootfs`. What comes out never follows a symbolic link at its end, as in
Docker; what goes in can replace nothing outside the container.
"""

import os
import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing

from wherry.aio import settle
from wherry.containers.content.rootfs import Place, absolute, lookup, open_parent, open_place, reachable, target_of
from wherry.containers.deps import Deps
from wherry.containers.record import Container
from wherry.containers.views.shapes import Document, rfc3339_nano
from wherry.errors import Forbidden, InvalidParameter, NotFound
from wherry.images.feed import consume, produce
from wherry.kernel.files import openat2
from wherry.kernel.mount import detached
from wherry.runtime import users
from wherry.storage.archive import Entry, Kind, TarReader, normalize
from wherry.storage.archive_writer import TarWriter
from wherry.storage.compression import decompress
from wherry.storage.diff import write_tree
from wherry.storage.extract import Extractor
from wherry.storage.pack import Packer
from wherry.storage.tree import walk

SMALL = 1 << 20  # bytes of passwd and group that are read
PSEUDO = (b"proc", b"sys", b"dev")  # mounted by the runtime: nobody's files; reached only by naming them

# Go's os.FileMode, in which clients read the mode
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_GO_FLAGS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


async def stat_path(deps: Deps, name: str, path: str) -> Document:
    """What `X-Docker-Container-Path-Stat` carries. Raises NotFound for the container and for the path."""
    container = deps.store.resolve(name)
    async with reachable(deps, container, _given(path)):
        return await settle(_stat, deps, container, name, path)


async def get(deps: Deps, name: str, path: str) -> tuple[Document, AsyncIterator[bytes]]:
    """The stat of `path`, and an archive of it: one file, or a directory under its own name (`.` for `dir/.`).

    Raises as `stat_path`. What goes wrong later is raised by the iterator.
    """
    container = deps.store.resolve(name)
    async with reachable(deps, container, _given(path)):
        document = await settle(_stat, deps, container, name, path)
    deps.publish(container, "archive-path")

    async def packed() -> AsyncIterator[bytes]:
        async with (
            reachable(deps, container, path),
            aclosing(produce(lambda out: _pack(deps, container, name, path, out))) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    return document, packed()


async def put(
    deps: Deps,
    name: str,
    path: str,
    chunks: AsyncIterator[bytes],
    *,
    no_overwrite_dir_non_dir: bool = False,
    copy_uid_gid: bool = False,
) -> None:
    """Extract an archive, compressed or not, into the existing directory `path`.

    With `no_overwrite_dir_non_dir` a directory never takes the place of something else, or the reverse; with
    `copy_uid_gid` everything will belong to the container's user. Raises NotFound, InvalidParameter (no directory, a
    bad archive), Forbidden (read-only there), Failed.
    """
    container = deps.store.resolve(name)
    _check_writable(container, _given(path))

    def unpack(read: Callable[[int], bytes]) -> None:
        with open_place(deps, container, path, write=True) as place:
            owner = _owner(container, place) if copy_uid_gid else None
            extract(place, read, _missing(name, path), owner=owner, replace_kinds=not no_overwrite_dir_non_dir)

    if container.running:
        await consume(chunks, lambda file: unpack(file.read))
    else:
        async with (
            deps.locks(container.id),  # nobody may start it: its layers are mounted once at a time
            reachable(deps, container, path),
        ):
            await consume(chunks, lambda file: unpack(file.read))
    deps.publish(container, "extract-to-dir")


async def export(deps: Deps, name: str) -> AsyncIterator[bytes]:
    """The container's tree without what is mounted into it. Raises NotFound."""
    container = deps.store.resolve(name)
    mounts = await settle(deps.snapshots.peek, container.id)

    def write(out: Callable[[bytes], object]) -> None:
        with detached(mounts) as root:
            write_tree(root, out)

    deps.publish(container, "export")
    return produce(write)


def _given(path: str) -> str:
    if not path:
        raise InvalidParameter("bad parameter: 'path' cannot be empty")
    return path


def _missing(name: str, path: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {name}")


def _stat(deps: Deps, container: Container, name: str, path: str) -> Document:
    missing = _missing(name, path)
    with open_place(deps, container, path) as place, open_parent(place, missing) as (parent, base):
        found = lookup(parent, base, missing)
        return {
            "name": posixpath.basename(absolute(path)) or "/",
            "size": found.st_size,
            "mode": go_mode(found.st_mode),
            "mtime": rfc3339_nano(found.st_mtime_ns) if found.st_mtime_ns else "1970-01-01T00:00:00Z",
            "linkTarget": target_of(place, parent, base, found),
        }


def go_mode(mode: int) -> int:
    """A mode as Go's os.FileMode has it."""
    flags = sum(bit for flag, bit in _GO_FLAGS.items() if mode & flag)
    return _GO_KINDS.get(stat.S_IFMT(mode), 0) | flags | (mode & 0o777)


def _pack(deps: Deps, container: Container, name: str, path: str, out: Callable[[bytes], object]) -> None:
    missing = _missing(name, path)
    with open_place(deps, container, path) as place, open_parent(place, missing) as (parent, base):
        found = lookup(parent, base, missing)
        writer = TarWriter(out)
        packer = Packer(writer)
        shown = os.fsencode(posixpath.basename(absolute(path))) or b"."
        if not stat.S_ISDIR(found.st_mode):
            packer.add(parent, base, shown, found)
        else:
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                _pack_directory(packer, fd, shown, whole=absolute(path) in ("/", "/."))
            finally:
                os.close(fd)
        writer.finish()


def _pack_directory(packer: Packer, fd: int, shown: bytes, *, whole: bool) -> None:
    packer.add(fd, b".", shown, os.fstat(fd))
    for listing in walk(fd):
        prefix = shown + b"/" + listing.path + b"/" if listing.path else shown + b"/"
        for base, found in listing.entries:
            packer.add(listing.fd, base, prefix + base, found)
        if whole and not listing.path:
            listing.entries[:] = [entry for entry in listing.entries if entry[0] not in PSEUDO]


def _check_writable(container: Container, path: str) -> None:
    clean = absolute(path).removesuffix("/.")
    inside = [
        point
        for point in container.mounts
        if clean == point.destination or clean.startswith(point.destination.rstrip("/") + "/")
    ]
    if inside:
        if not max(inside, key=lambda point: len(point.destination)).rw:
            raise Forbidden("mounted volume is marked read-only")
    elif container.host_config.readonly_rootfs:
        raise Forbidden("container rootfs is marked read-only")


def extract(
    place: Place,
    read: Callable[[int], bytes],
    missing: NotFound,
    *,
    owner: tuple[int, int] | None = None,
    replace_kinds: bool = True,
) -> None:
    """Extract what `read` gives into the directory of `place`. A link on the way there may lead anywhere in the root.

    The archive's entry for the directory itself is left out: it is there, and keeps its attributes.
    """
    try:
        fd = openat2(place.root, place.path, os.O_PATH)
    except OSError as exc:
        raise missing from exc
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidParameter("extraction point is not a directory")
    finally:
        os.close(fd)
    reader = _Below(decompress(read), prefix=os.fsencode(place.path.removesuffix("/.").strip("/")))
    Extractor(place.root, owner=owner, replace_kinds=replace_kinds).extract(reader)


class _Below(TarReader):
    """An archive whose entries all lie in one directory."""

    def __init__(self, pieces: Iterable[bytes], *, prefix: bytes) -> None:
        super().__init__(pieces)
        self._prefix = prefix + b"/" if prefix else b""

    def next(self) -> Entry | None:
        while (entry := super().next()) is not None:
            name = normalize(entry.name)
            if not name:
                continue
            entry.name = self._prefix + name
            if entry.kind is Kind.HARDLINK:
                entry.link = self._prefix + normalize(entry.link)
            return entry
        return None


def _owner(container: Container, place: Place) -> tuple[int, int]:
    """The ids of the container's user, by its own passwd and group files."""
    if not container.config.user:
        return 0, 0
    found = users.resolve(
        container.config.user, (), passwd=_read(place.root, "/etc/passwd"), group=_read(place.root, "/etc/group")
    )
    return found.uid, found.gid


def _read(root: int, path: str) -> str:
    """A small file of the container; "" when there is none."""
    try:
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(SMALL).decode(errors="replace")
