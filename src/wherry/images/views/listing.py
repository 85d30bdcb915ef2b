"""The documents of `GET /images/json` and of the images in `GET /system/df`, in the shape of the newest API version.

Built as plain dicts with Docker's keys; `versions.py` makes older shapes of them. Which containers use an image is
known above this room and handed in.
"""

import msgspec

from wherry.aio import settle
from wherry.filters import Filters
from wherry.images.deps import Deps
from wherry.images.views.filters import matches_reference, selection
from wherry.images.views.manifests import Describer, images_by_manifest
from wherry.images.views.rows import Row, Users, list_rows
from wherry.images.views.usage import sharing

__all__ = ["list_images"]


async def list_images(
    deps: Deps,
    *,
    all: bool = False,
    filters: Filters,
    shared_size: bool = False,
    manifests: bool = False,
    users: Users,
) -> list[dict[str, object]]:
    """One document for each row, newest first; `users` are the containers made from each image.

    Without `all`, untagged images that others were made from are left out, and so are further platforms of a name.
    With `manifests` the documents tell of each platform. `Size` is then the disk usage, blobs included, as Docker has
    it there, so that it agrees with the platforms' `Size.Total`.
    """
    keep = selection(deps, filters)
    shared = sharing(deps) if shared_size else None
    found: list[tuple[Row, dict[str, object]]] = []
    for row in list_rows(deps.store, all=all):
        if not keep(row):
            continue
        tags = [name for name in row.tags if matches_reference(filters, name)]
        digests = [name for name in row.digests if matches_reference(filters, name)]
        if "reference" in filters and not tags and not digests:
            continue
        document = _summary(row, tags, digests)
        document["Containers"] = row.containers(users)
        document["SharedSize"] = -1 if shared is None else shared.size(row)
        found.append((row, document))
    if manifests:
        describer = Describer(content=deps.content, images=images_by_manifest(deps.store), users=users)
        await settle(_add_manifests, describer, found)
    return [document for _, document in found]


def _summary(row: Row, tags: list[str], digests: list[str]) -> dict[str, object]:
    labels = row.image.config.config.labels
    return {
        "Created": row.image.created // 1_000_000_000,
        "Descriptor": msgspec.to_builtins(row.descriptor),
        "Id": row.image.id,
        "Labels": dict(labels) if labels else None,
        "ParentId": row.image.parent,
        "RepoDigests": digests,
        "RepoTags": tags,
        "Size": row.size,
    }


def _add_manifests(describer: Describer, found: list[tuple[Row, dict[str, object]]]) -> None:
    for row, document in found:
        document["Manifests"], blobs = describer.describe(row)
        document["Size"] = row.size + blobs
