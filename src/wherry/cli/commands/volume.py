"""`volume create`, `volume ls`, `volume rm`, `volume update`."""

from __future__ import annotations

from wherry.cli.batch import for_each
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line, out
from wherry.cli.flags import BOOL, FILTER, LIST, MAP, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, filters_json, join_labels, print_rows
from wherry.cli.run_config import key_values
from wherry.cli.run_values import label
from wherry.cli.units import human_size
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADERS = {
    "ID": "VOLUME ID",
    "Name": "VOLUME NAME",
    "Group": "GROUP",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Availability": "AVAILABILITY",
    "Mountpoint": "MOUNTPOINT",
    "Links": "LINKS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Status": "STATUS",
}


class VolumeRow(Row):
    type_name = "*formatter.volumeContext"

    def __init__(self, volume: dict[str, Any]) -> None:
        self.volume = volume

    def usage(self) -> dict[str, Any] | None:
        return self.volume.get("UsageData")

    def links(self) -> str:
        usage = self.usage()
        return str(usage["RefCount"]) if usage else "N/A"

    def size(self) -> str:
        usage = self.usage()
        return human_size(usage["Size"]) if usage and usage["Size"] >= 0 else "N/A"

    def label(self, name: str) -> str:
        return str((self.volume.get("Labels") or {}).get(name, ""))

    FIELDS = {  # noqa: RUF012 - a constant
        "Availability": lambda self: "N/A",
        "Driver": lambda self: self.volume.get("Driver") or "",
        "Group": lambda self: "N/A",
        "Labels": lambda self: join_labels(self.volume.get("Labels")),
        "Links": links,
        "Mountpoint": lambda self: self.volume.get("Mountpoint") or "",
        "Name": lambda self: self.volume["Name"],
        "Scope": lambda self: self.volume.get("Scope") or "",
        "Size": size,
        "Status": lambda self: "N/A",
    }
    ARGUMENTS = {"Label": label}  # noqa: RUF012


def create(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    body = {
        "Name": arguments[0] if arguments else "",
        "Driver": flags.text("driver"),
        "DriverOpts": key_values(flags.texts("opt")),
        "Labels": key_values(flags.texts("label")),
    }
    line(cli.engine.post_json("/volumes/create", None, body)["Name"])
    return 0


def listing(cli: CLI, flags: Flags, _: list[str]) -> int:
    answer = cli.engine.get_json("/volumes", {"filters": filters_json(flags.texts("filter"))})
    volumes = sorted(answer.get("Volumes") or [], key=_natural)
    rows = [VolumeRow(volume) for volume in volumes]
    if flags.on("quiet"):
        out("".join(volume["Name"] + "\n" for volume in volumes))
        return 0
    form = flags.text("format") or str(cli.config.get("volumesFormat") or "")
    print_rows(form, rows, ("Driver", "Name"), HEADERS)
    return 0


def _natural(volume: dict[str, Any]) -> list[tuple[int, int, str]]:
    """v2 before v10: runs of digits compare as numbers."""
    parts: list[tuple[int, int, str]] = []
    digits = text = ""
    for char in volume["Name"] + "\0":
        if char.isdigit():
            if text:
                parts.append((1, 0, text))
                text = ""
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), digits))
            digits = ""
        text += char
    return [*parts, (1, 0, text)]


def remove(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    def act(name: str) -> None:
        cli.engine.call("DELETE", f"/volumes/{quote(name)}", {"force": flags.on("force")})
        line(name)

    return for_each(arguments, act)


def update(cli: CLI, _: Flags, arguments: list[str]) -> int:
    if not cli.engine.get_json(f"/volumes/{quote(arguments[0])}").get("ClusterVolume"):
        raise Failure("can only update cluster volumes")
    raise Failure("this engine has no cluster volumes")


COMMANDS = {
    "create": Command(
        "[OPTIONS] [VOLUME]",
        create,
        flags=(
            Flag("driver", "d", STRING, "Specify volume driver name", default="local"),
            Flag("label", "", LIST, "Set metadata for a volume", check=label),
            Flag("opt", "o", MAP, "Set driver specific options"),
        ),
        arguments=(0, 1),
    ),
    "ls": Command(
        "[OPTIONS]",
        listing,
        flags=(
            Flag("filter", "f", FILTER, 'Provide filter values (e.g. "dangling=true")'),
            Flag("format", "", STRING, FORMAT_HELP),
            Flag("quiet", "q", BOOL, "Only display volume names"),
        ),
    ),
    "rm": Command(
        "[OPTIONS] VOLUME [VOLUME...]",
        remove,
        flags=(Flag("force", "f", BOOL, "Force the removal of one or more volumes", since="1.25"),),
        arguments=(1, UNLIMITED),
    ),
    "update": Command(
        "[OPTIONS] [VOLUME]",
        update,
        flags=(
            Flag(
                "availability",
                "",
                STRING,
                'Cluster Volume availability ("active", "pause", "drain")',
                default="active",
            ),
        ),
        arguments=(1, 1),
    ),
}
