"""Published ports: what was asked for, and who holds what on the host.

A published port is held by a bound socket that never serves: it makes every other program's bind fail, and ours when
another program was first. Packets do not reach it, the firewall has sent them to the container before.
Where the firewall cannot, the socket is given to a relay (relay.py): from IPv6 to a container that has IPv4 only, or
the other way round; from ::1, which the kernel does not route; and, with `respect`, from anywhere outside.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidParameter, NotSupported
from wherry.network.endpoint import Port
from wherry.spec.engine import PortBinding

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
EPHEMERAL = (49153, 65535)  # Docker's range where the kernel does not tell its own
BACKLOG = 128
ANY4, ANY6, LOOPBACK6 = "0.0.0.0", "::", "::1"
_UNSUPPORTED = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRequest:
    """One `-p`, for one port of the container."""

    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: str = ""  # "" = the daemon's default
    first: int = 0  # first and last acceptable port of the host; 0 = any of the ephemeral ones
    last: int = 0


class PortTaken(Exception):
    """Text in Docker's words, without the name of the endpoint."""


def parse_port(text: str) -> tuple[int, str]:
    """`80`, `80/tcp` to number and protocol. Raises InvalidParameter in Docker's words."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    return _number(number, text), protocol


def _number(text: str, whole: str) -> int:
    # as Go's ParseUint: ASCII digits, nothing else
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not 0 < int(text) < 65536:
        raise InvalidParameter(f'invalid port specification: "{whole}"')
    return int(text)


def parse_ports(
    exposed: Iterable[str] | None,
    port_bindings: Mapping[str, Sequence[PortBinding] | None] | None,
    publish_all: bool,
) -> list[PortRequest]:
    """What a container publishes: its port bindings, and with `publish_all` every exposed port that has none.

    Requests for particular host ports come first, so that an ephemeral one never takes what another asks for by number.
    Raises InvalidParameter.
    """
    requests: list[PortRequest] = []
    bound: set[tuple[int, str]] = set()
    for key, bindings in (port_bindings or {}).items():
        port, protocol = parse_port(key)
        for binding in bindings or ():
            bound.add((port, protocol))
            requests.append(_request(port, protocol, binding))
    if publish_all:
        wanted = {parse_port(key) for key in (*(exposed or ()), *(port_bindings or ()))}
        requests += [PortRequest(container_port=port, protocol=protocol) for port, protocol in wanted - bound]
    return sorted(requests, key=lambda r: (r.first == 0, r.first != r.last, r.container_port, r.protocol, r.first))


def _request(port: int, protocol: str, binding: PortBinding) -> PortRequest:
    first, last = _host_ports(binding.host_port)
    return PortRequest(
        container_port=port, protocol=protocol, host_ip=_host_ip(binding.host_ip), first=first, last=last
    )


def _host_ports(text: str) -> tuple[int, int]:
    """`""`, `0`, `8080` or `8000-8010`."""
    if text in ("", "0"):
        return 0, 0
    low, dash, high = text.partition("-")
    first = _number(low, text)
    last = _number(high, text) if dash else first
    if last < first:
        raise InvalidParameter(f'invalid port specification: "{text}": the range ends before it begins')
    return first, last


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError as exc:
        raise InvalidParameter(f"invalid host IP address: {text}") from exc


def show(host_ip: str, port: int | str) -> str:
    """Address and port as one word, IPv6 in brackets."""
    return f"[{host_ip}]:{port}" if ":" in host_ip else f"{host_ip}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    port: Port
    socket: socket.socket | None  # None where the kernel has no such protocol to bind
    relayed: bool = False  # a relay must serve the socket, which listens


def ephemeral_range(path: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> tuple[int, int]:
    try:
        low, high = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return EPHEMERAL
    return (low, high) if 0 < low <= high < 65536 else EPHEMERAL


class HostPorts:
    """All ports this daemon holds. `addresses` are the container's IPv4 and IPv6 addresses, "" for none.

    `respect`: what comes from outside must pass the host's input rules, so it is relayed.
    """

    def __init__(self, *, respect: bool = False, ephemeral: tuple[int, int] | None = None) -> None:
        self._respect = respect
        self._held: dict[tuple[str, int], dict[str, Held]] = {}
        self._first, self._last = ephemeral or ephemeral_range()
        self._next = self._first

    def __len__(self) -> int:
        return sum(len(by_address) for by_address in self._held.values())

    def acquire(self, request: PortRequest, addresses: tuple[str, str], default_bind: str = ANY4) -> tuple[Held, ...]:
        """Hold the first port that is free, on all its addresses. Raises PortTaken, NotSupported.

        `default_bind`: host address of a request that names none; when that is any address of IPv4, IPv6 is bound as
        well where the host has it.
        """
        binds = self._binds(request, addresses, default_bind)
        refused: PortTaken | None = None
        for number in self._candidates(request):
            try:
                return self._acquire(request, binds, number, addresses)
            except PortTaken as exc:
                refused = refused or exc
        if refused is not None and request.first and request.first == request.last:
            raise refused
        wanted = show(binds[0], f"{request.first}-{request.last}" if request.first else 0)
        raise PortTaken(f"Bind for {wanted} failed: all ports are allocated")

    def _binds(self, request: PortRequest, addresses: tuple[str, str], default_bind: str) -> tuple[str, ...]:
        """Addresses of the host."""
        if request.host_ip:
            return (request.host_ip,)
        if default_bind != ANY4:
            return (default_bind,)
        if request.protocol == "sctp":  # not relayed: only what the container has
            return tuple(any_ for any_, address in zip((ANY4, ANY6), addresses, strict=True) if address) or (ANY4,)
        return (ANY4, ANY6)

    def _candidates(self, request: PortRequest) -> Iterator[int]:
        if request.first:
            yield from range(request.first, request.last + 1)
            return
        for _ in range(self._first, self._last + 1):
            number = self._next
            self._next = number + 1 if number < self._last else self._first
            yield number

    def _acquire(
        self, request: PortRequest, binds: Sequence[str], number: int, addresses: tuple[str, str]
    ) -> tuple[Held, ...]:
        got: list[Held] = []
        try:
            for bind in binds:
                port = Port(
                    container_port=request.container_port,
                    protocol=request.protocol,
                    host_ip=bind,
                    host_port=number,
                )
                held = self._hold(port, addresses, optional=bind == ANY6 and len(binds) > 1)
                got += [held] if held else []
        except BaseException:
            self.release(got)
            raise
        return tuple(got)

    def adopt(self, port: Port, addresses: tuple[str, str]) -> Held:
        """Hold a port again that a running container already has. Raises PortTaken, NotSupported."""
        held = self._hold(port, addresses, optional=False)
        assert held is not None
        return held

    def _hold(self, port: Port, addresses: tuple[str, str], *, optional: bool) -> Held | None:
        """None when it is optional and the host lacks the address family."""
        where = show(port.host_ip, port.host_port)
        relayed = self._relayed(port, addresses)
        by_address = self._held.setdefault((port.protocol, port.host_port), {})
        try:
            if any(_collide(port.host_ip, other) for other in by_address):
                raise PortTaken(f"Bind for {where} failed: port is already allocated")
            try:
                bound = _bind(port, relayed=relayed)
            except OSError as exc:
                if optional and exc.errno in (*_UNSUPPORTED, errno.EADDRNOTAVAIL):
                    return None
                reason = os.strerror(exc.errno or 0).lower()
                target = show(_target(port, addresses), port.container_port)
                raise PortTaken(f"failed to bind host port for {where}:{target}/{port.protocol}: {reason}") from exc
            held = Held(port=port, socket=bound, relayed=relayed)
            by_address[port.host_ip] = held
            return held
        finally:
            if not by_address:
                del self._held[port.protocol, port.host_port]

    def _relayed(self, port: Port, addresses: tuple[str, str]) -> bool:
        """Raises NotSupported where that is needed and cannot be."""
        own = addresses[1] if ":" in port.host_ip else addresses[0]  # of the same family: can be translated
        if port.protocol != "sctp":
            return not own or port.host_ip in (ANY6, LOOPBACK6) or (self._respect and not _is_loopback(port.host_ip))
        where = f"{show(port.host_ip, port.host_port)}/sctp"
        if not own:
            family = "an IPv6" if ":" in port.host_ip else "an IPv4"
            raise NotSupported(f"cannot publish {where}: the container has not {family} address")
        if self._respect:
            raise NotSupported(f"cannot publish {where}: only tcp and udp can be judged by the host's input rules")
        return False

    def release(self, ports: Iterable[Held]) -> None:
        """Close and forget; idempotent."""
        for held in ports:
            key = (held.port.protocol, held.port.host_port)
            by_address = self._held.get(key, {})
            if by_address.get(held.port.host_ip) is held:
                del by_address[held.port.host_ip]
                if not by_address:
                    del self._held[key]
            if held.socket is not None:
                held.socket.close()


def _target(port: Port, addresses: tuple[str, str]) -> str:
    four, six = addresses
    return (six or four) if ":" in port.host_ip else (four or six)


def _is_loopback(host_ip: str) -> bool:
    return ipaddress.ip_address(host_ip).is_loopback


def _collide(one: str, other: str) -> bool:
    """True when two addresses cannot both have the same port. IPv6 sockets here never take IPv4's packets."""
    if (":" in one) != (":" in other):
        return False
    return one == other or ANY4 in (one, other) or ANY6 in (one, other)


def _bind(port: Port, *, relayed: bool) -> socket.socket | None:
    """Bind, and listen for a relay; None where the kernel does not speak the protocol. Raises OSError."""
    six = ":" in port.host_ip
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    try:
        made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind, PROTOCOLS[port.protocol])
    except OSError as exc:
        if port.protocol == "sctp" and exc.errno in _UNSUPPORTED:
            return None  # it can still be forwarded
        raise
    try:
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listens = relayed and port.protocol == "tcp"
        if listens:
            # connections that a relay closed lately do not keep the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((port.host_ip, port.host_port))
        except OSError as exc:
            if listens or port.protocol != "tcp" or exc.errno != errno.EADDRINUSE:
                raise
            return _bind_past_closed(made, port)
        if listens:
            made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _bind_past_closed(made: socket.socket, port: Port) -> socket.socket:
    """Only connections in TIME_WAIT may be in the way: SO_REUSEADDR passes these. But two bound sockets with that
    option pass each other too, whereas a second one that listens is refused: so this one listens."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((port.host_ip, port.host_port))
    made.listen(1)
    return made
