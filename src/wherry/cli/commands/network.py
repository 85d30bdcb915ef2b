"""`network create`, `ls`, `rm`, `connect`, `disconnect`."""

from __future__ import annotations

from wherry.cli.batch import describe
from wherry.cli.clock import go_time, parse_rfc3339
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line, out, warn
from wherry.cli.flags import BOOL, FILTER, INT, LIST, MAP, STRING, STRINGS, Flag, Flags
from wherry.cli.listing import FORMAT_HELP, Row, filters_json, join_labels, print_rows
from wherry.cli.run_config import key_values
from wherry.cli.run_values import label, link
from wherry.client.engine import EngineError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EGRESS = "wherry.egress"  # the option of a network that says what its containers may reach

HEADERS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}


def _word(value: object) -> str:
    return "true" if value else "false"


class NetworkRow(Row):
    type_name = "*network.networkContext"

    def __init__(self, network: dict[str, Any], *, truncate: bool) -> None:
        self.network = network
        self.truncate = truncate

    def identifier(self) -> str:
        identifier = str(self.network["Id"])
        return identifier[:12] if self.truncate else identifier

    def created_at(self) -> str:
        try:
            seconds, nano = parse_rfc3339(self.network.get("Created") or "")
        except ValueError:
            return ""
        return go_time(seconds, nano)

    def label(self, name: str) -> str:
        return str((self.network.get("Labels") or {}).get(name, ""))

    FIELDS = {  # noqa: RUF012 - a constant
        "CreatedAt": created_at,
        "Driver": lambda self: self.network.get("Driver") or "",
        "ID": identifier,
        "IPv4": lambda self: _word(self.network.get("EnableIPv4")),
        "IPv6": lambda self: _word(self.network.get("EnableIPv6")),
        "Internal": lambda self: _word(self.network.get("Internal")),
        "Labels": lambda self: join_labels(self.network.get("Labels")),
        "Name": lambda self: self.network["Name"],
        "Scope": lambda self: self.network.get("Scope") or "",
    }
    ARGUMENTS = {"Label": label}  # noqa: RUF012


def listing(cli: CLI, flags: Flags, _: list[str]) -> int:
    networks = cli.engine.get_json("/networks", {"filters": filters_json(flags.texts("filter"))}) or []
    networks.sort(key=lambda network: network["Name"])
    rows = [NetworkRow(network, truncate=not flags.on("no-trunc")) for network in networks]
    form = flags.text("format")
    if flags.on("quiet") and form in ("", "table"):
        out("".join(row.identifier() + "\n" for row in rows))
        return 0
    form = form or str(cli.config.get("networksFormat") or "")
    print_rows(form, rows, ("ID", "Name", "Driver", "Scope"), HEADERS)
    return 0


def _address(text: str) -> int:
    """As a number, IPv6 above all of IPv4."""
    import _socket

    if ":" in text:
        return (1 << 128) + int.from_bytes(_socket.inet_pton(10, text), "big")
    return int.from_bytes(_socket.inet_pton(2, text), "big")


def _network(cidr: str) -> tuple[int, int]:
    """Its first part as a number, and how many bits the rest has."""
    base, _, bits = cidr.partition("/")
    width = 128 if ":" in base else 32
    try:
        if not bits.isdigit() or int(bits) > width:
            raise ValueError
        return _address(base) >> width - int(bits), width - int(bits)
    except (OSError, ValueError):
        raise Failure(f"invalid CIDR address: {cidr}") from None


def _contains(subnet: str, address: str) -> bool:
    """Is the address, or the beginning of a range, within the CIDR? What is no address is nowhere."""
    start, size = _network(subnet)
    try:
        return _address(address.partition("/")[0]) >> size == start
    except OSError:
        return False


def ipam_config(flags: Flags) -> list[dict[str, Any]]:
    """One entry per --subnet, with the gateway, range and auxiliary addresses that lie in it."""
    subnets, gateways, ranges = flags.texts("subnet"), flags.texts("gateway"), flags.texts("ip-range")
    auxiliary = key_values(flags.texts("aux-address"))
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise Failure("every ip-range or gateway must have a corresponding subnet")
    entries: list[dict[str, Any]] = []
    for subnet in subnets:
        if any(_contains(entry["Subnet"], subnet) or _contains(subnet, entry["Subnet"]) for entry in entries):
            raise Failure("multiple overlapping subnet configuration is not supported")
        entries.append({"Subnet": subnet})

    def assign(kind: str, key: str, value: str) -> None:
        for entry in entries:
            if _contains(entry["Subnet"], value):
                if key in entry:
                    raise Failure(f"cannot configure multiple {kind}s ({value}, {entry[key]}) on the same subnet")
                entry[key] = value
                return
        raise Failure(f"no matching subnet for {kind} {value}")

    for value in ranges:
        _network(value)
        assign("range", "IPRange", value)
    for value in gateways:
        assign("gateway", "Gateway", value)
    for name, value in auxiliary.items():
        for entry in entries:
            if _contains(entry["Subnet"], value):
                entry.setdefault("AuxiliaryAddresses", {})[name] = value
                break
        else:
            raise Failure(f"no matching subnet for aux-address {value}")
    return entries


def driver_options(flags: Flags) -> dict[str, str]:
    """-o, and --egress as the option it is kept in."""
    options = key_values(flags.texts("opt"))
    if "egress" in flags.changed:
        wanted = [part.removeprefix("allow=") for part in flags.texts("egress")]
        if not wanted or any(not part or "=" in part for part in wanted) or ("none" in wanted and len(wanted) > 1):
            raise Failure("invalid --egress: use allow=DOMAIN,CIDR,... or none")
        options[EGRESS] = ",".join(wanted)
    return options


def create(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    body: dict[str, Any] = {
        "Name": arguments[0],
        "CheckDuplicate": True,
        "Driver": flags.text("driver"),
        "Scope": flags.text("scope"),
        "Internal": flags.on("internal"),
        "Attachable": flags.on("attachable"),
        "Ingress": flags.on("ingress"),
        "ConfigOnly": flags.on("config-only"),
        "Options": driver_options(flags),
        "Labels": key_values(flags.texts("label")),
        "IPAM": {
            "Driver": flags.text("ipam-driver"),
            "Config": ipam_config(flags),
            "Options": key_values(flags.texts("ipam-opt")),
        },
    }
    if source := flags.text("config-from"):
        body["ConfigFrom"] = {"Network": source}
    for name, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if name in flags.changed:
            body[key] = flags.on(name)
    answer = cli.engine.post_json("/networks/create", None, body)
    if warning := answer.get("Warning"):
        warn(f"WARNING: {warning}")
    line(answer["Id"])
    return 0


def remove(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    code = 0
    for name in arguments:
        try:
            cli.engine.call("DELETE", f"/networks/{quote(name)}")
        except EngineError as exc:
            if exc.status == 404 and flags.on("force"):
                continue
            warn(describe(exc))
            code = 1
        else:
            line(name)
    if code:
        raise Failure("exit status 1")  # docker's last words for any of its failures
    return 0


def connect(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    endpoint: dict[str, Any] = {}
    addresses: dict[str, Any] = {}
    for name, key in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if value := flags.text(name):
            addresses[key] = value
    if flags.texts("link-local-ip"):
        addresses["LinkLocalIPs"] = flags.texts("link-local-ip")
    if addresses:
        endpoint["IPAMConfig"] = addresses
    endpoint["Links"] = flags.texts("link") or None
    endpoint["Aliases"] = flags.texts("alias") or None
    if options := flags.texts("driver-opt"):
        if any("=" not in option for option in options):
            raise Failure("invalid key/value pair format in driver options")
        endpoint["DriverOpts"] = key_values(options)
    if "gw-priority" in flags.changed:
        endpoint["GwPriority"] = flags.number("gw-priority")
    body = {"Container": arguments[1], "EndpointConfig": endpoint}
    cli.engine.call("POST", f"/networks/{quote(arguments[0])}/connect", None, body)
    return 0


def disconnect(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    body = {"Container": arguments[1], "Force": flags.on("force")}
    cli.engine.call("POST", f"/networks/{quote(arguments[0])}/disconnect", None, body)
    return 0


CREATE_FLAGS = (
    Flag("attachable", "", BOOL, "Enable manual container attachment"),
    Flag("aux-address", "", MAP, "Auxiliary IPv4 or IPv6 addresses used by Network driver"),
    Flag("config-from", "", STRING, "The network from which to copy the configuration"),
    Flag("config-only", "", BOOL, "Create a configuration only network"),
    Flag("driver", "d", STRING, "Driver to manage the Network", default="bridge"),
    Flag("egress", "", STRINGS, "Let containers reach only this (allow=DOMAIN,CIDR,...), or none"),
    Flag("gateway", "", STRINGS, "IPv4 or IPv6 Gateway for the master subnet"),
    Flag("ingress", "", BOOL, "Create swarm routing-mesh network"),
    Flag("internal", "", BOOL, "Restrict external access to the network"),
    Flag("ip-range", "", STRINGS, "Allocate container ip from a sub-range"),
    Flag("ipam-driver", "", STRING, "IP Address Management Driver", default="default"),
    Flag("ipam-opt", "", MAP, "Set IPAM driver specific options"),
    Flag("ipv4", "", BOOL, "Enable or disable IPv4 address assignment", default=True),
    Flag("ipv6", "", BOOL, "Enable or disable IPv6 address assignment"),
    Flag("label", "", LIST, "Set metadata on a network", check=label),
    Flag("opt", "o", MAP, "Set driver specific options"),
    Flag("scope", "", STRING, "Control the network's scope"),
    Flag("subnet", "", STRINGS, "Subnet in CIDR format that represents a network segment"),
)
CONNECT_FLAGS = (
    Flag("alias", "", STRINGS, "Add network-scoped alias for the container"),
    Flag("driver-opt", "", STRINGS, "driver options for the network"),
    Flag(
        "gw-priority",
        "",
        INT,
        "Highest gw-priority provides the default gateway. Accepts positive and negative values.",
        since="1.48",
    ),
    Flag("ip", "", STRING, 'IPv4 address (e.g., "172.30.100.104")'),
    Flag("ip6", "", STRING, 'IPv6 address (e.g., "2001:db8::33")'),
    Flag("link", "", LIST, "Add link to another container", check=link),
    Flag("link-local-ip", "", STRINGS, "Add a link-local address for the container"),
)

COMMANDS = {
    "create": Command("[OPTIONS] NETWORK", create, flags=CREATE_FLAGS, arguments=(1, 1)),
    "ls": Command(
        "[OPTIONS]",
        listing,
        flags=(
            Flag("filter", "f", FILTER, 'Provide filter values (e.g. "driver=bridge")'),
            Flag("format", "", STRING, FORMAT_HELP),
            Flag("no-trunc", "", BOOL, "Do not truncate the output"),
            Flag("quiet", "q", BOOL, "Only display network IDs"),
        ),
    ),
    "rm": Command(
        "NETWORK [NETWORK...]",
        remove,
        flags=(Flag("force", "f", BOOL, "Do not error if the network does not exist"),),
        arguments=(1, UNLIMITED),
    ),
    "connect": Command("[OPTIONS] NETWORK CONTAINER", connect, flags=CONNECT_FLAGS, arguments=(2, 2)),
    "disconnect": Command(
        "[OPTIONS] NETWORK CONTAINER",
        disconnect,
        flags=(Flag("force", "f", BOOL, "Force the container to disconnect from a network"),),
        arguments=(2, 2),
    ),
}
