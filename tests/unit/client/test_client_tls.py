"""TLS that half-closes: the client says it is done and still hears the answer."""

import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.client.endpoint import Endpoint, TLSFiles, parse_host
from wherry.client.http import ConnectError, open_stream


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate for 127.0.0.1, which is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("missing: openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def serve(certificates: Path) -> Iterator[Callable[..., Endpoint]]:
    """`serve(script)`: a TLS server for one connection; the endpoint to reach it."""
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def start(script: Callable[[ssl.SSLSocket], None], *, ask: bool = False) -> Endpoint:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        if ask:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificates / "cert.pem")

        def run() -> None:
            connection, _ = listener.accept()
            connection.settimeout(10)
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    script(secure)
            except OSError:
                return  # the client may be the one that refuses

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return parse_host(f"tcp://127.0.0.1:{listener.getsockname()[1]}")

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


def echo_after_end(secure: ssl.SSLSocket) -> None:
    received = b""
    while data := secure.recv(65536):
        received += data
    secure.sendall(b"got %d" % len(received))


def test_the_answer_comes_after_the_half_close(serve: Callable[..., Endpoint], certificates: Path) -> None:
    endpoint = serve(echo_after_end, ask=True)
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    endpoint.tls = TLSFiles(ca=cert, cert=cert, key=key, verify=True)
    stream = open_stream(endpoint)
    stream.send(b"x" * 1_000_000)
    assert stream.send_some(b"yz") == 2
    stream.close_write()
    received = b""
    while data := stream.recv():
        received += data
    stream.close()
    assert received == b"got 1000002"


def test_a_server_that_cannot_be_verified_is_refused(serve: Callable[..., Endpoint], tmp_path: Path) -> None:
    endpoint = serve(echo_after_end)
    endpoint.tls = TLSFiles(ca=None, cert=None, key=None, verify=True)
    with pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        open_stream(endpoint)


def test_without_verification_any_server_will_do(serve: Callable[..., Endpoint]) -> None:
    endpoint = serve(echo_after_end)
    endpoint.tls = TLSFiles(ca=None, cert=None, key=None, verify=False)
    stream = open_stream(endpoint)
    stream.close_write()
    assert stream.recv() == b"got 0"
    stream.close()


def test_session_tickets_are_nothing_to_read(serve: Callable[..., Endpoint]) -> None:
    """An idle connection on which they came is as good as ever; one that was closed is not."""
    end = threading.Event()

    def script(secure: ssl.SSLSocket) -> None:
        assert secure.version() == "TLSv1.3"
        assert end.wait(10)

    endpoint = serve(script)
    endpoint.tls = TLSFiles(ca=None, cert=None, key=None, verify=False)
    stream = open_stream(endpoint)
    assert select.select([stream.fileno()], [], [], 10)[0]  # there they are
    assert not stream.readable()
    assert not stream.readable()
    end.set()
    assert select.select([stream.fileno()], [], [], 10)[0]
    assert stream.readable()
    stream.close()
