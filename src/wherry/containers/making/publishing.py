"""Ports that come to a container, or go: what `update --publish-add/--publish-rm` means for the record. Pure."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.containers.record import Container
from wherry.errors import Conflict, InvalidParameter, NotFound
from wherry.network.endpoint import Port
from wherry.network.ports import PortRequest, parse_port, parse_ports
from wherry.spec.engine import PortBinding

Bindings = Mapping[str, list[PortBinding] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`add` and `remove` for a running container; what HostConfig says afterwards."""

    add: Sequence[PortRequest] = ()
    remove: Sequence[Port] = ()
    bindings: dict[str, list[PortBinding] | None] | None = None
    publish_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Which published ports are meant: those of a container port, perhaps only at one place of the host."""

    text: str
    container_port: int
    protocol: str
    host_ip: str = ""  # "" = any
    host_port: str = ""  # "" = any

    @property
    def key(self) -> str:
        return f"{self.container_port}/{self.protocol}"

    def is_port(self, port: Port) -> bool:
        return (
            (port.container_port, port.protocol) == (self.container_port, self.protocol)
            and self.host_ip in ("", port.host_ip)
            and self.host_port in ("", str(port.host_port))
        )

    def is_binding(self, binding: PortBinding) -> bool:
        return self.host_ip in ("", binding.host_ip) and self.host_port in ("", binding.host_port)


def parse_pattern(text: str) -> Pattern:
    """`80`, `80/tcp`, `8080:80`, `127.0.0.1:8080:80/tcp`, `[::1]::80`. Raises InvalidParameter."""
    rest, slash, protocol = text.partition("/")
    *left, container = rest.split(":")
    host_port = left.pop() if left else ""
    host_ip = ":".join(left).removeprefix("[").removesuffix("]")
    number, protocol = parse_port(container + slash + protocol)
    if host_port:
        parse_port(host_port)
    if host_ip:
        try:
            host_ip = str(ipaddress.ip_address(host_ip))
        except ValueError:
            raise InvalidParameter(f"invalid IP address: {host_ip}") from None
    return Pattern(text=text, container_port=number, protocol=protocol, host_ip=host_ip, host_port=host_port)


def check(add: Bindings, remove: Sequence[str]) -> None:
    """Raises InvalidParameter for what no container could do."""
    parse_ports((), add, publish_all=False)
    for text in remove:
        parse_pattern(text)


def change(container: Container, add: Bindings, remove: Sequence[str]) -> Change:
    """Raises NotFound for a port that is not published, Conflict where ports cannot be published."""
    host = container.host_config
    if not add and not remove:
        return Change(bindings=host.port_bindings, publish_all=host.publish_all_ports)
    mode = host.network_mode
    if mode in ("host", "none") or mode.startswith("container:") or container.config.network_disabled is True:
        raise Conflict(f"ports cannot be published by a container with network mode {mode}")
    patterns = [parse_pattern(text) for text in remove]
    held = _Held.of(container)
    leaving: list[Port] = []
    for pattern in patterns:
        ports = held.drop(pattern)
        leaving += [port for port in ports if port not in leaving]
    bindings = held.bindings
    requests: list[PortRequest] = []
    for key, more in add.items():
        number, protocol = parse_port(key)
        wanted = more or [PortBinding()]
        bindings.setdefault(f"{number}/{protocol}", []).extend(wanted)
        requests += parse_ports((), {key: wanted}, publish_all=False)
    return Change(
        add=sorted(requests, key=lambda request: request.first == 0),  # one by number before one of any number
        remove=leaving,
        bindings={key: list(each) for key, each in bindings.items() if each},
        publish_all=held.publish_all,
    )


@dataclass(slots=True, kw_only=True)
class _Held:
    """What a container publishes: the bindings asked for, each with the ports it has got while the container runs."""

    name: str
    bindings: dict[str, list[PortBinding]]
    claims: dict[tuple[str, int], list[Port]]  # by key and index of the binding
    unclaimed: list[Port]  # of -P
    running: bool
    publish_all: bool

    @classmethod
    def of(cls, container: Container) -> "_Held":
        host = container.host_config
        bindings = {_key(key): list(each) for key, each in (host.port_bindings or {}).items() if each}
        found = cls(
            name=container.name,
            bindings=bindings,
            claims={},
            unclaimed=list(container.ports),
            running=container.running,
            publish_all=host.publish_all_ports,
        )
        places = [(key, index) for key, each in bindings.items() for index in range(len(each))]
        for key, index in sorted(places, key=lambda place: len(_host_ports(bindings[place[0]][place[1]]))):
            found._claim(key, index)  # the choosiest first
        return found

    def _claim(self, key: str, index: int) -> None:
        """A binding has one port of the host, on one or several addresses."""
        binding = self.bindings[key][index]
        number = 0
        mine: list[Port] = []
        for port in self.unclaimed:
            if f"{port.container_port}/{port.protocol}" == key and _may_be(binding, port):
                number = number or port.host_port
                if port.host_port == number:
                    mine.append(port)
        self.claims[key, index] = mine
        self.unclaimed = [port for port in self.unclaimed if port not in mine]

    def drop(self, pattern: Pattern) -> list[Port]:
        """Forget what is meant; the ports it has. Raises NotFound when nothing is."""
        kept: list[PortBinding] = []
        claims: list[list[Port]] = []
        leaving: list[Port] = []
        met = False
        for index, binding in enumerate(self.bindings.get(pattern.key, ())):
            ports = self.claims[pattern.key, index]
            going = [port for port in ports if pattern.is_port(port)]
            staying = [port for port in ports if port not in going]
            if not (going or (not ports and pattern.is_binding(binding))):
                kept.append(binding)
                claims.append(ports)
                continue
            met = True
            leaving += going
            for port in staying:  # of a binding to all addresses one goes: the others are named from now on
                kept.append(PortBinding(host_ip=port.host_ip, host_port=str(port.host_port)))
                claims.append([port])
        self.bindings[pattern.key] = kept
        self.claims.update({(pattern.key, index): ports for index, ports in enumerate(claims)})
        return leaving + self._drop_unclaimed(pattern, met=met)

    def _drop_unclaimed(self, pattern: Pattern, *, met: bool) -> list[Port]:
        """Those of -P: the ones that stay are named from now on."""
        going = [port for port in self.unclaimed if pattern.is_port(port)]
        if not going and not met:
            raise NotFound(f"container {self.name} does not publish {pattern.text}")
        if going:
            self.unclaimed = [port for port in self.unclaimed if port not in going]
            self._name_the_rest()
        return going

    def _name_the_rest(self) -> None:
        self.publish_all = False
        for port in self.unclaimed:
            bound = self.bindings.setdefault(f"{port.container_port}/{port.protocol}", [])
            claimed = self.claims.get((f"{port.container_port}/{port.protocol}", len(bound) - 1), []) if bound else []
            if any(other.host_port == port.host_port for other in claimed):
                claimed.append(port)  # the same one on another address
                continue
            bound.append(PortBinding())
            self.claims[f"{port.container_port}/{port.protocol}", len(bound) - 1] = [port]
        self.unclaimed = []


def _key(text: str) -> str:
    number, protocol = parse_port(text)
    return f"{number}/{protocol}"


def _host_ports(binding: PortBinding) -> range:
    """Those it may have got."""
    first, dash, last = binding.host_port.partition("-")
    return range(int(first), int(last if dash else first) + 1) if first not in ("", "0") else range(65536)


def _may_be(binding: PortBinding, port: Port) -> bool:
    if port.host_port not in _host_ports(binding):
        return False
    if not binding.host_ip:
        return True
    return ipaddress.ip_address(binding.host_ip.strip("[]")) == ipaddress.ip_address(port.host_ip)
