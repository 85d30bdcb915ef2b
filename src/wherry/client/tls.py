"""TLS that can half-close.

`ssl.SSLSocket.unwrap` waits for the peer's goodbye, so `exec -i` could never say "no more input" and go on reading.
An SSLObject over memory buffers can: its `unwrap` queues our close_notify and reading goes on.
"""

from __future__ import annotations

import os
import ssl

from wherry.client.http import RECEIVE, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from wherry.client.endpoint import TLSFiles


def _new_context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def make_registry_context(folder: str, *, verify: bool) -> ssl.SSLContext:
    """For a registry: the system's authorities, and those and the certificate that `folder` (certs.d/HOST) holds:
    `*.crt` are authorities, `NAME.cert` and `NAME.key` are who we are. OSError names a file that cannot be used.
    """
    context = _new_context(verify=verify)
    context.load_default_certs()
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return context
    for name in names:
        stem, _, kind = name.rpartition(".")
        if kind not in ("crt", "cert"):
            continue
        try:
            if kind == "crt":
                context.load_verify_locations(f"{folder}/{name}")
            else:
                context.load_cert_chain(f"{folder}/{name}", f"{folder}/{stem}.key")
        except OSError as exc:  # ssl.SSLError is one
            raise OSError(f"{folder}/{name} cannot be used: {exc.strerror or exc}") from exc
    return context


def make_context(files: TLSFiles) -> ssl.SSLContext:
    """Verify the server unless told not to; present a certificate when there is one."""
    context = _new_context(verify=files.verify)
    if files.verify:
        if files.ca is not None:
            context.load_verify_locations(files.ca)
        else:
            context.load_default_certs()
    if files.cert is not None and files.key is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


class TLSStream(Stream):
    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, sock: _socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
                continue
            self._flush()
            return

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.socket.sendall(data)

    def _fill(self) -> None:
        if data := self.socket.recv(RECEIVE):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def pending(self) -> bool:
        return self._tls.pending() > 0 or self._incoming.pending > 0

    def readable(self) -> bool:
        """Session tickets, which a server sends unasked after the handshake, are taken in: they are not for us."""
        while True:
            try:
                self._tls.read(1)
                return True
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                return True
            if not self.arrived():
                return False
            try:
                self._fill()
            except OSError:
                return True

    def recv(self, size: int = RECEIVE) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            sent = self._tls.write(view[:RECEIVE])
            self._flush()
            view = view[sent:]

    def send_some(self, data: bytes | bytearray | memoryview) -> int:
        # An encrypted record cannot be taken back: this waits for the socket instead.
        try:
            self.send(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return len(data)

    def close_write(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # wants the peer's close_notify, which comes when it has said everything
        self._flush()
