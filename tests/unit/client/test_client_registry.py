"""A registry as the client speaks to it: what it asks for first, where it redirects to, and what is not believed."""

import base64
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from harness.scripted_http import ScriptedServer as Fake
from wherry.client.proxy import find_proxy, is_exempt
from wherry.client.registry import (
    MAX_DOCUMENT,
    OCI_MANIFEST,
    ManifestUnknown,
    Registry,
    is_loopback,
    parse_server,
    parse_url,
)
from wherry.client.registry_auth import Credentials, RegistryError, parse_challenges

MANIFEST = b'{"schemaVersion":2}'
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
ALICE = Credentials("alice", "wonderland")


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's hundreds are not needed here, and take long to read."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


def manifest(raw: bytes = MANIFEST, media_type: str = OCI_MANIFEST) -> tuple[int, list[tuple[str, str]], bytes]:
    return 200, [("Content-Type", media_type)], raw


def refused(*challenges: str) -> tuple[int, list[tuple[str, str]], bytes]:
    body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).encode()
    return 401, [("WWW-Authenticate", challenge) for challenge in challenges], body


def failed(status: int, *errors: tuple[str, str], headers: tuple[tuple[str, str], ...] = ()) -> Any:
    body = json.dumps({"errors": [{"code": code, "message": message} for code, message in errors]}).encode()
    return status, headers, body


# -- the challenge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Basic realm="r"', {"basic": {"realm": "r"}}),
        ('Bearer realm="https://a/t?x=1,2",service="s, t",scope="a:b:pull"',
         {"bearer": {"realm": "https://a/t?x=1,2", "service": "s, t", "scope": "a:b:pull"}}),
        ('Basic realm="r", Bearer realm=x', {"basic": {"realm": "r"}, "bearer": {"realm": "x"}}),
        (r'Basic realm="a\"b"', {"basic": {"realm": 'a"b'}}),
        ("Negotiate", {"negotiate": {}}),
        ('Basic realm="open', {"basic": {"realm": "open"}}),
        (",,= ,", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_challenges_are_read(text: str, found: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(text) == found


def test_a_manifest_comes_with_its_type_and_digest(fake: Fake) -> None:
    fake.script["GET /v2/a/b/manifests/1"] = manifest()
    with Registry(fake.domain, None) as registry:
        fetched = registry.get_manifest("a/b", "1")
    assert (fetched.raw, fetched.media_type, fetched.digest) == (MANIFEST, OCI_MANIFEST, DIGEST)
    accepted = fake.seen[0][2]["accept"]
    assert "image.index.v1+json" in accepted
    assert "manifest.list.v2+json" in accepted
    assert "authorization" not in fake.seen[0][2]


def test_a_password_is_sent_when_it_is_asked_for_and_then_at_once(fake: Fake) -> None:
    def answer(target: str, headers: dict[str, str], body: bytes) -> Any:
        return manifest() if "authorization" in headers else refused('Basic realm="r"')

    fake.script["GET /v2/a/manifests/1"] = answer
    with Registry(fake.domain, ALICE) as registry:
        registry.get_manifest("a", "1")
        registry.get_manifest("a", "1")
    basic = "Basic " + base64.b64encode(b"alice:wonderland").decode()
    assert [headers.get("authorization") for _, _, headers, _ in fake.seen] == [None, basic, basic]


def test_without_a_password_it_says_how_to_log_in(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = refused('Basic realm="r"')
    with Registry(fake.domain, None) as registry, pytest.raises(RegistryError) as caught:
        registry.get_manifest("a", "1")
    assert "no basic auth credentials" in str(caught.value)
    assert f"wherry login {fake.domain}" in str(caught.value)


def test_a_wrong_password_is_sent_once(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = refused('Basic realm="r"')
    with Registry(fake.domain, ALICE) as registry, pytest.raises(RegistryError, match=r"^unauthorized: authentication"):
        registry.get_manifest("a", "1")
    assert len(fake.seen) == 2


def test_a_token_is_fetched_once_for_each_scope(fake: Fake, other: Fake) -> None:
    def token(target: str, headers: dict[str, str], body: bytes) -> Any:
        return 200, [], json.dumps({"token": "+".join(parse_qs(urlsplit(target).query)["scope"])}).encode()

    def answer(target: str, headers: dict[str, str], body: bytes) -> Any:
        wanted = "repository:a:pull" if "/manifests/" in target else "repository:a:pull,push+repository:b:pull"
        if headers.get("authorization") != f"Bearer {wanted}":
            return refused(f'Bearer realm="http://{other.domain}/token",service="s t"')
        return manifest() if "/manifests/" in target else (201, [], b"")

    other.script["GET /token"] = token
    fake.script["GET /v2/a/manifests/1"] = answer
    fake.script["POST /v2/a/blobs/uploads/"] = answer
    with Registry(fake.domain, ALICE) as registry:
        registry.get_manifest("a", "1")
        registry.get_manifest("a", "1")
        registry.mount("a", DIGEST, origin="b")
    assert other.asked() == [
        "GET /token?account=alice&service=s%20t&scope=repository%3Aa%3Apull",
        "GET /token?account=alice&service=s%20t&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%3Apull",
    ]
    assert {headers["authorization"] for _, _, headers, _ in other.seen} == {
        "Basic " + base64.b64encode(b"alice:wonderland").decode()
    }
    assert len(fake.seen) == 5


def test_an_identity_token_is_traded_by_post(fake: Fake, other: Fake) -> None:
    other.script["POST /token"] = (200, [], b'{"access_token":"fresh"}')
    fake.script["GET /v2/a/manifests/1"] = [
        refused(f'Bearer realm="http://{other.domain}/token",service="s"'),
        manifest(),
    ]
    with Registry(fake.domain, Credentials(identity_token="id entity")) as registry:
        registry.get_manifest("a", "1")
    _, _, headers, body = other.seen[0]
    assert parse_qs(body.decode()) == {
        "grant_type": ["refresh_token"], "service": ["s"], "client_id": ["wherry"],
        "scope": ["repository:a:pull"], "refresh_token": ["id entity"],
    }  # fmt: skip
    assert "authorization" not in headers
    assert fake.seen[1][2]["authorization"] == "Bearer fresh"


def test_a_registry_token_is_used_as_it_is(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = [manifest(), refused('Bearer realm="http://127.0.0.1:1/"')]
    with Registry(fake.domain, Credentials(registry_token="mine")) as registry:
        registry.get_manifest("a", "1")
        with pytest.raises(RegistryError, match="authentication required"):
            registry.get_manifest("a", "1")
    assert {headers["authorization"] for _, _, headers, _ in fake.seen} == {"Bearer mine"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (failed(403, ("DENIED", "not you")), "no token from http://.*: denied: not you"),
        ((200, [], b"{}"), "its answer has none"),
        ((200, [], b"no json"), "its answer has none"),
        ((200, [], b'{"token":"a\\r\\nEvil: 1"}'), "its answer has none"),
    ],
)
def test_a_token_server_that_gives_none(fake: Fake, other: Fake, answer: Any, words: str) -> None:
    other.script["GET /token"] = answer
    fake.script["GET /v2/a/manifests/1"] = refused(f'Bearer realm="http://{other.domain}/token"')
    with Registry(fake.domain, None) as registry, pytest.raises(RegistryError, match=words):
        registry.get_manifest("a", "1")


# -- what is not believed ----------------------------------------------------------------------------------------------


def test_what_comes_by_digest_must_have_it(fake: Fake) -> None:
    fake.script[f"GET /v2/a/manifests/{DIGEST}"] = manifest(b"{}")
    fake.script[f"GET /v2/a/blobs/{DIGEST}"] = (200, [], b"{}")
    with Registry(fake.domain, None) as registry:
        with pytest.raises(RegistryError, match=f"asked for {DIGEST}, the registry sent sha256:"):
            registry.get_manifest("a", DIGEST)
        with pytest.raises(RegistryError, match=f"blob {DIGEST} is damaged"):
            registry.get_blob("a", DIGEST)


def test_an_endless_answer_is_cut_off(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = manifest(b"x" * (MAX_DOCUMENT + 1))
    with Registry(fake.domain, None) as registry, pytest.raises(RegistryError, match="longer than 8 MiB"):
        registry.get_manifest("a", "1")


def test_redirects_are_followed_without_the_password(fake: Fake, other: Fake) -> None:
    fake.script[f"GET /v2/a/blobs/{DIGEST}"] = [
        refused('Basic realm="r"'),
        (307, [("Location", f"http://{other.domain}/blob?signed=1")], b""),
    ]
    other.script["GET /blob"] = (200, [], MANIFEST)
    with Registry(fake.domain, ALICE) as registry:
        assert registry.get_blob("a", DIGEST) == MANIFEST
    assert other.asked() == ["GET /blob?signed=1"]
    assert "authorization" not in other.seen[0][2]


@pytest.mark.parametrize(
    ("location", "words"),
    [("ftp://x/", "not an http address"), ("", "not an http address"), ("/a b", "is no address"),
     ("http://h:99999/", "its port is no number"), ("/v2/a/manifests/1", "more than 5 redirects")],
)  # fmt: skip
def test_redirects_that_lead_nowhere(fake: Fake, location: str, words: str) -> None:
    fake.script["GET /v2/a/manifests/1"] = (307, [("Location", location)], b"")
    with Registry(fake.domain, None) as registry, pytest.raises(RegistryError, match=words):
        registry.get_manifest("a", "1")


def test_refusals_are_passed_on_in_full(fake: Fake) -> None:
    fake.script = {
        "GET /v2/a/manifests/1": failed(404, ("MANIFEST_UNKNOWN", "manifest unknown")),
        "GET /v2/a/manifests/2": failed(403, ("DENIED", "not yours"), ("UNSUPPORTED", "")),
        "GET /v2/a/manifests/3": failed(429, ("TOOMANYREQUESTS", "slow down"), headers=(("Retry-After", "7"),)),
        "GET /v2/a/manifests/4": (500, [], b"<html>oops"),
        "GET /v2/a/manifests/5": (502, [], b""),
    }
    said = []
    with Registry(fake.domain, None) as registry:
        for tag in "12345":
            with pytest.raises(RegistryError) as caught:
                registry.get_manifest("a", tag)
            said.append(str(caught.value))
        with pytest.raises(ManifestUnknown):
            registry.get_manifest("a", "1")
    assert said == [
        "manifest unknown: manifest unknown",
        "denied: not yours; unsupported",
        "toomanyrequests: slow down; try again in 7 s",
        "<html>oops",
        "the registry answered 502",
    ]


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_manifest_is_put_as_it_is(fake: Fake) -> None:
    fake.script["PUT /v2/a/manifests/1"] = (201, [], b"")
    with Registry(fake.domain, None) as registry:
        assert registry.put_manifest("a", "1", OCI_MANIFEST, MANIFEST) == DIGEST
    _, _, headers, body = fake.seen[0]
    assert (headers["content-type"], body) == (OCI_MANIFEST, MANIFEST)


def test_a_mount_that_is_declined_leaves_no_upload(fake: Fake) -> None:
    fake.script = {
        "POST /v2/a/blobs/uploads/": (202, [("Location", "/v2/a/blobs/uploads/7?state=x")], b""),
        "DELETE /v2/a/blobs/uploads/7": (204, [], b""),
        f"HEAD /v2/a/blobs/{DIGEST}": [(404, [], b""), (200, [], b"")],
    }
    with Registry(fake.domain, None) as registry:
        with pytest.raises(RegistryError, match=f"error mounting .*/b@{DIGEST} to .*/a: "):
            registry.mount("a", DIGEST, origin="b")
        registry.mount("a", DIGEST, origin="b")  # it is there by now
    assert fake.asked()[:3] == [
        f"POST /v2/a/blobs/uploads/?mount={DIGEST.replace(':', '%3A')}&from=b",
        "DELETE /v2/a/blobs/uploads/7?state=x",
        f"HEAD /v2/a/blobs/{DIGEST}",
    ]


# -- connections -------------------------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests_and_is_closed_at_the_end(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = manifest()
    registry = Registry(fake.domain, None)
    for _ in range(3):
        registry.get_manifest("a", "1")
    (stream,) = registry._kept.values()
    assert fake.connections == 2  # the first one finds out that no TLS is spoken here
    registry.close()
    assert stream.fileno() == -1


def test_a_connection_that_was_closed_meanwhile_is_opened_again(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = (200, [("Content-Type", OCI_MANIFEST), ("Connection", "close")], MANIFEST)
    with Registry(fake.domain, None) as registry:
        assert registry.get_manifest("a", "1").raw == registry.get_manifest("a", "1").raw


def test_nobody_there(fake: Fake) -> None:
    fake.close()
    with Registry(fake.domain, None) as registry, pytest.raises(RegistryError, match="Connection refused"):
        registry.get_manifest("a", "1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.1.2.3", True), ("::1", True), ("127.evil.example", False), ("10.0.0.1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [("a", "a", 443), ("a:1", "a", 1), ("[::1]", "::1", 443), ("[::1]:5000", "::1", 5000)],
)
def test_servers_are_parsed(authority: str, host: str, port: int) -> None:
    server = parse_server("https", authority)
    assert (server.host, server.port, server.authority) == (host, port, authority)


def test_urls_are_parsed() -> None:
    server, path = parse_url("http://a:80/b?c=d")
    assert (str(server), path) == ("http://a", "/b?c=d")
    assert parse_url("https://a")[1] == "/"
    for text in ("a", "ftp://a/", "https://a:x/"):
        with pytest.raises(RegistryError):
            parse_url(text)


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("missing: openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure(certificate: Path) -> Iterator[Callable[..., Fake]]:
    made: list[Fake] = []

    def start(*, ask: bool = False) -> Fake:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        if ask:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificate / "cert.pem")
        made.append(Fake(context))
        made[-1].script["GET /v2/a/manifests/1"] = manifest()
        return made[-1]

    yield start
    for fake in made:
        fake.close()


def test_certificates_are_those_of_certs_d(secure: Callable[..., Fake], certificate: Path, tmp_path: Path) -> None:
    fake = secure(ask=True)
    folder = tmp_path / fake.domain
    folder.mkdir()
    shutil.copy(certificate / "cert.pem", folder / "ca.crt")
    shutil.copy(certificate / "cert.pem", folder / "client.cert")
    shutil.copy(certificate / "key.pem", folder / "client.key")
    with Registry(fake.domain, None, certificates=str(tmp_path)) as registry:
        assert registry.get_manifest("a", "1").digest == DIGEST
    (folder / "client.key").unlink()
    with (
        Registry(fake.domain, None, certificates=str(tmp_path)) as registry,
        pytest.raises(RegistryError, match=r"client\.cert cannot be used"),
    ):
        registry.get_manifest("a", "1")


def test_a_stranger_s_certificate_is_refused_unless_told_otherwise(secure: Callable[..., Fake], tmp_path: Path) -> None:
    fake = secure()
    with (
        Registry(fake.domain, None, certificates=str(tmp_path)) as registry,
        pytest.raises(RegistryError) as caught,
    ):
        registry.get_manifest("a", "1")
    assert "certificate verify failed" in str(caught.value)
    assert not fake.seen
    with Registry(fake.domain, None, insecure=True, certificates=str(tmp_path)) as registry:
        assert registry.get_manifest("a", "1").digest == DIGEST


def test_nothing_goes_on_in_the_clear(secure: Callable[..., Fake], fake: Fake, tmp_path: Path) -> None:
    safe = secure()
    safe.script[f"GET /v2/a/blobs/{DIGEST}"] = (307, [("Location", f"http://{fake.domain}/blob")], b"")
    safe.script["GET /v2/a/manifests/2"] = refused(f'Bearer realm="http://{fake.domain}/token"')
    with Registry(safe.domain, ALICE, insecure=True, certificates=str(tmp_path)) as registry:
        for ask in (lambda: registry.get_blob("a", DIGEST), lambda: registry.get_manifest("a", "2")):
            with pytest.raises(RegistryError, match="which is not encrypted: refused"):
                ask()
    assert not fake.seen


# -- proxies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "exempt"),
    [
        ("", False), ("*", True), ("r.example", True), ("example", True), (".example", True), ("*.example", True),
        ("other, r.example", True), ("R.EXAMPLE", True), ("r.example:5000", True), ("r.example:5001", False),
        ("ample", False), ("10.0.0.0/8", False), (",,", False),
    ],
)  # fmt: skip
def test_hosts_without_a_proxy(listed: str, exempt: bool) -> None:
    assert is_exempt(listed, "r.example", 5000) is exempt


def test_networks_without_a_proxy() -> None:
    assert is_exempt("10.0.0.0/8", "10.1.2.3", 443)
    assert is_exempt("fd00::/8", "fd00::1", 443)
    assert not is_exempt("10.0.0.0/8", "11.1.2.3", 443)
    assert not is_exempt("10.0.0.0/99", "10.1.2.3", 443)


def test_which_proxy() -> None:
    secure, plain = parse_server("https", "r.example"), parse_server("http", "r.example")
    given = {"HTTPS_PROXY": "http://me:p%40ss@p.example:8080/", "http_proxy": "p2.example"}
    found, other = find_proxy(given, secure), find_proxy(given, plain)
    assert found is not None
    assert other is not None
    assert (found.host, found.port) == ("p.example", 8080)
    assert found.headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert (other.host, other.port, other.headers) == ("p2.example", 80, {})
    assert find_proxy(given, parse_server("https", "127.0.0.1:5000")) is None
    assert find_proxy({**given, "NO_PROXY": "r.example"}, secure) is None
    with pytest.raises(RegistryError, match="not in socks5"):
        find_proxy({"HTTPS_PROXY": "socks5://p"}, secure)


def test_plain_http_asks_the_proxy_for_whole_urls(fake: Fake) -> None:
    fake.script["GET /v2/a/manifests/1"] = manifest()
    closed = "http://127.0.0.1:1"  # no tunnel: then what is insecure goes without TLS
    environ = {"HTTP_PROXY": f"http://me:pw@{fake.domain}", "HTTPS_PROXY": closed}
    with Registry("r.example:5000", None, insecure=True, environ=environ) as registry:
        assert registry.get_manifest("a", "1").digest == DIGEST
    _, target, headers, _ = fake.seen[0]
    assert target == "http://r.example:5000/v2/a/manifests/1"
    assert headers["host"] == "r.example:5000"
    assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()


class Tunnel:
    """A proxy for one connection, which leads to `port` whatever it was asked for."""

    def __init__(self, port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.port, self.answer, self.asked = port, answer, b""
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return  # closed, and nobody came
        client.settimeout(10)
        with client:
            while not self.asked.endswith(b"\r\n\r\n"):
                self.asked += client.recv(65536)
            client.sendall(self.answer)
            if b" 200 " not in self.answer:
                return
            with socket.create_connection(("127.0.0.1", self.port), 10) as server:
                back = threading.Thread(target=self.copy, args=(server, client))
                back.start()
                self.copy(client, server)
                back.join(10)

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()


def test_tls_goes_through_a_tunnel(secure: Callable[..., Fake], tmp_path: Path) -> None:
    fake = secure()
    with Tunnel(fake.server.server_port) as tunnel:
        environ = {"HTTPS_PROXY": f"http://{tunnel.address}"}
        with Registry("r.example", None, insecure=True, certificates=str(tmp_path), environ=environ) as registry:
            assert registry.get_manifest("a", "1").digest == DIGEST
    assert tunnel.asked.startswith(b"CONNECT r.example:443 HTTP/1.1\r\nHost: r.example:443\r\n")
    assert fake.seen[0][2]["host"] == "r.example"


def test_a_proxy_that_lets_nobody_through() -> None:
    with (
        Registry("r.example", None, environ={"HTTPS_PROXY": "http://127.0.0.1:1"}) as registry,
        pytest.raises(RegistryError, match=r"^proxy 127\.0\.0\.1:1: Connection refused; a registry that"),
    ):
        registry.get_manifest("a", "1")
    with Tunnel(0, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as tunnel:
        environ = {"HTTPS_PROXY": f"http://{tunnel.address}"}
        with (
            Registry("r.example", None, environ=environ) as registry,
            pytest.raises(RegistryError, match=r"does not let through to r\.example:443: 403 Forbidden"),
        ):
            registry.get_manifest("a", "1")
