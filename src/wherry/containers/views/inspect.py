"""inspect: everything known of one container, as Docker's ContainerInspectResponse (API 1.51)."""

import msgspec

from wherry.aio import settle
from wherry.containers.attached import joined, linked
from wherry.containers.deps import Deps
from wherry.containers.record import Container, Health, Status
from wherry.containers.views import shapes
from wherry.containers.views.listing import image_manifest, list_containers, measure
from wherry.containers.views.shapes import Document, rfc3339_nano
from wherry.runtime.security import MASKED_PATHS, READONLY_PATHS
from wherry.spec.engine import ContainerConfig, words

__all__ = ["inspect", "list_containers"]

_EMPTY_LISTS = (
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "Devices",
    "Ulimits",
)
_OMITTED = ("Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Init", "Mounts")  # when there is nothing in them


async def inspect(deps: Deps, name: str, *, size: bool = False) -> Document:
    """The document; with `size` also how much the container wrote and how big its root is. Raises NotFound."""
    container = deps.store.resolve(name)
    directory = deps.settings.directory(container)
    graph = await settle(_graph_driver, deps, container)
    execs = [each.id for each in deps.live_of(container).execs.values() if each.exit_code is None]

    def own_file(name: str) -> str:
        """Written at the first start."""
        return str(directory / name) if container.state.started_at else ""

    document: Document = {
        "Id": container.id,
        "Created": rfc3339_nano(container.created),
        "Path": container.path,
        "Args": container.args,
        "State": state(container),
        "Image": container.image_id,
        "ResolvConfPath": own_file("resolv.conf"),
        "HostnamePath": own_file("hostname"),
        "HostsPath": own_file("hosts"),
        "LogPath": container.log_path,
        "Name": "/" + container.name,
        "RestartCount": container.state.restart_count,
        "Driver": container.driver,
        "Platform": container.platform,
        **image_manifest(deps, container),
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": execs or None,
        "HostConfig": host_config(deps, container),
        "GraphDriver": graph,
        "Mounts": shapes.mounts(container),
        "Config": config(container.config),
        "NetworkSettings": network_settings(container),
    }
    if size:
        document.update(await measure(deps, container))
    return document


def state(container: Container) -> Document:
    """As in Docker a container that waits for its automatic restart also counts as running."""
    found = container.state
    document: Document = {
        "Status": str(found.status),
        "Running": container.running or found.status is Status.RESTARTING,
        "Paused": found.status is Status.PAUSED,
        "Restarting": found.status is Status.RESTARTING,
        "OOMKilled": found.oom_killed,
        "Dead": found.status is Status.DEAD,
        "Pid": found.pid,
        "ExitCode": 0 if container.running else found.exit_code,
        "Error": found.error,
        "StartedAt": rfc3339_nano(found.started_at),
        "FinishedAt": rfc3339_nano(found.finished_at),
    }
    if found.health is not None:
        document["Health"] = _health(found.health)
    return document


def _health(found: Health) -> Document:
    probes = [
        {
            "Start": rfc3339_nano(probe.start),
            "End": rfc3339_nano(probe.end),
            "ExitCode": probe.exit_code,
            "Output": probe.output,
        }
        for probe in found.log
    ]
    return {"Status": str(found.status), "FailingStreak": found.failing_streak, "Log": probes}


def config(found: ContainerConfig) -> Document:
    document: Document = msgspec.to_builtins(found)
    for key, value in (("Cmd", found.cmd), ("Entrypoint", found.entrypoint)):
        document[key] = words(value) or None
    for key in ("ExposedPorts", "Healthcheck"):
        if not document[key]:
            del document[key]
    document["Labels"] = found.labels or {}
    for key in ("StopSignal", "Shell", "MacAddress", "NetworkDisabled", "ArgsEscaped"):
        if key in document and not document[key]:
            del document[key]
    return document


def host_config(deps: Deps, container: Container) -> Document:
    """The HostConfig with Docker's defaults spelt out."""
    host = container.host_config
    document: Document = msgspec.to_builtins(host)
    document.update({"IOMaximumIOps": 0, "IOMaximumBandwidth": 0})
    document["NetworkMode"] = shapes.network_mode(container)
    document["Links"] = _links(deps, container)
    document["LogConfig"] = {
        "Type": host.log_config.type or deps.settings.log_driver,
        "Config": host.log_config.config or {},
    }
    document["RestartPolicy"] = {
        "Name": host.restart_policy.name or "no",
        "MaximumRetryCount": host.restart_policy.maximum_retry_count,
    }
    document["PortBindings"] = document["PortBindings"] or {}
    document["ConsoleSize"] = host.console_size or [0, 0]
    document["IpcMode"] = host.ipc_mode or "private"
    document["ShmSize"] = host.shm_size or deps.settings.default_shm_size
    document["Runtime"] = container.runtime
    if not host.privileged:
        if host.masked_paths is None:
            document["MaskedPaths"] = list(MASKED_PATHS)
        if host.readonly_paths is None:
            document["ReadonlyPaths"] = list(READONLY_PATHS)
    for key in _EMPTY_LISTS:
        document[key] = document[key] or []
    for key in _OMITTED:
        if document[key] is None or (key != "Init" and not document[key]):
            del document[key]
    return document


def _links(deps: Deps, container: Container) -> list[str] | None:
    return [f"/{other.name}:/{container.name}/{alias}" for other, alias in linked(deps.store, container)] or None


def network_settings(container: Container) -> Document:
    """NetworkSettings, with the fields of the default bridge repeated at the top as older clients expect."""
    bridge = next((each for each in container.endpoints if each.network == "bridge"), None)
    own = container.running and joined(container) is None
    return {
        "Bridge": "",
        "SandboxID": container.id if own else "",
        "SandboxKey": f"/proc/{container.state.pid}/ns/net" if own else "",
        "Ports": shapes.port_map(container),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.endpoint_id if bridge else "",
        "Gateway": bridge.gateway if bridge else "",
        "GlobalIPv6Address": bridge.ip6 if bridge else "",
        "GlobalIPv6PrefixLen": bridge.prefix6 if bridge else 0,
        "IPAddress": bridge.ip if bridge else "",
        "IPPrefixLen": bridge.prefix if bridge else 0,
        "IPv6Gateway": bridge.gateway6 if bridge else "",
        "MacAddress": bridge.mac if bridge else "",
        "Networks": shapes.networks(container),
    }


def _graph_driver(deps: Deps, container: Container) -> Document:
    """Where the root's layers are. There is no MergedDir: the host never mounts a container's root."""
    data: dict[str, str] = {"ID": container.id}
    keys = {"lowerdir": "LowerDir", "upperdir": "UpperDir", "workdir": "WorkDir"}
    for mount in deps.snapshots.mounts(container.id):
        for option in mount.options:
            name, _, value = option.partition("=")
            if name in keys:
                data[keys[name]] = value
    return {"Data": data, "Name": container.driver}
