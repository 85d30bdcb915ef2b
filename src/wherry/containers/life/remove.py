"""rm: a container and all that is only its own disappears; its name is free again."""

import logging
import shutil
from pathlib import Path

import msgspec

from wherry.aio import finish, settle
from wherry.containers.attached import linked
from wherry.containers.deps import Deps
from wherry.containers.life.stop import end_now
from wherry.containers.live import WaitResult
from wherry.containers.making import links
from wherry.containers.making.files import change_hosts
from wherry.containers.record import Container, Status
from wherry.digest import ChainID
from wherry.errors import Conflict, NotFound, WherryError
from wherry.ids import ContainerID
from wherry.images.garbage import release

log = logging.getLogger(__name__)


async def remove(deps: Deps, name: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
    """Remove a container; a running one only by force (SIGKILL). `volumes` takes its anonymous volumes along.

    Raises NotFound, and Conflict when it runs or when another removal is under way. Once begun it goes to its end.
    """
    if link:
        await finish(remove_link(deps, name))
        return
    container = deps.store.resolve(name)
    await finish(_remove(deps, container, name, force=force, volumes=volumes))


async def remove_link(deps: Deps, name: str) -> None:
    """`web/db`: the container web is no longer linked to the one it knows as db; its hosts are changed at once."""
    owner, _, alias = name.removeprefix("/").partition("/")
    if not alias:
        deps.store.resolve(owner)
        raise Conflict("Conflict, cannot remove the default link name of the container")
    try:
        container = deps.store.resolve(owner)
    except NotFound:
        raise NotFound(f"No such container: {name}") from None
    async with deps.locks(container.id):
        gone = [(other, each) for other, each in linked(deps.store, container) if each == alias]
        if not gone:
            raise NotFound(f"No such container: {name}")
        left = [text for text in container.host_config.links or () if text.partition(":")[2] != alias]
        container.host_config = msgspec.structs.replace(container.host_config, links=left or None)
        await deps.store.save(container)
        if container.running:
            lines = [line for other, each in gone for line in links.lines(other, each)]
            await settle(change_hosts, deps.settings.directory(container), remove=lines)


async def _remove(deps: Deps, container: Container, name: str, *, force: bool, volumes: bool) -> None:
    while True:
        if _is_up(container):
            if not force:
                raise Conflict(_refusal(container))
            await end_now(deps, container)
        async with deps.locks(container.id):
            if deps.store.get(container.id) is None:
                if container.host_config.auto_remove:
                    return  # it went away by itself when it ended
                raise NotFound(f"No such container: {name}")
            if not _is_up(container):
                await remove_locked(deps, container, volumes=volumes)
                return
            # else another verb has started it meanwhile


def _is_up(container: Container) -> bool:
    return container.running or container.state.status is Status.RESTARTING


def _refusal(container: Container) -> str:
    status, hint = container.state.status, "stop the container before removing or force remove"
    if status is Status.PAUSED:
        hint = "unpause and then stop the container before removing or force remove"
    return f'cannot remove container "/{container.name}": container is {status}: {hint}'


async def remove_locked(deps: Deps, container: Container, *, volumes: bool) -> None:
    """Remove a container that does not run; its lock is held by the caller."""
    if container.state.status is Status.REMOVING:
        raise Conflict(f"removal of container {container.name} is already in progress")
    live = deps.live_of(container)
    if live.restart is not None:
        live.restart.cancel()
    container.state.move(Status.REMOVING)
    try:
        await deps.store.save(container)
        await discard(deps, container, volumes=volumes)
    except BaseException as exc:
        if deps.store.get(container.id) is not None:  # else only the news of its end were cut off
            await _leave_dead(deps, container, exc)
        raise
    deps.publish(container, "destroy")
    live.finish_removal(WaitResult(container.state.exit_code))
    deps.live.forget(container)


async def _leave_dead(deps: Deps, container: Container, error: BaseException) -> None:
    """The removal failed half-way: it can be tried again, and nobody waits for it in vain."""
    container.state.move(Status.DEAD)
    try:
        await deps.store.save(container)
    except WherryError as exc:  # never over the first error; the next start tries again
        log.warning("the failed removal of container %s is not noted: %s", container.name, exc.message)
    finally:
        deps.live_of(container).finish_removal(
            WaitResult(container.state.exit_code, f"cannot remove container {container.name}: {error}")
        )


async def discard(deps: Deps, container: Container, *, volumes: bool) -> None:
    """Take away everything the record names, then the record. Idempotent: what is gone already is no error."""
    await deps.networks.release(container.id)
    await deps.shims.forget(container.id)
    chain = await settle(_parent, deps, container.id)
    await settle(deps.snapshots.remove, container.id)
    await release(deps.images, chain)
    mounted = {point.chain for point in container.mounts if point.chain}
    await settle(remove_tree, deps.settings.directory(container))
    if volumes:
        for point in container.mounts:
            if point.anonymous and not used_by_others(deps, point.name, container.id):
                await deps.volumes.discard(point.name)
    await deps.store.remove(container)
    for each in mounted:
        await release(deps.images, ChainID(each))


def _parent(deps: Deps, key: str) -> ChainID | None:
    try:
        return deps.snapshots.parent_of_key(key)
    except NotFound:
        return None


def used_by_others(deps: Deps, volume: str, container_id: ContainerID) -> bool:
    """Another container mounts this volume."""
    return any(
        point.type == "volume" and point.name == volume
        for other in deps.store
        if other.id != container_id
        for point in other.mounts
    )


def remove_tree(path: Path) -> None:
    """Delete a directory of ours; it may be gone already."""
    if path.exists():
        shutil.rmtree(path)
