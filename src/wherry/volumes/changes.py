"""What is done to whole volumes, and Docker has not: rename, clone, snapshots and the way back, tar in and out.

A new volume, or new content of one, is made in a directory out of sight (`Draft`) and comes to its place by one rename;
the row says so before (`Volume.moving`), so that a crash leaves it not begun or done. A snapshot is a directory whose
rename is its commit: what is listed is whole.

    <root>/<name>/_snapshots/<snapshot>/_data or _image

Copies share blocks where the file system can (reflink). A copy of a volume that is written to meanwhile has each file
as it was at some moment; `still`, given by who knows the containers, makes it one moment for all.
"""

import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from wherry.aio import finish, settle
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, NotSupported
from wherry.kernel.files import closing, fsync_directory, rename_noreplace, syncfs
from wherry.volumes import bodies, files, mounting, tar
from wherry.volumes.record import ANONYMOUS, Volume, check_name
from wherry.volumes.volumes import Volumes

_SNAPSHOT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")

Still = Callable[[], AbstractAsyncContextManager[object]]  # while it is open, nobody writes to the volume
Feed = Callable[[Callable[[BinaryIO], None]], Awaitable[None]]  # runs a blocking reader on the bytes that come


# --- names ------------------------------------------------------------------------------------------------------------


async def rename(volumes: Volumes, old: str, new: str) -> None:
    """Give the volume `old` the name `new`. Raises NotFound, InvalidParameter, Conflict.

    Refused while any container names it, stopped ones too: their records, and what `docker inspect` and Compose know of
    them, say `old`; they would get a new, empty volume at their next start.
    """
    check_name(new)
    volume = volumes.get(old)
    if new == old:
        raise InvalidParameter("Renaming a volume with the same name as its current name")
    first, second = sorted((old, new))
    async with volumes.lock(first), volumes.lock(second):
        volume = volumes.get(old)
        if users := volumes.users(old):
            raise Conflict(
                f"rename {old}: volume is in use - [{', '.join(users)}]: remove these containers first, or clone the "
                "volume under the new name"
            )
        volumes.check_idle("rename", old)
        volumes.check_free(new)
        await finish(volumes.install(replace(volume, name=new, moving=old), forget=old))
    volumes.publish("rename", new, oldName=old)


# --- copies -----------------------------------------------------------------------------------------------------------


async def clone(
    volumes: Volumes, source: str, target: str, *, labels: Mapping[str, str] | None = None, still: Still | None = None
) -> Volume:
    """A new volume `target` with the content of `source`, its limit and labels; `labels` come over those.

    What shows another place (a server, a device, a directory of the host) becomes a volume of the engine's own. Raises
    NotFound, InvalidParameter, Conflict when `target` exists, Failed.
    """
    check_name(target)
    origin = volumes.get(source)
    volumes.check_free(target)
    kept = {key: value for key, value in (origin.labels or {}).items() if key != ANONYMOUS}
    wished = Volume(
        name=target,
        created=time.time_ns(),
        labels={**kept, **(labels or {})} or None,
        options=None if origin.foreign else origin.options,
    )
    async with volumes.borrow(source), _draft(volumes, wished, filled=False) as draft:
        async with _one_copy(volumes, source), standing(still):
            await draft.copy(volumes.own(source), origin)
        await draft.install()
    return volumes.get(target)


@dataclass(frozen=True, slots=True)
class Snapshot:
    volume: str
    name: str
    created: int  # ns since the epoch
    size: int  # bytes, as if nothing was shared

    def document(self) -> dict[str, object]:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created // 10**9))
        return {"Volume": self.volume, "Name": self.name, "CreatedAt": at, "Size": self.size}


async def snapshot(volumes: Volumes, name: str, snapshot_name: str = "", *, still: Still | None = None) -> str:
    """Keep the volume's content as it is now; the snapshot's name, drawn from the time when none is given.

    Raises NotFound, InvalidParameter, Conflict when there is one of the name, NotSupported for what is not kept by the
    engine, Failed.
    """
    snapshot_name = snapshot_name or time.strftime("%Y%m%d-%H%M%S")
    if not _SNAPSHOT.fullmatch(snapshot_name):
        raise InvalidParameter(
            f'snapshot {name}@{snapshot_name[:140]}: only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed in its name, up to '
            "128 of them"
        )
    volume = _own_content(volumes, name, "snapshot")
    async with volumes.borrow(name), _one_copy(volumes, name), standing(still):
        try:
            await finish(settle(_keep, volumes.own(name), replace(volume, project=0), snapshot_name))
        except FileExistsError as exc:
            raise Conflict(f"snapshot {name}@{snapshot_name} exists already") from exc
        except OSError as exc:
            raise Failed(f"cannot keep snapshot {name}@{snapshot_name}: {exc.strerror}") from exc
    volumes.publish("snapshot", name, snapshot=snapshot_name)
    return snapshot_name


def _keep(own: Path, volume: Volume, name: str) -> None:
    kept = own / "_snapshots"
    kept.mkdir(mode=0o700, exist_ok=True)
    if (kept / name).exists():
        raise FileExistsError(name)
    fresh = kept / f"{files.MAKING}{os.urandom(6).hex()}"
    try:
        bodies.make(fresh, volume, filled=False)
        bodies.copy(own, fresh, volume)
        with closing(os.open(kept, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            syncfs(fd)
        os.utime(fresh)  # its time is the snapshot's
        rename_noreplace(str(fresh), str(kept / name))
        fsync_directory(kept)
    except BaseException:
        files.delete(fresh)
        raise


async def list_snapshots(volumes: Volumes, name: str) -> Sequence[Snapshot]:
    """The oldest first. Raises NotFound."""
    volume = volumes.get(name)
    return await settle(_list, volumes.own(name), volume)


def _list(own: Path, volume: Volume) -> list[Snapshot]:
    kept = own / "_snapshots"
    found: list[Snapshot] = []
    if kept.is_dir():
        for entry in kept.iterdir():
            if not entry.name.startswith("."):
                made = entry.stat().st_mtime_ns
                found.append(Snapshot(volume.name, entry.name, made, bodies.size(entry, volume)))
    return sorted(found, key=lambda each: (each.created, each.name))


async def remove_snapshot(volumes: Volumes, name: str, snapshot_name: str) -> None:
    """Raises NotFound."""
    async with _one_copy(volumes, name):
        kept = _snapshot_of(volumes, name, snapshot_name)
        doomed = kept.with_name(f"{files.MAKING}{os.urandom(6).hex()}")
        try:
            await settle(kept.rename, doomed)
        except FileNotFoundError as exc:
            raise _no_snapshot(name, snapshot_name) from exc
        await settle(files.delete, doomed)
    volumes.publish("snapshot-remove", name, snapshot=snapshot_name)


async def rollback(volumes: Volumes, name: str, snapshot_name: str) -> None:
    """Make the volume's content what it was; the snapshot stays. Raises NotFound, Conflict while it is in use, Failed.

    Containers that are stopped see the old content when they start.
    """
    volume = _own_content(volumes, name, "roll back")
    async with _one_copy(volumes, name):
        kept = _snapshot_of(volumes, name, snapshot_name)
        volumes.check_idle("rollback", name)
        async with _draft(volumes, volume, filled=False) as draft:
            await draft.copy(kept, volume)
            await draft.replace()
    volumes.publish("rollback", name, snapshot=snapshot_name)


def _snapshot_of(volumes: Volumes, name: str, snapshot_name: str) -> Path:
    volumes.get(name)
    kept = volumes.own(name) / "_snapshots" / snapshot_name
    if not _SNAPSHOT.fullmatch(snapshot_name) or not kept.is_dir():
        raise _no_snapshot(name, snapshot_name)
    return kept


def _no_snapshot(name: str, snapshot_name: str) -> NotFound:
    return NotFound(f"no such snapshot: {name}@{snapshot_name[:140]}")


def _own_content(volumes: Volumes, name: str, verb: str) -> Volume:
    volume = volumes.get(name)
    if volume.foreign:
        options = volume.options or {}
        raise NotSupported(
            f"cannot {verb} {name}: its content is not the engine's, but that of {options.get('device')} "
            f"({options.get('type')}): clone it first"
        )
    return volume


# --- tar --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def exporting(volumes: Volumes, name: str) -> AsyncIterator[Callable[[Callable[[bytes], object]], None]]:
    """A blocking function that writes the volume's content as a tar to what it is given. Raises NotFound, Failed."""
    async with volumes.borrow(name) as path:
        yield lambda out: tar.write(path, out)


async def import_(
    volumes: Volumes,
    name: str,
    feed: Feed,
    *,
    options: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    replacing: bool = False,
) -> Volume:
    """Make volume `name` of a tar, compressed or not; `options` (a size) and `labels` as in `Volumes.create`.

    One that exists must be empty, unless `replacing`: then it gets this content instead of its own, at once, and keeps
    its options and labels. Raises InvalidParameter for what is no archive or leads out of the volume, Conflict when the
    volume holds something or is in use, Failed when the disk is full; then nothing has changed.
    """
    check_name(name)
    if not volumes.has(name):
        wished = volumes.checked(name, options, labels)
        async with _draft(volumes, wished) as draft:
            await draft.extract(feed)
            await draft.install()
        return volumes.get(name)
    volume = _own_content(volumes, name, "import into")
    async with _one_copy(volumes, name):
        volumes.check_idle("import", name)
        if not replacing:
            await check_empty(volumes, name)
        async with _draft(volumes, volume) as draft:
            await draft.extract(feed)
            await draft.replace()
    volumes.publish("import", name)
    return volume


async def check_empty(volumes: Volumes, name: str) -> None:
    """Raise Conflict when the volume holds anything."""
    async with volumes.borrow(name) as path:
        if await settle(os.listdir, path):
            raise Conflict(
                f"import {name}: volume is not empty: replace its content (--replace), or choose another name"
            )


# --- how --------------------------------------------------------------------------------------------------------------


def _one_copy(volumes: Volumes, name: str) -> AbstractAsyncContextManager[None]:
    """Of copies of one volume, and exchanges of its content, one at a time; its containers come and go meanwhile."""
    return volumes.lock(("content", name))


def standing(still: Still | None) -> AbstractAsyncContextManager[object]:
    return still() if still is not None else nullcontext()


class Draft:
    """A volume, or its new content, in the making."""

    def __init__(self, volumes: Volumes, volume: Volume, own: Path) -> None:
        self._volumes, self._volume, self._own = volumes, volume, own

    async def copy(self, source: Path, origin: Volume) -> None:
        """Take the content of a volume's or snapshot's directory, of the kind of `origin`."""
        own, volume = self._own, self._volume
        try:
            if origin.image == volume.image:
                await settle(bodies.copy, source, own, volume)
            else:
                await settle(bodies.make, own, volume)
                async with self._there():
                    await settle(bodies.copy_content, source / "_data", own / "_data")
        except OSError as exc:
            raise Failed(f"cannot copy the content of volume {origin.name}: {exc.strerror}: {exc.filename}") from exc

    async def extract(self, feed: Feed) -> None:
        """Take the content of a tar."""
        limited = bool(self._volume.limit)
        async with self._there():
            await feed(lambda stream: tar.read(stream, self._own / "_data", limited=limited))

    @asynccontextmanager
    async def _there(self) -> AsyncIterator[None]:
        """Its content can be reached."""
        if self._volume.image:
            await settle(mounting.mount, self._own, self._volume)
        try:
            yield
        finally:
            await finish(settle(mounting.unmount, self._own))

    async def install(self) -> None:
        """It is a volume now. Raises Conflict when one of the name came to be meanwhile."""
        volumes, name = self._volumes, self._volume.name
        async with volumes.lock(name):
            volumes.check_free(name)
            await settle(self._sync)
            await finish(volumes.install(replace(self._volume, moving=self._own.name)))
        volumes.publish("create", name)

    async def replace(self) -> None:
        """It is the content of its volume now. Raises Conflict when that came to be used meanwhile."""
        volumes, volume = self._volumes, self._volume
        async with volumes.lock(volume.name):
            volumes.get(volume.name)
            volumes.check_idle("exchange the content of", volume.name)
            await settle(self._sync)
            if volume.project:  # its content was made as another project's than what it replaces
                await volumes.save(volume)
            fresh = self._own / ("_image" if volume.image else "_data")
            await finish(settle(files.replace_content, volumes.own(volume.name), fresh))

    def _sync(self) -> None:
        with closing(os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            syncfs(fd)


@asynccontextmanager
async def _draft(volumes: Volumes, volume: Volume, *, filled: bool = True) -> AsyncIterator[Draft]:
    """A directory like that of `volume`, out of sight; what was not put to use is deleted at the end."""
    own = volumes.root / f"{files.MAKING}{volume.name[:200]}-{os.urandom(6).hex()}"
    if not volume.image:
        volume = await volumes.chosen(replace(volume, project=0))
    try:
        try:
            await settle(bodies.make, own, volume, filled=filled)
        except OSError as exc:
            raise Failed(f"cannot make volume {volume.name}: {exc.strerror}: {exc.filename}") from exc
        yield Draft(volumes, volume, own)
    finally:
        await finish(settle(files.delete, own))
