"""TLS: the certificate that is served, also after it was renewed, and whose clients are taken."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from wherry.aio import settle
from wherry.errors import InvalidParameter
from wherry.registry.config import TLSConfig
from wherry.registry.folder import open_folder
from wherry.registry.policies import follow_certificate, server_context
from wherry.registry.server import build_app


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; old, new and client, .pem and .key, signed by it; stranger.pem and .key, which are not."""
    assert shutil.which("openssl"), "openssl makes the certificates"
    home = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req",
            "-x509",
            *curve,
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
        )
    (home / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("old", "new", "client"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names", "-out", f"{name}.pem"),
        )
    return home


def put(authority: Path, folder: Path, certificate: str, key: str = "") -> None:
    """Make a certificate and its key the served ones."""
    for name, source in (("served.pem", f"{certificate}.pem"), ("served.key", f"{key or certificate}.key")):
        shutil.copy(authority / source, folder / "fresh")
        (folder / "fresh").rename(folder / name)


def config_of(folder: Path, *, client_ca: str = "") -> TLSConfig:
    return TLSConfig(cert=str(folder / "served.pem"), key=str(folder / "served.key"), client_ca=client_ca)


@asynccontextmanager
async def serving(root: Path, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of a registry."""
    store = await settle(open_folder, root)
    server = TestServer(build_app(store), scheme="https")
    await server.start_server(ssl=context)
    try:
        assert server.port is not None
        yield server.port
    finally:
        await server.close()
        await store.close()


async def common_name(port: int, authority: Path, *, client: str = "") -> str:
    """Whose certificate is served, on a new connection."""
    context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    if client:
        context.load_cert_chain(authority / f"{client}.pem", authority / f"{client}.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        certificate = writer.get_extra_info("peercert")
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if not (answer := await reader.read()):
            raise ConnectionError("the server does not want us")
        assert answer.startswith(b"HTTP/1.1 200 ")
        return str(dict(part[0] for part in certificate["subject"])["commonName"])
    finally:
        writer.transport.abort()


async def test_a_renewed_certificate_is_served_to_new_connections(tmp_path: Path, authority: Path) -> None:
    put(authority, tmp_path, "old")
    config = config_of(tmp_path)
    context = server_context(config)
    following = asyncio.create_task(follow_certificate(context, config, look=0.01))
    async with serving(tmp_path / "registry", context) as port:
        assert await common_name(port, authority) == "old"
        put(authority, tmp_path, "new", key="old")  # they do not belong together: half-way through a renewal
        await asyncio.sleep(0.1)
        assert await common_name(port, authority) == "old"
        put(authority, tmp_path, "new")
        async with asyncio.timeout(10):
            while await common_name(port, authority) != "new":  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_with_a_client_ca_only_its_clients_are_taken(tmp_path: Path, authority: Path) -> None:
    put(authority, tmp_path, "new")
    context = server_context(config_of(tmp_path, client_ca=str(authority / "ca.pem")))
    async with serving(tmp_path / "registry", context) as port:
        assert await common_name(port, authority, client="client") == "new"
        for client in ("", "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await common_name(port, authority, client=client)


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, authority: Path) -> None:
    put(authority, tmp_path, "new", key="old")
    with pytest.raises(InvalidParameter, match=r"tls: cannot use .*served.pem with .*served.key"):
        server_context(config_of(tmp_path))
    with pytest.raises(InvalidParameter, match=r"tls: cannot use .*none"):
        server_context(TLSConfig(cert=str(tmp_path / "none"), key=str(tmp_path / "none")))
