"""A registry that lies, one way per repository. Run by path: `evil_registry.py PORT`; prints "ready", and then a line
for every blob: its repository, its digest and the range that was asked for.

good          a sound two-layer image, for comparison
wrong-layer   a layer's bytes are not what its digest says
wrong-size    the manifest gives a layer another size
truncated     a layer's connection always closes half-way
cut-once      … only the first time: a client that resumes by range succeeds
stuck-once    the first time a layer's second half does not come, though the connection stays
wrong-config  the config's bytes are not what its digest says
wrong-diffid  the layer is not the one the config names
huge          a manifest of 100 MB
not-json      a manifest that is none
schema1       a manifest of the first, unsigned kind
bomb          a layer of a few hundred kB that becomes 8 GiB
dotdot, absolute, through-link, device, opaque-xattr, hardlink-out    layers with the entry of that name
no-layer      a layer that is not there
other-arch    an index without this machine's platform
"""

import http.server
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Entry,
    Image,
    busybox_layer,
    digest,
    directory,
    symlink,
    tar,
    zstd,
)

HUGE = 100 << 20  # bytes
BOMB = 8 << 30  # bytes
STUCK = 8 << 20  # bytes of the layer that stops half-way


def bomb() -> bytes:
    """One file of zeros as zstd: the same compressed gigabyte again and again."""
    import zstandard

    header = io.BytesIO()
    info = tarfile.TarInfo("zeros")
    info.size = BOMB
    header.write(info.tobuf(tarfile.PAX_FORMAT))
    piece = 64 << 20
    zeros = zstandard.ZstdCompressor(level=19).compress(bytes(piece))
    return zstd(header.getvalue()) + zeros * (BOMB // piece) + zstd(bytes(1024))


ENTRIES: dict[str, Sequence[Entry]] = {
    "dotdot": [Entry(name="../../../../../../../../tmp/wherry-escaped", data=b"x")],
    "absolute": [Entry(name="/absolute-escaped", data=b"x")],
    "through-link": [symlink("out", "/tmp"), Entry(name="out/wherry-escaped", data=b"x")],
    "device": [Entry(name="disk", type=tarfile.BLKTYPE, device=(254, 0), mode=0o666)],
    "opaque-xattr": [directory("etc", xattrs={"trusted.overlay.opaque": "y"})],
    "hardlink-out": [Entry(name="stolen", type=tarfile.LNKTYPE, link="../../../../../../../../etc/hostname")],
}


class Repository:
    """What one name answers: a manifest and blobs."""

    def __init__(self, name: str) -> None:
        self.name = name
        ordinary = [Entry(name="extra", data=b"extra\n" * 50_000), Entry(name="name", data=name.encode())]
        if name == "stuck-once":
            ordinary.append(Entry(name="big", data=bytes(range(256)) * (STUCK // 256)))
        extra = tar(ENTRIES.get(name, ordinary))
        image = Image(tags=[], layers=[busybox_layer(), extra])
        config = image.config_document()
        layers = [(OCI_LAYER, busybox_layer()), (OCI_LAYER, extra)]
        if name == "bomb":
            layers[1] = (OCI_LAYER + "+zstd", bomb())
        self.blobs = {digest(data): data for data in (config, *(data for _, data in layers))}
        descriptors = [{"mediaType": kind, "digest": digest(data), "size": len(data)} for kind, data in layers]
        self.last = str(descriptors[1]["digest"])
        if name == "wrong-layer":
            self.blobs[self.last] = extra.replace(b"extra\n", b"EXTRA\n")
        if name == "wrong-config":
            self.blobs[digest(config)] = config.replace(b"layer 0", b"layer 9")
        if name == "wrong-size":
            descriptors[1]["size"] = len(extra) + 512
        if name == "wrong-diffid":
            other = tar([Entry(name="other", data=b"other\n")])
            self.blobs[digest(other)] = other
            descriptors[1] = {"mediaType": OCI_LAYER, "digest": digest(other), "size": len(other)}
        if name == "no-layer":
            del self.blobs[self.last]
        body: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": descriptors,
        }
        self.kind = OCI_MANIFEST
        if name == "huge":
            body["annotations"] = {"padding": "x" * HUGE}
        if name == "schema1":
            self.kind = "application/vnd.docker.distribution.manifest.v1+json"
            body = {"schemaVersion": 1, "name": name, "tag": "latest", "fsLayers": [], "history": []}
        if name == "other-arch":
            self.kind = OCI_INDEX
            platform = {"architecture": "s390x", "os": "linux"}
            entry = {"mediaType": OCI_MANIFEST, "digest": digest(b"x"), "size": 1, "platform": platform}
            body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        self.manifest = b"{not json" if name == "not-json" else json.dumps(body).encode()


repository = cache(Repository)
cut: set[str] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v2":
            self.answer(200, "application/json", b"{}")
            return
        name, kind, reference = self.path.removeprefix("/v2/").rsplit("/", 2)
        found = repository(name)
        if kind == "manifests":
            if reference.startswith("sha256:") and reference != digest(found.manifest):
                self.missing("MANIFEST_UNKNOWN")
                return
            self.answer(200, found.kind, found.manifest, Docker_Content_Digest=digest(found.manifest))
        elif reference in found.blobs:
            self.blob(found, reference)
        else:
            self.missing("BLOB_UNKNOWN")

    def missing(self, code: str) -> None:
        body = {"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}
        self.answer(404, "application/json", json.dumps(body).encode())

    def blob(self, found: Repository, reference: str) -> None:
        data = found.blobs[reference]
        start = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start = int(asked[6:].partition("-")[0])
        print(name := found.name, reference, asked or "all", flush=True)
        stuck = name == "stuck-once" and reference == found.last and name not in cut
        torn = reference == found.last and (
            found.name == "truncated" or (found.name == "cut-once" and found.name not in cut)
        )
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command != "GET":
            return
        if torn:
            cut.add(found.name)
            data = data[: len(data) // 2]
            self.close_connection = True
        if stuck:
            cut.add(found.name)
            self.wfile.write(data[: len(data) // 2])
            self.rfile.read()  # until the client is gone
            return
        self.wfile.write(data[start:])


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
