"""Where the engine listens: parsing of -H, DOCKER_HOST and the TLS settings into an Endpoint."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

DEFAULT_HOST = "unix:///run/wherry.sock"
DEFAULT_PORT, DEFAULT_TLS_PORT = 2375, 2376


class EndpointError(ValueError):
    """The host cannot be an engine's address."""


class TLSFiles:
    """How to speak TLS: certificates by path, None when not given."""

    __slots__ = ("ca", "cert", "key", "verify")

    def __init__(self, *, ca: str | None, cert: str | None, key: str | None, verify: bool) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key
        self.verify = verify


class Endpoint:
    """One address. `path` for a UNIX socket, else `host` and `port`; `shown` is what messages print.

    `tls` tells how TLS is spoken, None when it is not; `timeout` how long the peer may be silent, None for ever.
    """

    __slots__ = ("host", "path", "port", "shown", "timeout", "tls")

    def __init__(self, *, shown: str, path: str | None = None, host: str = "", port: int = 0) -> None:
        self.shown = shown
        self.path = path
        self.host = host
        self.port = port
        self.tls: TLSFiles | ssl.SSLContext | None = None
        self.timeout: float | None = None  # s


def parse_host(text: str, *, tls: bool = False) -> Endpoint:
    """`unix:///path`, `tcp://host[:port]`, `host[:port]`; EndpointError for anything else."""
    text = text.strip() or DEFAULT_HOST
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    if scheme == "unix":
        return Endpoint(shown=f"unix://{rest}", path=rest or DEFAULT_HOST.partition("://")[2])
    if scheme not in ("tcp", "http", "https"):
        raise EndpointError(f"invalid bind address format: {text}")
    authority = rest.partition("/")[0]
    host, port = _split_port(authority, DEFAULT_TLS_PORT if tls else DEFAULT_PORT, text)
    shown = f"{scheme}://{'[' + host + ']' if ':' in host else host}:{port}"
    return Endpoint(shown=shown, host=host or "127.0.0.1", port=port)


def _split_port(authority: str, default: int, text: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise EndpointError(f"invalid bind address format: {text}")
        port = tail[1:]
    else:
        host, _, port = authority.partition(":")
    if not port:
        return host, default
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise EndpointError(f"invalid bind address format: {text}")
    return host, int(port)


def find_endpoint(
    host: str | None,
    environ: Mapping[str, str],
    *,
    tls: bool = False,
    tls_verify: bool | None = None,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
) -> Endpoint:
    """The endpoint to use: -H, else WHERRY_HOST, else DOCKER_HOST, else the default socket.

    TLS is spoken on TCP when a flag, DOCKER_TLS or DOCKER_TLS_VERIFY says so, with ca.pem, cert.pem and key.pem of
    DOCKER_CERT_PATH (default ~/.docker) where they exist and no flag names others. EndpointError when the server is to
    be verified and there is nothing to verify it by.
    """
    address = host or environ.get("WHERRY_HOST") or environ.get("DOCKER_HOST") or DEFAULT_HOST
    verify = tls_verify if tls_verify is not None else bool(environ.get("DOCKER_TLS_VERIFY"))
    wanted = tls or verify or bool(environ.get("DOCKER_TLS"))
    endpoint = parse_host(address, tls=wanted)
    if not wanted or endpoint.path is not None:
        return endpoint
    directory = environ.get("DOCKER_CERT_PATH") or f"{environ.get('HOME', '/root')}/.docker"

    def existing(given: str | None, name: str) -> str | None:
        if given is not None:
            return given
        path = f"{directory}/{name}"
        try:
            with open(path, "rb"):
                return path
        except OSError:
            return None

    authority = existing(ca, "ca.pem")
    if verify and authority is None:
        raise EndpointError(f"open {directory}/ca.pem: no such file or directory")
    endpoint.tls = TLSFiles(ca=authority, cert=existing(cert, "cert.pem"), key=existing(key, "key.pem"), verify=verify)
    return endpoint
