"""A way out of a box: an HTTP proxy that listens on the loopback within, and connects from the machine itself.

A box has no uplink, and is given none: no interface, address or firewall rule of the machine is touched. Builds that
need package registries are told of the proxy the usual way, by http_proxy and https_proxy.
"""

import contextlib
import ctypes
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from .box import Box

PORT = 3128
TIMEOUT = 60  # s without a byte
CHUNK = 1 << 16
CLONE_NEWNET = 0x40000000
HOP_BY_HOP = frozenset({"connection", "proxy-connection", "keep-alive", "transfer-encoding", "te", "upgrade"})
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def authorities() -> Path:
    """The certificates that this machine trusts; what is built must trust the same."""
    return Path(os.environ.get("SSL_CERT_FILE", AUTHORITIES))


def listen_in(box: Box, port: int) -> socket.socket:
    """A listening socket in the box's network namespace. Only the thread that makes it goes there."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            with open(f"/proc/{box.holder}/ns/net") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", port), backlog=64))
        except OSError as exc:
            made.append(exc)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        try:
            upstream = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        except OSError as exc:
            self.send_error(502, str(exc))
            return
        self.close_connection = True
        with upstream:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = url.path + (f"?{url.query}" if url.query else "")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        with contextlib.closing(http.client.HTTPConnection(url.netloc, timeout=TIMEOUT)) as upstream:
            try:
                upstream.request(self.command, path, headers=headers)
                answer = upstream.getresponse()
            except OSError as exc:
                self.send_error(502, str(exc))
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            if answer.length is None and self.command != "HEAD":
                self.close_connection = True
                self.send_header("Connection", "close")
            self.end_headers()
            while chunk := answer.read(CHUNK):
                self.wfile.write(chunk)

    do_HEAD = do_GET  # noqa: N815


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def way_out(box: Box) -> Iterator[str]:
    """The proxy's URL, as the box knows it."""
    server = ThreadingHTTPServer(("127.0.0.1", PORT), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listen_in(box, PORT)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
