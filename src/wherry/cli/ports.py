"""Port specifications: `-p [[ip:]host:]container[/protocol]`, ranges, and the long form."""

from __future__ import annotations

from wherry.cli.run_values import is_ip, split_csv

PROTOCOLS = ("tcp", "udp", "sctp")


class PortError(ValueError):
    pass


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text) > 9 or int(text) >= 1 << 16:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def parse_range(text: str) -> tuple[int, int]:
    """First and last port of `80` or `80-90`; ValueError otherwise."""
    if not text:
        raise ValueError("empty string specified for ports")
    first, dash, last = text.partition("-")
    start = _port(first)
    if not dash:
        return start, start
    end = _port(last)
    if end < start:
        raise ValueError(f"invalid range specified for port: {text}")
    return start, end


def split_protocol(text: str) -> tuple[str, str]:
    """Port and protocol; tcp when none is given."""
    port, slash, protocol = text.partition("/")
    return port, protocol if slash and protocol else "tcp"


def standard_form(text: str) -> str:
    """`target=80,published=8080,protocol=udp` in the short form; others as they are. `mode` is of services only."""
    if "=" not in text:
        return text
    fields = {"protocol": "tcp", "published": "", "target": "", "mode": ""}
    for field in split_csv(text):
        key, equals, value = field.partition("=")
        if not equals or key not in fields:
            raise PortError(f"invalid publish opts format (should be name=value but got '{field}')")
        fields[key] = value
    return f"{fields['published']}:{fields['target']}/{fields['protocol']}"


def parse_publish(text: str) -> list[tuple[str, str, str]]:
    """(`80/tcp`, host address, host port or range or "") for each container port of one -p; PortError otherwise."""
    text = standard_form(text)
    rest, protocol = split_protocol(text)
    *left, container = rest.split(":")
    host_port = left.pop() if left else ""
    address = ":".join(left)
    if address.startswith("["):
        if not address.endswith("]"):
            raise PortError(f"invalid IP address {address}: address {address}:: missing ']' in address")
        address = address[1:-1]
    if address and not is_ip(address):
        raise PortError(f"invalid IP address: {address}")
    if not container:
        raise PortError(f"no port specified: {text}<empty>")
    try:
        first, last = parse_range(container)
    except ValueError:
        raise PortError(f"invalid containerPort: {container}") from None
    host_first = host_last = 0
    if host_port:
        try:
            host_first, host_last = parse_range(host_port)
        except ValueError:
            raise PortError(f"invalid hostPort: {host_port}") from None
        if last - first != host_last - host_first and last != first:
            raise PortError(f"invalid ranges specified for container and host Ports: {container} and {host_port}")
    protocol = protocol.lower()
    if protocol not in PROTOCOLS:
        raise PortError(f"invalid proto: {protocol}")
    bindings: list[tuple[str, str, str]] = []
    for offset in range(last - first + 1):
        if not host_port:
            published = ""
        elif first == last and host_first != host_last:
            published = f"{host_first}-{host_last}"  # any of these
        else:
            published = str(host_first + offset)
        bindings.append((f"{first + offset}/{protocol}", address, published))
    return bindings


def parse_expose(text: str) -> list[str]:
    """`80/tcp` for each port of one --expose."""
    if ":" in text:
        raise PortError(f"invalid port format for --expose: {text}")
    port, protocol = split_protocol(text)
    try:
        first, last = parse_range(port)
    except ValueError as exc:
        raise PortError(f"invalid range format for --expose: {text}, error: {exc}") from None
    return [f"{number}/{protocol.lower()}" for number in range(first, last + 1)]
