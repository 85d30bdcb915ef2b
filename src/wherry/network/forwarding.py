"""Whether the host routes, and for whom: containers need it, and others must not gain by it. Blocking."""

from pathlib import Path

from wherry.network.drivers import bridge, sysctls
from wherry.network.wall.table import Firewall
from wherry.state import Delete, Put, State

KEYS = {4: "network/forwarding", 6: "network/forwarding6"}  # in table settings: the boot in which we made it a router
_SWITCHES = {4: sysctls.ROOT / "ipv4/ip_forward", 6: sysctls.ROOT / "ipv6/conf/all/forwarding"}


class Forwarding:
    """Of both address families. What we switched on is remembered for as long as the host is up: after that its
    settings are its own again."""

    def __init__(self, state: State, wall: Firewall, *, enabled: bool) -> None:
        """`enabled`: False where the host's administrator decides (`--ip-forward=false`)."""
        self._state = state
        self._wall = wall
        self._enabled = enabled

    def on(self, version: int) -> bool:
        return _SWITCHES[version].exists() and _SWITCHES[version].read_text().strip() == "1"

    def guards(self, version: int) -> bool:
        """True when the host routes only because of us: from now on, since an earlier run, or for another daemon of
        ours. To be asked before `begin`: from the moment the host routes, the firewall must guard it."""
        if not self._enabled or not _SWITCHES[version].exists():
            return False
        boot = _boot_id()
        guarded = not self.on(version) or self._state.row("settings", KEYS[version]) == boot or self._wall.others()[1]
        if guarded:
            self._state.write(Put("settings", KEYS[version], boot))
        return guarded

    def begin(self, version: int) -> None:
        """Raises Failed."""
        if not self._enabled:
            return
        if version == 6:
            sysctls.forward_six()
        else:
            sysctls.write(_SWITCHES[4], "1")

    def end(self) -> None:
        """The last of us switches it off. Raises Failed, OSError."""
        for version, key in KEYS.items():
            if self._state.row("settings", key) != _boot_id():
                continue
            if not self._wall.others()[0] and not bridge.docker_present():
                sysctls.write(_SWITCHES[version], "0")
            self._state.write(Delete("settings", key))


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
