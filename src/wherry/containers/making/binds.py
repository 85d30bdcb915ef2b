"""`-v` and `--volumes-from` as typed: their parts and modes, with Docker's rules of what goes with what."""

import posixpath
from collections.abc import Mapping

from wherry.errors import InvalidParameter
from wherry.spec.engine import BindOptions, DriverConfig, Mount, VolumeOptions

PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_MODES: Mapping[str, frozenset[str]] = {
    "access": frozenset({"ro", "rw"}),
    "label": frozenset({"z", "Z"}),  # SELinux labels are left as they are
    "propagation": PROPAGATIONS,
    "copy": frozenset({"nocopy"}),
    "consistency": frozenset({"consistent", "cached", "delegated", "default"}),
}
_ID_MAP = "idmap"


def modes(text: str) -> dict[str, str] | None:
    """The modes by kind, `idmap` among them; None for what is no mode, or two of one kind."""
    found: dict[str, str] = {}
    for word in text.split(",") if text else ():
        if word == _ID_MAP or word.startswith(_ID_MAP + "="):
            kind, value = _ID_MAP, word.partition("=")[2] or "caller"
        else:
            kind, value = next((kind for kind, words in _MODES.items() if word in words), ""), word
        if not kind or kind in found:
            return None
        found[kind] = value
    return found


def as_mount(text: str, *, driver: str = "") -> tuple[Mount, str]:
    """One `-v` (`/host:/path[:mode]`, `name:/path[:mode]` or `/path`) as the Mount it stands for, and its mode."""
    parts = text.split(":")
    lone_mode = len(parts) == 2 and bool(parts[1]) and modes(parts[1]) is not None
    if not parts[0] or len(parts) > 3 or lone_mode:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount(type="volume", target=parts[0]), ""
    mode = parts[2] if len(parts) == 3 else ""
    found = modes(mode)
    if found is None:
        raise InvalidParameter(f"invalid mode: {mode}")
    is_path = parts[0].startswith("/")
    volume = bind = None
    if "copy" in found or (driver and not is_path):
        volume = VolumeOptions(no_copy="copy" in found, driver_config=DriverConfig(name=driver) if driver else None)
    if "propagation" in found or _ID_MAP in found:
        bind = BindOptions(
            propagation=found.get("propagation", ""), id_map=found.get(_ID_MAP, ""), create_mountpoint=True
        )
    mount = Mount(
        type="bind" if is_path else "volume",
        source=posixpath.normpath(parts[0]) if is_path else parts[0],
        target=parts[1],
        read_only=found.get("access") == "ro",
        bind_options=bind,
        volume_options=volume,
    )
    return mount, mode


def with_caller(text: str, caller: str) -> str:
    """One `-v` with the caller's ids put in where it says just `idmap`."""
    head, colon, mode = text.rpartition(":")
    if ":" not in head or _ID_MAP not in mode.split(","):
        return text
    words = [f"{_ID_MAP}={caller}" if word == _ID_MAP else word for word in mode.split(",")]
    return head + colon + ",".join(words)


def inherited(text: str) -> tuple[str, bool]:
    """One `--volumes-from`: the container, and whether its mounts come read-only."""
    if not text:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    name, _, mode = text.partition(":")
    found = modes(mode)
    if found is None or not found.keys().isdisjoint({"propagation", "copy", _ID_MAP}):
        raise InvalidParameter(f"invalid mode: {mode}")
    return name, found.get("access") == "ro"
