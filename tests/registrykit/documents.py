"""Manifests and indexes to push, with what they need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagekit import making
from imagekit.making import digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
EMPTY = "application/vnd.oci.empty.v1+json"


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass(frozen=True)
class Made:
    data: bytes
    media_type: str
    blobs: Sequence[bytes] = ()
    children: Sequence["Made"] = ()

    @property
    def digest(self) -> str:
        return digest(self.data)

    @property
    def document(self) -> Any:
        return json.loads(self.data)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return descriptor(self.data, self.media_type, **more)


def image(
    seed: str,
    *,
    tars: Sequence[bytes] | None = None,
    layers: Sequence[bytes] | None = None,
    docker: bool = False,
    config: bytes | None = None,
    config_type: str = "",
    subject: Made | None = None,
    **more: Any,
) -> Made:
    """A manifest that is unlike that of every other seed: by default of a real image, of one layer with one file.

    `layers` are taken as they are and need not be any.
    """
    if tars is None:
        tars = [making.tar({"seed": seed.encode()})] if layers is None else []
    layers = [making.compress(each, "gzip") for each in tars] if layers is None else layers
    if config is None:
        rootfs = {"type": "layers", "diff_ids": [digest(each) for each in tars]}
        config = making.encode({"architecture": "amd64", "os": "linux", "author": seed, "rootfs": rootfs})
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config, config_type or (DOCKER_CONFIG if docker else OCI_CONFIG)),
        "layers": [descriptor(layer, DOCKER_LAYER if docker else OCI_LAYER) for layer in layers],
        **more,
    }
    if subject is not None:
        document["subject"] = subject.descriptor()
    return Made(json.dumps(document).encode(), media_type, [config, *layers])


def artifact(seed: str, **more: Any) -> Made:
    """A manifest with the empty config."""
    more = {"artifactType": "application/vnd.example.note", **more}
    return image(seed, config=b"{}", config_type=EMPTY, **more)


def index(children: Sequence[Made], *, docker: bool = False, subject: Made | None = None, **more: Any) -> Made:
    architectures = ("amd64", "arm64", "s390x", "riscv64")
    media_type = DOCKER_LIST if docker else OCI_INDEX
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [
            child.descriptor(platform={"os": "linux", "architecture": architecture})
            for child, architecture in zip(children, architectures, strict=False)
        ],
        **more,
    }
    if subject is not None:
        document["subject"] = subject.descriptor()
    return Made(json.dumps(document).encode(), media_type, children=children)


def altered(made: Made, changes: Mapping[str, Any]) -> Made:
    """With other fields; None takes one away."""
    document = {name: value for name, value in {**made.document, **changes}.items() if value is not None}
    return Made(json.dumps(document).encode(), made.media_type, made.blobs, made.children)
