"""HTTP/1.1 for two purposes, an engine's socket and a registry's manifests; over UNIX, TCP or TLS.

    open_stream(endpoint) -> Stream     a connected byte stream that can be half-closed
    send_request(stream, ...)           writes a request, its body whole, streamed or chunked
    read_response(stream, ...)          parses a head; the body is read from the Response

Synchronous, no pool, no redirects. A Response's body must be read to its end before the stream serves another request.
"""

from __future__ import annotations

import _socket

from wherry.client.endpoint import TLSFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from wherry.client.endpoint import Endpoint

RECEIVE = 1 << 18  # bytes asked for at a time
MAX_HEAD = 1 << 16  # bytes in a response head
AF_UNIX, AF_INET6, SOCK_STREAM, SHUT_WR = 1, 10, 1, 1
MSG_DONTWAIT = 0x40
CHALLENGE = "www-authenticate"
NO_BODY = frozenset({204, 304})


class HTTPError(Exception):
    """The peer does not speak HTTP as it should, or went away in the middle."""


class ConnectError(Exception):
    """Nobody answers at the endpoint."""


class Stream:
    """A connected plain socket."""

    __slots__ = ("socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    def fileno(self) -> int:
        return self.socket.fileno()

    def pending(self) -> bool:
        """Can `recv` answer although the descriptor is not readable?"""
        return False

    def readable(self) -> bool:
        """Has an idle peer something to say, be it that this is the end? What it says may be lost."""
        return self.arrived()

    def arrived(self) -> bool:
        """Can the socket be read without waiting?"""
        import select

        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def recv(self, size: int = RECEIVE) -> bytes:
        """Next bytes, b"" at the end."""
        return self.socket.recv(size)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self.socket.sendall(data)

    def send_some(self, data: bytes | bytearray | memoryview) -> int:
        """As much as fits without waiting; how much that was. A peer that is gone takes everything."""
        try:
            return self.socket.send(data, MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            return len(data)

    def close_write(self) -> None:
        """Say that no more is sent; the other direction goes on. Idempotent."""
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            return  # already gone: the reader finds out

    def close(self) -> None:
        self.socket.close()


def open_stream(endpoint: Endpoint, *, via: Stream | None = None) -> Stream:
    """Connect, over `via` if that leads there already; ConnectError carries the system's reason."""
    try:
        if via is not None:
            return _secured(via.socket, endpoint)
        if endpoint.path is not None:
            return _open_unix(endpoint.path)
        return _open_tcp(endpoint)
    except OSError as exc:
        raise ConnectError(exc.strerror or str(exc)) from exc


def _open_unix(path: str) -> Stream:
    sock = _socket.socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Stream(sock)


def _open_tcp(endpoint: Endpoint) -> Stream:
    failure: OSError = OSError("no address for " + endpoint.host)
    for family, kind, proto, _, address in _socket.getaddrinfo(endpoint.host, endpoint.port, 0, SOCK_STREAM):
        sock = _socket.socket(family, kind, proto)
        sock.settimeout(endpoint.timeout)
        try:
            sock.connect(address)
            sock.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY: keystrokes are one byte each
        except OSError as exc:
            sock.close()
            failure = exc
            continue
        return _secured(sock, endpoint)
    raise failure


def _secured(sock: _socket.socket, endpoint: Endpoint) -> Stream:
    """The stream over a connected socket, in TLS where the endpoint speaks it."""
    if endpoint.tls is None:
        return Stream(sock)
    try:
        from wherry.client.tls import TLSStream, make_context  # OpenSSL is loaded only where it is spoken

        context = endpoint.tls if not isinstance(endpoint.tls, TLSFiles) else make_context(endpoint.tls)
        return TLSStream(sock, context, endpoint.host)
    except BaseException:
        sock.close()
        raise


def send_request(
    stream: Stream,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes | Iterable[bytes] | None = None,
) -> None:
    """Write one request. Bytes go with their length, an iterable goes chunked, None goes without a body."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines.extend(f"{name}: {value}" for name, value in headers.items())
    if isinstance(body, bytes):
        lines.append(f"Content-Length: {len(body)}")
    elif body is not None:
        lines.append("Transfer-Encoding: chunked")
    elif method in ("POST", "PUT"):
        lines.append("Content-Length: 0")
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
    if body is None:
        stream.send(head)
    elif isinstance(body, bytes):
        stream.send(head + body)
    else:
        stream.send(head)
        for chunk in body:
            if chunk:
                stream.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        stream.send(b"0\r\n\r\n")


class Response:
    """A parsed head, and the body still in the stream.

    `reusable` tells, once the body is read, whether the stream may serve another request.
    """

    __slots__ = ("_buffer", "_left", "_mode", "_stream", "headers", "reason", "reusable", "status")

    def __init__(self, stream: Stream, status: int, reason: str, headers: dict[str, str], early: bytes) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers  # names in lower case; a repeated one keeps its last value, but challenges are joined
        self._stream = stream
        self._buffer = early
        self._left = 0
        self.reusable = False
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._mode = "chunked"
        elif "content-length" in headers:
            self._mode = "length"
            try:
                self._left = int(headers["content-length"])
            except ValueError:
                raise HTTPError(f"malformed Content-Length {headers['content-length']!r}") from None
        else:
            self._mode = "close"

    def without_body(self) -> None:
        """The answer to a HEAD, or a status that has none."""
        self._mode, self._left = "length", 0

    @property
    def keeps_alive(self) -> bool:
        return self._mode != "close" and "close" not in self.headers.get("connection", "").lower()

    def leftover(self) -> bytes:
        """Bytes that came with the head of a hijacked connection."""
        early, self._buffer = self._buffer, b""
        return early

    def buffered(self) -> bool:
        """Can `chunks` go on without waiting: a part of the body is here already, or all of it was read?"""
        return bool(self._buffer) or (self._mode == "length" and self._left == 0)

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives; HTTPError when it is cut short."""
        if self._mode == "chunked":
            yield from self._chunked()
        elif self._mode == "length":
            while self._left > 0:
                data = self._take(self._left)
                self._left -= len(data)
                yield data
        else:
            while data := self._more():
                yield data
        self.reusable = self.keeps_alive

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        self._stream.close()

    def _more(self) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return self._stream.recv()

    def _take(self, limit: int) -> bytes:
        """Up to `limit` bytes, never none."""
        data = self._more()
        if not data:
            raise HTTPError("unexpected EOF")
        if len(data) > limit:
            data, self._buffer = data[:limit], data[limit:]
        return data

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            data = self._stream.recv()
            if not data or len(self._buffer) > MAX_HEAD:
                raise HTTPError("unexpected EOF")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def _chunked(self) -> Iterator[bytes]:
        while True:
            line = self._line().partition(b";")[0]
            try:
                left = int(line, 16)
            except ValueError:
                raise HTTPError(f"malformed chunk size {line!r}") from None
            if left == 0:
                while self._line():
                    pass  # trailers
                return
            while left:
                data = self._take(left)
                left -= len(data)
                yield data
            self._line()


def read_response(stream: Stream, method: str) -> Response:
    """The next head; interim answers (100, 102, …) are passed over, 101 is final."""
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            data = stream.recv()
            if not data:
                raise HTTPError("EOF" if not buffer else "unexpected EOF")
            buffer += data
            if len(buffer) > MAX_HEAD and b"\r\n\r\n" not in buffer:
                raise HTTPError("response head is too large")
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        version, _, line = first.partition(" ")
        code, _, reason = line.partition(" ")
        if not version.startswith("HTTP/1.") or not code.isdigit():
            raise HTTPError(f"malformed HTTP response {first[:60]!r}")
        status = int(code)
        if 100 <= status < 200 and status != 101:
            continue
        headers: dict[str, str] = {}
        for entry in rest:
            name, _, value = entry.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name == CHALLENGE and name in headers else value
        response = Response(stream, status, reason, headers, buffer)
        if method == "HEAD" or status in NO_BODY:
            response.without_body()
        return response
