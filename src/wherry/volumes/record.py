"""A volume's record, and what may be asked of the `local` driver: values and rules only, nothing is touched here.

Kept as JSON in state table `volumes`. The words of errors are Docker's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from wherry import ids
from wherry.errors import InvalidParameter, NotFound, NotSupported

DRIVER = "local"  # the only driver there is
ANONYMOUS = "com.docker.volume.anonymous"  # label of a volume that was made without a name
LONGEST_NAME = 255  # bytes: it is a directory's name

_OPTIONS = frozenset({"type", "o", "device", "size"})
_BIND = frozenset({"bind", "rbind"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    name: str
    created: int  # ns since the epoch
    driver: str = DRIVER
    labels: Mapping[str, str] | None = None
    options: Mapping[str, str] | None = None

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS in (self.labels or {})

    @property
    def device(self) -> str:
        """The host directory that a volume of `--opt o=bind` shows; "" for one with a directory of its own."""
        return (self.options or {}).get("device", "")


def encode(volume: Volume) -> bytes:
    return msgspec.json.encode(volume)


def decode(raw: bytes) -> Volume:
    return msgspec.json.decode(raw, type=Volume)


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
    """Raise unless the options describe a bind of a host directory, or there are none.

    Docker's local driver mounts anything (nfs, tmpfs, a block device) once in the host's mount namespace and shares it
    between containers. This engine never mounts there, so only a directory that exists already can be a volume.
    """
    for key in options:
        if key not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{key}"')
    if "size" in options or (any(word.startswith("size=") for word in words(options)) and is_bind(options)):
        raise InvalidParameter(f"create {name}: quota size requested but no quota support")
    if not options:
        return
    for key in ("device", "type"):
        if not options.get(key) and not (key == "type" and is_bind(options)):
            raise InvalidParameter(f'create {name}: missing required option: "{key}"')
    if not is_bind(options):
        raise NotSupported(
            f'create {name}: a local volume of type "{options["type"]}" is not supported: mount it on the host and use '
            "--opt type=none --opt o=bind --opt device=/the/mount/point"
        )
    if unknown := [word for word in words(options) if word not in _BIND | {"rw"}]:
        raise NotSupported(f'create {name}: mount option "{unknown[0]}" is not supported for a bind volume')
    if not options["device"].startswith("/"):
        raise InvalidParameter(f'create {name}: device "{options["device"]}" of a bind volume must be an absolute path')


def words(options: Mapping[str, str]) -> list[str]:
    """The mount options of `o=`."""
    return [word.strip() for word in options.get("o", "").split(",") if word.strip()]


def is_bind(options: Mapping[str, str]) -> bool:
    return options.get("type", "none") in ("", "none", "bind") and not _BIND.isdisjoint(words(options))
