"""TLS with half-close: what the docker CLI does over --tlsverify."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from wirekit import get, post, wire_only

from wherry.api.call import Call
from wherry.api.hijack import Stream, hijack
from wherry.api.listeners import parse, serve
from wherry.api.router import Router
from wherry.api.server import Server
from wherry.api.tls import server_context
from wherry.errors import InvalidParameter

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; server.pem and client.pem with their keys, signed by it."""
    home = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (home / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
    return home


async def echo(call: Call) -> web.StreamResponse:
    class Echo:
        tty = True

        async def run(self, stream: Stream) -> None:
            size = 0
            while data := await stream.read():
                size += len(data)
                await stream.write(data)
            await stream.write(b"end of %d" % size)

    return await hijack(call, Echo())


async def big(call: Call) -> web.StreamResponse:
    return call.reply("x" * 3_000_000)


@asynccontextmanager
async def listening(certificates: Path, *, verify: bool = True) -> AsyncIterator[int]:
    router = Router()
    router.add("POST", "/echo", echo)
    router.add("GET", "/big", big)
    context = server_context(
        certificates / "server.pem", certificates / "server.key", certificates / "ca.pem" if verify else None
    )
    found = await serve(Server(wire_only(), router), [parse("tcp://127.0.0.1:0", tls=context)])
    try:
        yield int(found.addresses[0].rpartition(":")[2])
    finally:
        await found.stop(grace=2)


class GoClient:
    """Speaks TLS as Go does: close_notify for CloseWrite, and reads on."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self.reader, self.writer = reader, writer

    async def _flush(self) -> None:
        if self.outgoing.pending:
            self.writer.write(self.outgoing.read())
            await self.writer.drain()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
        await self._flush()

    async def _fill(self) -> None:
        data = await self.reader.read(65536)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    async def close_write(self) -> None:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        await self._flush()

    async def read(self) -> bytes:
        """Next bytes; b"" at the server's close_notify."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    async def until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            data += await self.read()
        return data

    async def rest(self) -> bytes:
        data = b""
        while more := await self.read():
            data += more
        return data


@asynccontextmanager
async def client(certificates: Path, port: int, *, certificate: bool = True) -> AsyncIterator[GoClient]:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if certificate:
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            go = GoClient(context, reader, writer)
            await go.handshake()
            yield go
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_half_close_by_close_notify_leaves_the_other_direction_open(certificates: Path):
    async with listening(certificates) as port, client(certificates, port) as go:
        await go.send(post("/echo", b"", "Connection: Upgrade", "Upgrade: tcp"))
        assert (await go.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        await go.send(b"x" * 10_000)
        await go.close_write()
        assert await go.rest() == b"x" * 10_000 + b"end of 10000"


async def test_a_large_answer_arrives_whole(certificates: Path):
    async with listening(certificates) as port, client(certificates, port) as go:
        await go.send(get("/big", "Connection: close"))
        head, _, body = (await go.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert len(body) == 3_000_003


async def test_keep_alive_works_over_tls(certificates: Path):
    async with listening(certificates) as port, client(certificates, port) as go:
        for _ in range(3):
            await go.send(get("/nowhere"))
            assert (await go.until(b"page not found")).startswith(b"HTTP/1.1 404 ")


async def test_a_client_without_a_certificate_is_refused(certificates: Path):
    async def answer(port: int) -> bytes:
        async with client(certificates, port, certificate=False) as go:
            await go.send(get("/big"))
            return await go.rest()

    async with listening(certificates) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await answer(port)


async def test_without_client_ca_nobody_is_asked_for_a_certificate(certificates: Path):
    async with listening(certificates, verify=False) as port, client(certificates, port, certificate=False) as go:
        await go.send(get("/nowhere"))
        assert b"page not found" in await go.until(b"page not found")


async def test_plain_http_on_the_tls_port_is_told_so(certificates: Path):
    async with listening(certificates) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/big"))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.0 400 ")
        assert b"Client sent an HTTP request to an HTTPS server." in answer
        writer.close()


async def test_noise_instead_of_a_handshake_closes_the_connection(certificates: Path):
    async with listening(certificates) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x00" * 500)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        async with client(certificates, port) as go:
            await go.send(get("/nowhere"))
            await go.until(b"page not found")


def test_a_missing_certificate_is_named(tmp_path: Path):
    with pytest.raises(InvalidParameter, match="cannot load the TLS certificate"):
        server_context(tmp_path / "no.pem", tmp_path / "no.key")
