"""Devices of the host that a step asks for (`RUN --device`): by path. CDI names are refused in words."""

from collections.abc import Sequence

from wherry.errors import Failed, InvalidParameter, NotFound, WherryError
from wherry.runtime import devices
from wherry.runtime.devices import Device
from wherry.spec.engine import DeviceMapping, HostConfig


def find_devices(wanted: Sequence[str], *, privileged: bool) -> list[Device]:
    """Blocking, briefly. One with "?" in front may be missing. Raises NotFound naming the device and the remedy."""
    mappings = []
    for each in wanted:
        name = each.lstrip("?")
        mapping = DeviceMapping(path_on_host=name, path_in_container=name)
        if not name.startswith("/"):
            if each.startswith("?"):
                continue
            raise NotFound(f"device {name} is not known: name a path below /dev (no CDI specification is read)")
        try:
            devices.for_container(HostConfig(devices=[mapping]))
        except (Failed, InvalidParameter) as exc:
            if each.startswith("?"):
                continue
            raise _missing(name, exc) from exc
        mappings.append(mapping)
    return devices.for_container(HostConfig(devices=mappings, privileged=privileged))


def _missing(name: str, exc: WherryError) -> NotFound:
    return NotFound(f"device {name} cannot be given to the step: {exc.message}")
