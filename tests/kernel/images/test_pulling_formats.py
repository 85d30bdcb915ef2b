"""Layers made for lazy loading are ordinary layers: eStargz, zstd:chunked, SOCI, Nydus' references to gzip."""

import gzip
import io
import json
import struct
import tarfile
import zlib

import pytest
import zstandard

from imagekit.making import digest, encode
from imagekit.registry import FakeRegistry
from imagekit.trees import files
from imagekit.world import World
from wherry.images.transfer.pull import pull
from wherry.spec import image as spec

pytestmark = pytest.mark.kernel

CONTENT = {"first": b"1" * 100_000, "second": b"2" * 70_000, "empty": b""}
TOC = json.dumps({"version": 1, "entries": [{"name": name, "type": "reg"} for name in CONTENT]}).encode()
LANDMARK = b"\x0f"


def member(name: str, content: bytes) -> bytes:
    """One tar entry without an end."""
    out = io.BytesIO()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()


END = bytes(1024)


def gzip_with_extra(data: bytes, extra: bytes) -> bytes:
    """A gzip member with a field in its header, as eStargz' footer is one."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(data) + packed.flush()
    head = b"\x1f\x8b\x08\x04" + bytes(6) + struct.pack("<H", len(extra)) + extra
    return head + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def estargz() -> tuple[bytes, bytes, dict[str, bytes]]:
    """Every file its own gzip member, a table of contents as the last file, an empty member as the footer."""
    entries = [(".no.prefetch.landmark", LANDMARK), *CONTENT.items(), ("stargz.index.json", TOC)]
    parts = [member(name, content) for name, content in entries]
    parts[-1] += END
    blob = b"".join(gzip.compress(part, 6, mtime=0) for part in parts)
    footer = gzip_with_extra(b"", b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % 1234)
    return blob + footer, b"".join(parts), dict(entries)


def skippable(data: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(data)) + data


def zstd_chunked() -> tuple[bytes, bytes, dict[str, bytes]]:
    """Every file its own frames; the manifest and the footer are frames to be skipped, and others may be between."""
    parts = [member(name, content) for name, content in CONTENT.items()]
    parts[-1] += END
    pack = zstandard.ZstdCompressor(level=3).compress
    blob = skippable(b"first of all") + b"".join(pack(part) + skippable(b"between", 15) for part in parts)
    blob += skippable(pack(TOC)) + skippable(struct.pack("<QQQQ", 1, 2, 3, 4) + b"GNUlInUx")
    return blob, b"".join(parts), CONTENT


def zran() -> tuple[bytes, bytes, dict[str, bytes]]:
    """Many small gzip members, cut anywhere, the way pigz and bgzip write them."""
    plain = b"".join(member(name, content) for name, content in CONTENT.items()) + END
    pieces = [plain[at : at + 10_007] for at in range(0, len(plain), 10_007)]
    return b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces), plain, CONTENT


@pytest.mark.parametrize(
    ("form", "media_type"),
    [(estargz, spec.OCI_LAYER_GZIP), (zstd_chunked, spec.OCI_LAYER_ZSTD), (zran, spec.OCI_LAYER_GZIP)],
)
async def test_a_layer_for_lazy_loading_is_unpacked_as_any_other(
    world: World, registry: FakeRegistry, form, media_type
):
    blob, plain, expected = form()
    config = encode({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(plain)]}})
    layer = {
        "mediaType": media_type,
        "digest": digest(blob),
        "size": len(blob),
        "annotations": {
            "containerd.io/snapshot/stargz/toc.digest": digest(TOC),
            "io.github.containers.zstd-chunked.manifest-checksum": digest(TOC),
        },
    }
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [layer],
        }
    )
    registry.blobs.update({digest(config): config, digest(blob): blob})
    registry.put("x", "1", manifest, spec.OCI_MANIFEST)
    image = await pull(world.deps, f"{registry.host}/x:1", progress=world.tell)
    assert files(world, image) == expected


async def test_a_foreign_layer_comes_from_the_address_in_the_manifest(world: World, registry: FakeRegistry):
    plain = member("a", b"1") + END
    blob = gzip.compress(plain, 1, mtime=0)
    config = encode({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(plain)]}})
    layer = {
        "mediaType": f"{spec.OCI_LAYER_FOREIGN}+gzip",
        "digest": digest(blob),
        "size": len(blob),
        "urls": [f"{registry.base}/v2/elsewhere/blobs/{digest(blob)}"],
    }
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.OCI_MANIFEST,
            "config": {"mediaType": spec.OCI_CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [layer],
        }
    )
    registry.blobs.update({digest(config): config, digest(blob): blob})
    registry.failures[f"/v2/x/blobs/{digest(blob)}"] = [404]
    registry.put("x", "1", manifest, spec.OCI_MANIFEST)
    image = await pull(world.deps, f"{registry.host}/x:1", progress=world.tell)
    assert files(world, image) == {"a": b"1"}
    assert len(registry.asked("/v2/elsewhere/")) == 1
