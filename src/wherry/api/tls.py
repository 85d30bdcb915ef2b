"""TLS with half-close, which asyncio's own cannot do.

Go's `CloseWrite` on TLS is a close_notify: "I have sent everything", while the other direction goes on. The docker CLI
does that at once whenever stdin is not attached; asyncio and uvloop then close both directions and the output is lost.
So the record layer is driven here through memory BIOs, between the socket's transport and aiohttp's protocol.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import cast

from wherry.errors import InvalidParameter

HANDSHAKE = 10.0  # s
_CHUNK = 256 << 10  # bytes decrypted at a time
_METHODS = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI")
_PLAIN = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)

log = logging.getLogger(__name__)


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """For `--tls`, and with `client_ca` for `--tlsverify`. Raises InvalidParameter naming the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise InvalidParameter(f"cannot load the TLS certificate {certificate} with key {key}: {exc}") from exc
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidParameter(f"cannot load the CA certificate {client_ca}: {exc}") from exc
    return context


class TLSTransport(asyncio.Transport):
    """What the HTTP side sees; back-pressure is the socket transport's own, passed through in both directions."""

    def __init__(self, tls: "TLSProtocol", lower: asyncio.Transport) -> None:
        super().__init__()
        self._tls = tls
        self._lower = lower

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._tls.extra(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._tls.upper = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._tls.upper

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._tls.encrypt(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._tls.encrypt(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._tls.end_writing()

    def close(self) -> None:
        self._tls.end_writing()
        self._lower.close()

    def abort(self) -> None:
        self._lower.abort()

    def is_closing(self) -> bool:
        return self._lower.is_closing()

    def pause_reading(self) -> None:
        with suppress(RuntimeError):  # closing
            self._lower.pause_reading()

    def resume_reading(self) -> None:
        with suppress(RuntimeError):
            self._lower.resume_reading()

    def is_reading(self) -> bool:
        return self._lower.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._lower.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._lower.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._lower.get_write_buffer_limits()


class TLSProtocol(asyncio.Protocol):
    """Server side of one connection: `loop.create_server(lambda: TLSProtocol(context, http_server), ...)`."""

    upper: asyncio.BaseProtocol

    def __init__(self, context: ssl.SSLContext, factory: Callable[[], asyncio.Protocol]) -> None:
        self._context = context
        self._factory = factory
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lower: asyncio.Transport | None = None
        self._transport: TLSTransport | None = None  # set once the handshake is done
        self._deadline: asyncio.TimerHandle | None = None
        self._first = True
        self._read_ended = False
        self._write_ended = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._lower = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE, self._lower.abort)

    def data_received(self, data: bytes) -> None:
        assert self._lower is not None
        if self._first and data.startswith(_METHODS):
            self._lower.write(_PLAIN)
            self._lower.close()
            return
        self._first = False
        if self._read_ended:
            return  # behind a close_notify nothing counts
        self._incoming.write(data)
        if self._transport is None and not self._shake_hands():
            return
        self._decrypt()

    def eof_received(self) -> bool:
        if self._transport is None:
            return False
        self._end_reading()
        return self._lower is not None and not self._lower.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self.upper.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._transport is not None:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self.upper.resume_writing()

    # the record layer

    def _shake_hands(self) -> bool:
        """One step; True when the handshake is done. A refused client gets its alert."""
        assert self._lower is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as exc:
            log.debug("TLS handshake with %s failed: %s", self._lower.get_extra_info("peername"), exc)
            self._flush()
            self._lower.close()
            return False
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = TLSTransport(self, self._lower)
        self.upper = self._factory()
        self.upper.connection_made(self._transport)
        return True

    def _decrypt(self) -> None:
        while not self._read_ended:
            try:
                data = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as exc:
                log.debug("TLS connection broken: %s", exc)
                if self._lower is not None:
                    self._lower.abort()
                return
            if not data:
                self._end_reading()
                break
            assert isinstance(self.upper, asyncio.Protocol)
            self.upper.data_received(data)
        self._flush()  # reading may have to answer: a key update, an alert

    def _end_reading(self) -> None:
        """The client has said close_notify, or ended the stream without: the other direction may go on."""
        if self._read_ended or self._transport is None:
            return
        self._read_ended = True
        assert isinstance(self.upper, asyncio.Protocol)
        if not self.upper.eof_received():
            self._transport.close()

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        if self._write_ended or not data:
            return
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as exc:
            log.debug("TLS connection broken: %s", exc)
            if self._lower is not None:
                self._lower.abort()
            return
        self._flush()

    def end_writing(self) -> None:
        """Send close_notify; the client may go on sending."""
        if self._write_ended:
            return
        self._write_ended = True
        with suppress(ssl.SSLError, OSError):
            self._tls.unwrap()  # complains that the client has not said its own yet
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and self._lower is not None and not self._lower.is_closing():
            self._lower.write(self._outgoing.read())

    def extra(self, name: str, default: object) -> object:
        match name:
            case "sslcontext":
                return self._context
            case "ssl_object":
                return self._tls
            case "peercert":
                return self._tls.getpeercert()
            case _ if self._lower is not None:
                return self._lower.get_extra_info(name, default)
        return default
