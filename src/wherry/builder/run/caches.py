"""Cache mounts: directories that outlive a build, for package managers and compilers.

    <build root>/caches/<sha256 of id>/<n>/files    n = 0, and further ones of caches that are private and were in use
    <build root>/caches/<sha256 of id>/id           its name, for people and for export

Shared caches are used by many steps at a time; locked ones by one, others wait; of private ones everybody has another.
"""

import hashlib
import os
from contextlib import AsyncExitStack
from pathlib import Path

from wherry.aio import settle
from wherry.builder.deps import Deps
from wherry.builder.graph import ExecMount, Sharing
from wherry.builder.trees import Directory, Result
from wherry.kernel.files import closing, openat2
from wherry.kernel.mount import Mount, open_detached
from wherry.storage.native import copy_tree
from wherry.storage.tree import remove_tree

MAX_PRIVATE = 64  # copies of one private cache


def cache_directory(root: Path, cache_id: str) -> Path:
    return root / "caches" / hashlib.sha256(cache_id.encode()).hexdigest()


async def acquire_cache(deps: Deps, mount: ExecMount, source: Result, held: AsyncExitStack) -> Path:
    """The directory to bind, held until `held` closes. A new one begins with the files of `source` at the selector."""
    cache_id = mount.cache_id or mount.target
    base = cache_directory(deps.settings.root, cache_id)
    users = deps.cache_users
    if mount.sharing is Sharing.LOCKED:
        await held.enter_async_context(deps.locks(("cache", base)))
    number = 0
    if mount.sharing is Sharing.PRIVATE:
        while users.get(base / str(number)) and number < MAX_PRIVATE:
            number += 1
    place = base / str(number)
    users[place] = users.get(place, 0) + 1
    held.callback(_leave, users, place)
    async with deps.locks(("make cache", place)):
        await settle(_make, deps, place, cache_id, mount, source)
    return place / "files"


def _leave(users: dict[Path, int], place: Path) -> None:
    users[place] -= 1
    if not users[place]:
        del users[place]


def _make(deps: Deps, place: Path, cache_id: str, mount: ExecMount, source: Result) -> None:
    files = place / "files"
    if files.is_dir():
        os.utime(place)  # its last use
        return
    making = place / "making"
    if making.exists():  # of a daemon that died
        remove_tree(making)
    making.mkdir(parents=True)
    (place.parent / "id").write_text(cache_id)
    if (found := _initial(deps, source)) is not None:
        with (
            closing(open_detached(found)) as root,
            closing(openat2(root, mount.selector.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY)) as selected,
        ):
            copy_tree(Path(f"/proc/self/fd/{selected}"), making)
    os.chown(making, mount.uid, mount.gid)
    os.chmod(making, mount.mode or 0o755)
    making.rename(files)


def _initial(deps: Deps, source: Result) -> list[Mount] | None:
    if isinstance(source, Directory):
        return [Mount(type="bind", source=os.fspath(source.path), options=("bind", "ro"))]
    return list(deps.snapshots.view(source.chain)) if source.layers else None
