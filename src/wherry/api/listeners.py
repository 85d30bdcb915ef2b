"""Where the daemon listens: unix://PATH, tcp://HOST:PORT, fd:// (systemd socket activation).

    listening = await serve(server, [parse("unix:///run/wherry.sock")])
    ...
    await listening.stop(grace=10)

A UNIX socket is 0660 and belongs to root and the group `docker` when there is one. A socket left over by a dead daemon
is replaced; one that somebody answers on is not. The sockets made here are removed by `stop`.
"""

import asyncio
import errno
import grp
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.api.server import Server
from wherry.api.tls import TLSProtocol
from wherry.errors import Conflict, Failed, InvalidParameter

BACKLOG = 512
TCP_PORT = 2375
TLS_PORT = 2376
_FIRST_FD = 3  # of systemd's
_LONGEST_PATH = 107  # bytes the kernel has for a UNIX socket's path, less the final NUL

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One `-H`. `address` is the path, `host:port`, or the number or "*" after fd://."""

    scheme: str  # unix, tcp, fd
    address: str
    group: str = "docker"  # of the UNIX socket, when it exists
    tls: ssl.SSLContext | None = None  # tcp only

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"


def parse(text: str, *, group: str = "docker", tls: ssl.SSLContext | None = None) -> Listener:
    """Read one `-H` value; raises InvalidParameter in Docker's words."""
    scheme, separator, address = text.partition("://")
    if not separator:
        scheme, address = "tcp", text
    match scheme:
        case "unix":
            if not address.startswith("/"):
                raise InvalidParameter(f"Invalid bind address format: {text}: the path of a UNIX socket is absolute")
            return Listener(scheme="unix", address=address, group=group)
        case "tcp":
            host, port = _host_port(text, address, TLS_PORT if tls else TCP_PORT)
            return Listener(scheme="tcp", address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tls=tls)
        case "fd":
            if address not in ("", "*") and not address.isdecimal():
                raise InvalidParameter(f"Invalid bind address format: {text}: fd:// takes a number")
            return Listener(scheme="fd", address=address or "*", tls=tls)
    raise InvalidParameter(f"Invalid bind address format: {text}")


def _host_port(text: str, address: str, default: int) -> tuple[str, int]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
        good = bool(bracket) and (not rest or rest.startswith(":"))
    else:
        host, _, port = address.partition(":")
        good = True
    number = int(port) if port.isdecimal() else default
    if not good or "/" in address or (port and not port.isdecimal()) or number > 65535:
        raise InvalidParameter(f"Invalid bind address format: {text}")
    return host or "127.0.0.1", number


@dataclass(slots=True)
class Listening:
    """Open sockets and their connections."""

    server: Server
    addresses: list[str]  # as bound: with real ports
    _open: AsyncExitStack

    async def stop(self, grace: float) -> None:
        """Accept nothing more, end what runs (see `Server.stop`), remove the UNIX sockets. Idempotent."""
        await self._open.aclose()
        await self.server.stop(grace)


async def serve(server: Server, listeners: Sequence[Listener]) -> Listening:
    """Listen on all or none. Raises Conflict, Failed or InvalidParameter, naming the address."""
    addresses: list[str] = []
    async with AsyncExitStack() as undo:
        for listener in listeners:
            for sock in _bind(listener, undo):
                factory = _factory(server, listener)
                accepting = await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=BACKLOG)
                undo.callback(accepting.close)
                addresses.append(_name(sock))
        return Listening(server, addresses, undo.pop_all())


def _factory(server: Server, listener: Listener) -> Callable[[], asyncio.Protocol]:
    context = listener.tls
    if context is None:
        return server
    return lambda: TLSProtocol(context, server)


def _bind(listener: Listener, undo: AsyncExitStack) -> list[socket.socket]:
    match listener.scheme:
        case "unix":
            return [_bind_unix(Path(listener.address), listener.group, undo)]
        case "tcp":
            return _bind_tcp(listener)
    return _inherited(listener)


def _bind_unix(path: Path, group: str, undo: AsyncExitStack) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidParameter(f"the socket path {path} is longer than the kernel's {_LONGEST_PATH} bytes")
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sock.bind(str(path))
        # Nobody can connect before listen(), so there is no moment with the wrong mode.
        undo.callback(_unlink, path, path.stat().st_ino)
        path.chmod(0o660)
        os.chown(path, -1, _group_id(group))
    except OSError as exc:
        sock.close()
        raise Failed(f"cannot listen on unix://{path}: {exc.strerror}") from exc
    return sock


def _clear(path: Path) -> None:
    """Remove a dead daemon's socket; raises Conflict for a living one, and for anything that is no socket."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Failed(f"cannot listen on unix://{path}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(f"cannot listen on unix://{path}: a file is there that is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        failure = probe.connect_ex(str(path))
    if failure not in (errno.ECONNREFUSED, errno.ENOENT):
        raise Conflict(f"cannot listen on unix://{path}: another daemon answers there; stop it, or choose another -H")
    path.unlink(missing_ok=True)


def _unlink(path: Path, inode: int) -> None:
    with suppress(OSError):
        if path.stat(follow_symlinks=False).st_ino == inode:  # not somebody else's by now
            path.unlink()


def _group_id(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group != "docker":
            log.warning("group %s does not exist: the socket belongs to root only", group)
        return 0


def _bind_tcp(listener: Listener) -> list[socket.socket]:
    host, _, port = listener.address.rpartition(":")
    host = host.strip("[]")
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError as exc:
        for sock in bound:
            sock.close()
        raise Failed(f"cannot listen on {listener.url}: {exc.strerror or exc}") from exc
    if listener.tls is None:
        log.warning("the API on %s is open to everybody who can reach it: root on this host", listener.url)
    return bound


def _inherited(listener: Listener) -> list[socket.socket]:
    """Sockets that systemd has passed (sd_listen_fds(3))."""
    count = int(os.environ.get("LISTEN_FDS", "0")) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
    numbers = list(range(_FIRST_FD, _FIRST_FD + count))
    if listener.address != "*":
        numbers = [number for number in numbers if number == int(listener.address)]
    if not numbers:
        raise Failed("no sockets found via socket activation: make sure the service was started by systemd")
    for number in numbers:
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in numbers]


def _name(sock: socket.socket) -> str:
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix://{address}"
    host, port = address[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
