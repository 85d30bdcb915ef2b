"""Images in memory: tars, layers, configs, manifests, indexes."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import zstandard

from wherry.spec import image as spec

LAYER_TYPES = {
    ("oci", "gzip"): spec.OCI_LAYER_GZIP,
    ("oci", "zstd"): spec.OCI_LAYER_ZSTD,
    ("oci", "plain"): spec.OCI_LAYER,
    ("docker", "gzip"): spec.DOCKER_LAYER_GZIP,
    ("docker", "zstd"): spec.DOCKER_LAYER_ZSTD,
    ("docker", "plain"): spec.DOCKER_LAYER,
}


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(files: Mapping[str, bytes | None]) -> bytes:
    """Files by name; None is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mtime = 1_700_000_000
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def compress(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


@dataclass
class Made:
    """An image: all its blobs by digest, and its manifest."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: list[bytes]
    diff_ids: list[str]
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    @property
    def id(self) -> str:
        return digest(self.config)

    @property
    def layer_digests(self) -> list[str]:
        return [digest(layer) for layer in self.layers]


def make(
    layers: Sequence[Mapping[str, bytes | None]],
    *,
    form: str = "oci",
    compression: str = "gzip",
    architecture: str = "amd64",
    variant: str = "",
    os: str = "linux",
    config: Mapping[str, object] | None = None,
    diff_ids: Sequence[str] | None = None,
) -> Made:
    """`form` is oci or docker, `compression` gzip, zstd or plain; `diff_ids` may lie."""
    tars = [tar(layer) for layer in layers]
    found = list(diff_ids) if diff_ids is not None else [digest(each) for each in tars]
    document = {
        "architecture": architecture,
        "os": os,
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": dict(config or {"Cmd": ["sh"], "Env": ["PATH=/bin"]}),
        "rootfs": {"type": "layers", "diff_ids": found},
        "history": [{"created": "2024-05-06T07:08:09Z", "created_by": f"step {number}"} for number in range(len(tars))],
    }
    if variant:
        document["variant"] = variant
    raw_config = encode(document)
    blobs = [compress(each, compression) for each in tars]
    manifest_type = spec.OCI_MANIFEST if form == "oci" else spec.DOCKER_MANIFEST
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {
                "mediaType": spec.OCI_CONFIG if form == "oci" else spec.DOCKER_CONFIG,
                "digest": digest(raw_config),
                "size": len(raw_config),
            },
            "layers": [
                {"mediaType": LAYER_TYPES[form, compression], "digest": digest(blob), "size": len(blob)}
                for blob in blobs
            ],
        }
    )
    held = {digest(each): each for each in (raw_config, *blobs)}
    return Made(manifest, manifest_type, raw_config, blobs, found, held)


def index(entries: Sequence[tuple[Made, Mapping[str, str] | None]], *, form: str = "oci") -> tuple[bytes, str]:
    """An index of images with their platforms; its bytes and media type."""
    media_type = spec.OCI_INDEX if form == "oci" else spec.DOCKER_INDEX
    manifests = []
    for made, platform in entries:
        entry: dict[str, object] = {
            "mediaType": made.media_type,
            "digest": made.digest,
            "size": len(made.manifest),
        }
        if platform:
            entry["platform"] = dict(platform)
        manifests.append(entry)
    return encode({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}), media_type
