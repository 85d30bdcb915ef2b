"""TLS to registries: whose certificates are believed, and the client's own."""

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imagekit.making import make
from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import Endpoint, RegistryConfig
from wherry.distribution.endpoint import connect
from wherry.errors import Failed
from wherry.spec.distribution import ANONYMOUS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; server and client, .pem and .key, signed by it."""
    assert shutil.which("openssl"), "openssl makes the certificates"
    home = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        (home / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
    return home


@asynccontextmanager
async def serving(authority: Path, *, demanding: bool = False) -> AsyncIterator[Endpoint]:
    """A registry over TLS; `demanding` takes only clients with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    if demanding:
        context.load_verify_locations(authority / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    registry = FakeRegistry()
    registry.add("x", "1", make([]))
    async with serve(registry, context=context) as running:
        yield Endpoint(base=running.base, host=running.host)


async def ask(config: RegistryConfig, endpoint: Endpoint) -> int:
    async with (
        connect(config, endpoint, ANONYMOUS) as connection,
        connection.request("GET", "/v2/x/manifests/1") as response,
    ):
        return response.status


def certificates(folder: Path, endpoint: Endpoint, **files: Path) -> RegistryConfig:
    """A certs.d with these files for the endpoint's host."""
    own = folder / endpoint.host
    own.mkdir()
    for name, source in files.items():
        shutil.copy(source, own / name.replace("_", "."))
    return RegistryConfig(certificates=folder)


async def test_a_certificate_of_nobody_known_is_refused(authority, tmp_path):
    async with serving(authority) as endpoint:
        with pytest.raises(Failed, match="certificate signed by unknown authority"):
            await ask(RegistryConfig(certificates=tmp_path), endpoint)


async def test_the_authority_kept_for_the_host_is_believed(authority, tmp_path):
    async with serving(authority) as endpoint:
        config = certificates(tmp_path, endpoint, ca_crt=authority / "ca.pem")
        assert await ask(config, endpoint) == 200


async def test_the_authority_kept_for_another_host_is_not(authority, tmp_path):
    async with serving(authority) as endpoint:
        other = Endpoint(base="https://127.0.0.1:1", host="127.0.0.1:1")
        config = certificates(tmp_path, other, ca_crt=authority / "ca.pem")
        with pytest.raises(Failed, match="unknown authority"):
            await ask(config, endpoint)


async def test_an_insecure_registrys_certificate_is_not_looked_at(authority, tmp_path):
    async with serving(authority) as endpoint:
        careless = Endpoint(base=endpoint.base, host=endpoint.host, verify=False)
        assert await ask(RegistryConfig(certificates=tmp_path), careless) == 200


async def test_a_registry_that_wants_to_know_its_clients_gets_the_certificate_kept_for_it(authority, tmp_path):
    async with serving(authority, demanding=True) as endpoint:
        config = certificates(
            tmp_path,
            endpoint,
            ca_crt=authority / "ca.pem",
            client_cert=authority / "client.pem",
            client_key=authority / "client.key",
        )
        assert await ask(config, endpoint) == 200


async def test_without_a_certificate_such_a_registry_refuses_us(authority, tmp_path):
    async with serving(authority, demanding=True) as endpoint:
        config = certificates(tmp_path, endpoint, ca_crt=authority / "ca.pem")
        with pytest.raises(Failed) as caught:
            await ask(config, endpoint)
    assert endpoint.host in caught.value.message
