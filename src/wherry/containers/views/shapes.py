"""Pieces of Docker's documents that inspect and list share: times, words for durations, ports, mounts, endpoints."""

import time

import msgspec

from wherry.containers.attached import asked, dns_names, is_users
from wherry.containers.record import Container, HealthStatus, MountPoint, Status
from wherry.network.endpoint import Endpoint
from wherry.network.records import HOST
from wherry.spec.engine import EndpointSettings

Document = dict[str, object]

NEVER = "0001-01-01T00:00:00Z"
_SECOND = 10**9  # ns


def rfc3339_nano(ns: int) -> str:
    """A time in ns since the epoch as Docker writes it: UTC, no trailing zeros; 0 is never."""
    if ns == 0:
        return NEVER
    seconds, fraction = divmod(ns, _SECOND)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + digits + "Z"


def human_duration(ns: int) -> str:
    """Docker's words for a length of time."""
    seconds = max(ns, 0) // _SECOND
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    if (minutes := seconds // 60) == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if (hours := (seconds + 1800) // 3600) == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{seconds // 3600 // 24 // 365} years"


def human_status(container: Container, now: int) -> str:
    """The STATUS column of ps. `now` in ns since the epoch."""
    state = container.state
    match state.status:
        case Status.RUNNING:
            up = f"Up {human_duration(now - state.started_at)}"
            match state.health.status if state.health is not None else None:
                case None:
                    return up
                case HealthStatus.STARTING:
                    return f"{up} (health: starting)"
                case known:
                    return f"{up} ({known})"
        case Status.PAUSED:
            return f"Up {human_duration(now - state.started_at)} (Paused)"
        case Status.RESTARTING:
            return f"Restarting ({state.exit_code}) {human_duration(now - state.finished_at)} ago"
        case Status.REMOVING:
            return "Removal In Progress"
        case Status.DEAD:
            return "Dead"
    if state.started_at == 0:
        return "Created"
    return f"Exited ({state.exit_code}) {human_duration(now - state.finished_at)} ago"


def network_mode(container: Container) -> str:
    """The mode with its default spelt out."""
    mode = container.host_config.network_mode
    return "bridge" if mode in ("", "default") else mode


def mounts(container: Container) -> list[Document]:
    """MountPoint documents. As in Docker `--tmpfs` is not among them, `--mount type=tmpfs` is."""
    hidden = container.host_config.tmpfs or {}
    return [_mount(point) for point in container.mounts if point.type != "tmpfs" or point.destination not in hidden]


def _mount(point: MountPoint) -> Document:
    document: Document = {"Type": point.type}
    if point.name:
        document["Name"] = point.name
    document["Source"] = point.source
    document["Destination"] = point.destination
    if point.driver:
        document["Driver"] = point.driver
    document["Mode"] = point.mode
    document["RW"] = point.rw
    document["Propagation"] = point.propagation
    return document


def networks(container: Container) -> dict[str, Document]:
    """EndpointSettings by network name: as they are while it runs, else as they were asked for."""
    found = {each.network: each for each in container.endpoints}
    wanted = asked(container)
    # those it is on come first: a record may be older than the wish
    names = dict.fromkeys([*found, *wanted]) if container.running else wanted
    return {name: _endpoint(container, name, wanted.get(name) or EndpointSettings(), found.get(name)) for name in names}


def _endpoint(container: Container, name: str, given: EndpointSettings, found: Endpoint | None) -> Document:
    """As in Docker it has names for others as soon as it has been on a network that somebody made."""
    network_id = found.network_id if found else given.network_id
    named = network_id and is_users(name)
    return {
        "IPAMConfig": None if given.ipam_config is None else msgspec.to_builtins(given.ipam_config),
        "Links": given.links,
        "Aliases": given.aliases,
        "MacAddress": found.mac if found else given.mac_address,
        "DriverOpts": given.driver_opts,
        "GwPriority": given.gw_priority,
        "NetworkID": network_id,
        "EndpointID": found.endpoint_id if found else "",
        "Gateway": found.gateway if found else "",
        "IPAddress": found.ip if found else "",
        "IPPrefixLen": found.prefix if found else 0,
        "IPv6Gateway": found.gateway6 if found else "",
        "GlobalIPv6Address": found.ip6 if found else "",
        "GlobalIPv6PrefixLen": found.prefix6 if found else 0,
        "DNSNames": dns_names(container, given.aliases or ()) if named else None,
    }


def has_ports(container: Container) -> bool:
    """Ports mean something: it runs, and has a network stack of its own."""
    return container.running and any(each.network not in (HOST, "none") for each in container.endpoints)


def port_map(container: Container) -> dict[str, list[Document] | None]:
    """`NetworkSettings.Ports`: container port -> where it is published; None for one that is only exposed."""
    found: dict[str, list[Document] | None] = {}
    if not has_ports(container):
        return found
    for port in container.ports:
        bindings = found.setdefault(f"{port.container_port}/{port.protocol}", [])
        assert bindings is not None
        bindings.append({"HostIp": port.host_ip, "HostPort": str(port.host_port)})
    for exposed in container.config.exposed_ports or {}:
        for key in expand_port(exposed):
            found.setdefault(key, None)
    return found


def port_list(container: Container) -> list[Document]:
    """`Ports` of the list: one entry for each published address, and one for each port that is only exposed."""
    if not has_ports(container):
        return []
    found: list[Document] = []
    published: set[str] = set()
    for port in container.ports:
        published.add(f"{port.container_port}/{port.protocol}")
        found.append(
            {
                "IP": port.host_ip,
                "PrivatePort": port.container_port,
                "PublicPort": port.host_port,
                "Type": port.protocol,
            }
        )
    for exposed in container.config.exposed_ports or {}:
        for key in expand_port(exposed):
            if key not in published:
                number, _, protocol = key.partition("/")
                found.append({"PrivatePort": int(number), "Type": protocol})
    return found


def expand_port(text: str) -> list[str]:
    """`80` -> `80/tcp`; `80-82/udp` -> one for each. What is no port gives nothing."""
    numbers, _, protocol = text.partition("/")
    first, _, last = numbers.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        return []
    return [f"{number}/{protocol or 'tcp'}" for number in range(int(first), int(last or first) + 1)]
