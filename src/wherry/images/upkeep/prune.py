"""`image prune`: removing what no container uses."""

from wherry.filters import Filters
from wherry.images.deps import Deps
from wherry.images.garbage import collect_all
from wherry.images.upkeep.remove import InUse, Removal, images_left_nameless, references_of, removing
from wherry.images.views.filters import is_dangling, parse_until
from wherry.images.views.rows import Row, list_rows

PRUNE_FILTERS = ("dangling", "label", "label!", "until")


async def prune(deps: Deps, filters: Filters, *, in_use: InUse) -> dict[str, object]:
    """Remove images no container uses: dangling ones, or with `dangling=false` all. The document of `image prune`.

    Unlike Docker's it takes no name from an image it cannot remove. `SpaceReclaimed` counts as `Size` does, so it is
    what `LayersSize` of `system df` goes down by. Raises InvalidParameter.
    """
    filters.check(PRUNE_FILTERS)
    only_dangling = filters.boolean("dangling", True)
    until = parse_until(filters)

    def wanted(row: Row) -> bool:
        if only_dangling and (not is_dangling(row) or _is_kept(deps, row)):
            return False
        if until is not None and row.image.created > until:
            return False
        labels = row.image.config.config.labels
        return filters.labels(labels) and filters.without_labels(labels)

    async with removing(deps, "prune images", in_use=in_use, prune=True) as work:
        for row in list_rows(deps.store):
            if wanted(row):
                await _remove(work, row)
    if deps.store.complete:
        await collect_all(deps)  # what else was left behind, by containers whose image went before them
    deps.announce_prune(work.freed)
    return {"ImagesDeleted": work.records() or None, "SpaceReclaimed": work.freed}


def _is_kept(deps: Deps, row: Row) -> bool:
    """A registry knows of it: it was pushed by its digest, and what is to name it may be on its way."""
    digests = {manifest.digest for image in row.images for manifest in image.manifests}
    return any(digests & root()[0] for root in deps.roots)


async def _remove(work: Removal, row: Row) -> None:
    """The whole row, when none of its platforms is used; it may have changed since it was listed."""
    image = work.deps.store.find(row.image.id)
    if image is None or any(work.conflict(each, force=False) for each in row.images):
        return
    names = [reference.familiar for reference in references_of(image) if reference.familiar in row.names]
    falling = [image, *(each for each in images_left_nameless(work.deps.store, names) if each.id != image.id)]
    await work.untag(image, names)
    for each in falling:
        await work.delete(each)
