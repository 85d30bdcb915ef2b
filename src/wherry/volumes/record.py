"""A volume's record, and what may be asked of the `local` driver: values and rules only, nothing is touched here.

Kept as JSON in state table `volumes`. The words of errors are Docker's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from wherry import ids
from wherry.errors import InvalidParameter, NotFound

DRIVER = "local"  # the only driver there is
ANONYMOUS = "com.docker.volume.anonymous"  # label of a volume that was made without a name
LONGEST_NAME = 255  # bytes: it is a directory's name

_OPTIONS = frozenset({"type", "o", "device", "size"})
_NEEDS = {
    "device": ("type",),
    "type": ("device",),
    "o": ("device", "type"),
}  # option -> others that it is nothing without
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKmMgGtTpP]?)(?:[iI]?[bB])?")
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
SMALLEST = 4 << 20  # bytes of a volume with a limit: a file system needs room for itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    name: str
    created: int  # ns since the epoch
    driver: str = DRIVER
    labels: Mapping[str, str] | None = None
    options: Mapping[str, str] | None = None
    image: bool = False  # its content is a file system in a file, `_image`
    project: int = 0  # its content is counted as this project of the file system's; 0 for none
    moving: str = ""  # the directory that is to become this volume's: a change that goes on after a crash

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS in (self.labels or {})

    @property
    def foreign(self) -> bool:
        """Its content is somewhere else: a directory of the host, a server, a device, memory."""
        return bool((self.options or {}).get("type"))

    @property
    def mounted(self) -> bool:
        """Its content is there only while it is mounted."""
        return self.image or self.foreign

    @property
    def limit(self) -> int:
        """Bytes it may hold; 0 when it has no limit of its own."""
        return parse_size((self.options or {}).get("size", "0"))


def encode(volume: Volume) -> bytes:
    return msgspec.json.encode(volume)


def decode(raw: bytes) -> Volume:
    return msgspec.json.decode(raw, type=Volume)


def parse_size(text: str) -> int:
    """Bytes, as Docker reads sizes: `10G`, `512m`, `1.5gib`. Raises InvalidParameter."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(match[1]) > 20:
        raise InvalidParameter(f"invalid size: '{text[:40]}'")
    return int(float(match[1]) * 1024 ** _UNITS[match[2].lower()])


def check_name(name: str) -> None:
    """Raise InvalidParameter for what cannot be a volume's name."""
    if len(name) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not ids.is_name(name):
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    if len(name) > LONGEST_NAME:
        raise InvalidParameter(f"create {name[:40]}…: volume name is too long: at most {LONGEST_NAME} characters")


def check_driver(name: str, driver: str) -> None:
    """Raise NotFound for a driver other than `local`; "" means local."""
    if driver not in ("", DRIVER):
        raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for options that can never be those of a volume, in Docker's words."""
    for key in options:
        if key not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{key}"')
    try:
        if options.get("type") == "cifs" and urlsplit(options.get("device", "")).port is not None:
            raise InvalidParameter(f"create {name}: port not allowed in CIFS device URL, include 'port' in 'o='")
    except ValueError as exc:
        raise InvalidParameter(f"create {name}: error parsing mount device url: {exc}") from exc
    if size := options.get("size", ""):
        _check_size(name, size, options)
    for key, others in _NEEDS.items():
        for other in others:
            if key in options and other not in options:
                raise InvalidParameter(f'create {name}: missing required option: "{other}"')


def _check_size(name: str, text: str, options: Mapping[str, str]) -> None:
    try:
        size = parse_size(text)
    except InvalidParameter as exc:
        raise InvalidParameter(f"create {name}: {exc.message}") from exc
    if "type" in options:
        raise InvalidParameter(
            f"create {name}: size limits what the engine itself keeps: for a volume of type {options['type']} it is up "
            "to the file system (for tmpfs: o=size=…)"
        )
    if 0 < size < SMALLEST:
        raise InvalidParameter(f"create {name}: size {text} is too small: at least {SMALLEST >> 20}m")


def words(options: Mapping[str, str]) -> list[str]:
    """The mount options of `o=`."""
    return [word for word in options.get("o", "").split(",") if word]
