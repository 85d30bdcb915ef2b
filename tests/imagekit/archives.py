"""Archives of images: made by hand, read by hand, and taken in and out of a world."""

import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from imagekit.making import Made, digest, encode, index, make
from imagekit.world import World
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.record import Image

NAME = "io.containerd.image.name"


async def chunks(data: bytes, size: int = 10_007) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read_in(world: World, data: bytes, **more: object) -> list[Image]:
    return await load(world.deps, chunks(data), progress=world.tell, **more)  # type: ignore[arg-type]


async def archive_of(world: World, *names: str, platforms: Sequence[str] = ()) -> bytes:
    return b"".join([chunk async for chunk in save(world.deps, names, platforms=platforms)])


def members(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            file = archive.extractfile(entry) if entry.isfile() else None
            found[entry.name] = file.read() if file else b""
    return found


def entry(raw: bytes, media_type: str, name: str = "", **more: object) -> dict[str, object]:
    """A descriptor."""
    found: dict[str, object] = {"mediaType": media_type, "digest": digest(raw), "size": len(raw), **more}
    return {**found, "annotations": {NAME: name}} if name else found


def layout(entries: Sequence[Mapping[str, object]], *blobs: bytes) -> dict[str, bytes]:
    """The files of an OCI layout."""
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": encode({"schemaVersion": 2, "manifests": list(entries)}),
        **{blob_path(blob): blob for blob in blobs},
    }


def blob_path(blob: bytes) -> str:
    return f"blobs/sha256/{digest(blob)[7:]}"


def blobs_of(*images: Made) -> list[bytes]:
    return [blob for made in images for blob in (made.manifest, made.config, *made.layers)]


def docker_archive(made: Made, *tags: str) -> dict[str, bytes]:
    """The files of an old docker save: plain layers in directories."""
    plain = [gzip.decompress(layer) for layer in made.layers]
    config = f"{made.id[7:]}.json"
    names = [f"{number:064x}/layer.tar" for number in range(len(plain))]
    listed = [{"Config": config, "RepoTags": list(tags) or None, "Layers": names}]
    return {config: made.config, "manifest.json": encode(listed), **dict(zip(names, plain, strict=True))}


@dataclass
class Platforms:
    """An index of amd64, arm64, and an attestation of each."""

    amd64: Made
    arm64: Made
    attestations: Sequence[Made]
    raw: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest(self.raw)

    @property
    def blobs(self) -> list[bytes]:
        return [self.raw, *blobs_of(self.amd64, self.arm64, *self.attestations)]

    def files(self, name: str = "docker.io/library/x:1") -> dict[str, bytes]:
        return layout([entry(self.raw, self.media_type, name)], *self.blobs)


def attestation(about: Made) -> Made:
    """As buildx makes them: an image manifest whose layers are statements."""
    made = make([])
    statement = encode({"predicateType": "https://slsa.dev/provenance/v0.2", "subject": about.digest})
    document = json.loads(made.manifest)
    document["layers"] = [entry(statement, "application/vnd.in-toto+json")]
    config = encode({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}})
    document["config"] = entry(config, document["config"]["mediaType"])
    made.manifest, made.config, made.layers = encode(document), config, [statement]
    return made


def platforms() -> Platforms:
    amd64 = make([{"a": b"amd64"}, {"b": b"2"}])
    arm64 = make([{"a": b"arm64"}, {"b": b"2"}], architecture="arm64")
    attestations = [attestation(amd64), attestation(arm64)]
    raw, media_type = index(
        [(arm64, {"os": "linux", "architecture": "arm64"}), (amd64, {"os": "linux", "architecture": "amd64"})]
    )
    document = json.loads(raw)
    for made, about in zip(attestations, (amd64, arm64), strict=True):
        found = entry(made.manifest, made.media_type, platform={"os": "unknown", "architecture": "unknown"})
        found["annotations"] = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": about.digest,
        }
        document["manifests"].append(found)
    return Platforms(amd64, arm64, attestations, encode(document), media_type)
