"""Registries and proxies from daemon.json, flags and environment."""

import json
from pathlib import Path

import pytest

from wherry.daemon.config import parse_command_line
from wherry.daemon.registries import registry_config
from wherry.distribution.config import HostConfig
from wherry.distribution.proxy import Proxies
from wherry.errors import InvalidParameter


def read(tmp_path: Path, document: object, *flags: str, environ: dict[str, str] | None = None):
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps(document))
    config, _ = parse_command_line(["--config-file", str(path), *flags])
    return registry_config(config, environ or {})


def test_a_registry_has_mirrors_a_ca_and_a_proxy(tmp_path):
    (tmp_path / "ca.pem").write_text("")
    entry = {"mirrors": ["https://m.test"], "insecure": True, "ca": str(tmp_path / "ca.pem"), "proxy": "direct"}
    found = read(tmp_path, {"registries": {"quay.io": entry, "r.test:5000": {}}})
    assert found.hosts == {
        "quay.io": HostConfig(mirrors=["https://m.test"], insecure=True, ca=tmp_path / "ca.pem", proxy="direct"),
        "r.test:5000": HostConfig(mirrors=[]),
    }


def test_proxies_come_from_file_flags_and_environment_in_this_order(tmp_path):
    environ = {"HTTP_PROXY": "env:1", "HTTPS_PROXY": "env:2", "NO_PROXY": "env"}
    said = {"http-proxy": "http://file:1", "no-proxy": "file"}
    assert read(tmp_path, {"proxies": said}, environ=environ).proxies == Proxies(
        http="http://file:1", https="env:2", no="file"
    )
    assert read(tmp_path, {}, "--https-proxy", "http://flag:2", "--no-proxy=a,b", environ=environ).proxies == Proxies(
        http="env:1", https="http://flag:2", no="a,b"
    )
    assert read(tmp_path, {}).proxies == Proxies()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"registries": {"x": {"mirror": []}}}, "unknown field `mirror`"),
        ({"registries": {"x": {"mirrors": "https://m"}}}, r"Expected `array`, got `str`"),
        ({"proxies": {"http_proxy": "x"}}, "unknown field `http_proxy`"),
        ({"registries": {"x": {"mirrors": ["m.test"]}}}, "invalid mirror"),
        ({"registries": {"x": {"ca": "/no/such/file"}}}, "CA certificate /no/such/file of x cannot be read"),
        ({"registries": {"https://x": {}}}, r"invalid registry 'https://x' in registries"),
        ({"proxies": {"https-proxy": "socks5://x"}}, "invalid https-proxy"),
    ],
)
def test_what_cannot_work_is_refused_at_start_by_name(tmp_path, document, words):
    with pytest.raises(InvalidParameter, match=words):
        read(tmp_path, document)


def test_a_proxy_by_flag_and_file_at_once_is_refused(tmp_path):
    with pytest.raises(InvalidParameter, match="both as a flag and in the configuration file: proxies"):
        read(tmp_path, {"proxies": {}}, "--http-proxy", "x:1")


def test_foreign_layers_are_pushed_to_the_registries_that_were_named(tmp_path):
    flag = "--allow-nondistributable-artifacts"
    found = read(tmp_path, {}, flag, "r.test:5000", flag, "10.0.0.0/8")
    assert [found.takes_foreign(host) for host in ("r.test:5000", "10.1.2.3:5000", "r.test", "192.0.2.1:5000")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(InvalidParameter, match=r"registry 10\.0\.0\.0/99 is neither host\[:port\] nor a network"):
        read(tmp_path, {"allow-nondistributable-artifacts": ["10.0.0.0/99"]})
