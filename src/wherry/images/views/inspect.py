"""What the API tells about images: inspect, list and history documents, in the shape of API 1.51.

Built as plain dicts with Docker's keys. How many containers use an image is known above this room and handed in.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from wherry.errors import InvalidParameter, NotFound
from wherry.filters import Filters
from wherry.images.deps import Deps
from wherry.images.record import Image
from wherry.reference import Reference, parse
from wherry.spec.image import encode_container_config, format_time, parse_time

LIST_FILTERS = ("before", "since", "label", "dangling", "reference", "until")

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
    config = image.config
    document: dict[str, object] = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": image.parent,
        "Comment": config.comment or (config.history[-1].comment if config.history else ""),
        "Created": format_time(image.created),
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
    if config.variant:
        document["Variant"] = config.variant
    if config.os_version:
        document["OsVersion"] = config.os_version
    return document


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


def list_images(
    deps: Deps,
    *,
    all: bool = False,
    filters: Filters,
    shared_size: bool = False,
    containers: Mapping[str, int] | None = None,
) -> list[dict[str, object]]:
    """The documents of `GET /images/json`, newest first. `containers`: image ID -> how many use it; None: not counted.

    Without `all`, untagged images that others were made from are left out.
    """
    filters.check(LIST_FILTERS)
    keep = _selection(deps, filters)
    shared = _shared_chains(deps) if shared_size else None
    found: list[tuple[int, dict[str, object]]] = []
    for image in deps.store.all():
        tags = [name for name in image.repo_tags if _matches_reference(filters, name)]
        digests = [name for name in image.repo_digests if _matches_reference(filters, name)]
        if ("reference" in filters and not tags and not digests) or not keep(image):
            continue
        if not all and not image.repo_tags and not image.repo_digests and deps.store.children(image.id):
            continue
        summary: dict[str, object] = {
            "Containers": -1 if containers is None else containers.get(image.id, 0),
            "Created": image.created // 1_000_000_000,
            "Id": image.id,
            "Labels": dict(image.config.config.labels) if image.config.config.labels else None,
            "ParentId": image.parent,
            "RepoDigests": digests,
            "RepoTags": tags,
            "SharedSize": -1 if shared is None else sum(x.unpacked for x in image.layers if shared[x.chain] > 1),
            "Size": image.size,
        }
        found.append((image.created, summary))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [summary for _, summary in found]


def _shared_chains(deps: Deps) -> dict[str, int]:
    counts: dict[str, int] = {}
    for image in deps.store.all():
        for layer in image.layers:
            counts[layer.chain] = counts.get(layer.chain, 0) + 1
    return counts


def layers_size(deps: Deps) -> int:
    """Bytes of all images' layers, shared ones counted once (`system df`)."""
    sizes = {layer.chain: layer.unpacked for image in deps.store.all() for layer in image.layers}
    return sum(sizes.values())


def _selection(deps: Deps, filters: Filters) -> Callable[[Image], bool]:
    """All filters but `reference`."""
    before = _border(deps, filters, "before", min)
    since = _border(deps, filters, "since", max)
    until = parse_until(filters)
    dangling = filters.boolean("dangling", False) if "dangling" in filters else None

    def keep(image: Image) -> bool:
        if before is not None and image.created >= before:
            return False
        if since is not None and image.created <= since:
            return False
        if until is not None and image.created > until:
            return False
        if dangling is not None and dangling != (not image.repo_tags and not image.repo_digests):
            return False
        return filters.labels(image.config.config.labels)

    return keep


def _border(deps: Deps, filters: Filters, key: str, choose: Callable[[Sequence[int]], int]) -> int | None:
    names = filters.get(key)
    return choose([deps.store.get(name).created for name in names]) if names else None


def _matches_reference(filters: Filters, name: str) -> bool:
    patterns = filters.get("reference")
    return not patterns or any(matches(pattern, parse(name)) for pattern in patterns)


def matches(pattern: str, reference: Reference) -> bool:
    """Docker's `reference=` filter: a shell pattern over the familiar name, with or without the tag.

    `*` and `?` do not cross a slash.
    """
    return any(_match(pattern, text) for text in (reference.familiar, reference.familiar_name))


def _match(pattern: str, text: str) -> bool:
    patterns, parts = pattern.split("/"), text.split("/")
    return len(patterns) == len(parts) and all(
        fnmatchcase(part, each) for part, each in zip(parts, patterns, strict=True)
    )


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_until(filters: Filters) -> int | None:
    """The `until` filter as ns since the epoch: a Unix time, a date, or a Go duration before now. InvalidParameter."""
    text = filters.one("until")
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or "0")
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        return time.time_ns() - sum(int(float(number) * _UNITS[unit]) for number, unit in _DURATION.findall(text))
    if (found := parse_time(text)) != 0:
        return found
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidParameter(f"invalid filter 'until=[{text}]': neither a time nor a duration") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 10**9


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
