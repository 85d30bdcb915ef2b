"""Names of containers for the host itself: `<name>.<network>.wherry`, at an address of its loopback, where one is set.

Whatever resolves the host's names is to send `wherry` here, e.g. systemd-resolved by `DNS=127.0.0.153` and
`Domains=~wherry`. Addresses have names as well; everything else is refused: this is nobody's general resolver.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from wherry.errors import Failed, InvalidParameter
from wherry.network.dns import message
from wherry.network.dns.answers import FAMILIES
from wherry.network.dns.message import INTERNET, OPCODE, Code, Query, Type, address_of, build, encode_name
from wherry.network.dns.names import Names, View
from wherry.network.dns.redirect import Listening, bind
from wherry.network.dns.station import Flood, Station

DOMAIN = "wherry"
TTL = 0  # s: the host's own resolver shall not remember who is gone

Networks = Callable[[], Sequence[tuple[str, str]]]  # id and name of each


def parse_address(text: str) -> tuple[str, int]:
    """`127.0.0.153:53` or `[::1]:53`. Raises InvalidParameter."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isdecimal() else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        raise InvalidParameter(f"invalid host-dns {text!r}: an address and a port are needed, as in 127.0.0.153:53")
    if not address.is_loopback:
        raise InvalidParameter(
            f"invalid host-dns {text!r}: only the host itself may ask, so a loopback address is needed"
        )
    return str(address), number


class HostDesk:
    def __init__(self, names: Names, networks: Networks) -> None:
        self._names = names
        self._networks = networks

    def answer(self, query: Query, *, limit: int = message.MESSAGE_LIMIT) -> bytes:
        if query.flags & OPCODE or query.category != INTERNET:
            return build(query, Code.NOT_IMPLEMENTED)
        if query.kind == Type.PTR and (address := address_of(query.name)):
            name = self._names.reverse(View(networks=self._networks()), address)
            encoded = encode_name(f"{name}.{DOMAIN}") if name else b""
            records = [(Type.PTR, encoded)] if encoded else []
            return build(query, Code.NO_ERROR if encoded else Code.REFUSED, records, limit=limit, ttl=TTL)
        if query.name != DOMAIN and not query.name.endswith(f".{DOMAIN}"):
            return build(query, Code.REFUSED)
        version, family = FAMILIES.get(query.kind, (4, socket.AF_INET))
        found = self._find(query.name.removesuffix(DOMAIN).removesuffix("."), version)
        if found is None:
            return build(query, Code.NAME_ERROR)
        if query.kind not in FAMILIES:
            found = []
        addresses = [(query.kind, socket.inet_pton(family, address)) for address in found]
        return build(query, Code.NO_ERROR, addresses, limit=limit, ttl=TTL)

    def _find(self, name: str, version: int) -> list[str] | None:
        """As `Names.lookup`; [] also for what only stands above names: the domain, a network in it."""
        if not name:
            return []
        known = False
        for network in self._networks():
            suffix = network[1].lower()
            if name == suffix:
                known = True
            if not name.endswith(f".{suffix}"):
                continue
            found = self._names.lookup(View(networks=[network]), name[: -len(suffix) - 1], version)
            if found:
                return found
            known = known or found is not None
        return [] if known else None

    async def inquire(self, query: Query, data: bytes, *, tcp: bool) -> bytes:
        return build(query, Code.REFUSED)


async def open_host_station(names: Names, networks: Networks, address: str) -> Station:
    """Raises InvalidParameter, Failed."""
    host, port = parse_address(address)
    try:
        sockets: Listening = bind(host, port, port)
    except OSError as exc:
        raise Failed(f"cannot answer the host's questions at {address} (host-dns): {exc.strerror}") from exc
    station = Station(HostDesk(names, networks), sockets, Flood())
    try:
        await station.open()
    except BaseException:
        await station.close()
        raise
    return station
