"""What package managers write into a tree, read."""

import json
import os
import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.export.packages import rpm
from wherry.builder.export.packages.apk import parse_installed
from wherry.builder.export.packages.deb import parse_status
from wherry.builder.export.packages.golang import parse_program
from wherry.builder.export.packages.node import parse_manifest
from wherry.builder.export.packages.package import os_release, stanzas
from wherry.builder.export.packages.python import parse_metadata
from wherry.builder.export.packages.scan import scan
from wherry.builder.export.sbom import document

DPKG = """\
Package: libc6
Status: install ok installed
Priority: optional
Section: libs
Installed-Size: 12986
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u10
Replaces: libc6-amd64
Conffiles:
 /etc/ld.so.conf.d/x86_64-linux-gnu.conf d4e7a7b88a71b5ffd9e2644e71a0cfab
Description: GNU C Library: Shared libraries
 Contains the standard libraries that are used by nearly all programs on
 the system. This package includes shared versions of the standard C library
Homepage: https://www.gnu.org/software/libc/libc.html

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: broken
Status: install ok half-configured
Version: 1.0

Package:
Status: install ok installed
Version: 1.0
"""

APK = """\
C:Q1WcsMfgdGEOuFmxCtkrI7Ve6J+to=
P:musl
V:1.2.5-r0
A:x86_64
S:407278
I:667648
T:the musl c library (libc) implementation
U:https://musl.libc.org/
L:MIT
o:musl
m:Timo Teras <timo.teras@iki.fi>
t:1709289603
c:8e6d6a9e4a4c4f6e0ed8ae1e6c2a4dd3b6b9e5ac
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
Z:Q1Imu0aiMFjbBIQvXIDdqFrZsGBfc=

C:Q1bTtF5526tETKfL+lnigzIDvm+2o=
P:libssl3
V:3.3.2-r1
A:x86_64
L:Apache-2.0
o:openssl
"""

PYTHON = """\
Metadata-Version: 2.1
Name: Flask_SQLAlchemy
Version: 3.1.1
Summary: Add SQLAlchemy support to your Flask application.
Author: Somebody
License: BSD-3-Clause
Classifier: Framework :: Flask

Name: not this one
"""


def test_debian():
    (found,) = parse_status(DPKG, namespace="debian", found="/x")
    assert (found.name, found.version, found.source) == ("libc6", "2.36-9+deb12u10", "glibc")
    assert found.purl("debian-12") == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"


def test_alpine():
    musl, ssl = parse_installed(APK, namespace="alpine", found="/x")
    assert musl.purl("alpine-3.20") == "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20"
    assert (musl.license, musl.source) == ("MIT", "")
    assert (ssl.name, ssl.source, ssl.license) == ("libssl3", "openssl", "Apache-2.0")


def test_python():
    found = parse_metadata(PYTHON, found="/x")
    assert found.purl("debian-12") == "pkg:pypi/flask-sqlalchemy@3.1.1"
    assert found.license == "BSD-3-Clause"
    assert parse_metadata("Name: x\n", found="/x") is None


@pytest.mark.parametrize(
    ("manifest", "purl"),
    [
        ({"name": "express", "version": "4.19.2", "license": "MIT"}, "pkg:npm/express@4.19.2"),
        ({"name": "@types/node", "version": "20.1.0"}, "pkg:npm/%40types/node@20.1.0"),
        ({"name": "x"}, None),
        ({"name": 1, "version": []}, None),
        ([], None),
    ],
)
def test_node(manifest, purl):
    found = parse_manifest(json.dumps(manifest).encode(), found="/x")
    assert (found.purl() if found else None) == purl


def header(**fields: str | int) -> bytes:
    """An RPM header as rpm writes it."""
    entries, data = b"", b""
    for name, value in fields.items():
        if isinstance(value, int):
            data += bytes(-len(data) % 4)
            entries += struct.pack(">IIiI", getattr(rpm, name), 4, len(data), 1)
            data += value.to_bytes(4, "big")
        else:
            entries += struct.pack(">IIiI", getattr(rpm, name), 6, len(data), 1)
            data += value.encode() + b"\0"
    return struct.pack(">II", len(fields), len(data)) + entries + data


BASH = header(
    NAME="bash", VERSION="5.2.26", RELEASE="3.fc40", EPOCH=1, LICENSE="GPL-3.0-or-later", ARCHITECTURE="x86_64"
)


def database(path: Path, *blobs: object) -> None:
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        made.executemany("INSERT INTO Packages (blob) VALUES (?)", [(blob,) for blob in blobs])
    made.close()


def test_rpm(tmp_path: Path):
    database(tmp_path / "db", BASH, b"short", "text", header(NAME="gpg-pubkey", VERSION="1"))
    (found,) = rpm.read_database(str(tmp_path / "db"), namespace="fedora", found="/x")
    assert found.version == "1:5.2.26-3.fc40"
    assert found.purl("fedora-40") == "pkg:rpm/fedora/bash@5.2.26-3.fc40?arch=x86_64&distro=fedora-40&epoch=1"
    assert found.license == "GPL-3.0-or-later"


def test_a_database_that_never_ends_is_given_up(tmp_path: Path):
    with sqlite3.connect(tmp_path / "db") as made:
        made.execute(
            "CREATE VIEW Packages AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
            "SELECT x AS blob FROM n WHERE x < 0"
        )
    made.close()
    assert list(rpm.read_database(str(tmp_path / "db"), namespace="", found="/x", work=100_000)) == []


def test_a_database_that_is_none_has_nothing(tmp_path: Path):
    (tmp_path / "db").write_bytes(b"no database" * 100)
    assert list(rpm.read_database(str(tmp_path / "db"), namespace="", found="/x")) == []


def varied(text: bytes) -> bytes:
    size, head = len(text), b""
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + text


def program(lines: str, *, version: str = "go1.22.3") -> bytes:
    """An ELF file as Go's linker makes them, as far as anybody looks."""
    info = b"\xff Go buildinf:" + bytes([8, 2]) + bytes(16)
    info += varied(version.encode()) + varied(b"0" * 16 + lines.encode() + b"1" * 16)
    names = b"\0.go.buildinfo\0.shstrtab\0"
    head = struct.Struct("<16sHHIQQQIHHHHHH")
    section = struct.Struct("<IIQQQQIIQQ")
    at_names = head.size + len(info)
    at_table = at_names + len(names)
    table = bytes(section.size)
    table += section.pack(1, 1, 0, 0, head.size, len(info), 0, 0, 16, 0)
    table += section.pack(15, 3, 0, 0, at_names, len(names), 0, 0, 1, 0)
    start = head.pack(b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, at_table, 0, head.size, 0, 0, section.size, 3, 2)
    return start + info + names + table


MODULES = (
    "path\texample.com/app/cmd\n"
    "mod\texample.com/app\tv1.0.0\t\n"
    "dep\tgolang.org/x/sys\tv0.20.0\th1:Od9JTbYCk261bKm4M/mw7AklTlFYIa0bIp9BgSm1S8Y=\n"
    "dep\texample.com/old\tv1.0.0\n"
    "=>\texample.com/new\tv2.0.0\th1:x=\n"
    "build\t-compiler=gc\n"
)


def read_of(data: bytes):
    return lambda offset, size: data[offset : offset + size]


def test_go():
    found = list(parse_program(read_of(program(MODULES)), found="/app"))
    assert [package.purl() for package in found] == [
        "pkg:golang/stdlib@1.22.3",
        "pkg:golang/example.com/app@v1.0.0",
        "pkg:golang/golang.org/x/sys@v0.20.0",
        "pkg:golang/example.com/new@v2.0.0",
    ]
    assert found[2].checksum.startswith("h1:Od9")


@given(st.binary(max_size=400), st.integers(0, 600))
def test_a_damaged_program_tells_what_it_can(data, at):
    whole = program(MODULES)
    damaged = whole[:at] + data + whole[at + len(data) :]
    for package in parse_program(read_of(damaged), found="/x"):
        assert package.name


@given(st.text(max_size=300), st.binary(max_size=300))
def test_nonsense_is_no_package(text, data):
    list(parse_status(text, namespace="", found=""))
    list(parse_installed(text, namespace="", found=""))
    list(stanzas(text))
    os_release(text)
    parse_metadata(text, found="")
    parse_manifest(data, found="")
    rpm.parse_header(data, namespace="", found="")
    rpm.parse_header(BASH[:20] + data + BASH[20:], namespace="", found="")


def tree(root: Path) -> None:
    def put(path: str, data: str | bytes, *, mode: int = 0o644) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        target.chmod(mode)

    put("usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("/usr/lib/os-release")
    put("var/lib/dpkg/status", DPKG)
    put("var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n")
    put("var/lib/dpkg/status.d/base.md5sums", "Package: not\nVersion: this\n")
    put("lib/apk/db/installed", APK)
    put("usr/lib/python3/dist-packages/flask.dist-info/METADATA", PYTHON)
    put("usr/share/METADATA", PYTHON)
    put("app/package.json", '{"name": "app", "version": "1"}')
    put("app/node_modules/express/package.json", '{"name": "express", "version": "4.19.2"}')
    put("app/node_modules/@types/node/package.json", '{"name": "@types/node", "version": "20.1.0"}')
    put("app/node_modules/express/lib/package.json", '{"name": "inner", "version": "1"}')
    put("bin/app", program(MODULES).ljust(70_000, b"\0"), mode=0o755)
    put("var/lib/rpm/Packages", "old")
    (root / "var/lib/rpm").mkdir(exist_ok=True)
    database(root / "var/lib/rpm/rpmdb.sqlite", BASH)


def scanned(root: Path):
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return scan(fd)
    finally:
        os.close(fd)


def test_a_tree_is_looked_through(tmp_path: Path):
    tree(tmp_path)
    found = scanned(tmp_path)
    names = {f"{package.kind}:{package.name}" for package in found.packages}
    assert names == {
        "deb:libc6",
        "deb:base-files",
        "apk:musl",
        "apk:libssl3",
        "pypi:flask-sqlalchemy",
        "npm:express",
        "npm:node",
        "golang:stdlib",
        "golang:app",
        "golang:sys",
        "golang:new",
        "rpm:bash",
    }
    assert found.distribution == "debian-12"
    assert found.not_covered == ["an RPM database in Berkeley DB form (/var/lib/rpm/Packages)"]


def test_links_that_lead_out_and_things_that_are_no_files_are_passed_over(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text(DPKG)
    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").symlink_to(outside)
    (root / "lib/apk/db").mkdir(parents=True)
    os.mkfifo(root / "lib/apk/db/installed")
    (root / "x.dist-info").mkdir()
    os.mkfifo(root / "x.dist-info/METADATA")
    assert scanned(root).packages == []


def test_the_document_is_spdx_and_always_the_same(tmp_path: Path):
    tree(tmp_path)
    made = document(scanned(tmp_path), identity="sha256:x", created="1970-01-01T00:00:00Z")
    assert made == document(scanned(tmp_path), identity="sha256:x", created="1970-01-01T00:00:00Z")
    assert made["spdxVersion"] == "SPDX-2.3"
    assert "Berkeley" in made["creationInfo"]["comment"]
    ids = [package["SPDXID"] for package in made["packages"]]
    assert len(set(ids)) == len(ids) == 13
    assert all(each.startswith("SPDXRef-") and each.replace("-", "").replace(".", "").isalnum() for each in ids)
    assert {each["relatedSpdxElement"] for each in made["relationships"]} == set(ids)
    assert made["packages"][0]["summary"] == "Debian GNU/Linux 12 (bookworm)"
    node = next(package for package in made["packages"] if package["name"] == "@types/node")
    assert node["externalRefs"][0]["referenceLocator"] == "pkg:npm/%40types/node@20.1.0"
