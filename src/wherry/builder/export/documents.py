"""The documents of an image that was built: config, manifest, index. Pure; the same results give the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.builder.export.cache_manifest import INLINE
from wherry.builder.export.work import Variant
from wherry.digest import Digest, of
from wherry.images.record import Layer
from wherry.spec.image import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    History,
    Platform,
    Raw,
    encode_config,
    format_time,
)

_COMMENT = "buildkit.exporter.image.v0"  # of history that the frontend knows nothing of, as BuildKit has it

_DOCKER_LAYERS = {OCI_LAYER: DOCKER_LAYER, OCI_LAYER_GZIP: DOCKER_LAYER_GZIP}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDocuments:
    config: Raw
    manifest: Raw
    layers: Sequence[Descriptor]

    @property
    def blobs(self) -> frozenset[Digest]:
        return frozenset({self.config.digest, self.manifest.digest, *(layer.digest for layer in self.layers)})


def make_config(variant: Variant, *, epoch: int) -> bytes:
    created = moment(epoch)
    raw = encode_config(
        config=variant.config,
        platform=variant.platform,
        diff_ids=[layer.diff_id for layer in variant.tree.layers],
        history=history_of(variant, created),
        created=created,
        author=variant.author,
    )
    if not variant.cache:
        return raw
    document = msgspec.json.decode(raw)
    document[INLINE] = variant.cache  # base64
    return msgspec.json.encode(document)


def moment(ns: int) -> str:
    """RFC 3339; the epoch's beginning, too."""
    return format_time(ns) if ns else "1970-01-01T00:00:00Z"


def history_of(variant: Variant, created: str) -> list[History]:
    """Entries with times, and as many of them with a layer as there are layers, as BuildKit has it."""
    layers = variant.tree.layers
    found: list[History] = []
    used = 0
    for entry in variant.history:
        empty = entry.empty_layer or used == len(layers)
        used += not empty
        found.append(msgspec.structs.replace(entry, created=entry.created or created, empty_layer=empty))
    return found + [History(created=created, created_by=layer.created_by, comment=_COMMENT) for layer in layers[used:]]


def make_image(
    config: bytes, layers: Sequence[Layer], *, docker: bool, annotations: Mapping[str, str] | None = None
) -> ImageDocuments:
    """Config and manifest, of OCI's types or Docker's."""
    named = Raw(config, DOCKER_CONFIG if docker else OCI_CONFIG, of(config))
    blobs = [
        Descriptor(
            media_type=_DOCKER_LAYERS.get(layer.media_type, layer.media_type) if docker else layer.media_type,
            digest=layer.digest,
            size=layer.size,
        )
        for layer in layers
    ]
    document: dict[str, Any] = {"config": named.descriptor, "layers": blobs}
    if annotations:
        document["annotations"] = dict(annotations)
    return ImageDocuments(
        config=named, manifest=encode(document, DOCKER_MANIFEST if docker else OCI_MANIFEST), layers=blobs
    )


def make_index(
    entries: Sequence[Descriptor], *, docker: bool = False, annotations: Mapping[str, str] | None = None
) -> Raw:
    document: dict[str, Any] = {"manifests": list(entries)}
    if annotations:
        document["annotations"] = dict(annotations)
    return encode(document, DOCKER_INDEX if docker else OCI_INDEX)


def encode(document: Mapping[str, Any], media_type: str) -> Raw:
    """A manifest or an index: `document` with its first two fields before it."""
    data = msgspec.json.encode({"schemaVersion": 2, "mediaType": media_type, **document})
    return Raw(data, media_type, of(data))


def entry(manifest: Raw, platform: Platform, annotations: Mapping[str, str] | None = None) -> Descriptor:
    """As an index names it."""
    return msgspec.structs.replace(
        manifest.descriptor, platform=platform, annotations=dict(annotations) if annotations else None
    )
