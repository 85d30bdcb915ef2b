"""`container prune`, `image prune`, `network prune`, `volume prune`, `system prune`."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, Command
from wherry.cli.commands.rmi import removed_text
from wherry.cli.console import Failure, flush, line, out
from wherry.cli.flags import BOOL, FILTER, Flag, Flags
from wherry.cli.listing import filters_json
from wherry.cli.units import human_size
from wherry.client.engine import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

FORCE = Flag("force", "f", BOOL, "Do not prompt for confirmation")
UNTIL = Flag("filter", "", FILTER, 'Provide filter values (e.g. "until=<timestamp>")')
LABEL = Flag("filter", "", FILTER, 'Provide filter values (e.g. "label=<label>")')

CONTAINERS = "WARNING! This will remove all stopped containers."
NETWORKS = "WARNING! This will remove all custom networks not used by at least one container."
DANGLING_IMAGES = "WARNING! This will remove all dangling images."
ALL_IMAGES = "WARNING! This will remove all images without at least one container associated to them."
ANONYMOUS_VOLUMES = "WARNING! This will remove anonymous local volumes not used by at least one container."
ALL_VOLUMES = "WARNING! This will remove all local volumes not used by at least one container."


def confirm(warning: str) -> bool:
    """Ask on standard output; anything but yes, and the end of the input, is no."""
    out(f"{warning}\nAre you sure you want to continue? [y/N] ")
    flush()
    answer = b""
    while not answer.endswith(b"\n"):
        data = os.read(0, 1)
        if not data:
            break
        answer += data
    return answer.strip().lower() in (b"y", b"yes")


class Pruned:
    """What one call removed: lines to print, and bytes."""

    def __init__(self, heading: str, lines: Sequence[str], reclaimed: int = 0) -> None:
        self.heading = heading
        self.lines = lines
        self.reclaimed = reclaimed

    def show(self) -> None:
        if self.lines:
            out(f"{self.heading}\n" + "".join(text + "\n" for text in self.lines) + "\n")


def _call(cli: CLI, path: str, filters: str | None) -> dict[str, Any]:
    answer = cli.engine.post_json(path, {"filters": filters})
    return answer if isinstance(answer, dict) else {}


def prune_containers(cli: CLI, pairs: Sequence[str]) -> Pruned:
    answer = _call(cli, "/containers/prune", filters_json(pairs))
    return Pruned("Deleted Containers:", answer.get("ContainersDeleted") or [], answer.get("SpaceReclaimed") or 0)


def prune_networks(cli: CLI, pairs: Sequence[str]) -> Pruned:
    answer = _call(cli, "/networks/prune", filters_json(pairs))
    return Pruned("Deleted Networks:", answer.get("NetworksDeleted") or [])


def prune_volumes(cli: CLI, pairs: Sequence[str]) -> Pruned:
    answer = _call(cli, "/volumes/prune", filters_json(pairs))
    return Pruned("Deleted Volumes:", answer.get("VolumesDeleted") or [], answer.get("SpaceReclaimed") or 0)


def prune_images(cli: CLI, pairs: Sequence[str], *, all_images: bool) -> Pruned:
    answer = _call(cli, "/images/prune", filters_json([*pairs, f"dangling={'false' if all_images else 'true'}"]))
    lines = [
        removed_text(entry).replace("Deleted", "deleted").replace("Untagged", "untagged")
        for entry in answer.get("ImagesDeleted") or []
    ]
    return Pruned("Deleted Images:", lines, answer.get("SpaceReclaimed") or 0)


def prune_build_cache(cli: CLI, pairs: Sequence[str], *, everything: bool) -> Pruned:
    try:
        answer = cli.engine.post_json("/build/prune", {"filters": filters_json(pairs), "all": everything}) or {}
    except EngineError as exc:
        if exc.status in (404, 405, 501):  # an engine that does not build has no cache
            return Pruned("", [])
        raise
    return Pruned("Deleted build cache objects:", answer.get("CachesDeleted") or [], answer.get("SpaceReclaimed") or 0)


def _one(
    warning: Callable[[CLI, Flags], str], prune: Callable[[CLI, Flags], Pruned], *, space: bool = True
) -> Callable[[CLI, Flags, list[str]], int]:
    def run(cli: CLI, flags: Flags, _: list[str]) -> int:
        if not flags.on("force") and not confirm(warning(cli, flags)):
            return 0
        pruned = prune(cli, flags)
        pruned.show()
        if space:
            line(f"Total reclaimed space: {human_size(pruned.reclaimed)}")
        return 0

    return run


def _volume_warning(cli: CLI, flags: Flags) -> str:
    return ALL_VOLUMES if flags.on("all") or not cli.engine.newer_than("1.42") else ANONYMOUS_VOLUMES


def _volumes(cli: CLI, flags: Flags) -> Pruned:
    pairs = list(flags.texts("filter"))
    if flags.on("all"):
        if any(pair.startswith("all=") for pair in pairs):
            raise Failure("conflicting options: cannot specify both --all and --filter all=1")
        pairs.append("all=true")
    return prune_volumes(cli, pairs)


def system(cli: CLI, flags: Flags, _: list[str]) -> int:
    pairs, everything, volumes = flags.texts("filter"), flags.on("all"), flags.on("volumes")
    if volumes and any(pair.startswith("until=") for pair in pairs):
        raise Failure('ERROR: The "until" filter is not supported with "--volumes"')
    if not flags.on("force"):
        items = ["all stopped containers", "all networks not used by at least one container"]
        if volumes:
            items.append("all anonymous volumes not used by at least one container")
        items.append(
            "all images without at least one container associated to them" if everything else "all dangling images"
        )
        items.append("all build cache" if everything else "unused build cache")
        text = "WARNING! This will remove:\n" + "".join(f"  - {item}\n" for item in items)
        if pairs:
            text += "\n  Items to be pruned will be filtered with:\n" + "".join(f"  - {pair}\n" for pair in pairs)
        if not confirm(text):
            return 0
    steps = [prune_containers(cli, pairs), prune_networks(cli, pairs)]
    if volumes:
        steps.append(prune_volumes(cli, pairs))
    steps.append(prune_images(cli, pairs, all_images=everything))
    steps.append(prune_build_cache(cli, pairs, everything=everything))
    for step in steps:
        step.show()
    line(f"Total reclaimed space: {human_size(sum(step.reclaimed for step in steps))}")
    return 0


COMMANDS = {
    "container": Command(
        "[OPTIONS]",
        _one(lambda cli, flags: CONTAINERS, lambda cli, flags: prune_containers(cli, flags.texts("filter"))),
        flags=(UNTIL, FORCE),
    ),
    "image": Command(
        "[OPTIONS]",
        _one(
            lambda cli, flags: ALL_IMAGES if flags.on("all") else DANGLING_IMAGES,
            lambda cli, flags: prune_images(cli, flags.texts("filter"), all_images=flags.on("all")),
        ),
        flags=(Flag("all", "a", BOOL, "Remove all unused images, not just dangling ones"), UNTIL, FORCE),
    ),
    "network": Command(
        "[OPTIONS]",
        _one(lambda cli, flags: NETWORKS, lambda cli, flags: prune_networks(cli, flags.texts("filter")), space=False),
        flags=(UNTIL, FORCE),
    ),
    "volume": Command(
        "[OPTIONS]",
        _one(_volume_warning, _volumes),
        flags=(
            Flag("all", "a", BOOL, "Remove all unused volumes, not just anonymous ones", since="1.42"),
            LABEL,
            FORCE,
        ),
    ),
    "system": Command(
        "[OPTIONS]",
        system,
        flags=(
            Flag("all", "a", BOOL, "Remove all unused images not just dangling ones"),
            Flag("filter", "", FILTER, 'Provide filter values (e.g. "label=<key>=<value>")'),
            FORCE,
            Flag("volumes", "", BOOL, "Prune anonymous volumes"),
        ),
    ),
}
