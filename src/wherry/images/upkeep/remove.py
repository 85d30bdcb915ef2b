"""Removing images: `rmi` and `image prune`, with Docker's rules of what is untagged, deleted or refused.

Which containers use which image is known above this room and handed in. Layers a container stands on are kept by
`garbage`, whatever was removed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.digest import ChainID
from wherry.errors import Conflict
from wherry.filters import Filters
from wherry.ids import short
from wherry.images.deps import Deps
from wherry.images.garbage import collect, collect_all
from wherry.images.record import Image
from wherry.images.views.inspect import parse_until
from wherry.reference import Reference, parse

PRUNE_FILTERS = ("dangling", "label", "label!", "until")


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """A container made from an image."""

    id: str
    running: bool  # or paused, or about to be restarted


InUse = Mapping[str, Sequence[ContainerUse]]  # image ID -> its containers


async def remove(
    deps: Deps, name: str, *, force: bool = False, prune: bool = True, in_use: InUse
) -> list[dict[str, str]]:
    """Remove a reference, and the image when it was the last; or, by ID, the image. What happened, in Docker's form.

    With `prune` untagged parents go too. Raises NotFound, and Conflict (before anything is touched) in Docker's words.
    """
    async with deps.locks(("image", deps.store.get(name).id)):
        return await _remove(deps, name, force=force, prune=prune, in_use=in_use)


async def _remove(deps: Deps, name: str, *, force: bool, prune: bool, in_use: InUse) -> list[dict[str, str]]:
    image = deps.store.get(name)
    uses = in_use.get(image.id, ())
    records: list[dict[str, str]] = []
    if deps.store.is_id(image, name):
        references = _references(image)
        if not _single(references) and not force:
            raise _conflict(image, "image is referenced in multiple repositories", forcible=True)
        _check_uses(deps, image, uses, force=force)
    else:
        gone = _untagged(image, name, uses, force=force)
        await _untag(deps, image, gone, records)
        if image.repo_tags or image.repo_digests:
            image = deps.store.get(image.id)
        if image.repo_tags or image.repo_digests:
            return records
        _check_uses(deps, image, uses, force=force)
    await _delete(deps, image, records, prune=prune, in_use=in_use)
    return records


def _references(image: Image) -> list[Reference]:
    return [parse(name) for name in (*image.repo_tags, *image.repo_digests)]


def _single(references: Sequence[Reference]) -> bool:
    """At most one tag, and all within one repository."""
    tags = [reference for reference in references if reference.digest is None]
    return len(tags) <= 1 and len({reference.name for reference in references}) <= 1


def _untagged(image: Image, name: str, uses: Sequence[ContainerUse], *, force: bool) -> list[str]:
    """The references that removing `name` takes away; with a repository's last tag its digests go too."""
    wanted = parse(name).tagged()
    references = _references(image)
    if uses and not force and _single(references):
        raise Conflict(
            f'conflict: unable to remove repository reference "{name}" (must force) - container {short(uses[0].id)} '
            f"is using its referenced image {short(image.id)}"
        )
    if wanted.digest is not None:
        return [wanted.with_digest(wanted.digest).familiar]
    rest = [reference for reference in references if reference.familiar != wanted.familiar]
    if any(reference.digest is None and reference.name == wanted.name for reference in rest):
        return [wanted.familiar]
    return [wanted.familiar, *(r.familiar for r in rest if r.digest is not None and r.name == wanted.name)]


async def _untag(deps: Deps, image: Image, names: Sequence[str], records: list[dict[str, str]]) -> None:
    if not names:
        return
    await deps.store.remove(image.id, names=names, record=False)
    for name in names:
        records.append({"Untagged": name})
        deps.announce("untag", image, actor=image.id, name=image.id)


def _check_uses(deps: Deps, image: Image, uses: Sequence[ContainerUse], *, force: bool) -> None:
    if deps.store.children(image.id):
        raise _conflict(image, "image has dependent child images", forcible=False)
    for use in uses:
        if use.running:
            raise _conflict(image, f"image is being used by running container {short(use.id)}", forcible=False)
    if uses and not force:
        raise _conflict(image, f"image is being used by stopped container {short(uses[0].id)}", forcible=True)


def _conflict(image: Image, why: str, *, forcible: bool) -> Conflict:
    remedy = "must be forced" if forcible else "cannot be forced"
    return Conflict(f"conflict: unable to delete {short(image.id)} ({remedy}) - {why}")


async def _delete(deps: Deps, image: Image, records: list[dict[str, str]], *, prune: bool, in_use: InUse) -> int:
    """Forget the image and drop what only it needed; then its untagged parents. Answers the bytes freed."""
    freed = 0
    parent: Image | None = image
    async with deps.leases.hold(f"remove {image.id}"):  # a crash half-way leaves a sign that there is garbage
        while parent is not None:
            names = (*parent.repo_tags, *parent.repo_digests)
            await deps.store.remove(parent.id, names=names, record=True)
            for name in names:
                records.append({"Untagged": name})
                deps.announce("untag", parent, actor=parent.id, name=parent.id)
            records.append({"Deleted": parent.id})
            deps.announce("delete", parent, actor=parent.id, name=parent.id)
            freed += await _drop(deps, parent, records)
            parent = _prunable_parent(deps, parent, in_use) if prune else None
    return freed


async def _drop(deps: Deps, image: Image, records: list[dict[str, str]]) -> int:
    sizes: dict[ChainID, int] = {layer.chain: layer.unpacked for layer in image.layers}
    removed = await collect(deps, digests=image.blobs, chains=list(sizes))
    records.extend({"Deleted": str(chain)} for chain in removed.chains)
    return sum(sizes[chain] for chain in removed.chains)


def _prunable_parent(deps: Deps, image: Image, in_use: InUse) -> Image | None:
    parent = deps.store.find(image.parent) if image.parent else None
    if parent is None or parent.repo_tags or parent.repo_digests:
        return None
    return None if in_use.get(parent.id) or deps.store.children(parent.id) else parent


async def prune(deps: Deps, filters: Filters, *, in_use: InUse) -> dict[str, object]:
    """Remove images no container uses: dangling ones, or with `dangling=false` all. The document of `image prune`."""
    filters.check(PRUNE_FILTERS)
    only_dangling = filters.boolean("dangling", True)
    until = parse_until(filters)
    records: list[dict[str, str]] = []
    freed = 0
    for image in sorted(deps.store.all(), key=lambda image: image.created, reverse=True):
        current = deps.store.find(image.id)
        if current is None or in_use.get(image.id) or deps.store.children(image.id):
            continue
        if (only_dangling and current.repo_tags) or (until is not None and current.created > until):
            continue
        labels = current.config.config.labels
        if not filters.labels(labels) or not filters.without_labels(labels):
            continue
        freed += await _delete(deps, current, records, prune=True, in_use=in_use)
    if deps.store.complete:
        await collect_all(deps)  # what else was left behind, by containers whose image went before them
    deps.announce_prune(freed)
    return {"ImagesDeleted": records or None, "SpaceReclaimed": freed}
