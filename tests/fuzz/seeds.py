"""`python -m fuzz.seeds`: honest inputs to begin with, for targets whose corpus is empty."""

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Iterator

from fuzz.__main__ import CORPUS
from imagekit.archives import docker_archive, platforms
from imagekit.making import compress, encode, index, make, tar


def tars() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for kind, name in (
                (b"0", "d/" + "n" * 90),
                (b"5", "d/"),
                (b"2", "l"),
                (b"1", "h"),
                (b"3", "c"),
                (b"6", "p"),
            ):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname, entry.mtime = kind, "d/" + "n" * 90 if kind in b"12" else "", 1.5
                entry.size = 5 if kind == b"0" else 0
                if form == tarfile.PAX_FORMAT:
                    entry.pax_headers = {"SCHILY.xattr.user.x": "y", "GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}
                archive.addfile(entry, io.BytesIO(b"hello"))
        yield out.getvalue().rstrip(b"\0") + bytes(1024)
    yield tar({"a": b"1", "b/": None, ".wh.c": b""}).rstrip(b"\0") + bytes(1024)


def seeds() -> Iterator[tuple[str, bytes]]:
    made = make([{"a": b"1"}], config={"Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "Labels": {"x": "y"}})
    both = platforms()
    yield from ((name, data) for data in tars() for name in ("tar", "layer"))
    yield "pax", b"30 mtime=1700000000.123456789\n14 path=a/b/c\n25 GNU.sparse.offset=100\n26 GNU.sparse.numbytes=5\n"
    yield "manifest", made.manifest
    yield "manifest", make([{"a": b"1"}], form="docker", compression="zstd").manifest
    yield "manifest", index([(made, {"os": "linux", "architecture": "arm", "variant": "v7"})])[0]
    yield "config", made.config
    digest = "@sha256:" + "a" * 64
    for text in ("alpine", "a/b:1", "localhost:5000/x/y:z" + digest, "[::1]:80/a__b-c", "index.docker.io/library/x"):
        yield "reference", text.encode()
    for text in (
        "linux/arm64/v8",
        "amd64",
        '{"os":"linux","architecture":"arm","variant":"v7"}',
        "2024-05-06T07:08:09.1+02:00",
    ):
        yield "platform", text.encode()
    for how in ("gzip", "zstd", "plain"):
        yield "compression", compress(b"hello " * 50, how)
    yield "compression", gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0) + bytes(9)
    yield "challenge", b'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push", Basic realm="r\\"q"'
    yield (
        "auth",
        base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p", "serveraddress": "r"}).encode()),
    )
    yield "filters", b'{"label":{"a=b":true},"until":["10m"]}'
    for path in sorted((CORPUS.parents[1] / "unit/builder/dockerfiles/valid").glob("*.Dockerfile")):
        yield "dockerfile", path.read_bytes()
    for text in ("${a:-${b}} '$a' \"$b\"", "${a#*b} ${a%%?} ${a//b*/c}", "${b:?no} \\$a ${a+x}"):
        yield "words", "\0".join(("", "a/b.c", "", text)).encode()
        yield "words", "\0".join(("`", "a*b", "c", text.replace("\\", "`"))).encode()
    for patterns in ("*.md\n!README.md", "# a\n**/x/**/[a-c]?*\n", "a*b**c\n\\*/d\n"):
        yield "ignore", "\0".join((patterns, "README.md", "a/x/b/ab", "abbc")).encode()
    files = docker_archive(made, "x:1")
    yield "docker_archive", b"\0".join((b"", files["manifest.json"], *(v for v in files.values() if v[:1] == b"{")))
    yield "docker_archive", b"\0".join((encode({"schemaVersion": 2, "manifests": []}), b"", both.raw))
    yield from (("dns", data) for data in dns_messages())


def dns_messages() -> Iterator[bytes]:
    option = b"\0\0\x29\x04\xd0" + bytes(6)
    for name, kind in ((b"\3Web\0", 1), (b"\3web\3net\0", 28), (b"\1a\1b\0", 15), (b"\1x\0", 16)):
        yield b"\x12\x34\1\0\0\1\0\0\0\0\0\1" + name + bytes([0, kind, 0, 1]) + option
    reverse = b"\x012\x010\x0220\x03172\x07in-addr\x04arpa\0"
    yield b"\0\1\1\0\0\1\0\0\0\0\0\0" + reverse + b"\0\x0c\0\1"
    alias = b"\xc0\x0c\0\5\0\1\0\0\0\x1e\0\6\3cdn\xc0\x0c"
    address = b"\xc0\x21\0\1\0\1\0\0\0\x1e\0\4\x08\x08\x08\x08"
    yield b"\0\2\x81\x80\0\1\0\2\0\0\0\0\3web\0\0\1\0\1" + alias + address


if __name__ == "__main__":
    for number, (name, data) in enumerate(seeds()):
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / f"seed-{number}").write_bytes(data)
