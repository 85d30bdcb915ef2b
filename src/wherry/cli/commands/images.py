"""`images`: list images."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, line, out, warn
from wherry.cli.flags import BOOL, FILTER, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, filters_json, print_rows, short_id, uses_field
from wherry.cli.units import human_duration, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NONE = "<none>"
HEADERS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}


class ImageRow(Row):
    """One name of an image, or the image without a name."""

    type_name = "*formatter.ImageContext"

    def __init__(
        self, image: dict[str, Any], repository: str, tag: str, digest: str, *, truncate: bool, now: float
    ) -> None:
        self.image = image
        self.repository = repository
        self.tag = tag
        self.digest = digest
        self.truncate = truncate
        self.now = now

    def identifier(self) -> str:
        identifier: str = self.image["Id"]
        return short_id(identifier) if self.truncate else identifier

    def created_at(self) -> str:
        from wherry.cli.clock import go_time

        return go_time(self.image["Created"])

    def created_since(self) -> str:
        created = self.image.get("Created") or 0
        return "N/A" if created <= 0 else human_duration(self.now - created) + " ago"

    def counted(self, name: str) -> str:
        value = self.image.get(name, -1)
        return "N/A" if value is None or value == -1 else human_size(value)

    def containers(self) -> str:
        value = self.image.get("Containers", -1)
        return "N/A" if value is None or value == -1 else str(value)

    def unique_size(self) -> str:
        size, shared = self.image.get("Size", -1), self.image.get("SharedSize", -1)
        return "N/A" if shared is None or -1 in (size, shared) else human_size(size - shared)

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": identifier,
        "Repository": lambda self: self.repository,
        "Tag": lambda self: self.tag,
        "Digest": lambda self: self.digest,
        "CreatedSince": created_since,
        "CreatedAt": created_at,
        "Size": lambda self: human_size(self.image.get("Size") or 0, 3),
        "Containers": containers,
        "VirtualSize": lambda self: human_size(self.image.get("Size") or 0),
        "SharedSize": lambda self: self.counted("SharedSize"),
        "UniqueSize": unique_size,
    }


def split_tag(reference: str) -> tuple[str, str]:
    """Repository and tag; the tag is empty when there is none."""
    head, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return head + slash + name, tag


def rows_of(image: dict[str, Any], *, digests: bool, truncate: bool, now: float) -> list[ImageRow]:
    """A row for each repository and tag (and digest, when those are asked for)."""
    tags: dict[str, list[str]] = {}
    for reference in image.get("RepoTags") or []:
        if reference != "<none>:<none>":
            repository, tag = split_tag(reference)
            tags.setdefault(repository, []).append(tag)
    known: dict[str, list[str]] = {}
    for reference in image.get("RepoDigests") or []:
        if reference != "<none>@<none>":
            repository, _, digest = reference.partition("@")
            known.setdefault(repository, []).append(digest)
    rows: list[ImageRow] = []

    def add(repository: str, tag: str, digest: str) -> None:
        rows.append(ImageRow(image, repository, tag, digest, truncate=truncate, now=now))

    for repository, names in tags.items():
        found = known.pop(repository, []) if digests else []
        for tag in names:
            for digest in found or [NONE]:
                add(repository, tag, digest)
    if not tags or digests:
        for repository, found in known.items():
            for digest in found if digests else found[:1]:
                add(repository, NONE, digest if digests else NONE)
    if not rows:
        add(NONE, NONE, NONE)
    return rows


FLAGS = (
    Flag("all", "a", BOOL, "Show all images (default hides intermediate images)"),
    Flag("digests", "", BOOL, "Show digests"),
    Flag("filter", "f", FILTER, "Filter output based on conditions provided"),
    Flag("format", "", STRING, FORMAT_HELP),
    Flag("no-trunc", "", BOOL, "Don't truncate output"),
    Flag("quiet", "q", BOOL, "Only show image IDs"),
    Flag("tree", "", BOOL, "List multi-platform images as a tree (EXPERIMENTAL)", since="1.47"),
)
WITHOUT_TREE = ("quiet", "no-trunc", "digests", "format")  # flags that a tree does not know


def tree(cli: CLI, flags: Flags, pairs: list[str]) -> int:
    """Every image with its platforms."""
    from wherry.cli.image_tree import draw

    for name in WITHOUT_TREE:
        if name in flags.changed:
            shown = "show-digest" if name == "digests" else name  # docker's word
            raise Failure(f"--{shown} is not yet supported with --tree")
    line("WARNING: This is an experimental feature. The output may change and shouldn't be depended on.")
    images = cli.engine.get_json(
        "/images/json", {"all": flags.on("all"), "filters": filters_json(pairs), "manifests": True}
    )
    out(draw(images, untagged=flags.on("all"), fd=1))
    return 0


def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    import time

    quiet, truncate = flags.on("quiet"), not flags.on("no-trunc")
    form = flags.text("format")
    pairs = list(flags.texts("filter"))
    if arguments:
        pairs.append(f"reference={arguments[0]}")
    if flags.on("tree"):
        return tree(cli, flags, pairs)
    if form and quiet and form != "table":
        warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        form = ""
    elif not form and not quiet:
        form = str(cli.config.get("imagesFormat") or "")
    digests = flags.on("digests") or uses_field(form, "Digest")
    images = cli.engine.get_json(
        "/images/json",
        {"all": flags.on("all"), "filters": filters_json(pairs), "digests": flags.on("digests")},
    )
    now = time.time()
    rows = [row for image in images for row in rows_of(image, digests=digests, truncate=truncate, now=now)]
    if quiet:
        out("".join(row.identifier() + "\n" for row in rows))
        return 0
    columns = ("Repository", "Tag", *(("Digest",) if flags.on("digests") else ()), "ID", "CreatedSince", "Size")
    print_rows(form, rows, columns, HEADERS)
    return 0


COMMANDS = {"images": Command("[OPTIONS] [REPOSITORY[:TAG]]", run, flags=FLAGS, arguments=(0, 1))}
