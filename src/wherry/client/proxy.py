"""The HTTP proxy between here and a registry, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY (or the same in lower case).

HTTPS goes through a tunnel (CONNECT), plain HTTP by asking the proxy for whole URLs. Loopback is never proxied.
"""

from __future__ import annotations

from wherry.client.endpoint import Endpoint
from wherry.client.http import ConnectError, HTTPError, Stream, open_stream, read_response, send_request
from wherry.client.registry_auth import RegistryError, Unanswered, basic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from wherry.client.registry import Server


class Proxy:
    """Where it listens, and the user's name there."""

    __slots__ = ("headers", "host", "port")

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self.host = host
        self.port = port
        self.headers = {"Proxy-Authorization": basic(user, password)} if user else {}

    def open(self, timeout: float) -> Stream:
        endpoint = Endpoint(shown=f"proxy {self.host}:{self.port}", host=self.host, port=self.port)
        endpoint.timeout = timeout
        try:
            return open_stream(endpoint)
        except ConnectError as exc:
            raise Unanswered(f"{endpoint.shown}: {exc}") from exc

    def tunnel(self, target: str, timeout: float) -> Stream:
        """A stream that ends at `target` (host:port); RegistryError when the proxy would not."""
        stream = self.open(timeout)
        try:
            send_request(stream, "CONNECT", target, {"Host": target, **self.headers})
            response = read_response(stream, "CONNECT")
        except (HTTPError, OSError) as exc:
            stream.close()
            raise RegistryError(f"proxy {self.host}:{self.port}: {exc}") from exc
        if response.status != 200:
            stream.close()
            raise RegistryError(
                f"proxy {self.host}:{self.port} does not let through to {target}: {response.status} {response.reason}"
            )
        return stream


def find_proxy(environ: Mapping[str, str], server: Server) -> Proxy | None:
    """The proxy for a server; None when it is reached directly. RegistryError when the setting makes no sense."""
    from wherry.client.registry import is_loopback, parse_server

    name = f"{server.scheme}_proxy"
    url = environ.get(name.upper()) or environ.get(name)
    if not url or is_loopback(server.host):
        return None
    if is_exempt(environ.get("NO_PROXY") or environ.get("no_proxy") or "", server.host, server.port):
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "http", url
    if scheme != "http":
        raise RegistryError(f"{name.upper()}: proxies are spoken to in http, not in {scheme}")
    login, _, authority = rest.partition("/")[0].rpartition("@")
    user, _, password = login.partition(":")
    found = parse_server("http", authority)
    return Proxy(found.host, found.port, _unquote(user), _unquote(password))


def is_exempt(listed: str, host: str, port: int) -> bool:
    """Is the host one of NO_PROXY's: `*`, a name, `.domain`, an address, a network, each perhaps with a port?"""
    for entry in (word.strip().lower() for word in listed.split(",")):
        if entry == "*":
            return True
        name, colon, number = entry.rpartition(":")
        if colon and number.isdigit() and ":" not in name:
            if int(number) != port:
                continue
            entry = name
        entry = entry.removeprefix("*")
        if entry and (host == entry.removeprefix(".") or host.endswith("." + entry.removeprefix("."))):
            return True
        if "/" in entry and _is_within(host, entry):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    from ipaddress import ip_address, ip_network

    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _unquote(text: str) -> str:
    """Percent-encoding undone."""
    head, *rest = text.encode().split(b"%")
    out = bytearray(head)
    for part in rest:
        try:
            out += bytes.fromhex(part[:2].decode()) + part[2:]
        except ValueError:
            out += b"%" + part
    return out.decode("utf-8", "replace")
