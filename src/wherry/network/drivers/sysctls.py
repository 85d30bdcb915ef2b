"""Settings of the kernel's network, below /proc/sys/net: of the namespace of the thread that writes them.

`ipv4.conf.eth0.log_martians` is kept as its parts, for names of interfaces may have dots in them.
"""

from collections.abc import Sequence
from pathlib import Path

from wherry.errors import Failed, InvalidParameter

ROOT = Path("/proc/sys/net")
STAND_IN = "IFNAME"  # in the options of endpoints: the interface's own name


def write(path: Path, value: str) -> bool:
    """True when that changed something. Raises Failed where it cannot be written and the value is another."""
    try:
        if path.read_text().strip() == value:
            return False
        path.write_text(value)
    except OSError as exc:
        raise Failed(f"cannot set {path} to {value}, which container networks need: {exc.strerror}") from exc
    return True


def check_endpoint(sysctls: Sequence[tuple[str, str]]) -> None:
    """Refuse what is not a setting of one interface. Raises InvalidParameter."""
    for key, value in sysctls:
        _parts(key, value, STAND_IN)


def _parts(key: str, value: str, interface: str) -> list[str]:
    parts = key.split(".")
    if len(parts) != 4 or parts[2] != STAND_IN or not all(part.replace("_", "").isalnum() for part in parts):
        raise InvalidParameter(
            f"invalid endpoint sysctl 'net.{key}={value}': sysctls must be of the form net.X.Y.IFNAME.Z=V, as in "
            "net.ipv4.conf.IFNAME.log_martians=1"
        )
    parts[2] = interface
    return parts


def set_endpoint(interface: str, sysctls: Sequence[tuple[str, str]]) -> None:
    """Raises InvalidParameter for a setting the kernel does not have, or a value it does not take."""
    for key, value in sysctls:
        path = ROOT.joinpath(*_parts(key, value, interface))
        try:
            path.write_text(value)
        except OSError as exc:
            why = "the kernel has no such setting" if isinstance(exc, FileNotFoundError) else exc.strerror
            raise InvalidParameter(f"cannot set endpoint sysctl 'net.{key}={value}': {why}") from exc


def use_six(interface: str) -> None:
    """IPv6 as containers need it: addresses that can be used at once, none that come by router advertisements.

    Before the interface is up. Raises Failed.
    """
    settings = ROOT / "ipv6/conf" / interface
    for key, value in (("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")):
        write(settings / key, value)


def forward_six() -> bool:
    """Make the host route IPv6; True when that changed something.

    A router ignores router advertisements, from which the host may have its own way out: interfaces that listened
    to them go on doing so.
    """
    conf = ROOT / "ipv6/conf"
    if (conf / "all/forwarding").read_text().strip() == "1":
        return False
    for settings in conf.iterdir():
        if settings.name != "all" and (settings / "accept_ra").read_text().strip() == "1":
            write(settings / "accept_ra", "2")
    return write(conf / "all/forwarding", "1")
