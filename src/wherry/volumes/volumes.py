"""Volumes: directories that outlive containers. One driver, `local`, with Docker's rules.

    <root>/<name>/_data                    the volume: what is bound into containers; for some a mount (mounting.py)
    <root>/<name>/_image                   a file system in a file: of a volume with a limit, mounted at _data
    <root>/<name>/_snapshots/<snapshot>/   _data or _image as it was (changes.py)
    <root>/<name>/_copy                    image content on its way in, unfinished: garbage at start-up
    <root>/<name>/_ready                   the same, finished: its entries are being moved to _data
    <root>/<name>/_next, _old              other content on its way in, complete, and what it takes the place of
    <root>/.making-<name>-<random>/        a volume that is being made, as <root>/<name>: garbage, unless a row wants it
    <root>/.removing-<name>-<random>       being deleted

The row in state table `volumes` comes first and goes last but for the files, so a volume that was acknowledged is never
lost and one that was removed never comes back. A directory with `_data` and no row is adopted, never deleted: it holds
somebody's data. `users` tells which containers use which volumes: a fact of a higher room.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

from wherry import ids
from wherry.aio import KeyedLock, finish, settle
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, WherryError
from wherry.events import Event, Events
from wherry.filters import NONE, Filters
from wherry.kernel.mount import Mount
from wherry.state import Delete, Insert, Put, State
from wherry.volumes import bodies, files, mounting
from wherry.volumes.record import (
    ANONYMOUS,
    DRIVER,
    Volume,
    check_driver,
    check_name,
    check_options,
    decode,
    encode,
)

log = logging.getLogger(__name__)

_LIST_FILTERS = ("dangling", "name", "label", "driver")
_PRUNE_FILTERS = ("label", "label!", "all")

_ENGINE = "engine-"  # how names of users begin that are no containers

Users = Callable[[], Mapping[str, Sequence[str]]]  # volume name -> ids of the containers that use it


def _nobody() -> Mapping[str, Sequence[str]]:
    return {}


class Volumes:
    """All volumes of one data root. Used from the event loop; `start` once before anything else."""

    def __init__(self, state: State, root: Path, events: Events, *, users: Users = _nobody) -> None:
        """`root` is the directory of volumes, `<data root>/volumes`."""
        self._state = state
        self.root = root
        self._events = events
        self._users = users
        self._locks = KeyedLock()
        self._held: Counter[str] = Counter()
        self._users_now: dict[str, set[str]] = {}  # volume -> who has it mounted, in name or truly
        self._by_name = {name: decode(raw) for name, raw in state.rows("volumes").items()}
        self._project = max([bodies.FIRST_PROJECT, *(volume.project for volume in self._by_name.values())])

    async def start(self) -> None:
        """Finish or undo what a crash interrupted; idempotent. What is mounted stays: see `recover`."""
        found = await settle(files.recover, self.root, dict(self._by_name))
        changes = [Put("volumes", volume.name, encode(volume)) for volume in found.changed]
        await settle(self._state.write, *changes, *(Delete("volumes", name) for name in found.forget))
        self._by_name.update((volume.name, volume) for volume in found.changed)
        for name in found.forget:
            del self._by_name[name]

    async def recover(self, users: Mapping[str, Iterable[str]]) -> None:
        """Take over what running containers use, volume name -> container ids, and unmount the rest."""
        for name, containers in users.items():
            if name not in self._by_name:
                log.error("volume %s is used by a running container and has no record", name)
                continue
            for container in containers:
                try:
                    await self.mount(name, container)
                except WherryError as exc:  # it was unmounted by hand; the container still has its own mount of it
                    log.error("volume %s cannot be mounted again: %s", name, exc.message)
                    self._users_now.setdefault(name, set()).add(container)
        await settle(mounting.unmount_all, self.root, except_for=set(self._users_now))

    async def close(self) -> None:
        """Unmount everything. For the end of a daemon that leaves no container running."""
        self._users_now.clear()
        await settle(mounting.unmount_all, self.root, except_for=set())

    # What containers ask

    def get(self, name: str) -> Volume:
        """Raises NotFound."""
        if (volume := self._by_name.get(name)) is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def path(self, name: str) -> Path:
        """The host directory to bind into a container, between `mount` and `unmount`; raises NotFound."""
        self.get(name)
        return self.own(name) / "_data"

    def own(self, name: str) -> Path:
        """The volume's directory, with all that belongs to it."""
        return self.root / name

    async def mount(self, name: str, container: str) -> Path:
        """Make the volume's content be there for the container `container`, until `unmount`; idempotent.

        Returns the host directory to bind. A volume of `type=`, or with a limit, is mounted for the first of its users:
        all share one mount. Raises NotFound, Failed in Docker's words.
        """
        async with self._locks(name):
            volume = self.get(name)
            if volume.mounted and not self._users_now.get(name):
                await settle(mounting.mount, self.own(name), volume)
            self._users_now.setdefault(name, set()).add(container)
        return self.path(name)

    async def unmount(self, name: str, container: str) -> None:
        """`container` needs the volume no more; idempotent. After the last user it is unmounted."""
        async with self._locks(name):
            users = self._users_now.get(name, set())
            users.discard(container)
            if users:
                return
            self._users_now.pop(name, None)
            if (volume := self._by_name.get(name)) is not None and volume.mounted:
                try:
                    await settle(mounting.unmount, self.own(name))
                except OSError as exc:
                    log.error("volume %s cannot be unmounted: %s", name, exc)

    @asynccontextmanager
    async def borrow(self, name: str) -> AsyncIterator[Path]:
        """The volume's content, to be read or written by the engine itself; meanwhile it is not removed or exchanged.

        Yields the directory. Raises as `mount`.
        """
        user = f"{_ENGINE}{ids.generate()[:12]}"
        with self.hold(name):
            try:
                yield await self.mount(name, user)
            finally:
                await finish(self.unmount(name, user))

    def users_now(self, name: str) -> Sequence[str]:
        """The running containers that use the volume, and the engine's own work."""
        return sorted(self._users_now.get(name, ()))

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Keep volumes from being removed while a container that will use them is still being created."""
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            self._held += Counter()  # drops the zeros

    async def ensure(
        self,
        name: str,
        *,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        anonymous: bool = False,
    ) -> Path:
        """Make the volume if it does not exist, and return the host directory to bind into a container.

        An existing volume is taken as it is, whatever options and labels were asked for, as in Docker. Raises
        InvalidParameter, NotFound (no such driver), Failed. `mount` makes the content be there.
        """
        if anonymous:
            labels = {**(labels or {}), ANONYMOUS: ""}
        volume = await self._ensure(name, driver, options, labels)
        return self.path(volume.name)

    async def _ensure(
        self, name: str, driver: str, options: Mapping[str, str] | None, labels: Mapping[str, str] | None
    ) -> Volume:
        check_driver(name, driver)
        check_name(name)
        async with self._locks(name):
            if (found := self._by_name.get(name)) is not None:
                return found
            check_options(name, options or {})
            volume = Volume(name=name, created=time.time_ns(), labels=labels, options=options or None)
            volume = await self.chosen(volume)
            await finish(self._make(volume))
        self.publish("create", name, driver=DRIVER)
        return volume

    async def fill(self, name: str, rootfs: Sequence[Mount], destination: str) -> None:
        """Give an empty volume what the tree made of the mounts `rootfs` (an image's) has at `destination`.

        Owner, mode and times as well as the content. Nothing happens when the volume holds anything already or the tree
        has no such path. Raises InvalidParameter when the path is a file, Failed when a copy fails; the volume then is
        as it was.
        """
        async with self.borrow(name) as path, self._locks(name):
            try:
                await settle(files.fill, path, self.own(name), rootfs, destination)
            except OSError as exc:
                raise Failed(f"failed to copy image content at {destination} into volume {name}: {exc}") from exc

    async def discard(self, name: str) -> None:
        """Delete the volume of a container that goes; the caller knows that nobody else uses it. Idempotent."""
        async with self._locks(name):
            if name not in self._by_name or any(user.startswith(_ENGINE) for user in self.users_now(name)):
                return  # what is being copied just now stays, as a volume that nobody uses
            await finish(self._unmake(name))
        self.publish("destroy", name, driver=DRIVER)

    def mounted(self, name: str, container: str, *, destination: str, rw: bool, propagation: str = "") -> None:
        """Tell that a container started with the volume."""
        self.publish(
            "mount",
            name,
            container=container,
            destination=destination,
            driver=DRIVER,
            propagation=propagation,
            **{"read/write": "true" if rw else "false"},
        )

    def unmounted(self, name: str, container: str) -> None:
        self.publish("unmount", name, container=container, driver=DRIVER)

    # What the API asks

    async def create(
        self,
        name: str,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> dict[str, object]:
        """As `ensure`, answering with the document of `inspect`; "" makes an anonymous volume."""
        if not name:
            name, labels = ids.generate(), {**(labels or {}), ANONYMOUS: ""}
        return self._document(await self._ensure(name, driver, options, labels))

    def inspect(self, name: str) -> dict[str, object]:
        """Docker's Volume document; raises NotFound."""
        return self._document(self.get(name))

    def list(self, filters: Filters = NONE) -> dict[str, object]:
        """Docker's VolumeListResponse; raises InvalidParameter for a filter it does not know."""
        filters.check(_LIST_FILTERS)
        dangling = filters.boolean("dangling", default=False) if "dangling" in filters else None
        used = self._users() if dangling is not None else {}
        return {
            "Volumes": [
                self._document(volume)
                for volume in self._by_name.values()
                if filters.pattern("name", volume.name)
                and filters.exact("driver", volume.driver)
                and filters.labels(volume.labels)
                and (dangling is None or dangling == (not used.get(volume.name)))
            ],
            "Warnings": None,
        }

    async def remove(self, name: str, force: bool = False) -> None:
        """Delete the volume and its data. With `force` a missing one is no error; one in use always is.

        Raises NotFound, Conflict (in use), Failed.
        """
        if force and name not in self._by_name:
            return
        async with self._locks(name):
            self.get(name)
            users = sorted(self._users().get(name, ()))
            if users or self._held[name]:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            await finish(self._unmake(name))
        self.publish("destroy", name, driver=DRIVER)

    async def prune(self, filters: Filters = NONE) -> dict[str, object]:
        """Delete volumes that no container uses: the anonymous ones, and with `all=true` the named ones too."""
        filters.check(_PRUNE_FILTERS)
        everything = filters.boolean("all", default=False)
        used = self._users()
        deleted: list[str] = []
        reclaimed = 0
        for volume in list(self._by_name.values()):
            wanted = filters.labels(volume.labels) and filters.without_labels(volume.labels)
            if used.get(volume.name) or not wanted or not (everything or volume.anonymous):
                continue
            size = await self.size(volume.name)
            try:
                await self.remove(volume.name)
            except WherryError as exc:
                log.warning("volume %s is not pruned: %s", volume.name, exc)
                continue
            deleted.append(volume.name)
            reclaimed += size
        self._events.publish(Event(type="volume", action="prune", actor="", attributes={"reclaimed": str(reclaimed)}))
        return {"VolumesDeleted": deleted, "SpaceReclaimed": reclaimed}

    async def size(self, name: str) -> int:
        """Bytes in the volume, without its snapshots; 0 for one whose content is elsewhere."""
        volume = self.get(name)
        return 0 if volume.foreign else await settle(bodies.size, self.own(name), volume)

    async def disk_usage(self) -> Sequence[dict[str, object]]:
        """The documents of all volumes with `UsageData`, for `system df`."""
        used = self._users()
        found: list[dict[str, object]] = []
        for volume in list(self._by_name.values()):
            usage = {"RefCount": len(used.get(volume.name, ())), "Size": await self.size(volume.name)}
            found.append({**self._document(volume), "UsageData": usage})
        return found

    # For changes.py

    def lock(self, key: Hashable) -> AbstractAsyncContextManager[None]:
        """Who holds the lock of a name sees the volume neither come nor go, nor its users change."""
        return self._locks(key)

    def has(self, name: str) -> bool:
        return name in self._by_name

    def users(self, name: str) -> Sequence[str]:
        """Ids of the containers that name the volume, running or not."""
        return sorted(self._users().get(name, ()))

    def check_idle(self, verb: str, name: str) -> None:
        """Raise Conflict while the volume is mounted somewhere, or about to be."""
        if users := self.users_now(name):
            engine = all(user.startswith(_ENGINE) for user in users)
            what = "is being copied: try again later" if engine else "is in use: stop these containers first"
            raise Conflict(f"{verb} {name}: volume {what} - [{', '.join(users)}]")
        if self._held[name]:
            raise Conflict(f"{verb} {name}: volume is in use by a container that is being created: try again later")

    def check_free(self, name: str) -> None:
        """Raise Conflict when there is a volume of that name."""
        if name in self._by_name:
            raise Conflict(f"volume {name} exists already: choose another name, or remove it first")

    def checked(self, name: str, options: Mapping[str, str] | None, labels: Mapping[str, str] | None) -> Volume:
        """A volume to be, which the engine itself keeps. Raises InvalidParameter."""
        check_options(name, options or {})
        volume = Volume(name=name, created=time.time_ns(), labels=labels or None, options=options or None)
        if volume.foreign:
            raise InvalidParameter(f"create {name}: only a size can be asked for here")
        return volume

    async def chosen(self, volume: Volume) -> Volume:
        """`volume`, a new one, with what will hold it to its limit."""
        self._project += 1
        return await settle(bodies.choose, self.root, volume, self._project)

    async def install(self, volume: Volume, *, forget: str = "") -> None:
        """Let the directory `volume.moving` be the new volume, in place of the row `forget`; to be called under the
        lock of both names. After a crash `files.recover` goes on where this was."""
        if await settle((self.root / volume.name).exists):
            raise Conflict(f"there is a directory {self.root / volume.name} of no volume: move it away first")
        gone = [Delete("volumes", forget)] if forget else []
        await settle(self._state.write, Insert("volumes", volume.name, encode(volume)), *gone)
        arrived = await settle(files.arrive, self.root, volume)
        await settle(self._state.write, Put("volumes", volume.name, encode(arrived)))
        self._by_name.pop(forget, None)
        self._by_name[volume.name] = arrived

    async def save(self, volume: Volume) -> None:
        """Write the row of a volume that exists."""
        await settle(self._state.write, Put("volumes", volume.name, encode(volume)))
        self._by_name[volume.name] = volume

    # How

    async def _make(self, volume: Volume) -> None:
        await settle(self._state.write, Insert("volumes", volume.name, encode(volume)))
        try:
            await settle(bodies.make, self.own(volume.name), volume)
        except OSError as exc:
            await settle(self._forget_half_made, volume.name)
            raise Failed(f"create {volume.name}: {exc.strerror}: {exc.filename}") from exc
        except Failed:
            await settle(self._forget_half_made, volume.name)
            raise
        self._by_name[volume.name] = volume

    def _forget_half_made(self, name: str) -> None:
        files.delete(self.own(name))
        self._state.write(Delete("volumes", name))

    async def _unmake(self, name: str) -> None:
        """Out of sight first (one rename), then the row, then the files."""
        doomed = self.root / f"{files.REMOVING}{name}-{os.urandom(6).hex()}"
        try:
            await settle(files.move_away, self.root / name, doomed)
        except OSError as exc:
            raise Failed(f"remove {name}: {exc.strerror}: {exc.filename}") from exc
        try:
            await settle(self._state.write, Delete("volumes", name))
        except BaseException:  # undone, and raised again
            await settle(doomed.rename, self.root / name)
            raise
        del self._by_name[name]
        await settle(files.delete, doomed)

    def _document(self, volume: Volume) -> dict[str, object]:
        return {
            "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.created // 10**9)),
            "Driver": volume.driver,
            "Labels": volume.labels,
            "Mountpoint": str(self.own(volume.name) / "_data"),
            "Name": volume.name,
            "Options": volume.options,
            "Scope": "local",
        }

    def publish(self, action: str, name: str, **attributes: str) -> None:
        self._events.publish(Event(type="volume", action=action, actor=name, attributes=attributes))
