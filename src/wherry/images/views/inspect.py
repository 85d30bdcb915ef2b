"""The documents of `GET /images/{name}/json` and `/history`, in the shape of the newest API version."""

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from wherry.aio import settle
from wherry.errors import NotFound
from wherry.images.deps import Deps
from wherry.images.record import Image
from wherry.images.views.manifests import Describer, images_by_manifest
from wherry.images.views.rows import Row, Users, row_of
from wherry.reference import parse
from wherry.spec.image import encode_container_config, format_time, parse_time

# Fields of Config that API 1.50 and 1.51 show even when they are empty.
_ALWAYS: Mapping[str, object] = {
    "Cmd": None,
    "Entrypoint": None,
    "Env": None,
    "Labels": None,
    "OnBuild": None,
    "User": "",
    "Volumes": None,
    "WorkingDir": "",
}


def inspect(deps: Deps, name: str, *, platform: str | None = None) -> dict[str, object]:
    """The document of `GET /images/{name}/json`. Raises NotFound."""
    image = deps.store.get(name, platform=platform)
    row = _row(deps, name)
    config = image.config
    document: dict[str, object] = {
        "Id": image.id,
        "Descriptor": msgspec.to_builtins(row.descriptor),
        "RepoTags": row.tags,
        "RepoDigests": row.digests,
        "Parent": image.parent,
        "Comment": config.comment or (config.history[-1].comment if config.history else ""),
        "DockerVersion": config.docker_version,
        "Author": config.author,
        "Config": {**_ALWAYS, **encode_container_config(config.config)},
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.size,
        "GraphDriver": {"Data": _driver_data(deps, image), "Name": deps.snapshots.name},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)} if image.layers else {"Type": "layers"},
        "Metadata": {"LastTagTime": format_time(image.last_tagged)},
    }
    if image.created:
        document["Created"] = format_time(image.created)
    if config.variant:
        document["Variant"] = config.variant
    if config.os_version:
        document["OsVersion"] = config.os_version
    return document


def _row(deps: Deps, name: str) -> Row:
    """The row that `name` belongs to; found by a reference, with what this reference stands for and nothing else."""
    image = deps.store.get(name)
    row = row_of(deps.store, image)
    target = None if deps.store.is_id(image, name) else deps.store.target(parse(name))
    return replace(row, targets=(target,), images=tuple(deps.store.platforms(name))) if target else row


async def manifests(deps: Deps, name: str, *, users: Users) -> list[dict[str, object]]:
    """`Manifests` of the image that `name` stands for. Raises NotFound."""
    describer = Describer(content=deps.content, images=images_by_manifest(deps.store), users=users)
    found, _ = await settle(describer.describe, _row(deps, name))
    return found


def _driver_data(deps: Deps, image: Image) -> dict[str, str] | None:
    """Where the layers are on disk, as far as the driver has such places."""
    mounts = deps.snapshots.view(image.chain)
    options = [option for mount in mounts for option in mount.options if option.startswith("lowerdir=")]
    paths = [path for option in options for path in option.removeprefix("lowerdir=").split(":")]
    lowers = [path for path in paths if path.endswith("/diff")]
    if not lowers:
        return None
    upper, *below = lowers
    data = {"UpperDir": upper}
    if below:
        data["LowerDir"] = ":".join(below)
    return data


def history(deps: Deps, name: str, *, platform: str | None = None) -> list[dict[str, object]]:
    """The documents of `GET /images/{name}/history`, newest first. Raises NotFound."""
    image = deps.store.get(name, platform=platform)
    items: list[dict[str, object]] = []
    layers = iter(image.layers)
    for entry in image.config.history:
        layer = None if entry.empty_layer else next(layers, None)
        items.append(
            {
                "Comment": entry.comment,
                "Created": parse_time(entry.created) // 10**9,
                "CreatedBy": entry.created_by,
                "Id": "<missing>",
                "Size": layer.unpacked if layer else 0,
                "Tags": None,
            }
        )
    items.reverse()
    _name_steps(deps, image, items)
    return items


def _name_steps(deps: Deps, image: Image, items: list[dict[str, object]]) -> None:
    """The newest entry is the image itself; those below it are its parents, as far as they were made here."""
    current: Image | None = image
    for item in items:
        if current is None:
            return
        item["Id"] = current.id
        item["Tags"] = list(current.repo_tags) or None
        try:
            current = deps.store.get(current.parent) if current.parent else None
        except NotFound:
            return
