"""A container's files as the daemon reaches them: an fd of the root, and paths resolved below it.

Of a running container it is the root its processes see, mounts included, by /proc. Of one that does not run it is a
detached mount of its layers; volumes and binds are not mounted there, so a path below one is looked up in its source.
Every path is resolved by openat2 with the root as the end of the world: no symbolic link in a container leads out.
Blocking.
"""

import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from wherry.containers.deps import Deps
from wherry.containers.record import Container, MountPoint
from wherry.digest import ChainID
from wherry.errors import Failed, NotFound
from wherry.kernel.files import Resolve, closing, openat2
from wherry.kernel.mount import detached

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path of a container is: below `root`, and in which mount."""

    root: int
    path: str  # below `root`, beginning with /
    mount: MountPoint | None  # the one that `path` lies in; None for the container's own layers


@contextmanager
def open_place(deps: Deps, container: Container, path: str, *, write: bool = False) -> Iterator[Place]:
    """Find the root for `path`; to `write` into one that does not run the caller holds its lock."""
    clean = absolute(path)
    point = _mount_of(container, clean)
    if container.running:
        try:
            root = os.open(f"/proc/{container.state.pid}/root", _DIRECTORY)
        except OSError as exc:
            raise Failed(f"cannot reach the files of container {container.name}: {exc.strerror}") from exc
        place = Place(root, clean, point)
    elif point is not None and point.type == "image":
        with detached(deps.snapshots.view(ChainID(point.chain))) as tree:
            yield Place(tree, posixpath.join("/", point.subpath, _below(point, clean).lstrip("/")), point)
        return
    elif point is not None and point.type != "tmpfs":
        root, rest = _open_source(point, clean)
        place = Place(root, rest, point)
    else:
        with detached(deps.snapshots.mounts(container.id) if write else deps.snapshots.peek(container.id)) as root:
            yield Place(root, clean, None)
        return
    try:
        yield place
    finally:
        os.close(root)


@asynccontextmanager
async def reachable(deps: Deps, container: Container, path: str) -> AsyncIterator[None]:
    """Of a container that does not run, the volume that `path` lies in is mounted, as for one that does."""
    point = _mount_of(container, absolute(path))
    if container.running or point is None or point.type != "volume":
        yield
        return
    async with deps.volumes.borrow(point.name):
        yield


def absolute(path: str) -> str:
    """As Docker reads a path: from the root, `..` and repeated slashes gone, a last `.` kept."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if clean.startswith("//"):
        clean = clean[1:]
    if path.endswith("/.") or path == ".":
        return clean.rstrip("/") + "/."
    return clean


def _mount_of(container: Container, path: str) -> MountPoint | None:
    """The deepest mount point that `path` lies in."""
    found: MountPoint | None = None
    for point in container.mounts:
        inside = path == point.destination or path.startswith(point.destination.rstrip("/") + "/")
        if inside and (found is None or len(point.destination) > len(found.destination)):
            found = point
    return found


def _open_source(point: MountPoint, path: str) -> tuple[int, str]:
    """The source of a mount as a root; a single file is reached through its directory."""
    rest = _below(point, path)
    try:
        if point.subpath:
            return _open_part(point, rest)
        if os.path.isdir(point.source):
            return os.open(point.source, _DIRECTORY), rest
        return os.open(os.path.dirname(point.source), _DIRECTORY), "/" + os.path.basename(point.source)
    except OSError as exc:
        raise NotFound(f"the source of mount {point.destination}, {point.source}: {exc.strerror}") from exc


def _below(point: MountPoint, path: str) -> str:
    return path[len(point.destination.rstrip("/")) :] or "/"


def _open_part(point: MountPoint, rest: str) -> tuple[int, str]:
    """The part of a volume that is mounted: no link on the way to it leads out of the volume."""
    directory, name = posixpath.split(point.subpath.rstrip("/"))
    beneath = int(Resolve.BENEATH | Resolve.NO_MAGICLINKS)
    with closing(os.open(point.source, _DIRECTORY)) as volume:
        try:
            return openat2(volume, point.subpath, _DIRECTORY, resolve=beneath), rest
        except NotADirectoryError:
            return openat2(volume, directory or ".", _DIRECTORY, resolve=beneath), "/" + name


@contextmanager
def open_parent(place: Place, what: NotFound) -> Iterator[tuple[int, bytes]]:
    """The directory of the place's path, links in it followed, and the last name in it, which may be a link.

    Raises `what` when there is no such directory. The name is `.` for the root and for a path that ends with `/.`.
    """
    directory, _, name = place.path.rpartition("/")
    try:
        fd = openat2(place.root, directory or "/", _DIRECTORY)
    except OSError as exc:
        if exc.errno in _MISSING:
            raise what from exc
        raise
    try:
        yield fd, os.fsencode(name) or b"."
    finally:
        os.close(fd)


def lookup(parent: int, name: bytes, what: NotFound) -> os.stat_result:
    """lstat of what `open_parent` gave."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in _MISSING:
            raise what from exc
        raise


def target_of(place: Place, parent: int, name: bytes, found: os.stat_result) -> str:
    """Where a symbolic link leads in the end, as a path of the container; "" for anything else."""
    if not stat.S_ISLNK(found.st_mode):
        return ""
    link = os.readlink(name, dir_fd=parent)
    text = os.fsdecode(link)
    with suppress(OSError):
        fd = openat2(place.root, place.path, os.O_PATH)
        try:
            root, end = os.readlink(f"/proc/self/fd/{place.root}"), os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if root == "/":
            return end
        if end.startswith(root + "/"):
            return end[len(root) :]
    return posixpath.normpath(posixpath.join(posixpath.dirname(place.path), text))
