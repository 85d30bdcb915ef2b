"""The daemon's configuration: dockerd's flags and `daemon.json`, where they mean the same.

A key is given by flag or by file, never by both. An unknown key, a wrong type and a value that cannot work are errors
that name the key and say what would be right.
"""

import argparse
import difflib
import hashlib
import ipaddress
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from wherry.errors import InvalidParameter
from wherry.network.dns.host import parse_address

DEFAULT_FILE = Path("/etc/wherry/daemon.json")
DEFAULT_DATA_ROOT = Path("/var/lib/wherry")
DEFAULT_EXEC_ROOT = Path("/run/wherry")
DEFAULT_HOST = "unix:///run/wherry.sock"
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
STORAGE_DRIVERS = ("overlay2", "native")
BUILT_IN_RUNTIMES = ("crun", "runc")
INIT_PROGRAMS = ("docker-init", "tini-static", "tini", "catatonit", "/usr/libexec/podman/catatonit")


class AddressPool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base: str
    size: int


class RuntimeEntry(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    path: str
    runtime_args: list[str] = []


class RegistryEntry(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """One registry, or one mirror, in `registries`; its key is host[:port]. Not in dockerd."""

    mirrors: list[str] = []  # http(s)://host[:port][/path], asked first and in this order
    insecure: bool = False
    ca: str = ""  # file of certificates (PEM) trusted besides the system's
    proxy: str = ""  # http(s)://host[:port], or `direct`


class ProxySettings(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""


class BuilderCollection(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    enabled: bool = True
    default_keep_storage: str = ""  # "20GB"; "" = a tenth of the disk


class BuilderSettings(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """As in dockerd's daemon.json, its keys in camel case too."""

    gc: BuilderCollection = BuilderCollection()


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """All keys, named on the wire as in dockerd's daemon.json."""

    hosts: list[str] = []
    data_root: str = str(DEFAULT_DATA_ROOT)
    exec_root: str = str(DEFAULT_EXEC_ROOT)
    pidfile: str = ""  # default: wherry.pid in exec-root
    group: str = "docker"  # owner of the UNIX socket, when it exists
    debug: bool = False
    log_level: str = "info"
    labels: list[str] = []
    live_restore: bool = True  # always so: containers survive the daemon
    storage_driver: str = ""
    default_runtime: str = ""
    runtimes: dict[str, RuntimeEntry] = {}
    init: bool = False
    init_path: str = ""
    cgroup_parent: str = ""
    default_shm_size: int = 64 << 20
    log_driver: str = "json-file"
    log_opts: dict[str, str] = {}
    insecure_registries: list[str] = []
    registry_mirrors: list[str] = []
    registries: dict[str, RegistryEntry] = {}
    proxies: ProxySettings = ProxySettings()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    allow_nondistributable_artifacts: list[str] = []
    builder: BuilderSettings = BuilderSettings()
    bridge: str = ""
    bip: str = ""
    default_address_pools: list[AddressPool] = []
    mtu: int = 1500
    ip: str = "0.0.0.0"
    icc: bool = True
    ip_forward: bool = True
    ip_masq: bool = True
    userland_proxy: bool = False
    dns: list[str] = []
    dns_opts: list[str] = []
    dns_search: list[str] = []
    host_dns: str = ""
    host_gateway_ips: list[str] = []
    default_network_opts: dict[str, dict[str, str]] = {}  # by driver: options of networks to be made
    firewall: str = ""  # "respect": published ports obey the host's own input rules. Not in dockerd
    registry: dict[str, Any] | None = None  # wherry.registry.config.Config: serve the images as a registry
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""

    @property
    def own_instance(self) -> str:
        """ "" at the default data root, else a short tag: names of bridge and firewall table are made from it."""
        if Path(self.data_root) == DEFAULT_DATA_ROOT:
            return ""
        return hashlib.sha256(os.path.realpath(self.data_root).encode()).hexdigest()[:8]

    @property
    def pid_path(self) -> Path:
        return Path(self.pidfile) if self.pidfile else Path(self.exec_root) / "wherry.pid"


# (flag letters and words, key, kind, help). Kinds: text, number, size, switch, list, pairs, pools, proxy.
_FLAGS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (("-H", "--host"), "hosts", "list", "Listen on unix://PATH, tcp://HOST:PORT or fd:// (repeatable)"),
    (("--data-root",), "data-root", "text", f"Root directory of persistent state (default {DEFAULT_DATA_ROOT})"),
    (("--exec-root",), "exec-root", "text", f"Root directory of execution state (default {DEFAULT_EXEC_ROOT})"),
    (("-p", "--pidfile"), "pidfile", "text", "Path of the daemon's PID file"),
    (("-G", "--group"), "group", "text", "Group of the UNIX socket (default docker, when it exists)"),
    (("-D", "--debug"), "debug", "switch", "Debug mode"),
    (("-l", "--log-level"), "log-level", "text", f"Logging level: {', '.join(LOG_LEVELS)} (default info)"),
    (("--label",), "labels", "list", "Set key=value labels of the daemon (repeatable)"),
    (("--live-restore",), "live-restore", "switch", "Accepted: containers always survive the daemon"),
    (("-s", "--storage-driver"), "storage-driver", "text", f"Storage driver: {', '.join(STORAGE_DRIVERS)}"),
    (("--default-runtime",), "default-runtime", "text", "Default OCI runtime (crun if it is installed, else runc)"),
    (("--add-runtime",), "runtimes", "pairs", "Register a further OCI runtime: NAME=PATH (repeatable)"),
    (("--init",), "init", "switch", "Run an init in every container, to forward signals and reap processes"),
    (("--init-path",), "init-path", "text", "Path of the init program"),
    (("--cgroup-parent",), "cgroup-parent", "text", "Parent cgroup of all containers (default /wherry)"),
    (("--default-shm-size",), "default-shm-size", "size", "Default size of /dev/shm (default 64M)"),
    (("--log-driver",), "log-driver", "text", "Default log driver: json-file or none"),
    (("--log-opt",), "log-opts", "pairs", "Default log driver options, NAME=VALUE (repeatable)"),
    (("--insecure-registry",), "insecure-registries", "list", "Registry (host[:port] or CIDR) spoken to without TLS"),
    (("--registry-mirror",), "registry-mirrors", "list", "Mirror of docker.io, asked first (repeatable)"),
    (("--http-proxy",), "proxies", "proxy", "Proxy for registries reached by http (default $HTTP_PROXY)"),
    (("--https-proxy",), "proxies", "proxy", "Proxy for registries reached by https (default $HTTPS_PROXY)"),
    (("--no-proxy",), "proxies", "proxy", "Hosts and networks reached without proxy (default $NO_PROXY)"),
    (("--max-concurrent-downloads",), "max-concurrent-downloads", "number", "Layers downloaded at once (default 3)"),
    (("--max-concurrent-uploads",), "max-concurrent-uploads", "number", "Layers uploaded at once (default 5)"),
    (
        ("--allow-nondistributable-artifacts",),
        "allow-nondistributable-artifacts",
        "list",
        "Registry (host[:port] or CIDR) that foreign layers are pushed to",
    ),
    (("-b", "--bridge"), "bridge", "text", "Attach containers to an existing bridge; none disables networking"),
    (("--bip",), "bip", "text", "Address of the bridge, in CIDR form"),
    (("--default-address-pool",), "default-address-pools", "pools", "Subnets to choose from: base=CIDR,size=BITS"),
    (("--mtu",), "mtu", "number", "MTU of the containers' network (default 1500)"),
    (("--ip",), "ip", "text", "Default host address of published ports (default 0.0.0.0)"),
    (("--icc",), "icc", "switch", "Let containers talk to each other (default true)"),
    (("--ip-forward",), "ip-forward", "switch", "Switch on net.ipv4.ip_forward (default true)"),
    (("--ip-masq",), "ip-masq", "switch", "Masquerade what containers send out (default true)"),
    (("--userland-proxy",), "userland-proxy", "switch", "Accepted: there is none, ports are published in the kernel"),
    (("--dns",), "dns", "list", "DNS server of containers (repeatable)"),
    (("--dns-opt",), "dns-opts", "list", "DNS option of containers (repeatable)"),
    (("--dns-search",), "dns-search", "list", "DNS search domain of containers (repeatable)"),
    (("--host-dns",), "host-dns", "text", "Where the host may ask for NAME.NETWORK.wherry: 127.0.0.153:53"),
    (("--host-gateway-ip",), "host-gateway-ips", "list", "What host-gateway means in --add-host (default: the bridge)"),
    (("--firewall",), "firewall", "text", "respect: published ports obey the host's own input rules"),
    (("--tls",), "tls", "switch", "Use TLS on tcp:// sockets; implied by --tlsverify"),
    (("--tlsverify",), "tlsverify", "switch", "Use TLS and verify the client"),
    (("--tlscacert",), "tlscacert", "text", "Certificates of the authority that clients must come from"),
    (("--tlscert",), "tlscert", "text", "Path of the TLS certificate"),
    (("--tlskey",), "tlskey", "text", "Path of the TLS key"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidParameter(f"{message}\nSee 'wherry daemon --help'.")


def parse_command_line(argv: Sequence[str]) -> tuple[Config, bool]:
    """Flags and file together as one checked configuration, and whether only a check was asked for (`--validate`)."""
    parser = _Parser(
        prog="wherry daemon",
        description="Serve the Docker Engine API and run containers.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
    )
    parser.add_argument("--config-file", metavar="FILE", help=f"Configuration file (default {DEFAULT_FILE})")
    parser.add_argument("--validate", action="store_true", help="Check the configuration and exit")
    for names, key, kind, help_text in _FLAGS:
        _add_flag(parser, names, key, kind, help_text)
    given = vars(parser.parse_args(argv))
    path, validate = given.pop("config_file"), given.pop("validate")
    flags = {key: value for key, value in given.items() if value is not None}
    in_file = read_file(Path(path) if path else DEFAULT_FILE, required=path is not None)
    _refuse_both(flags, in_file)
    config = convert({**in_file, **flags}, "the command line" if not in_file else str(path or DEFAULT_FILE))
    check(config)
    return config, validate


def _add_flag(parser: argparse.ArgumentParser, names: tuple[str, ...], key: str, kind: str, help_text: str) -> None:
    match kind:
        case "switch":
            parser.add_argument(*names, dest=key, nargs="?", const=True, type=_boolean, metavar="BOOL", help=help_text)
        case "list":
            parser.add_argument(*names, dest=key, action="append", metavar="VALUE", help=help_text)
        case "pairs":
            parser.add_argument(
                *names, dest=key, action=_Pairs, type=_pair(names[0], key), metavar="NAME=VALUE", help=help_text
            )
        case "proxy":
            parser.add_argument(*names, dest=key, action=_Proxies, metavar="VALUE", help=help_text)
        case "pools":
            parser.add_argument(*names, dest=key, action="append", type=_pool, metavar="POOL", help=help_text)
        case "number":
            parser.add_argument(*names, dest=key, type=int, metavar="N", help=help_text)
        case "size":
            parser.add_argument(*names, dest=key, type=parse_size, metavar="BYTES", help=help_text)
        case _:
            parser.add_argument(*names, dest=key, metavar="VALUE", help=help_text)


class _Pairs(argparse.Action):
    """Collects NAME=VALUE into a dict."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, value = values
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


class _Proxies(argparse.Action):
    """Collects the three proxy flags into one key, as the file has them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = (option_string or "").removeprefix("--")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: values})


def _pair(flag: str, key: str) -> Any:
    def parse(text: str) -> tuple[str, object]:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
        return name, ({"path": value} if key == "runtimes" else value)

    return parse


def _pool(text: str) -> dict[str, object]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"base", "size"} or not parts["size"].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be base=CIDR,size=BITS")
    return {"base": parts["base"], "size": int(parts["size"])}


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def parse_size(text: str) -> int:
    """Bytes from `64M`, `1g`, `1048576`; raises ValueError."""
    match = re.fullmatch(r"(\d+)([kmgt]?)(i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"invalid size: {text!r}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]


def read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """The keys in a daemon.json; {} when there is no file and none is required."""
    where = f"unable to configure the daemon with file {path}"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if required:
            raise InvalidParameter(f"{where}: no such file") from None
        return {}
    except OSError as exc:
        raise InvalidParameter(f"{where}: {exc.strerror}") from exc
    if not raw.strip():
        return {}
    try:
        keys = msgspec.json.decode(raw)
    except msgspec.DecodeError as exc:
        raise InvalidParameter(f"{where}: invalid JSON: {exc}") from exc
    if not isinstance(keys, dict):
        raise InvalidParameter(f"{where}: it must hold a JSON object, {{…}}")
    known = Config.__struct_encode_fields__
    if unknown := sorted(set(keys) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidParameter(
            f"{where}: the following directives don't match any configuration option: {', '.join(unknown)}{hint}"
        )
    if isinstance(keys.get("default-shm-size"), str):
        keys["default-shm-size"] = parse_size(keys["default-shm-size"])
    convert(keys, str(path))
    return keys


def _refuse_both(flags: Mapping[str, Any], in_file: Mapping[str, Any]) -> None:
    if both := sorted(set(flags) & set(in_file)):
        detail = ", ".join(f"{key}: (from flag: {flags[key]}, from file: {in_file[key]})" for key in both)
        raise InvalidParameter(
            f"the following directives are specified both as a flag and in the configuration file: {detail}"
        )


def convert(keys: Mapping[str, Any], source: str) -> Config:
    """Typed configuration; raises InvalidParameter naming the key."""
    try:
        return msgspec.convert(keys, Config)
    except (msgspec.ValidationError, ValueError) as exc:
        raise InvalidParameter(f"unable to configure the daemon from {source}: {exc}") from exc


def check(config: Config) -> None:
    """What can be known to be wrong before anything is touched."""
    for key in ("data_root", "exec_root", "pidfile", "init_path"):
        value = getattr(config, key)
        if value and not value.startswith("/"):
            raise InvalidParameter(f"{key.replace('_', '-')} must be an absolute path: {value!r}")
    if config.log_level not in LOG_LEVELS:
        raise InvalidParameter(f"invalid log-level {config.log_level!r}: use one of {', '.join(LOG_LEVELS)}")
    if config.storage_driver not in ("", "overlay", *STORAGE_DRIVERS):
        raise InvalidParameter(
            f"unknown storage-driver {config.storage_driver!r}: use one of {', '.join(STORAGE_DRIVERS)}"
        )
    if config.log_driver not in ("json-file", "none"):
        raise InvalidParameter(f"unknown log-driver {config.log_driver!r}: use json-file or none")
    if not 68 <= config.mtu <= 65535:
        raise InvalidParameter(f"invalid mtu {config.mtu}: want 68 to 65535")
    if config.max_concurrent_uploads < 1:
        raise InvalidParameter("max-concurrent-uploads must be at least 1")
    if config.max_concurrent_downloads < 1:
        raise InvalidParameter("max-concurrent-downloads must be at least 1")
    _check_network(config)
    _check_labels(config)
    _check_tls(config)
    if config.default_runtime and config.default_runtime not in (*BUILT_IN_RUNTIMES, *config.runtimes):
        raise InvalidParameter(
            f"default-runtime {config.default_runtime!r} is not known: register it with --add-runtime NAME=PATH"
        )


def _check_network(config: Config) -> None:
    if config.bip and config.bridge:
        raise InvalidParameter("bridge and bip are mutually exclusive: a given bridge brings its own address")
    if config.bip:
        try:
            address = ipaddress.IPv4Interface(config.bip)
        except ValueError as exc:
            raise InvalidParameter(f"invalid bip {config.bip!r}: {exc}") from exc
        if "/" not in config.bip or address.network.prefixlen > 30 or address.ip == address.network.network_address:
            raise InvalidParameter(
                f"invalid bip {config.bip!r}: want the address of a host with its prefix, like 172.31.0.1/24"
            )
    for pool in config.default_address_pools:
        try:
            network = ipaddress.ip_network(pool.base)
        except ValueError as exc:
            raise InvalidParameter(f"invalid default-address-pools base {pool.base!r}: {exc}") from exc
        longest = 30 if network.version == 4 else 126
        if not network.prefixlen <= pool.size <= longest:
            raise InvalidParameter(
                f"invalid default-address-pools size {pool.size} for {pool.base}: want {network.prefixlen} to {longest}"
            )
    for key, values in (("ip", [config.ip]), ("dns", config.dns), ("host-gateway-ips", config.host_gateway_ips)):
        for value in values:
            try:
                ipaddress.ip_address(value)
            except ValueError as exc:
                raise InvalidParameter(f"invalid {key}: {exc}") from exc
    if config.host_dns:
        parse_address(config.host_dns)
    if config.firewall not in ("", "respect"):
        raise InvalidParameter(f"invalid firewall {config.firewall!r}: leave it out, or say respect")


def _check_labels(config: Config) -> None:
    for label in config.labels:
        if "=" not in label:
            raise InvalidParameter(f"invalid label {label!r}: want key=value")


def _check_tls(config: Config) -> None:
    if not (config.tls or config.tlsverify):
        return
    if not config.tlscert or not config.tlskey or (config.tlsverify and not config.tlscacert):
        raise InvalidParameter("TLS needs tlscert and tlskey, and with tlsverify tlscacert too")
    for path in filter(None, (config.tlscert, config.tlskey, config.tlscacert)):
        if not os.access(path, os.R_OK):
            raise InvalidParameter(f"TLS file {path} cannot be read")


def find_runtimes(config: Config) -> dict[str, RuntimeEntry]:
    """Name -> program, of those that exist on this machine. Raises InvalidParameter when there is none at all."""
    found = {name: RuntimeEntry(path) for name in BUILT_IN_RUNTIMES if (path := shutil.which(name))}
    for name, entry in config.runtimes.items():
        path = shutil.which(entry.path)
        if path is None:
            raise InvalidParameter(f"runtime {name!r}: program {entry.path} does not exist or is not executable")
        found[name] = RuntimeEntry(path, entry.runtime_args)
    if not found:
        raise InvalidParameter("no OCI runtime found: install crun or runc (Debian: apt-get install crun)")
    return found


def find_init(config: Config) -> str:
    """Host path of the program for --init; "" when there is none."""
    if config.init_path:
        if not os.access(config.init_path, os.X_OK):
            raise InvalidParameter(f"init-path {config.init_path} does not exist or is not executable")
        return config.init_path
    return next((path for name in INIT_PROGRAMS if (path := shutil.which(name))), "")
