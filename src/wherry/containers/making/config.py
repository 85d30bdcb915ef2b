"""Checking what create was asked for, and laying it over the image's config. Pure; errors in Docker's words."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from wherry.containers.making.signals import parse_signal
from wherry.errors import InvalidParameter, NotSupported
from wherry.ids import is_name
from wherry.spec.engine import (
    ContainerConfig,
    CreateContainer,
    HealthConfig,
    HostConfig,
    LogConfig,
    Resources,
    UpdateContainer,
    words,
)

MOST_NUMBERS = 1 << 16  # more than any machine has CPUs
SHORTEST = 10**6  # ns; of a health check's times
MINIMUM_MEMORY = 6 << 20  # bytes; Docker's own floor
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?\Z")
_RESTART = ("no", "always", "on-failure", "unless-stopped")
LOG_DRIVERS = ("json-file", "none")


def check_name(name: str) -> None:
    if not is_name(name):
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def merge(asked: ContainerConfig, image: ContainerConfig) -> ContainerConfig:
    """The request laid over the image's config.

    Environment and labels are joined, the request winning; an entrypoint in the request drops the image's command.
    """
    entrypoint, cmd = words(asked.entrypoint), words(asked.cmd)
    if not entrypoint:
        if not cmd:
            cmd = words(image.cmd)
        entrypoint = words(image.entrypoint)
    elif entrypoint == [""]:
        entrypoint = []
    return msgspec.structs.replace(
        asked,
        user=asked.user or image.user,
        env=_merge_env(asked.env or [], image.env or []),
        cmd=cmd or None,
        entrypoint=entrypoint or None,
        exposed_ports={**(image.exposed_ports or {}), **(asked.exposed_ports or {})} or None,
        volumes={**(image.volumes or {}), **(asked.volumes or {})} or None,
        working_dir=asked.working_dir or image.working_dir,
        labels={**(image.labels or {}), **(asked.labels or {})},
        stop_signal=asked.stop_signal or image.stop_signal,
        shell=asked.shell or image.shell,
        healthcheck=_merge_health(asked.healthcheck, image.healthcheck),
        on_build=None,
    )


def _merge_env(asked: list[str], image: list[str]) -> list[str]:
    """The image's variables that the request does not set, after the request's own; `NAME` without `=` unsets."""
    names = {entry.partition("=")[0] for entry in asked}
    return [*asked, *(entry for entry in image if entry.partition("=")[0] not in names)]


def _merge_health(asked: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    """Each field of the image's check that the request leaves open."""
    if asked is None or image is None:
        return asked or image
    return HealthConfig(
        test=asked.test or image.test,
        interval=asked.interval or image.interval,
        timeout=asked.timeout or image.timeout,
        start_period=asked.start_period or image.start_period,
        start_interval=asked.start_interval or image.start_interval,
        retries=asked.retries or image.retries,
    )


def _check_health(check: HealthConfig) -> None:
    for name, value in (
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ):
        if value and value < SHORTEST:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if check.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def check_config(config: ContainerConfig) -> None:
    if config.hostname and _HOSTNAME.match(config.hostname) is None:
        raise InvalidParameter(f"invalid hostname format: {config.hostname}")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for entry in config.env or []:
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidParameter(f"invalid environment variable: {entry!r}")
    if not words(config.entrypoint) and not words(config.cmd):
        raise InvalidParameter("no command specified")
    if any("\0" in word for word in (*words(config.entrypoint), *words(config.cmd))):
        raise InvalidParameter("invalid command: an argument contains a NUL byte")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)
    if isinstance(config.stop_timeout, int) and config.stop_timeout < -1:
        raise InvalidParameter(f"invalid stop timeout: {config.stop_timeout}")


def check_host(host: HostConfig, runtimes: Mapping[str, object]) -> None:
    _check_restart(host)
    check_resources(host)
    if host.runtime and host.runtime not in runtimes:
        raise InvalidParameter(f"unknown or invalid runtime name: {host.runtime}")
    if host.log_config.type not in ("", *LOG_DRIVERS):
        raise InvalidParameter(f"logger: no log driver named '{host.log_config.type}' is registered")
    _check_log_options(host.log_config)
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.storage_opt:
        raise NotSupported(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option, which this engine does "
            "not use: put the data on a volume of the wanted size"
        )
    if host.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host.userns_mode}")
    if host.device_requests:
        capabilities = host.device_requests[0].capabilities or []
        raise NotSupported(
            f'could not select device driver "{host.device_requests[0].driver}" with capabilities: {capabilities}'
        )


def check_network_mode(body: CreateContainer) -> None:
    """What cannot be asked for in the network of the host or of another container; in Docker's order and words."""
    host = body.host_config
    if host.uts_mode == "host" and body.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if host.network_mode == "host" and host.links:
        raise _undefined("host type networking")
    kind, _, other = host.network_mode.partition(":")
    if kind != "container":
        return
    if not other:
        raise InvalidParameter("Invalid network mode: invalid container format container:<name|id>")
    if body.hostname:
        raise InvalidParameter("conflicting options: hostname and the network mode")
    if host.links:
        raise _undefined("container type network")
    for given, what in (
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (body.mac_address, "mac-address and the network mode"),
        (host.port_bindings or host.publish_all_ports, "port publishing and the container type network mode"),
        (body.exposed_ports, "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidParameter(f"conflicting options: {what}")


def _undefined(what: str) -> InvalidParameter:
    return InvalidParameter(
        f"conflicting options: {what} can't be used with links. This would result in undefined behavior"
    )


def _check_restart(host: HostConfig) -> None:
    policy = host.restart_policy
    if policy.name and policy.name not in _RESTART:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise InvalidParameter("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if host.auto_remove and policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")


def check_update(given: UpdateContainer) -> None:
    """What of an update can be checked without the container. Raises InvalidParameter."""
    check_resources(given, update=True)
    policy = given.restart_policy
    if policy.name:
        _check_restart(HostConfig(restart_policy=policy))


def check_resources(given: Resources, *, update: bool = False) -> None:
    """`update`: what is not given stays as the container has it."""
    memory = given.memory
    if memory < 0 or 0 < memory < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if given.memory_swap > 0 and not memory and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if memory > 0 and 0 < given.memory_swap < memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if given.memory_swappiness is not None and not -1 <= given.memory_swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {given.memory_swappiness}, valid memory swappiness range is 0-100")
    if 0 < given.memory_reservation < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if memory and given.memory_reservation > memory:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    cpus = os.cpu_count() or 1
    if given.nano_cpus and (given.cpu_period or given.cpu_quota):
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if given.nano_cpus < 0 or given.nano_cpus > cpus * 10**9:
        raise InvalidParameter(f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if given.cpu_period and not 1000 <= given.cpu_period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < given.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if given.cpu_shares < 0:
        raise InvalidParameter("invalid CPU shares: value must not be negative")
    if given.blkio_weight and not 10 <= given.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if given.cpuset_cpus:
        _check_set(given.cpuset_cpus, "cpuset cpus", "CPUs", range(cpus))
    if given.cpuset_mems:
        _check_set(given.cpuset_mems, "cpuset mems", "memory nodes", memory_nodes())


def _check_set(text: str, name: str, what: str, available: Collection[int]) -> None:
    try:
        wanted = numbers(text)
    except ValueError:
        raise InvalidParameter(f"Invalid value {text} for {name}: invalid format: {text}") from None
    if not wanted <= set(available):
        there = f"{min(available)}-{max(available)}" if len(available) > 1 else f"{min(available)}"
        raise InvalidParameter(f"Requested {what} are not available - requested {text}, available: {there}")


def numbers(text: str) -> set[int]:
    """A list as the kernel writes it, `0-2,5`. Raises ValueError, also for more than `MOST_NUMBERS` in a range."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < MOST_NUMBERS:
            raise ValueError(f"not a list of numbers: {text}")
        found.update(range(low, high + 1))
    return found


def memory_nodes() -> set[int]:
    try:
        return numbers(Path("/sys/devices/system/node/online").read_text())
    except (OSError, ValueError):
        return {0}


_SIZE = re.compile(r"(\d+)([kmg]?)b?\Z", re.IGNORECASE)


def log_limits(config: LogConfig) -> tuple[int, int]:
    """(max-size in bytes, 0 = none; max-file) of a json-file log. Raises InvalidParameter."""
    options = config.config or {}
    size = 0
    if text := options.get("max-size", ""):
        match = _SIZE.match(text)
        if match is None:
            raise InvalidParameter(f"invalid size for max-size: '{text}'")
        size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    files = options.get("max-file", "1")
    if not files.isdigit() or int(files) < 1:
        raise InvalidParameter(f"invalid value for max-file: '{files}': must be a number not less than 1")
    if int(files) > 1 and not size:
        raise InvalidParameter("max-size must be set when max-file is")
    return size, int(files)


_LOG_OPTIONS = frozenset(
    {"max-size", "max-file", "labels", "labels-regex", "env", "env-regex", "tag", "compress", "mode", "max-buffer-size"}
)


def _check_log_options(config: LogConfig) -> None:
    if config.type == "none":
        return
    for key in config.config or {}:
        if key not in _LOG_OPTIONS:
            raise InvalidParameter(f"unknown log opt '{key}' for json-file log driver")
    log_limits(config)


def with_defaults(host: HostConfig, *, runtime: str, log: LogConfig, cgroup_v2: bool, shm_size: int) -> HostConfig:
    """What the daemon decides when the request leaves it open, as inspect shows it."""
    return msgspec.structs.replace(
        host,
        runtime=host.runtime or runtime,
        log_config=LogConfig(type=host.log_config.type or log.type, config=host.log_config.config or log.config or {}),
        network_mode=host.network_mode or "default",
        ipc_mode=host.ipc_mode or "private",
        cgroupns_mode=host.cgroupns_mode or ("private" if cgroup_v2 else "host"),
        shm_size=host.shm_size or shm_size,
        memory_swap=host.memory_swap or 2 * host.memory,
        pids_limit=host.pids_limit if (host.pids_limit or 0) > 0 else None,
        restart_policy=msgspec.structs.replace(host.restart_policy, name=host.restart_policy.name or "no"),
    )


def split_request(body: CreateContainer) -> ContainerConfig:
    """The portable half of the body alone, as it is kept."""
    return ContainerConfig(**{name: getattr(body, name) for name in ContainerConfig.__struct_fields__})
