"""Bootstrap's parts that need no privilege: finding suite and mirror, trimming, the second layer."""

import io
import tarfile
from pathlib import Path

import pytest

from wherry.images.making.bootstrap import (
    DEFAULT_SUITE,
    apt_layer,
    build_busybox,
    find_suite,
    trim_debian,
)

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://other.example/debian
Suites: bookworm-backports
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
LINES = """\
# deb http://commented.example bookworm main
deb-src http://source.example bookworm main
deb http://security.example bookworm-security main
deb [signed-by=/x arch=amd64] http://lines.example/debian bookworm main contrib
"""


def etc(root: Path, *, identity: str = "debian", **files: str) -> Path:
    (root / "apt/sources.list.d").mkdir(parents=True)
    (root / "os-release").write_text(f'PRETTY_NAME="X"\nID={identity}\nVERSION_CODENAME=bookworm\n')
    for name, text in files.items():
        place = root / "apt/sources.list" if name == "lines" else root / "apt/sources.list.d/debian.sources"
        place.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "mirror"),
    [
        ({"lines": LINES}, "http://lines.example/debian"),
        ({"stanzas": DEB822}, "http://mirror.example/debian"),
        ({"lines": LINES, "stanzas": DEB822}, "http://lines.example/debian"),
        ({}, ""),
    ],
)
def test_suite_and_mirror_are_the_machines(tmp_path: Path, files, mirror):
    assert find_suite(etc(tmp_path, **files)) == ("bookworm", mirror)


def test_another_distribution_gets_debians_defaults(tmp_path: Path):
    assert find_suite(etc(tmp_path, identity="ubuntu", lines=LINES)) == (DEFAULT_SUITE, "")
    assert find_suite(tmp_path / "nowhere") == (DEFAULT_SUITE, "")


def test_trimming_takes_caches_and_what_tells_of_the_machine_and_nothing_else(tmp_path: Path):
    kept = ["etc/passwd", "var/lib/dpkg/status", "usr/bin/x"]
    dropped = [
        "var/lib/apt/lists/deb.example_Packages",
        "var/cache/apt/archives/x.deb",
        "var/log/bootstrap.log",
        "var/log/apt/history.log",
        "etc/hostname",
        "etc/resolv.conf",
        "tmp/left",
        "run/x/pid",
    ]
    for name in (*kept, *dropped):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "etc/machine-id").write_text("0123")
    (tmp_path / "dev").mkdir()
    trim_debian(tmp_path)
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in dropped)
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert (tmp_path / "var/lib/apt/lists/partial").is_dir()


def test_the_second_layer_is_the_same_every_time_and_keeps_services_from_starting():
    assert apt_layer() == apt_layer()
    with tarfile.open(fileobj=io.BytesIO(apt_layer())) as archive:
        policy = archive.getmember("usr/sbin/policy-rc.d")
        assert policy.mode == 0o755
        assert "etc/apt/apt.conf.d/docker-clean" in archive.getnames()


def test_a_busybox_tree_has_a_link_for_each_applet(tmp_path: Path):
    binary = tmp_path / "busybox"
    binary.write_bytes(b"\x7fELF")
    root = tmp_path / "root"
    build_busybox(root, binary, ["bin/ls", "usr/bin/[", "bin/busybox"])
    assert (root / "bin/ls").readlink() == Path("/bin/busybox")
    assert (root / "bin/sh").is_symlink()
    assert not (root / "bin/busybox").is_symlink()
    assert {path.stat(follow_symlinks=False).st_mtime_ns for path in root.rglob("*")} == {binary.stat().st_mtime_ns}
