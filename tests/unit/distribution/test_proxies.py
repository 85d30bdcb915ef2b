"""Proxies: who is reached through one, and what goes over it."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imagekit.making import make
from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import Endpoint, HostConfig, RegistryConfig, check
from wherry.distribution.proxy import DIRECT, Proxies, bypasses, from_environment, masked
from wherry.distribution.source import open_source
from wherry.errors import InvalidParameter, WherryError
from wherry.reference import parse
from wherry.spec.distribution import ANONYMOUS


@pytest.mark.parametrize(
    ("no", "host", "port", "direct"),
    [
        ("", "registry.test", 443, False),
        ("", "localhost", 5000, True),
        ("", "127.9.9.9", 5000, True),
        ("", "::1", 5000, True),
        ("*", "registry.test", 443, True),
        ("registry.test", "registry.test", 443, True),
        ("REGISTRY.test", "registry.TEST.", 443, True),
        ("registry.test", "a.registry.test", 443, True),
        ("registry.test", "otherregistry.test", 443, False),
        (".registry.test", "registry.test", 443, False),
        (".registry.test", "a.registry.test", 443, True),
        ("*.registry.test", "a.registry.test", 443, True),
        ("registry.test:5000", "registry.test", 5000, True),
        ("registry.test:5000", "registry.test", 5001, False),
        (" a.test , b.test ", "b.test", 80, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8", "ten.test", 80, False),
        ("192.0.2.7", "192.0.2.7", 80, True),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000, True),
        ("2001:db8::/32", "2001:db8::1", 5000, True),
        ("10.0.0.0/99,,:", "registry.test", 80, False),
    ],
)
def test_who_is_reached_without_a_proxy(no, host, port, direct):
    assert bypasses(no, host, port) is direct


def test_the_scheme_chooses_the_proxy():
    proxies = Proxies(http="http://plain:1", https="secure:2", no="direct.test")
    assert proxies.choose("http://registry.test/v2/") == "http://plain:1"
    assert proxies.choose("https://registry.test/v2/") == "http://secure:2"
    assert proxies.choose("https://direct.test/v2/") is None
    assert Proxies(https="x:1").choose("http://registry.test/v2/") is None


def test_the_environment_is_read_upper_case_first():
    environ = {"HTTP_PROXY": "a:1", "http_proxy": "b:1", "https_proxy": "c:1", "NO_PROXY": "x"}
    assert from_environment(environ) == Proxies(http="a:1", https="c:1", no="x")
    assert from_environment({}) == Proxies()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://ann:secret@proxy:3128", "http://xxxxx:xxxxx@proxy:3128"),
        ("ann:secret@proxy:3128", "xxxxx:xxxxx@proxy:3128"),
        ("http://proxy:3128/path", "http://proxy:3128/path"),
        ("https://ann@proxy/path", "https://xxxxx:xxxxx@proxy/path"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_proxy_has_no_password(url, shown):
    assert masked(url) == shown


@pytest.mark.parametrize("url", ["socks5://proxy:1", "http://", "http://proxy:port", "http://proxy:0"])
def test_a_proxy_that_cannot_work_is_refused_at_start(url):
    with pytest.raises(InvalidParameter, match="invalid http-proxy"):
        check(RegistryConfig(proxies=Proxies(http=url)))
    with pytest.raises(InvalidParameter, match=r"invalid proxy of registry\.test"):
        check(RegistryConfig(hosts={"registry.test": HostConfig(proxy=url)}))


def test_one_registry_may_have_its_own_proxy_or_none():
    config = RegistryConfig(
        proxies=Proxies(http="general:1", https="general:1"),
        hosts={"own.test": HostConfig(proxy="own:1"), "direct.test": HostConfig(proxy=DIRECT)},
    )
    check(config)
    chosen = {
        host: config.proxy(Endpoint(base=f"https://{host}", host=host), f"https://{host}/v2/")
        for host in ("own.test", "direct.test", "other.test")
    }
    assert chosen == {"own.test": "http://own:1", "direct.test": None, "other.test": "http://general:1"}


# --- over the wire ----------------------------------------------------------------------------------------------------


@dataclass
class FakeProxy:
    """Knows one host, `target`, under every name; tells what it was asked."""

    target: tuple[str, int]
    port: int = 0
    asked: list[str] = field(default_factory=list)  # first lines
    credentials: list[str] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        first, *lines = head.decode().split("\r\n")
        self.asked.append(first)
        self.credentials += [line for line in lines if line.lower().startswith("proxy-authorization:")]
        there, back = await asyncio.open_connection(*self.target)
        if first.startswith("CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            method, url, version = first.split(" ")
            path = "/" + url.partition("://")[2].partition("/")[2]
            back.write("\r\n".join([f"{method} {path} {version}", "Connection: close", *lines]).encode())
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def proxying(target: tuple[str, int]) -> AsyncIterator[FakeProxy]:
    proxy = FakeProxy(target)
    server = await asyncio.start_server(proxy.client, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


def address(registry: FakeRegistry) -> tuple[str, int]:
    host, _, port = registry.host.rpartition(":")
    return host, int(port)


async def test_a_registry_is_reached_through_the_proxy_with_its_password(registry):
    made = make([{"a": b"1"}])
    registry.add("x", "1", made)
    async with proxying(address(registry)) as proxy:
        url = f"http://ann:secret@127.0.0.1:{proxy.port}"
        config = RegistryConfig(proxies=Proxies(http=url), insecure=["registry.test"])
        async with open_source(config, parse("registry.test/x:1"), ANONYMOUS) as source:
            assert (await source.manifest("1")).data == made.manifest
    assert any(line.startswith("GET http://registry.test/v2/x/manifests/1") for line in proxy.asked)
    assert proxy.credentials[0].endswith("YW5uOnNlY3JldA==")


async def test_what_no_proxy_names_is_reached_directly(registry):
    async with proxying(address(registry)) as proxy:
        config = RegistryConfig(
            proxies=Proxies(http=f"127.0.0.1:{proxy.port}", https=f"127.0.0.1:{proxy.port}", no="registry.invalid")
        )
        with pytest.raises(WherryError, match="no such host"):
            async with open_source(config, parse("registry.invalid/x:1"), ANONYMOUS):
                pass
        assert proxy.asked == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem with server.key for registry.test, signed by it."""
    assert shutil.which("openssl"), "openssl makes the certificates"
    home = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    (home / "server.ext").write_text("subjectAltName=DNS:registry.test\n")
    openssl("req", *curve, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "server.ext", "-out", "server.pem"),
    )
    return home


@pytest.mark.parametrize("trust", ["ca of the registry", "certs.d", "none"])
async def test_a_secure_registry_is_tunnelled_to_and_its_certificate_checked(
    registry: FakeRegistry, authority: Path, tmp_path: Path, trust: str
):
    registry.add("x", "1", make([{"a": b"1"}]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    async with (
        serve(FakeRegistry(manifests=registry.manifests), context=context) as secure,
        proxying(address(secure)) as proxy,
    ):
        if trust == "certs.d":
            (tmp_path / "registry.test").mkdir()
            shutil.copy(authority / "ca.pem", tmp_path / "registry.test" / "ca.crt")
        config = RegistryConfig(
            proxies=Proxies(https=f"http://127.0.0.1:{proxy.port}"),
            certificates=tmp_path,
            hosts={"registry.test": HostConfig(ca=authority / "ca.pem")} if trust.startswith("ca") else {},
        )
        if trust == "none":
            with pytest.raises(WherryError, match="certificate signed by unknown authority"):
                async with open_source(config, parse("registry.test/x:1"), ANONYMOUS):
                    pass
            return
        async with open_source(config, parse("registry.test/x:1"), ANONYMOUS) as source:
            assert (await source.manifest("1")).data
    assert {line.partition(" HTTP/")[0] for line in proxy.asked} == {"CONNECT registry.test:443"}
