"""`system df`: what uses the disk."""

from __future__ import annotations

import time

from wherry.cli.command import CLI, Command
from wherry.cli.commands.images import ImageRow, rows_of
from wherry.cli.commands.ps import HEADERS as CONTAINER_HEADERS
from wherry.cli.commands.ps import ContainerRow
from wherry.cli.commands.volume import HEADERS as VOLUME_HEADERS
from wherry.cli.commands.volume import VolumeRow
from wherry.cli.console import Failure, line, out
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, ellipsis, print_rows, table_text
from wherry.cli.units import human_duration, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HEADERS = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
COLUMNS = ("Type", "TotalCount", "Active", "Size", "Reclaimable")
IMAGE_HEADERS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "Size": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
}
IMAGE_COLUMNS = tuple(IMAGE_HEADERS)
CONTAINER_COLUMNS = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
VOLUME_COLUMNS = ("Name", "Links", "Size")
CACHE_HEADERS = {
    "ID": "CACHE ID",
    "CacheType": "CACHE TYPE",
    "Size": "SIZE",
    "CreatedSince": "CREATED",
    "LastUsedSince": "LAST USED",
    "UsageCount": "USAGE",
    "Shared": "SHARED",
}
ACTIVE_STATES = ("running", "paused", "restarting")


class UsageRow(Row):
    """A kind of object: how many, how many in use, how large, how much of it could go."""

    type_name = "*formatter.diskUsageContext"

    def __init__(self, kind: str, total: int, active: int, size: int, reclaimable: int, *, percent: bool) -> None:
        self.kind = kind
        self.total = total
        self.active = active
        self.size = size
        self.free = reclaimable
        self.percent = percent

    def reclaimable(self) -> str:
        text = human_size(self.free)
        if self.percent and self.size > 0:
            text += f" ({self.free * 100 // self.size}%)"
        return text

    FIELDS = {  # noqa: RUF012 - a constant
        "Active": lambda self: str(self.active),
        "Reclaimable": reclaimable,
        "Size": lambda self: human_size(self.size),
        "TotalCount": lambda self: str(self.total),
        "Type": lambda self: self.kind,
    }


def summarize(usage: dict[str, Any]) -> list[UsageRow]:
    images = usage.get("Images") or []
    layers = usage.get("LayersSize") or 0
    used = sum(
        image["Size"] - image["SharedSize"]
        for image in images
        if (image.get("Containers") or 0) > 0 and image.get("Size", -1) != -1 and image.get("SharedSize", -1) != -1
    )
    active = sum((image.get("Containers") or 0) > 0 for image in images)
    rows = [UsageRow("Images", len(images), active, layers, layers - used, percent=True)]
    containers = usage.get("Containers") or []
    running = [container for container in containers if container.get("State") in ACTIVE_STATES]
    size = sum(container.get("SizeRw") or 0 for container in containers)
    busy = sum(container.get("SizeRw") or 0 for container in running)
    rows.append(UsageRow("Containers", len(containers), len(running), size, size - busy, percent=True))
    volumes = usage.get("Volumes") or []
    data = [volume.get("UsageData") or {"Size": -1, "RefCount": 0} for volume in volumes]
    size = sum(max(entry["Size"], 0) for entry in data)
    free = sum(max(entry["Size"], 0) for entry in data if entry["RefCount"] == 0)
    linked = sum(entry["RefCount"] > 0 for entry in data)
    rows.append(UsageRow("Local Volumes", len(volumes), linked, size, free, percent=True))
    caches = usage.get("BuildCache") or []
    size = sum(cache["Size"] for cache in caches if not cache.get("Shared"))
    in_use = [cache for cache in caches if cache.get("InUse")]
    free = size - sum(cache["Size"] for cache in in_use if not cache.get("Shared"))
    rows.append(UsageRow("Build Cache", len(caches), len(in_use), size, free, percent=False))
    return rows


class UsedImageRow(ImageRow):
    FIELDS = {  # noqa: RUF012 - a constant
        **ImageRow.FIELDS,
        "SharedSize": lambda self: human_size(max(self.image.get("SharedSize") or 0, 0)),
    }


class CacheRow(Row):
    def __init__(self, cache: dict[str, Any], now: float) -> None:
        self.cache = cache
        self.now = now

    def since(self, key: str) -> str:
        from wherry.cli.clock import parse_rfc3339

        try:
            seconds, _ = parse_rfc3339(self.cache.get(key) or "")
        except ValueError:
            return ""
        return human_duration(self.now - seconds) + " ago"

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": lambda self: ellipsis(self.cache["ID"], 12) + ("*" if self.cache.get("InUse") else ""),
        "CacheType": lambda self: self.cache.get("Type") or "",
        "Size": lambda self: human_size(self.cache["Size"], 3),
        "CreatedSince": lambda self: self.since("CreatedAt"),
        "LastUsedSince": lambda self: self.since("LastUsedAt"),
        "UsageCount": lambda self: str(self.cache.get("UsageCount") or 0),
        "Shared": lambda self: "true" if self.cache.get("Shared") else "false",
    }


def verbose_rows(usage: dict[str, Any]) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row], Sequence[Row]]:
    now = time.time()
    images = [  # each under its first name only
        rows_of({**image, "RepoDigests": None}, digests=False, truncate=True, now=now)[0]
        for image in usage.get("Images") or []
    ]
    used = [UsedImageRow(row.image, row.repository, row.tag, row.digest, truncate=True, now=now) for row in images]
    containers = [  # without the size of the image below
        ContainerRow({**entry, "SizeRootFs": 0}, truncate=True, now=now) for entry in usage.get("Containers") or []
    ]
    volumes = [VolumeRow(entry) for entry in usage.get("Volumes") or []]
    return used, containers, volumes, [CacheRow(entry, now) for entry in usage.get("BuildCache") or []]


def print_verbose(usage: dict[str, Any]) -> None:
    images, containers, volumes, caches = verbose_rows(usage)
    cache_size = sum(cache["Size"] for cache in usage.get("BuildCache") or [] if not cache.get("Shared"))
    out("Images space usage:\n\n" + table_text(images, IMAGE_COLUMNS, IMAGE_HEADERS))
    out("\nContainers space usage:\n\n" + table_text(containers, CONTAINER_COLUMNS, CONTAINER_HEADERS))
    out("\nLocal Volumes space usage:\n\n" + table_text(volumes, VOLUME_COLUMNS, VOLUME_HEADERS))
    out(f"\nBuild cache usage: {human_size(cache_size)}\n\n")
    out(table_text(caches, tuple(CACHE_HEADERS), CACHE_HEADERS))


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    form = flags.text("format")
    usage = cli.engine.get_json("/system/df")
    if not flags.on("verbose"):
        print_rows(form, summarize(usage), COLUMNS, HEADERS)
        return 0
    if form in ("", "table"):
        print_verbose(usage)
        return 0
    images, containers, volumes, caches = verbose_rows(usage)
    document = {
        "Images": [row.as_json() for row in images],
        "Containers": [row.as_json() for row in containers],
        "Volumes": [row.as_json() for row in volumes],
        "BuildCache": [row.as_json() for row in caches],
    }
    if form == "json":
        from wherry.client.jsontext import dumps

        line(dumps(document, html=True))
        return 0
    if form.startswith("table"):
        raise Failure("the table format is not supported together with --verbose")
    from wherry.cli.listing import compile_template, render_row

    line(render_row(compile_template(form), document))
    return 0


COMMANDS = {
    "df": Command(
        "[OPTIONS]",
        run,
        flags=(
            Flag("format", "", STRING, FORMAT_HELP),
            Flag("verbose", "v", BOOL, "Show detailed information on space usage"),
        ),
    )
}
