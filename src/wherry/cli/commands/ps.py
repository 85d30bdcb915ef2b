"""`ps`: list containers."""

from __future__ import annotations

from wherry.cli.command import CLI, Command
from wherry.cli.console import out, warn
from wherry.cli.flags import BOOL, FILTER, INT, STRING, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, ellipsis, filters_json, join_labels, print_rows, short_id, uses_field
from wherry.cli.units import human_duration, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADERS = {
    "ID": "CONTAINER ID",
    "Names": "NAMES",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}
COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


class ContainerRow(Row):
    type_name = "*formatter.ContainerContext"

    def __init__(self, container: dict[str, Any], *, truncate: bool, now: float) -> None:
        self.container = container
        self.truncate = truncate
        self.now = now

    def identifier(self) -> str:
        identifier: str = self.container["Id"]
        return identifier[:12] if self.truncate else identifier

    def names(self) -> str:
        names = [name.removeprefix("/") for name in self.container.get("Names") or []]
        if self.truncate:  # names of links have a slash more
            names = [name for name in names if "/" not in name]
        return ",".join(names)

    def image(self) -> str:
        image: str = self.container.get("Image") or "<no image>"
        if self.truncate:
            short = short_id(self.container.get("ImageID") or "")
            if short and short == short_id(image):
                return short
            name, at, _ = image.partition("@")
            if at and ":" in name.rpartition("/")[2]:
                return name
        return image

    def command(self) -> str:
        command: str = self.container.get("Command") or ""
        if self.truncate:
            command = ellipsis(command, 20)
        return go_quote(command)

    def created_at(self) -> str:
        from wherry.cli.clock import go_time

        return go_time(self.container["Created"])

    def running_for(self) -> str:
        return human_duration(self.now - self.container["Created"]) + " ago"

    def ports(self) -> str:
        return displayed_ports(self.container.get("Ports") or [])

    def size(self) -> str:
        size = human_size(self.container.get("SizeRw") or 0, 3)
        if (virtual := self.container.get("SizeRootFs") or 0) > 0:
            size += f" (virtual {human_size(virtual, 3)})"
        return size

    def mounts(self) -> str:
        names = [mount.get("Name") or mount.get("Source") or "" for mount in self.container.get("Mounts") or []]
        return ",".join(ellipsis(name, 15) if self.truncate else name for name in names)

    def local_volumes(self) -> str:
        return str(sum(mount.get("Driver") == "local" for mount in self.container.get("Mounts") or []))

    def networks(self) -> str:
        return ",".join((self.container.get("NetworkSettings") or {}).get("Networks") or {})

    def platform(self) -> object:
        return (self.container.get("ImageManifestDescriptor") or {}).get("platform")

    def label(self, name: str) -> str:
        return str((self.container.get("Labels") or {}).get(name, ""))

    FIELDS = {  # noqa: RUF012 - a constant
        "ID": identifier,
        "Names": names,
        "Image": image,
        "Command": command,
        "CreatedAt": created_at,
        "RunningFor": running_for,
        "Ports": ports,
        "State": lambda self: self.container.get("State") or "",
        "Status": lambda self: self.container.get("Status") or "",
        "Size": size,
        "Labels": lambda self: join_labels(self.container.get("Labels")),
        "Mounts": mounts,
        "LocalVolumes": local_volumes,
        "Networks": networks,
        "Platform": platform,
    }
    ARGUMENTS = {"Label": label}  # noqa: RUF012


def go_quote(text: str) -> str:
    """As strconv.Quote writes it."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = ['"']
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        elif char in "\n\t\r":
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char])
        else:
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out) + '"'


def _host_port(address: str, port: object) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def displayed_ports(ports: list[dict[str, Any]]) -> str:
    """The PORTS column: runs of adjacent ports as a range, mappings to another number each for itself."""
    ordered = sorted(
        ports, key=lambda port: (port["PrivatePort"], port.get("IP", ""), port.get("PublicPort", 0), port["Type"])
    )
    groups: dict[tuple[str, str], list[int]] = {}
    shown: list[str] = []
    mappings: list[str] = []

    def close(key: tuple[str, str], first: int, last: int) -> None:
        span = str(first) if first == last else f"{first}-{last}"
        shown.append(f"{_host_port(key[0], span)}->{span}/{key[1]}" if key[0] else f"{span}/{key[1]}")

    for port in ordered:
        private, address, kind = port["PrivatePort"], port.get("IP", ""), port["Type"]
        if address and port.get("PublicPort", 0) != private:
            mappings.append(f"{_host_port(address, port.get('PublicPort', 0))}->{private}/{kind}")
            continue
        key = (address, kind)
        group = groups.get(key)
        if group is None:
            groups[key] = [private, private]
        elif private == group[1] + 1:
            group[1] = private
        else:
            close(key, group[0], group[1])
            groups[key] = [private, private]
    for key, (first, last) in groups.items():
        close(key, first, last)
    return ", ".join(shown + mappings)


FLAGS = (
    Flag("all", "a", BOOL, "Show all containers (default shows just running)"),
    Flag("filter", "f", FILTER, "Filter output based on conditions provided"),
    Flag("format", "", STRING, FORMAT_HELP),
    Flag("last", "n", INT, "Show n last created containers (includes all states)", default=-1),
    Flag("latest", "l", BOOL, "Show the latest created container (includes all states)"),
    Flag("no-trunc", "", BOOL, "Don't truncate output"),
    Flag("quiet", "q", BOOL, "Only display container IDs"),
    Flag("size", "s", BOOL, "Display total file sizes"),
)


def run(cli: CLI, flags: Flags, _: list[str]) -> int:
    import time

    quiet, truncate = flags.on("quiet"), not flags.on("no-trunc")
    form = flags.text("format")
    if form and quiet:
        warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        form = ""
    elif not form and not quiet:
        form = str(cli.config.get("psFormat") or "")
    size = flags.on("size") if "size" in flags.changed or not form else uses_field(form, "Size") or "json .}" in form
    last = flags.number("last")
    if flags.on("latest") and last == -1:
        last = 1
    containers = cli.engine.get_json(
        "/containers/json",
        {
            "all": flags.on("all"),
            "limit": last if last > 0 else None,
            "size": size,
            "filters": filters_json(flags.texts("filter")),
        },
    )
    now = time.time()
    rows = [ContainerRow(container, truncate=truncate, now=now) for container in containers]
    if quiet:
        out("".join(row.identifier() + "\n" for row in rows))
        return 0
    print_rows(form, rows, (*COLUMNS, "Size") if size else COLUMNS, HEADERS)
    return 0


COMMANDS = {"ps": Command("[OPTIONS]", run, flags=FLAGS)}
