"""From the flags of `run` and `create` to the body of POST /containers/create."""

from __future__ import annotations

import os

from wherry.cli.console import UsageFailure
from wherry.cli.flags import Flags
from wherry.cli.ports import PortError, parse_expose, parse_publish
from wherry.cli.run_values import environment_variable, id_map, is_cdi_name, is_device_mode, mac_address
from wherry.cli.units import parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    JSONObject = dict[str, Any]


def wrong(message: str) -> UsageFailure:
    return UsageFailure(message, 125)


class Spec:
    """What is to be created: `config` and `host` are the API's ContainerConfig and HostConfig."""

    def __init__(self) -> None:
        self.config: JSONObject = {}
        self.host: JSONObject = {}
        self.endpoints: JSONObject = {}

    def body(self) -> JSONObject:
        return {**self.config, "HostConfig": self.host, "NetworkingConfig": {"EndpointsConfig": self.endpoints}}


def build(flags: Flags, image: str, command: list[str]) -> Spec:
    """Failure with docker's words and exit code 125 when the flags contradict each other or the files they name."""
    spec = Spec()
    _process(spec, flags, image, command)
    _environment(spec, flags)
    _health(spec, flags)
    _mounts(spec, flags)
    _ports(spec, flags)
    _networks(spec, flags)
    _resources(spec, flags)
    _devices(spec, flags)
    _security(spec, flags)
    _namespaces(spec, flags)
    _policies(spec, flags)
    return spec


def _process(spec: Spec, flags: Flags, image: str, command: list[str]) -> None:
    config = spec.config
    attached = flags.texts("attach")
    stdin = flags.on("interactive")
    config["Hostname"] = flags.text("hostname")
    config["Domainname"] = flags.text("domainname")
    config["User"] = flags.text("user")
    config["AttachStdin"] = "stdin" in attached or (not attached and stdin)
    config["AttachStdout"] = "stdout" in attached or not attached
    config["AttachStderr"] = "stderr" in attached or not attached
    config["Tty"] = flags.on("tty")
    config["OpenStdin"] = stdin
    config["StdinOnce"] = stdin and config["AttachStdin"]
    config["Cmd"] = command or None
    config["Image"] = image
    config["WorkingDir"] = flags.text("workdir")
    config["Entrypoint"] = None
    if "entrypoint" in flags.changed:
        config["Entrypoint"] = [flags.text("entrypoint")]  # [""] takes the image's away
    if "stop-signal" in flags.changed:
        config["StopSignal"] = flags.text("stop-signal")
    if "stop-timeout" in flags.changed:
        config["StopTimeout"] = flags.number("stop-timeout")
    if text := flags.text("mac-address"):
        check_mac(text)
        config["MacAddress"] = text  # for engines before API 1.44: later ones read it in the endpoint


def check_mac(text: str) -> None:
    try:
        mac_address(text)
    except ValueError as exc:
        raise wrong(str(exc)) from None


def read_lines(path: str, kind: str) -> list[tuple[int, str]]:
    """Lines of an env or label file that say something, with their numbers."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as exc:
        raise wrong(f"open {path}: {(exc.strerror or '').lower()}") from None
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise wrong(f"invalid {kind} file ({path}): invalid utf8 bytes at line {number}: {raw!r}") from None
        text = text.rstrip("\r").lstrip()
        if text and not text.startswith("#"):
            lines.append((number, text))
    return lines


def env_file(path: str) -> list[str]:
    """`NAME=value` lines; a NAME alone is taken from here, and left out when it is not set."""
    variables: list[str] = []
    for _, text in read_lines(path, "env"):
        name, equals, _ = text.partition("=")
        if not name:
            raise wrong(f"invalid env file ({path}): no variable name on line '{text}'")
        if any(char in " \t\n\v\f\r\u0085\u00a0" for char in name):
            raise wrong(f"invalid env file ({path}): variable '{name}' contains whitespaces")
        if equals:
            variables.append(text)
        elif name in os.environ:
            variables.append(environment_variable(name))
    return variables


def key_values(pairs: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _environment(spec: Spec, flags: Flags) -> None:
    variables: list[str] = []
    for path in flags.texts("env-file"):
        variables.extend(env_file(path))
    variables.extend(flags.texts("env"))
    spec.config["Env"] = variables
    labels: list[str] = []
    for path in flags.texts("label-file"):
        for _, text in read_lines(path, "label"):
            name = text.partition("=")[0]
            if not name or any(char.isspace() for char in name):
                raise wrong(f"invalid label file ({path}): variable '{name}' contains whitespaces")
            labels.append(text)
    spec.config["Labels"] = key_values(labels + flags.texts("label"))
    if annotations := flags.texts("annotation"):
        spec.host["Annotations"] = key_values(annotations)


def _health(spec: Spec, flags: Flags) -> None:
    names = ("cmd", "interval", "retries", "start-interval", "start-period", "timeout")
    given = [name for name in names if f"health-{name}" in flags.changed]
    if flags.on("no-healthcheck"):
        if given:
            raise wrong("--no-healthcheck conflicts with --health-* options")
        spec.config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if not given:
        return
    health: JSONObject = {}
    if command := flags.text("health-cmd"):
        health["Test"] = ["CMD-SHELL", command]
    for name, key in (
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start-period", "StartPeriod"),
        ("start-interval", "StartInterval"),
    ):
        value = flags.number(f"health-{name}")
        if value < 0:
            raise wrong(f"--health-{name} cannot be negative")
        if value:
            health[key] = value
    if flags.number("health-retries") < 0:
        raise wrong("--health-retries cannot be negative")
    if flags.number("health-retries"):
        health["Retries"] = flags.number("health-retries")
    spec.config["Healthcheck"] = health


def parse_volume(text: str) -> tuple[str | None, str]:
    """(bind, target) of one -v: the bind is None for a volume without a name. A source that begins with a dot is
    relative to here."""
    if not text:
        raise wrong("invalid empty volume spec")
    if len(text) <= 2:
        return None, text
    parts = text.split(":")
    if any(not part for part in parts):
        raise wrong(f"invalid spec: {text}: empty section between colons")
    if len(parts) > 3:
        raise wrong(f"invalid spec: {text}: too many colons")
    if len(parts) == 1:
        return None, text
    if parts[0].startswith("."):
        parts[0] = os.path.abspath(parts[0])
    if len(parts) == 3:
        parts[2] = ",".join(f"idmap={id_map('caller')}" if each == "idmap" else each for each in parts[2].split(","))
    return ":".join(parts), parts[1]


def _mounts(spec: Spec, flags: Flags) -> None:
    binds: list[str] = []
    volumes: JSONObject = {}
    for text in flags.texts("volume"):
        bind, target = parse_volume(text)
        if bind is None:
            volumes[target] = {}
        else:
            binds.append(bind)
    spec.config["Volumes"] = volumes
    spec.host["Binds"] = binds
    spec.host["VolumeDriver"] = flags.text("volume-driver")
    spec.host["VolumesFrom"] = flags.texts("volumes-from") or None
    if mounts := flags.value("mount"):
        spec.host["Mounts"] = mounts
    tmpfs: JSONObject = {}
    for text in flags.texts("tmpfs"):
        target, _, options = text.partition(":")
        tmpfs[target] = options
    if tmpfs:
        spec.host["Tmpfs"] = tmpfs
    if storage := flags.texts("storage-opt"):
        for option in storage:
            if "=" not in option:
                raise wrong("invalid storage option")
        spec.host["StorageOpt"] = key_values(storage)


def _ports(spec: Spec, flags: Flags) -> None:
    exposed: JSONObject = {}
    bindings: dict[str, list[JSONObject]] = {}
    try:
        for text in flags.texts("publish"):
            for port, address, published in parse_publish(text):
                exposed[port] = {}
                bindings.setdefault(port, []).append({"HostIp": address, "HostPort": published})
        for text in flags.texts("expose"):
            exposed.update({port: {} for port in parse_expose(text)})
    except PortError as exc:
        raise wrong(str(exc)) from None
    spec.config["ExposedPorts"] = exposed
    spec.host["PortBindings"] = bindings
    spec.host["PublishAllPorts"] = flags.on("publish-all")


def is_user_defined(network: str) -> bool:
    return network not in ("default", "bridge", "host", "none", "nat") and not network.startswith("container:")


def _networks(spec: Spec, flags: Flags) -> None:
    wanted = list(_objects(flags.value("network"))) or [{"Target": "default", "Aliases": [], "DriverOpts": {}}]
    aliases = flags.texts("network-alias")
    first = wanted[0]
    _merge_network_flags(first, flags, aliases)
    spec.host["NetworkMode"] = first["Target"]
    for network in wanted:
        target = network["Target"]
        if target in spec.endpoints:
            raise wrong(f'network "{target}" is specified multiple times')
        if len(wanted) > 1 and not is_user_defined(target) and target not in ("default", "bridge"):
            raise wrong("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
        if network["Aliases"] and not is_user_defined(target):
            raise wrong("network-scoped aliases are only supported for user-defined networks")
        if network.get("MacAddress"):
            check_mac(network["MacAddress"])
        endpoint = _endpoint(network)
        if endpoint or len(wanted) > 1 or is_user_defined(target):
            spec.endpoints[target] = endpoint
    spec.host["Links"] = flags.texts("link") or None
    spec.host["Dns"] = flags.texts("dns") or None
    spec.host["DnsOptions"] = flags.texts("dns-option") or None
    spec.host["DnsSearch"] = flags.texts("dns-search") or None
    spec.host["ExtraHosts"] = flags.texts("add-host") or None


def _merge_network_flags(first: JSONObject, flags: Flags, aliases: list[str]) -> None:
    """--ip and the like are about the first network; they may not say again what it says itself."""
    for key, name, what in (
        ("IPv4Address", "ip", "IPv4 address"),
        ("IPv6Address", "ip6", "IPv6 address"),
        ("MacAddress", "mac-address", "MAC address"),
    ):
        value = flags.text(name)
        if value and first.get(key):
            raise wrong(f"conflicting options: cannot specify both --{name} and per-network {what}")
        if value:
            first[key] = value
    if aliases and first["Aliases"]:
        raise wrong("conflicting options: cannot specify both --network-alias and per-network alias")
    first["Aliases"] = first["Aliases"] or aliases
    if local := flags.texts("link-local-ip"):
        if first.get("LinkLocalIPs"):
            raise wrong(
                "conflicting options: cannot specify both --link-local-ip and per-network link-local IP addresses"
            )
        first["LinkLocalIPs"] = local
    if (links := flags.texts("link")) and is_user_defined(first["Target"]):
        first["Links"] = links


def _endpoint(network: JSONObject) -> JSONObject:
    endpoint: JSONObject = {}
    addresses = {key: network[key] for key in ("IPv4Address", "IPv6Address", "LinkLocalIPs") if network.get(key)}
    if addresses:
        endpoint["IPAMConfig"] = addresses
    for key in ("Aliases", "Links", "MacAddress", "DriverOpts", "GwPriority"):
        if network.get(key):
            endpoint[key] = network[key]
    return endpoint


def _resources(spec: Spec, flags: Flags) -> None:
    host = spec.host
    for name, key in (
        ("memory", "Memory"),
        ("memory-reservation", "MemoryReservation"),
        ("memory-swap", "MemorySwap"),
        ("kernel-memory", "KernelMemory"),
        ("cpus", "NanoCpus"),
        ("cpu-shares", "CpuShares"),
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("pids-limit", "PidsLimit"),
        ("oom-score-adj", "OomScoreAdj"),
        ("shm-size", "ShmSize"),
        ("blkio-weight", "BlkioWeight"),
    ):
        if name in flags.changed:
            host[key] = flags.number(name)
    for name, key in (("cpuset-cpus", "CpusetCpus"), ("cpuset-mems", "CpusetMems"), ("cgroup-parent", "CgroupParent")):
        if flags.text(name):
            host[key] = flags.text(name)
    swappiness = flags.number("memory-swappiness")
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise wrong(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    if swappiness != -1:
        host["MemorySwappiness"] = swappiness
    if flags.on("oom-kill-disable"):
        host["OomKillDisable"] = True
    for name, key in (
        ("ulimit", "Ulimits"),
        ("blkio-weight-device", "BlkioWeightDevice"),
        ("device-read-bps", "BlkioDeviceReadBps"),
        ("device-write-bps", "BlkioDeviceWriteBps"),
        ("device-read-iops", "BlkioDeviceReadIOps"),
        ("device-write-iops", "BlkioDeviceWriteIOps"),
    ):
        if values := flags.value(name):
            host[key] = values


def _devices(spec: Spec, flags: Flags) -> None:
    devices: list[JSONObject] = []
    cdi: list[str] = []
    for text in flags.texts("device"):
        if is_cdi_name(text):
            cdi.append(text)
            continue
        parts = text.split(":")
        host, container, mode = parts[0], parts[0], "rwm"
        if len(parts) == 3:
            container, mode = parts[1], parts[2]
            if not is_device_mode(mode):
                raise wrong(f"bad mode specified: {mode}")
        elif len(parts) == 2:
            if is_device_mode(parts[1]):
                mode = parts[1]
            else:
                container = parts[1]
        devices.append({"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode})
    spec.host["Devices"] = devices
    requests = list(_objects(flags.value("gpus")))
    if cdi:
        requests.append({"Driver": "cdi", "DeviceIDs": cdi})
    if requests:
        spec.host["DeviceRequests"] = requests
    if rules := flags.texts("device-cgroup-rule"):
        spec.host["DeviceCgroupRules"] = rules


def _objects(value: object) -> list[JSONObject]:
    assert isinstance(value, list)
    return value


def security_options(options: list[str]) -> tuple[list[str], bool]:
    """The options with seccomp profiles read in; and whether the system paths are to be left unmasked."""
    checked: list[str] = []
    unmasked = False
    for option in options:
        name, equals, value = option.partition("=")
        if not equals and name != "no-new-privileges":
            if ":" not in option:
                raise wrong(f'Invalid --security-opt: "{option}"')
            name, _, value = option.partition(":")
        if name == "systempaths" and value == "unconfined":
            unmasked = True
            continue
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            option = f"seccomp={_seccomp_profile(value)}"
        checked.append(option)
    return checked, unmasked


def _seccomp_profile(path: str) -> str:
    from wherry.client.jsontext import JSONError, dumps, loads

    try:
        with open(path, "rb") as file:
            return dumps(loads(file.read()))
    except OSError as exc:
        reason = (exc.strerror or "").lower()
        raise wrong(f"opening seccomp profile ({path}) failed: open {path}: {reason}") from None
    except JSONError as exc:
        raise wrong(f"compacting json for seccomp profile ({path}) failed: {exc}") from None


def _security(spec: Spec, flags: Flags) -> None:
    host = spec.host
    host["CapAdd"] = flags.texts("cap-add") or None
    host["CapDrop"] = flags.texts("cap-drop") or None
    host["GroupAdd"] = flags.texts("group-add") or None
    host["Privileged"] = flags.on("privileged")
    host["ReadonlyRootfs"] = flags.on("read-only")
    options, unmasked = security_options(flags.texts("security-opt"))
    host["SecurityOpt"] = options or None
    if unmasked:
        host["MaskedPaths"], host["ReadonlyPaths"] = [], []
    if sysctls := flags.texts("sysctl"):
        host["Sysctls"] = key_values(sysctls)


def _is_container_mode(mode: str) -> bool:
    return mode.startswith("container:") and len(mode) > len("container:")


def _namespaces(spec: Spec, flags: Flags) -> None:
    pid, uts, userns, cgroupns = (flags.text(name) for name in ("pid", "uts", "userns", "cgroupns"))
    if pid not in ("", "host") and not _is_container_mode(pid):
        raise wrong("--pid: invalid PID mode")
    if uts not in ("", "host"):
        raise wrong("--uts: invalid UTS mode")
    if userns not in ("", "host"):
        raise wrong("--userns: invalid USER mode")
    if cgroupns not in ("", "host", "private"):
        raise wrong("--cgroupns: invalid CGROUP mode")
    spec.host.update(PidMode=pid, UTSMode=uts, UsernsMode=userns, CgroupnsMode=cgroupns, IpcMode=flags.text("ipc"))
    if flags.text("isolation"):
        spec.host["Isolation"] = flags.text("isolation")
    if flags.text("runtime"):
        spec.host["Runtime"] = flags.text("runtime")
    if "init" in flags.changed:
        spec.host["Init"] = flags.on("init")


def restart_policy(text: str) -> JSONObject:
    name, colon, count = text.partition(":")
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    if not name:
        raise wrong("invalid restart policy format: no policy provided before colon")
    maximum = 0
    if colon:
        try:
            maximum = parse_int(count)
        except ValueError:
            raise wrong("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": maximum}


def _policies(spec: Spec, flags: Flags) -> None:
    policy = restart_policy(flags.text("restart"))
    if flags.on("rm") and policy["Name"] not in ("", "no"):
        raise wrong("conflicting options: cannot specify both --restart and --rm")
    spec.host["RestartPolicy"] = policy
    spec.host["AutoRemove"] = flags.on("rm")
    driver, options = flags.text("log-driver"), key_values(flags.texts("log-opt"))
    if driver == "none" and options:
        raise wrong(f"invalid logging opts for driver {driver}")
    spec.host["LogConfig"] = {"Type": driver, "Config": options}
