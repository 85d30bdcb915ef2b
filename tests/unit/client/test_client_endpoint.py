"""Where the engine is: -H, the environment, and TLS settings."""

from pathlib import Path

import pytest

from wherry.client.endpoint import EndpointError, find_endpoint, parse_host


@pytest.mark.parametrize(
    ("text", "path", "host", "port"),
    [
        ("", "/run/wherry.sock", "", 0),
        ("unix:///tmp/x.sock", "/tmp/x.sock", "", 0),
        ("unix://", "/run/wherry.sock", "", 0),
        ("tcp://10.0.0.1:99", None, "10.0.0.1", 99),
        ("tcp://10.0.0.1", None, "10.0.0.1", 2375),
        ("tcp://:2375", None, "127.0.0.1", 2375),
        ("tcp://[::1]:80/x", None, "::1", 80),
        ("tcp://[::1]", None, "::1", 2375),
        ("example.com", None, "example.com", 2375),
        ("127.0.0.1:1", None, "127.0.0.1", 1),
    ],
)
def test_addresses(text: str, path: str | None, host: str, port: int) -> None:
    endpoint = parse_host(text)
    assert (endpoint.path, endpoint.host, endpoint.port) == (path, host, port)


@pytest.mark.parametrize("text", ["foo://x", "tcp://x:y", "tcp://x:0", "tcp://x:70000", "tcp://[::1", "ssh://x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(EndpointError, match="invalid bind address format"):
        parse_host(text)


def test_the_flag_wins_over_our_variable_and_ours_over_dockers() -> None:
    environ = {"WHERRY_HOST": "unix:///w", "DOCKER_HOST": "unix:///d"}
    assert find_endpoint("unix:///f", environ).path == "/f"
    assert find_endpoint(None, environ).path == "/w"
    assert find_endpoint(None, {"DOCKER_HOST": "unix:///d"}).path == "/d"
    assert find_endpoint(None, {}).path == "/run/wherry.sock"


def test_tls_takes_its_files_from_the_directory_of_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    endpoint = find_endpoint("tcp://h", environ, cert="/other")
    assert endpoint.port == 2376
    assert endpoint.tls is not None
    assert (endpoint.tls.ca, endpoint.tls.cert, endpoint.tls.key, endpoint.tls.verify) == (
        f"{tmp_path}/ca.pem", "/other", None, True,
    )  # fmt: skip
    assert find_endpoint("unix:///x", environ).tls is None
    assert find_endpoint("tcp://h", {}).tls is None


def test_verifying_without_an_authority_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"ca\.pem: no such file or directory"):
        find_endpoint("tcp://h", {"DOCKER_CERT_PATH": str(tmp_path)}, tls_verify=True)
