"""commit: an image of what a container has written, on top of the image it was made from."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from wherry import reference
from wherry.aio import finish
from wherry.containers.deps import Deps
from wherry.containers.making.config import merge
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, InvalidParameter, WherryError
from wherry.images.making import changes as dockerfile
from wherry.images.making import commit as images
from wherry.runtime.shim_client import Shim
from wherry.spec.engine import ContainerConfig

log = logging.getLogger(__name__)


async def commit(
    deps: Deps,
    name: str,
    *,
    repo: str = "",
    tag: str = "",
    comment: str = "",
    author: str = "",
    changes: Sequence[str] = (),
    pause: bool = True,
    config: ContainerConfig | None = None,
) -> str:
    """Make the image and return its ID. `config` and `changes` are laid over the container's own configuration.

    With `pause` a running container stands still meanwhile, so that its files fit together. Raises NotFound,
    InvalidParameter (name, change), Conflict (the container is being removed).
    """
    container = deps.store.resolve(name)
    if container.state.status in (Status.DEAD, Status.REMOVING):
        raise Conflict(f"You cannot commit container {container.id} which is being removed")
    target = _target(repo, tag)
    wanted = merge(dockerfile.apply(config or ContainerConfig(), changes), container.config)
    async with still(deps, container, pause=pause):
        image = await images.commit(
            deps.images,
            container.id,
            image_id=container.image_id,
            config=wanted,
            comment=comment,
            author=author,
            created_by=[container.path, *container.args],
            reference=target,
        )
    deps.publish(
        container, "commit", comment=comment, imageID=image.id, imageRef=target.familiar if target is not None else ""
    )
    return image.id


def _target(repo: str, tag: str) -> reference.Reference | None:
    if not repo:
        if tag:
            raise InvalidParameter("a tag was given and no repository: name both, or none")
        return None
    found = reference.parse(repo)
    if found.digest is not None:
        raise InvalidParameter("cannot reference a digest")
    return found.with_tag(tag) if tag else found.tagged()


@asynccontextmanager
async def still(deps: Deps, container: Container, *, pause: bool) -> AsyncIterator[None]:
    """Freeze a running container for a while. Its state stays RUNNING: this is no `docker pause`."""
    shim = deps.live_of(container).shim
    if not pause or container.state.status is not Status.RUNNING or shim is None:
        yield
        return
    try:
        await shim.pause()
    except WherryError:
        if container.running:
            raise
        shim = None  # it ended just now, so nothing moves any more
    try:
        yield
    finally:
        if shim is not None:
            await finish(_resume(deps, container, shim))


async def _resume(deps: Deps, container: Container, shim: Shim) -> None:
    if container.state.status is Status.PAUSED:  # somebody paused it meanwhile: let them keep it
        return
    try:
        await shim.resume()
    except WherryError as exc:
        if deps.live_of(container).shim is shim:
            log.error("container %s stays frozen after a commit: %s", container.name, exc.message)
