"""The configuration of `wherry registry serve`: a JSON document and a few flags.

    {"root": "/srv/registry", "listen": ["127.0.0.1:5000"], "log-level": "info"}

A key is given by flag or by file, never by both. An unknown key, a wrong type and a value that cannot work are errors
that name the key and say what would be right.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from wherry.errors import InvalidParameter
from wherry.registry.access import guard
from wherry.registry.access.guard import AuthConfig
from wherry.registry.cache import upstream
from wherry.registry.cache.upstream import UpstreamConfig
from wherry.registry.telling import notify
from wherry.registry.telling.notify import WebhookConfig
from wherry.registry.upkeep import quota, retention
from wherry.registry.upkeep.collect import GRACE
from wherry.registry.upkeep.quota import QuotaConfig
from wherry.registry.upkeep.retention import RetentionRule

DEFAULT_FILE = Path("/etc/wherry/registry.json")
DEFAULT_ROOT = "/var/lib/wherry-registry"
DEFAULT_LISTEN = "127.0.0.1:5000"
LOG_LEVELS = ("debug", "info", "warn", "error")


class TLSConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    cert: str  # PEM, with intermediates; read again when it changes
    key: str
    client_ca: str = ""  # clients must have a certificate of it


class GCConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    interval: float = 24 * 3600.0  # seconds between collections
    grace: float = GRACE  # seconds an upload has to become part of a manifest
    delete_untagged: bool = False  # manifests that no tag leads to, too


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """All keys. A section of a policy is a Struct of the same kind, or None where the policy is off."""

    listen: list[str] = msgspec.field(default_factory=lambda: [DEFAULT_LISTEN])
    root: str = DEFAULT_ROOT
    name: str = ""  # what references call it (`registry.example`, `localhost:5000`); default: where it listens
    log_level: str = "info"
    tls: TLSConfig | None = None
    auth: AuthConfig | None = None
    read_only: bool = False
    quota: QuotaConfig | None = None
    gc: GCConfig = GCConfig()
    retention: list[RetentionRule] = []
    upstreams: dict[str, UpstreamConfig] = {}
    webhooks: list[WebhookConfig] = []
    metrics: bool = True  # /metrics, for who may list the catalog
    page: bool = True  # the web page at /


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: an address of this machine ("" = all of them) and a port (0 = any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`127.0.0.1:5000`, `[::1]:5000`, `:5000` (every address). InvalidParameter."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and bare == host):
        raise InvalidParameter(f"invalid address to listen on {text!r}: want HOST:PORT, like {DEFAULT_LISTEN}")
    return Address(bare, int(port))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidParameter(f"{message}\nSee '{self.prog} --help'.")


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with what every command that works on a registry's folder takes: --config and --root."""
    made = _Parser(prog=f"wherry registry {command}", description=description, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", help=f"Configuration file (default {DEFAULT_FILE}, when it exists)")
    made.add_argument("--root", metavar="DIR", help=f"Folder of the registry (default {DEFAULT_ROOT})")
    return made


def parse_serve(argv: Sequence[str]) -> tuple[Config, bool]:
    """The configuration of `serve`, and whether only a check was asked for (`--validate`). InvalidParameter."""
    made = parser("serve", "Serve a registry from a folder.")
    made.add_argument(
        "--listen", action="append", metavar="HOST:PORT", help=f"Address to listen on (default {DEFAULT_LISTEN})"
    )
    made.add_argument("-l", "--log-level", metavar="LEVEL", help=f"Logging level: {', '.join(LOG_LEVELS)}")
    made.add_argument("--validate", action="store_true", help="Check the configuration and exit")
    given = vars(made.parse_args(argv))
    return load(given.pop("config"), given), given.pop("validate")


def load(file: str | None, flags: Mapping[str, Any]) -> Config:
    """Flags (None: not given) and file together, checked. InvalidParameter."""
    path = Path(file) if file else DEFAULT_FILE
    in_file = read_file(path, required=file is not None)
    keys = {field.name: field.encode_name for field in msgspec.structs.fields(Config)}
    given = {keys[name]: value for name, value in flags.items() if value is not None and name in keys}
    if both := sorted(set(given) & set(in_file)):
        detail = ", ".join(f"{key}: (from flag: {given[key]}, from file: {in_file[key]})" for key in both)
        raise InvalidParameter(
            f"these are specified both as a flag and in the configuration file {path}: {detail}; give one of them"
        )
    try:
        config = msgspec.convert({**in_file, **given}, Config)
    except msgspec.ValidationError as exc:
        raise InvalidParameter(f"cannot use {path if in_file else 'the command line'}: {exc}") from exc
    check(config)
    return config


def convert(keys: Mapping[str, Any], source: str) -> Config:
    """The checked configuration of a registry inside the engine: all keys but those the engine answers for itself."""
    if taken := sorted(set(keys) & {"root", "log-level"}):
        raise InvalidParameter(f"{source}: {', '.join(taken)}: the engine's own; leave it out")
    _refuse_unknown(Path(source), keys)
    try:
        config = msgspec.convert(keys, Config)
    except msgspec.ValidationError as exc:
        raise InvalidParameter(f"cannot use {source}: {exc}") from exc
    check(config)
    return config


def read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """The keys in a configuration file; {} when there is no file and none is required."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if required:
            raise InvalidParameter(f"cannot use {path}: no such file") from None
        return {}
    except OSError as exc:
        raise InvalidParameter(f"cannot use {path}: {exc.strerror}") from exc
    try:
        keys = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidParameter(f"cannot use {path}: invalid JSON: {exc}") from exc
    if not isinstance(keys, dict):
        raise InvalidParameter(f"cannot use {path}: it must hold a JSON object, {{…}}")
    _refuse_unknown(path, keys)
    return keys


def _refuse_unknown(path: Path, keys: Mapping[str, Any]) -> None:
    known = Config.__struct_encode_fields__
    if unknown := sorted(set(keys) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else f"; known are {', '.join(known)}"
        raise InvalidParameter(f"cannot use {path}: no such configuration: {', '.join(unknown)}{hint}")


def check(config: Config) -> None:
    """What can be known to be wrong before anything is touched. InvalidParameter."""
    if not config.root:
        raise InvalidParameter("root must not be empty: give the registry's folder")
    if config.log_level not in LOG_LEVELS:
        raise InvalidParameter(f"invalid log-level {config.log_level!r}: use one of {', '.join(LOG_LEVELS)}")
    if not config.listen:
        raise InvalidParameter(f"listen must not be empty: give at least one address, like {DEFAULT_LISTEN}")
    for text in config.listen:
        parse_address(text)
    if config.gc.interval < 1 or config.gc.grace < 0:
        raise InvalidParameter("gc: interval must be at least 1 second, and grace cannot be negative")
    if config.quota is not None:
        quota.check(config.quota)
    retention.check(config.retention)
    upstream.check(config.upstreams)
    notify.check(config.webhooks)
    if config.auth is not None:
        guard.check(config.auth)
        _check_secrecy(config, config.auth)


def _check_secrecy(config: Config, auth: AuthConfig) -> None:
    """Passwords do not go over a network in clear text, unless somebody wants that."""
    if config.tls is not None or auth.allow_plain:
        return
    for text in config.listen:
        if not guard.is_loopback(parse_address(text).host):
            raise InvalidParameter(
                f"auth: passwords would be sent in clear text to {text}: give tls a certificate, listen on loopback "
                "behind a proxy, or say allow-plain"
            )
