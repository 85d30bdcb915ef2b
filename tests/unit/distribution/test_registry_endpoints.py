"""Which endpoints are tried for a domain, and which registries may be spoken to insecurely."""

from pathlib import Path

import pytest

from wherry.distribution.config import Endpoint, RegistryConfig, check, endpoints, is_insecure, tls
from wherry.errors import Failed, InvalidParameter


async def test_docker_io_is_asked_at_its_real_address_after_the_mirrors():
    config = RegistryConfig(mirrors=["http://127.0.0.1:5000/", "https://mirror.example/path"])
    found = await endpoints(config, "docker.io")
    assert [endpoint.base for endpoint in found] == [
        "http://127.0.0.1:5000",
        "https://mirror.example/path",
        "https://registry-1.docker.io",
    ]
    assert [endpoint.mirror for endpoint in found] == [True, True, False]


async def test_a_secure_registry_is_never_asked_in_clear_text():
    found = await endpoints(RegistryConfig(), "192.0.2.1:5000")
    assert [(endpoint.base, endpoint.verify) for endpoint in found] == [("https://192.0.2.1:5000", True)]


async def test_an_insecure_registry_is_asked_by_https_and_then_by_http():
    found = await endpoints(RegistryConfig(), "127.0.0.2:5000")
    assert [endpoint.base for endpoint in found] == ["https://127.0.0.2:5000", "http://127.0.0.2:5000"]
    assert not any(endpoint.verify for endpoint in found)


@pytest.mark.parametrize(
    ("domain", "insecure"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.1.2.3:80", True),
        ("[::1]:5000", True),
        ("10.1.2.3:5000", True),
        ("10.2.0.1", False),
        ("192.0.2.9:5000", True),
        ("192.0.2.9:5001", False),
        ("plain.invalid", True),
        ("other.invalid", False),
    ],
)
async def test_insecure_registries_are_loopback_and_what_the_daemon_was_told(domain, insecure):
    config = RegistryConfig(insecure=["10.1.0.0/16", "192.0.2.9:5000", "plain.invalid"])
    assert await is_insecure(config, domain) is insecure


@pytest.mark.parametrize("entry", ["http://x", "10.0.0.0/99", "x/y"])
def test_a_bad_insecure_registry_is_refused_at_start(entry):
    with pytest.raises(InvalidParameter, match="insecure registry"):
        check(RegistryConfig(insecure=[entry]))


@pytest.mark.parametrize("entry", ["mirror.example", "ftp://x", "https://", "https://u:p@x", "https://x?q"])
def test_a_bad_mirror_is_refused_at_start(entry):
    with pytest.raises(InvalidParameter, match="invalid mirror"):
        check(RegistryConfig(mirrors=[entry]))


def test_good_settings_pass():
    check(RegistryConfig(insecure=["10.0.0.0/8", "x:5000"], mirrors=["https://m.example/p", "http://127.0.0.1:5000"]))


def test_a_broken_certificate_is_named(tmp_path: Path):
    folder = tmp_path / "r.example:5000"
    folder.mkdir()
    (folder / "ca.crt").write_text("nonsense")
    with pytest.raises(Failed, match=r"cannot use certificate .*ca\.crt"):
        tls(RegistryConfig(certificates=tmp_path), Endpoint(base="https://r.example:5000", host="r.example:5000"))


def test_a_client_certificate_without_its_key_is_named(tmp_path: Path):
    folder = tmp_path / "r.example"
    folder.mkdir()
    (folder / "client.cert").write_text("x")
    with pytest.raises(Failed, match=r"missing key client\.key"):
        tls(RegistryConfig(certificates=tmp_path), Endpoint(base="https://r.example", host="r.example"))
