"""Engine API documents that are read: bodies of requests, and what of them is kept in a container's record.

Field names here are ours, names on the wire Docker's (`rename`). Source: Docker Engine API 1.51. As in Docker, `null`
means "as if not given", unknown keys are ignored, and a wrong type is an error that names the field.
Documents that are only written (inspect, list, info) are built as plain dicts where they are answered.
"""

from typing import Any, TypeVar

import msgspec

from wherry.errors import InvalidParameter

_IRREGULAR = {
    "oom": "OOM",
    "uts": "UTS",
    "ipam": "IPAM",
    "dns_names": "DNSNames",
    "network_id": "NetworkID",
    "endpoint_id": "EndpointID",
    "uts_mode": "UTSMode",
    "ipam_config": "IPAMConfig",
    "ipv4_address": "IPv4Address",
    "ipv6_address": "IPv6Address",
    "link_local_ips": "LinkLocalIPs",
    "ip_address": "IPAddress",
    "ip_range": "IPRange",
    "enable_ipv4": "EnableIPv4",
    "enable_ipv6": "EnableIPv6",
    "ip_prefix_len": "IPPrefixLen",
    "ipv6_gateway": "IPv6Gateway",
    "global_ipv6_address": "GlobalIPv6Address",
    "global_ipv6_prefix_len": "GlobalIPv6PrefixLen",
    "device_ids": "DeviceIDs",
    "host_ip": "HostIp",
    "id_map": "IDMap",
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "container_id_file": "ContainerIDFile",
}


def _pascal(name: str) -> str:
    return _IRREGULAR.get(name) or "".join(part.capitalize() for part in name.split("_"))


class Document(msgspec.Struct, frozen=True, kw_only=True, rename=_pascal):
    """Base of all documents here: immutable; change one by `msgspec.structs.replace`."""


class HealthConfig(Document, frozen=True, kw_only=True, omit_defaults=True):
    test: list[str] | None = None
    interval: int = 0  # ns; 0 = default
    timeout: int = 0  # ns
    start_period: int = 0  # ns
    start_interval: int = 0  # ns
    retries: int = 0


class ContainerConfig(Document, frozen=True, kw_only=True):
    """The portable half: what also lives in an image's config."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, str]] | None = None  # "80/tcp" -> {}
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool | msgspec.UnsetType = msgspec.UNSET
    image: str = ""
    volumes: dict[str, dict[str, str]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool | msgspec.UnsetType = msgspec.UNSET
    mac_address: str | msgspec.UnsetType = msgspec.UNSET
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | msgspec.UnsetType = msgspec.UNSET
    stop_timeout: int | msgspec.UnsetType = msgspec.UNSET  # s
    shell: list[str] | msgspec.UnsetType = msgspec.UNSET


class PortBinding(Document, frozen=True, kw_only=True):
    host_ip: str = ""
    host_port: str = ""  # "", "8080" or "8000-8010"


class LogConfig(Document, frozen=True, kw_only=True):
    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(Document, frozen=True, kw_only=True):
    name: str = ""  # "", no, always, unless-stopped, on-failure
    maximum_retry_count: int = 0


class DeviceMapping(Document, frozen=True, kw_only=True):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Document, frozen=True, kw_only=True):
    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = None
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class WeightDevice(Document, frozen=True, kw_only=True):
    path: str = ""
    weight: int = 0


class ThrottleDevice(Document, frozen=True, kw_only=True):
    path: str = ""
    rate: int = 0


class Ulimit(Document, frozen=True, kw_only=True):
    name: str = ""
    soft: int = 0
    hard: int = 0


class DriverConfig(Document, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] | None = None


class BindOptions(Document, frozen=True, kw_only=True, omit_defaults=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False
    id_map: str = ""  # ours: `caller`, or as runtime.id_map has it


class VolumeOptions(Document, frozen=True, kw_only=True, omit_defaults=True):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(Document, frozen=True, kw_only=True, omit_defaults=True):
    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class ImageOptions(Document, frozen=True, kw_only=True, omit_defaults=True):
    subpath: str = ""


class Mount(Document, frozen=True, kw_only=True, omit_defaults=True):
    """One `--mount`."""

    type: str = ""  # bind, volume, tmpfs, image, npipe, cluster
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None


class Resources(Document, frozen=True, kw_only=True):
    """Limits; also the body of `POST /containers/{id}/update`."""

    cpu_shares: int = 0
    memory: int = 0  # bytes
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: int = 0  # us
    cpu_quota: int = 0  # us
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    memory_reservation: int = 0  # bytes
    memory_swap: int = 0  # bytes, memory included; -1 = unlimited
    memory_swappiness: int | None = None
    nano_cpus: int = 0
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0


class HostConfig(Resources, frozen=True, kw_only=True):
    """The half that is bound to this host."""

    binds: list[str] | None = None
    container_id_file: str = ""
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None  # "80/tcp" -> host side
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    mounts: list[Mount] | None = None
    console_size: list[int] | None = None  # [height, width]
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 0  # bytes; 0 = 64 MiB
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    init: bool | None = None
    isolation: str = ""
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class UpdateContainer(Resources, frozen=True, kw_only=True):
    """Body of `POST /containers/{id}/update`. What comes after the restart policy is ours."""

    restart_policy: RestartPolicy = RestartPolicy()
    publish_add: dict[str, list[PortBinding] | None] | None = None  # "80/tcp" -> host side
    publish_rm: list[str] | None = None  # `80/tcp`, or as in -p: `127.0.0.1:8080:80/tcp`
    mount_add: list[Mount] | None = None
    mount_rm: list[str] | None = None  # targets
    device_add: list[DeviceMapping] | None = None
    device_rm: list[str] | None = None  # paths in the container


class EndpointIPAMConfig(Document, frozen=True, kw_only=True, omit_defaults=True):
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: list[str] | None = None


class EndpointSettings(Document, frozen=True, kw_only=True):
    """One attachment to one network, as asked for."""

    ipam_config: EndpointIPAMConfig | None = None
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = ""


class NetworkingConfig(Document, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointSettings] | None = None


class CreateContainer(ContainerConfig, frozen=True, kw_only=True):
    """Body of `POST /containers/create`."""

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()


class ExecConfig(Document, frozen=True, kw_only=True):
    """Body of `POST /containers/{id}/exec`."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: list[int] | None = None
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: list[str] | str | None = None


class ExecStart(Document, frozen=True, kw_only=True):
    """Body of `POST /exec/{id}/start`."""

    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


class IPAMPool(Document, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class IPAM(Document, frozen=True, kw_only=True):
    driver: str = ""
    config: list[IPAMPool] | None = None
    options: dict[str, str] | None = None


class ConfigReference(Document, frozen=True, kw_only=True):
    network: str = ""


class CreateNetwork(Document, frozen=True, kw_only=True):
    """Body of `POST /networks/create`."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    ipam: IPAM | None = None
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class ConnectNetwork(Document, frozen=True, kw_only=True):
    """Body of `POST /networks/{id}/connect`."""

    container: str = ""
    endpoint_config: EndpointSettings | None = None


class DisconnectNetwork(Document, frozen=True, kw_only=True):
    """Body of `POST /networks/{id}/disconnect`."""

    container: str = ""
    force: bool = False


class LinkTrouble(Document, frozen=True, kw_only=True):
    """Body of our own `POST /networks/lab/{container}`."""

    network: str = ""  # name or id; may be left out of a container on one network
    latency: int = 0  # ns
    jitter: int = 0  # ns
    loss: float = 0.0  # percent
    rate: int = 0  # bits/s
    partition: bool = False


class CreateVolume(Document, frozen=True, kw_only=True):
    """Body of `POST /volumes/create`."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


T = TypeVar("T", bound=Document)


def _drop_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_null(item) for item in value]
    return value


def decode(kind: type[T], raw: bytes) -> T:
    """Read a request body; an empty one is an empty document. Raises InvalidParameter naming the field."""
    try:
        value = msgspec.json.decode(raw) if raw.strip() else None
        value = {} if value is None else value  # as Docker: null is nothing given
        return msgspec.convert(_drop_null(value), kind)
    except msgspec.ValidationError as exc:
        raise InvalidParameter(f"invalid JSON: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidParameter(f"invalid JSON: {exc}") from exc


def words(value: list[str] | str | None) -> list[str]:
    """A command as a list: Docker accepts a single string for a list of one."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value
